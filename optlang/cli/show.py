"""``optlang show``: the formula file of a library rule or transform."""

from __future__ import annotations

from typing import Annotated

import typer

from optlang.cli.output import library_names, library_path, print_code, read_file

NAME = "show"


def command(
    name: Annotated[
        str,
        typer.Argument(help="A library rule or transform.", autocompletion=library_names, show_default=False),
    ],
    path: Annotated[bool, typer.Option("--path", help="Print where the file is instead.")] = False,
) -> None:
    """Print the formula file of a library rule or transform."""
    file = library_path(name)
    if path:
        print(file)
    else:
        print_code(read_file(file).text, "opt")
