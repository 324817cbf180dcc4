"""Diagnostics as values, and their rendering.

A :class:`Diagnostic` says what is wrong, where, and what to do. Stages collect diagnostics; nothing is printed or
raised until a stage is finished. Messages are written where the mistake is found; :mod:`optlang.codes` explains each
code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optlang.source import Source, Span

RESET, BOLD, RED, YELLOW, BLUE, CYAN = "\033[0m", "\033[1m", "\033[31m", "\033[33m", "\033[34m", "\033[36m"


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a rule.

    Attributes:
        code: Stable code, ``E...`` for an error, ``W...`` for a warning (see ``optlang explain``).
        message: A sentence that names the problem, without a final full stop.
        source: The text that contains the span; in a composed rule, possibly another file.
        span: The characters it concerns, or None if it concerns the whole rule.
        label: Text next to the carets, such as what was expected, if any.
        help: How to fix it, in one line, if known.
        related: Other places, each with a label ("first declared here").
    """

    code: str
    message: str
    source: Source
    span: Span | None = None
    label: str | None = None
    help: str | None = None
    related: tuple[tuple[str, Span], ...] = ()

    def __post_init__(self) -> None:
        if self.span is not None and self.span.source is not None:
            object.__setattr__(self, "source", self.span.source)

    @property
    def is_error(self) -> bool:
        """Whether the rule cannot be compiled because of this."""
        return self.code.startswith("E")

    @property
    def position(self) -> tuple[int, int]:
        """Line and column, from 1 (``(1, 1)`` if it concerns the whole rule)."""
        return self.source.position(self.span.start) if self.span else (1, 1)

    @property
    def uses(self) -> tuple[tuple[str, Source, Span], ...]:
        """How the span got into the rule: each transform or rule, innermost first, with its use."""
        return () if self.span is None else self.span.uses

    @property
    def outermost(self) -> tuple[Source, Span]:
        """The place in the rule's own text: the span itself, or the outermost use that includes it."""
        return self.uses[-1][1:] if self.uses else (self.source, self.span or Span(0, 0))

    @property
    def order(self) -> tuple[object, ...]:
        """The sort key: positions in the rule's own text."""
        return self.outermost[0].name, (self.span or Span(0, 0)).path, self.code

    def render(self, color: bool = False) -> str:
        """Return the finding as text: a headline, the line with carets, and the help line."""
        return _render(self, color)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain data, for ``optlang check --json``."""
        line, column = self.position
        end_line, end_column = self.source.position(self.span.end) if self.span else (line, column)
        return {
            "code": self.code,
            "severity": "error" if self.is_error else "warning",
            "message": self.message,
            "file": self.source.name,
            "line": line,
            "column": column,
            "end_line": end_line,
            "end_column": end_column,
            "label": self.label,
            "help": self.help,
            "uses": [
                {"piece": piece, "file": source.name, "line": line, "column": column}
                for piece, source, used in self.uses
                for line, column in (source.position(used.start),)
            ],
        }

    def __str__(self) -> str:
        return self.render()


class OptlangError(Exception):
    """Raised for a rule that cannot be compiled; ``diagnostics`` holds all findings."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n\n" + render_all(self.diagnostics)


def render_all(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """Return all findings as text, sorted by position, separated by blank lines."""
    return "\n\n".join(d.render(color) for d in sorted(diagnostics, key=lambda d: d.order))


def raise_errors(diagnostics: Iterable[Diagnostic]) -> None:
    """Raise :class:`OptlangError` with all findings if any of them is an error."""
    found = tuple(diagnostics)
    if any(d.is_error for d in found):
        raise OptlangError(found)


def _width(text: str) -> int:
    """Return the number of terminal cells of ``text`` (wide characters take two, combining ones none)."""
    cells = 0
    for character in text:
        if unicodedata.combining(character):
            continue
        cells += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return cells


def _printable(text: str, kept: str = "") -> str:
    """Return ``text`` with tabs expanded and control characters made visible, so that carets line up."""
    if text.isprintable():
        return text
    shown = text.replace("\t", "    ")
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in shown)


def _clip(line: str, start: int, end: int, limit: int = 120) -> tuple[str, int, int]:
    """Clip a very long line to the neighbourhood of columns ``start`` to ``end`` (from 0)."""
    if len(line) <= limit:
        return line, start, end
    left = max(0, min(start - limit // 3, len(line) - limit))
    right = min(len(line), left + limit)
    head, tail = ("..." if left else ""), ("..." if right < len(line) else "")
    shift = len(head) - left
    return head + line[left:right] + tail, start + shift, min(end, right) + shift


def _excerpt(source: Source, span: Span, label: str | None, paint: str, color: bool) -> list[str]:
    """Return the numbered line that contains ``span``, with carets below it."""
    number, column = source.position(min(span.start, len(source.text)))
    line = source.line(number)
    start = column - 1
    end = min(max(start + 1, start + span.end - span.start), max(len(line), start + 1))
    line, start, end = _clip(line, start, end)
    before, marked = _printable(line[:start]), _printable(line[start:end])
    gutter = str(number)
    carets = "^" * max(1, _width(marked))
    note = f" {_printable(label)}" if label else ""
    on, off, dim = (paint, RESET, BLUE) if color else ("", "", "")
    return [
        f"{dim}{gutter} |{off} {_printable(line)}".rstrip(),
        f"{dim}{' ' * len(gutter)} |{off} {' ' * _width(before)}{on}{carets}{note}{off}",
    ]


def _render(diagnostic: Diagnostic, color: bool) -> str:
    word, paint = ("error", RED) if diagnostic.is_error else ("warning", YELLOW)
    head = f"{word}[{diagnostic.code}]"
    line, column = diagnostic.position
    name = _printable(diagnostic.source.name)
    place = f"{name}:{line}:{column}" if diagnostic.span else name
    message = _printable(diagnostic.message, kept="\n")
    if color:
        head, message = f"{BOLD}{paint}{head}{RESET}", f"{BOLD}{message}{RESET}"
    lines = [f"{head}: {message}", f"  --> {place}"]
    if diagnostic.span:
        lines += _excerpt(diagnostic.source, diagnostic.span, diagnostic.label, paint, color)
    places = [(f"in `{piece}`, used here", source, span) for piece, source, span in diagnostic.uses]
    places += [(sentence, span.source or diagnostic.source, span) for sentence, span in diagnostic.related]
    for sentence, source, span in places:
        row, col = source.position(span.start)
        lines.append(f"  --> {_printable(source.name)}:{row}:{col}: {_printable(sentence)}")
        lines += _excerpt(source, span, None, BLUE, color)
    if diagnostic.help:
        help = _printable(diagnostic.help, kept="\n")
        lines.append(f"{CYAN}help:{RESET} {help}" if color else f"help: {help}")
    return "\n".join(lines)
