"""``optlang emit``: print the compiler's output for a rule, at any stage."""

from __future__ import annotations

import pkgutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optlang.cli.output import (
    File,
    Refusal,
    Settings,
    formats_by_key,
    parse_settings,
    plural,
    print_code,
    print_diagnostics,
    read_source,
    write_file,
)
from optlang.source import Source

if TYPE_CHECKING:
    from optlang.api import Given

NAME = "emit"


class EmittedForm(StrEnum):
    """The stages of compilation whose output can be printed."""

    TREE = "tree"
    PLAIN = "plain"
    RULE = "rule"
    PROGRAM = "program"
    SOURCE = "source"
    CPP = "cpp"


def _targets() -> list[str]:
    """Return the names of the targets, without importing them."""
    folder = Path(__file__).parents[1] / "targets"
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name[0] != "_")


def command(
    file: File,
    stage: Annotated[
        EmittedForm | None,
        typer.Option(
            help="tree (syntax), plain (expanded), rule (checked), program (IR), source (the default), cpp (kernels)."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Write to this file instead.")
    ] = None,
    settings: Settings = None,
    ndim: Annotated[int, typer.Option(min=0, help="Number of dimensions of the parameter.")] = 2,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help=f"Write a standalone file, which does not need optlang ({', '.join(_targets())})."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="Formats of the states in that file: fp32, bf16, or KEY=FORMAT,..."),
    ] = None,
) -> None:
    """Print what the compiler makes of a rule: by default the Python source that runs."""
    from optlang.checker.check import check_text

    if target is not None and stage is not None:
        raise Refusal("--stage prints an intermediate form, --target writes a standalone file: give only one of them")
    if store is not None and target is None:
        raise Refusal("--store needs --target; `optlang show --store` prints how states are stored")
    stage = stage or EmittedForm.SOURCE
    source = read_source(file)
    values = parse_settings(settings)
    errors = [d for d in check_text(source)[1] if d.is_error] if stage is not EmittedForm.TREE else []
    if errors:
        print_diagnostics(errors, sys.stderr)
        print(f"nothing emitted: {plural(len(errors), 'error')}", file=sys.stderr)
        raise typer.Exit(1)
    if target is not None:
        return _export(source, target, values, ndim, output, formats_by_key(store))
    text = _emit(source, stage, values, ndim)
    if output is None:
        print_code(
            text, {EmittedForm.SOURCE: "python", EmittedForm.PLAIN: "opt", EmittedForm.CPP: "cpp"}.get(stage, "text")
        )
    else:
        write_file(output, text if text.endswith("\n") else text + "\n")


def _emit(source: Source, stage: EmittedForm, values: dict[str, Given], ndim: int) -> str:
    """Call the driver; an unusable setting is reported as a user error."""
    import optlang

    try:
        return optlang.emit(source, stage=stage.value, values=values, ndim=ndim)
    except ValueError as error:
        if not values:
            raise
        raise Refusal(f"--set: {error}") from error


def _export(
    source: Source,
    target: str,
    values: dict[str, Given],
    ndim: int,
    output: Path | None,
    store: str | dict[str, str] | None,
) -> None:
    """Write or print a file for use outside this package."""
    import optlang
    from optlang.diagnostics import OptlangError

    try:
        content = optlang.export(source, target, values=values, ndim=ndim, store=store)
    except OptlangError as error:
        print_diagnostics(error.diagnostics, sys.stderr)
        raise typer.Exit(1) from None
    except ValueError as error:
        raise Refusal(str(error)) from error
    if output is not None:
        output.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, str):
        print_code(content, "python")
    else:
        raise Refusal(f"--target {target} writes a binary file: give its name with -o")
