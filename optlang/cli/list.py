"""``optlang list``: the rules of the library, or its transforms."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, NamedTuple

import typer

from optlang.cli.output import library_names, library_path, read_file, use_color
from optlang.syntax.tree import OptimizerDecl

NAME = "list"


class What(StrEnum):
    """The kinds of entries in the library."""

    RULES = "rules"
    TRANSFORMS = "transforms"


class Row(NamedTuple):
    """One rule: its class name, its reference implementation, and the first line of its docstring."""

    name: str
    reference: str
    summary: str


def command(
    what: Annotated[What, typer.Argument(help="rules, or transforms: the building blocks of rules.")] = What.RULES,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List the rules of the library with their references, or its transforms."""
    if what is What.TRANSFORMS:
        _list_transforms(as_json)
        return
    rows = [_row(name) for name in library_names()]
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for row in rows:
            print(f"{row.name:<{widths[0]}}  {row.reference:<{widths[1]}}  {row.summary}".rstrip())


def _list_transforms(as_json: bool) -> None:
    """Print the transforms: their call syntax, and the first line of their docstrings."""
    from optlang import transforms

    known = [getattr(transforms, name) for name in transforms.names()]
    if as_json:
        rows = [{"name": t.name, "signature": f"{t.name}{t.__signature__}", "summary": t.summary} for t in known]
        print(json.dumps(rows, indent=2))
        return
    width = max(len(t.name) for t in known)
    for transform in known:
        print(f"{transform.name:<{width}}  {transform.summary}")


def _row(name: str) -> Row:
    from optlang.syntax.parse import parse

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
