"""``optlang bench``: time rules against the optimizers they are written after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optlang.cli.output import Files, Refusal, Settings, library_names, parse_setting, read_source

if TYPE_CHECKING:
    from optlang.bench.run import Result

NAME = "bench"


def command(
    rules: Files,
    shapes: Annotated[
        str,
        typer.Option(help="gpt2, gpt2-matrices, matrices, resnet50, many, mlp, several with commas, or all."),
    ] = "resnet50",
    against: Annotated[
        str | None,
        typer.Option(
            help="fused, foreach, clipped (clip_grad_norm_, then fused AdamW), averaged (the same, and AveragedModel), "
            "module, module-eager, torchscript or aoti (the rule's own file, as `emit --target` writes it), "
            "MODULE:CLASS, or a package, for its optimizer of the rule's name "
            "(default: the rule's own reference, fused if it can be)."
        ),
    ] = None,
    settings: Settings = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each round (default: as many as take a quarter of a second).")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each side, taken in turns.")] = 7,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    backend: Annotated[str, typer.Option(help="inductor or eager.")] = "inductor",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch may use.")] = None,
    first_step: Annotated[
        bool,
        typer.Option("--first-step", help="Time first steps in new processes, too, and what memory they take."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the ratios into this file (needs matplotlib)."),
    ] = None,
) -> None:
    """Time rules (or the whole `library`) against a peer in interleaved rounds, and compare where they end."""
    whole = list(rules) == ["library"]
    sources = [read_source(rule) for rule in (library_names() if whole else rules)]
    left_out: list[str] = []
    values = dict(parse_setting(text) for text in settings or [])
    from optlang.bench import report, run

    try:
        plans = run.plan(
            sources,
            shapes,
            against,
            dtype=dtype,
            device=device,
            values=values,
            backend=backend,
            left_out=left_out if whole else None,
        )
    except ValueError as error:
        raise Refusal(str(error)) from error
    if left_out:
        print(f"no counterpart in {against}: {', '.join(left_out)}", file=sys.stderr)
    try:
        results = report.measure_all(plans, run.Settings(steps, rounds, threads, first_step))
    except ValueError as error:
        raise Refusal(str(error)) from error
    if as_json:
        print(report.as_json(results))
    else:
        report.print_table(results)
    if save is not None:
        _draw(results, save)


def _draw(results: Sequence[Result], path: Path) -> None:
    from optlang.bench import report

    try:
        report.draw(results, path)
    except ImportError as error:
        raise Refusal("--save needs matplotlib: pip install 'optlang-torch[plot]'") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot write {path}: {error}") from error
