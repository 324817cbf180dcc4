"""``optlang list``: the rules of the library."""

from __future__ import annotations

import json
import sys
from typing import Annotated, NamedTuple

import typer

from optlang.cli.output import library_names, library_path, read_file, use_color
from optlang.language.tree import OptimizerDecl

NAME = "list"


class Row(NamedTuple):
    """One rule: its class name, its reference implementation, and the first line of its docstring."""

    name: str
    reference: str
    summary: str


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List the rules of the library: name, reference implementation, what it is."""
    rows = [_row(name) for name in library_names()]
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for row in rows:
            print(f"{row.name:<{widths[0]}}  {row.reference:<{widths[1]}}  {row.summary}".rstrip())


def _row(name: str) -> Row:
    from optlang.language.parse import parse

    tree = parse(read_file(library_path(name)))
    declared = next((item for item in tree.items if isinstance(item, OptimizerDecl)), None)
    summary = tree.doc.value.strip().splitlines()[0].removeprefix(f"{name}: ") if tree.doc else ""
    return Row(declared.name.text if declared else name, (declared and declared.reference) or "", summary)


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("rule", "reference", "what it is", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(f"[cyan]{row.name}[/]", f"[dim]{row.reference}[/]", row.summary)
    Console(no_color=not use_color(sys.stdout)).print(table)
