"""``optlang emit``: print what the compiler makes of a rule, at any stage."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from optlang.cli.output import (
    File,
    Refusal,
    Settings,
    parse_setting,
    plural,
    print_code,
    print_diagnostics,
    read_source,
    write_file,
)
from optlang.language.rule import Value

NAME = "emit"


class Stage(StrEnum):
    """The forms a rule passes through."""

    TREE = "tree"
    RULE = "rule"
    PROGRAM = "program"
    SOURCE = "source"


def command(
    file: File,
    stage: Annotated[
        Stage, typer.Option(help="tree (syntax), rule (checked), program (IR), source (Python).")
    ] = Stage.SOURCE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Write to this file instead.")
    ] = None,
    settings: Settings = None,
    ndim: Annotated[int, typer.Option(min=0, help="Dimensions of the tensor it is for.")] = 2,
) -> None:
    """Print what the compiler makes of a rule: by default the Python source that runs."""
    from optlang.diagnostics import OptlangError

    source = read_source(file)
    values = dict(parse_setting(text) for text in settings or [])
    try:
        text = _emit(source, stage, values, ndim)
    except OptlangError as error:
        print_diagnostics(error.diagnostics, sys.stderr)
        print(f"nothing emitted: {plural(len(error.diagnostics), 'error')}", file=sys.stderr)
        raise typer.Exit(1) from None
    if output is None:
        print_code(text, "python" if stage is Stage.SOURCE else "text")
    else:
        write_file(output, text if text.endswith("\n") else text + "\n")


def _emit(source: object, stage: Stage, values: dict[str, Value], ndim: int) -> str:
    """Call the driver; a setting that it cannot use is the user's mistake."""
    import optlang

    try:
        return optlang.emit(source, stage=stage.value, values=values, ndim=ndim)
    except (KeyError, ValueError, TypeError) as error:
        if not values:
            raise
        raise Refusal(f"--set: {error.args[0] if error.args else error}") from error
