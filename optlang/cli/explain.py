"""``optlang explain``: what a diagnostic code means."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from optlang.cli.output import Refusal, did_you_mean, use_color

if TYPE_CHECKING:
    from optlang.codes import Entry

NAME = "explain"


def _codes() -> list[str]:
    from optlang import codes

    return [*codes.entries()]


def command(
    code: Annotated[
        str | None,
        typer.Argument(
            help="A code such as E201; without one, all are listed.",
            autocompletion=_codes,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Explain a diagnostic code, or list all of them."""
    from optlang import codes

    entries = codes.entries()
    if code is None:
        for entry in entries.values():
            print(f"{_bold(entry.code)}  {entry.title}")
        return
    entry_or_none = entries.get(code.upper())
    if entry_or_none is None:
        raise Refusal(f"there is no diagnostic {code!r}{did_you_mean(code, entries)}")
    _print_entry(entry_or_none)


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if use_color(sys.stdout) else text


def _print_entry(entry: Entry) -> None:
    kind = "error" if entry.code.startswith("E") else "warning"
    print(_bold(f"{entry.code} ({kind}): {entry.title}"), end="\n\n")
    for paragraph in entry.explanation.split("\n\n"):
        print(textwrap.fill(" ".join(paragraph.split()), 96), end="\n\n")
    print("For example:\n")
    print(textwrap.indent(entry.example.strip("\n"), "    "))
    if entry.instead:
        print("\nInstead:\n")
        print(textwrap.indent(entry.instead.strip("\n"), "    "))
