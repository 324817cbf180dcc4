"""``optlang bench``: time rules against their reference implementations."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optlang.backends import files
from optlang.bench.shapes import SHAPES, chosen
from optlang.cli.output import Files, Refusal, Settings, formats_by_key, library_names, parse_settings, read_source

if TYPE_CHECKING:
    from optlang.bench.plan import Comparison

NAME = "bench"


class Type(StrEnum):
    """Types of parameters."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


#: Backend that runs the rules.
BackendChoice = StrEnum("BackendChoice", {name.upper(): name for name in ("auto", *files())})  # type: ignore[misc]
AUTO = BackendChoice("auto")


def command(
    rules: Files,
    shapes: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SHAPES)}, several with commas, or all (those with dense gradients). Parameters that a "
            f"rule cannot update are left out (default: resnet50; matrices for rules that need matrices).",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="fused, foreach, clipped (clip_grad_norm_, then fused AdamW), averaged (the same, and AveragedModel), "
            "itself (without --store), module, module-eager, torchscript or aoti (the file that `emit --target` "
            "writes for the rule), "
            "MODULE:CLASS, or a package, for its optimizer with the name of the rule "
            "(default: the reference that the rule names, fused where possible)."
        ),
    ] = None,
    settings: Settings = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per round (default: as many as take a quarter of a second).")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; rule and reference alternate.")] = 7,
    longest: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Start no further round of a comparison after this time."),
    ] = 120.0,
    dtype: Annotated[Type, typer.Option(help="Type of the parameters.")] = Type.FLOAT32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    backend: Annotated[BackendChoice, typer.Option(help="Backend that runs the rules.")] = AUTO,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FORMATS",
            help="Formats of the rule's states: 8bit, bf16, fp32, or for example exp_avg=fp8,exp_avg_sq=log8; compare "
            "with `--against itself`.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads for torch.")] = None,
    first_step: Annotated[
        bool,
        typer.Option("--first-step", help="Also measure the time and memory of the first step in new processes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Plot the ratios to this file (needs matplotlib)."),
    ] = None,
) -> None:
    """Benchmark rules (or the whole `library`) against reference implementations, and compare the results.

    What cannot be compared gets a row with the reason, and the exit code is 1.
    """
    whole = list(rules) == ["library"]
    sources = [read_source(rule) for rule in (library_names() if whole else rules)]
    left_out: dict[str, str] = {}
    values = parse_settings(settings)
    try:
        if shapes is not None:
            chosen(shapes)  # before torch is imported
        if save is not None:
            _check_picture(save)
        from optlang.bench import report, run
        from optlang.bench.plan import plans_of

        plans = plans_of(
            sources,
            shapes,
            against,
            dtype=dtype.value,
            device=device,
            values=values,
            backend=backend.value,
            store=formats_by_key(store),
            left_out=left_out if whole else None,
        )
    except ValueError as error:
        raise Refusal(str(error)) from error
    _say_what_is_missing(left_out, plans)
    how = run.Settings(steps, rounds, longest, threads, first_step)
    rows = report.Rows(plans, how)
    show = rows.show if not as_json else (lambda result: print(report.as_json(result), flush=True))
    results = report.measure_all(plans, how, show)
    if not as_json:
        rows.end(results)
    if save is not None and any(isinstance(result, run.RowResult) for result in results):
        try:
            report.draw(results, save)
        except (OSError, ValueError) as error:
            raise Refusal(f"cannot write {save}: {error}") from error
    if any(isinstance(result, run.Failure) for result in results):
        raise typer.Exit(1)


def _say_what_is_missing(left_out: Mapping[str, str], plans: Sequence[Comparison]) -> None:
    """Print which rules and parameters are left out."""
    if left_out:
        print(f"nothing to compare with: {', '.join(left_out)}", file=sys.stderr)
    for plan in plans:
        if plan.refused is None and len(plan.members) < plan.total:
            taken = f"takes {len(plan.members)} of the {plan.total} parameters of {plan.shapes}"
            print(f"{plan.name} {taken}; the others are left out", file=sys.stderr)


def _check_picture(path: Path) -> None:
    from optlang.bench import report

    try:
        report.check_picture(path)
    except ImportError as error:
        raise Refusal("--save needs matplotlib: pip install 'optlang-torch[plot]'") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot write {path}: {error}") from error
