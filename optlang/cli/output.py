"""Shared code of the commands: user errors, color, reading rule files and writing results."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from optlang.source import Source
from optlang.syntax.suggest import nearest

if TYPE_CHECKING:
    from optlang.api import Given
    from optlang.diagnostics import Diagnostic
    from optlang.rule import Value

#: More bytes than any rule has; reading stops there, so that a device file cannot hang a command.
BYTES_READ = 4_000_000

STANDARD_INPUT = "<stdin>"


class Refusal(Exception):
    """A command that cannot run as requested; one line for the user, exit code 2."""


def library_names() -> list[str]:
    """Return the names of the library's rules, for completion and suggestions."""
    from optlang import rules

    return [*rules.names()]


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A rule file, the name of a library rule, or - for standard input.",
        autocompletion=library_names,
        show_default=False,
    ),
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Rule files, names of library rules, or - for standard input.",
        autocompletion=library_names,
        show_default=False,
    ),
]

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Value of a hyperparameter (`betas=0.8,0.9` for a tuple); may be repeated.",
    ),
]


def use_color(stream: TextIO) -> bool:
    """Return whether to color output to ``stream``: on terminals, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known word closest to ``word``, or nothing."""
    close = nearest(word, known)
    return f"; did you mean {close}?" if close else ""


def plural(count: int, noun: str) -> str:
    """Return ``1 error``, ``2 errors``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def read_source(argument: str) -> Source:
    """Return the text that a FILE argument names: standard input, a file, or a library rule.

    Raises:
        Refusal: If the file does not exist or cannot be read as text.
    """
    if argument == "-":
        return Source(_decode(sys.stdin.buffer.read(BYTES_READ), STANDARD_INPUT), STANDARD_INPUT)
    path = Path(argument)
    if not path.exists():
        return _library_source(argument)
    return Source(_decode(_read(path), argument), argument)


def read_file(path: Path) -> Source:
    """Return the text of a file (never of a library rule)."""
    if not path.exists():
        raise Refusal(f"no such file: {path}")
    return Source(_decode(_read(path), str(path)), str(path))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise Refusal(f"{path} is a directory, not a rule file")
    try:
        with path.open("rb") as handle:
            return handle.read(BYTES_READ)
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}") from error


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{name} is not UTF-8 text (byte {error.start})") from error


def _library_source(argument: str) -> Source:
    """Return the library rule of that name, or report that there is neither a file nor a rule."""
    from optlang import rules

    known = rules.names()
    if argument.lower() in (name.lower() for name in known):
        path = rules.path(argument)
        return Source(_decode(_read(path), path.name), path.name)
    if os.sep in argument or "/" in argument or argument.endswith(".opt"):
        folder = Path(argument).parent
        near = did_you_mean(argument, map(str, folder.glob("*.opt"))) if folder.is_dir() else ""
        raise Refusal(f"no such file: {argument}{near}")
    raise Refusal(f"no file and no library rule is called {argument!r}{did_you_mean(argument, rules.names())}")


def library_path(name: str) -> Path:
    """Return the file of a library rule or transform.

    Raises:
        Refusal: If the library has neither.
    """
    from optlang import rules
    from optlang.syntax.library import transform_files

    if name in transform_files():
        return transform_files()[name]
    try:
        return rules.path(name)
    except KeyError as error:
        raise Refusal(str(error.args[0])) from error


def write_file(path: Path, text: str) -> None:
    """Write a text file; a failure is reported as a user error."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise Refusal(f"cannot write {path}: {error.strerror}") from error


def print_diagnostics(diagnostics: Sequence[Diagnostic], stream: TextIO) -> None:
    """Print diagnostics with their excerpts, in color on a terminal, each followed by an empty line."""
    from optlang.diagnostics import render_all

    if diagnostics:
        print(render_all(diagnostics, use_color(stream)), file=stream, end="\n\n")


def print_code(text: str, lexer: str) -> None:
    """Print source text, highlighted on a terminal. ``lexer`` is ``opt`` or ``python``."""
    if not use_color(sys.stdout):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from rich.console import Console
    from rich.syntax import Syntax

    from optlang.cli.highlight import RuleLexer

    chosen = RuleLexer() if lexer == "opt" else lexer
    Console(force_terminal=True).print(
        Syntax(text, chosen, theme="ansi_dark", background_color="default", word_wrap=False)
    )


def parse_settings(texts: Sequence[str] | None) -> dict[str, Given]:
    """Return the values of ``--set NAME=VALUE`` by name: numbers, true, false, none, strings, comma-separated lists.

    Raises:
        Refusal: If there is no ``=``.
    """
    return dict(parse_setting(text) for text in texts or [])


#: Text in brackets, and text between commas outside brackets.
_BRACKETS = re.compile(r"\([^()]*\)")
_BETWEEN_COMMAS = re.compile(r"(?:\([^()]*\)|[^,])+")


def formats_by_key(text: str | None) -> str | dict[str, str] | None:
    """Return the value of ``--store``: a preset unchanged, ``KEY=FORMAT,...`` as formats by key."""
    bare = "" if text is None else _BRACKETS.sub("", text)
    if text is None or "=" not in bare:
        return text
    commas = (part.group() for part in _BETWEEN_COMMAS.finditer(text))
    return dict(part.partition("=")[::2] for part in commas)


def parse_setting(text: str) -> tuple[str, Given]:
    """Return the name and value of one setting."""
    name, equals, written = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise Refusal(f"--set expects NAME=VALUE, got {text!r}")
    parts = written.strip("()[]").split(",")
    return name, _value(written) if len(parts) == 1 else tuple(_value(part.strip()) for part in parts if part.strip())


def _value(written: str) -> Value:
    words: dict[str, Value] = {"true": True, "false": False, "none": None}
    if written.lower() in words:
        return words[written.lower()]
    try:
        return float(written)
    except ValueError:
        return written.strip("\"'")
