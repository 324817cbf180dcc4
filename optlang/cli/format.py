"""``optlang format``: write rules in their canonical form."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer

from optlang.cli.output import plural, print_diagnostics, read_file, read_source, write_file
from optlang.source import Source

NAME = "format"


def command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Rule files, or - for standard input.", show_default=False),
    ],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change.")] = False,
) -> None:
    """Rewrite rule files in canonical form; comments are kept.

    With - the result goes to standard output.
    """
    changed, failed = 0, 0
    for file in files:
        source = read_source(file) if file == "-" else read_file(Path(file))
        text = _formatted(source)
        if text is None:
            failed += 1
            continue
        differs = text != source.text
        changed += differs
        if diff:
            sys.stdout.write(_difference(source, text))
        elif file == "-" and not check:
            sys.stdout.write(text)
        elif differs and check:
            print(f"would reformat {source.name}")
        elif differs:
            write_file(Path(file), text)
            print(f"reformatted {source.name}")
    if files != ["-"] and not diff:
        _print_total(len(files), changed, failed, check)
    if failed or (changed and (check or diff)):
        raise typer.Exit(1)


def _formatted(source: Source) -> str | None:
    """Return the canonical text, or None after printing why the source does not parse."""
    from optlang.diagnostics import OptlangError
    from optlang.syntax.parse import parse
    from optlang.syntax.unparse import format_tree

    try:
        text = format_tree(parse(source))
    except OptlangError as error:
        print_diagnostics(error.diagnostics, sys.stderr)
        return None
    # A file is only replaced by text that is itself in canonical form.
    if format_tree(parse(Source(text, source.name))) != text:
        raise AssertionError(f"formatting {source.name} twice gives another text")
    return text


def _difference(source: Source, text: str) -> str:
    lines = difflib.unified_diff(
        source.text.splitlines(keepends=True),
        text.splitlines(keepends=True),
        source.name,
        f"{source.name} (formatted)",
    )
    mark = "\n\\ No newline at end of file\n"
    return "".join(line if line.endswith("\n") else line + mark for line in lines)


def _print_total(files: int, changed: int, failed: int, check: bool) -> None:
    words = [f"{plural(changed, 'file')} {'would change' if check else 'reformatted'}"]
    unchanged = files - changed - failed
    if unchanged:
        words.append(f"{unchanged} already formatted")
    if failed:
        words.append(f"{plural(failed, 'file')} with syntax errors")
    print(", ".join(words), file=sys.stderr)
