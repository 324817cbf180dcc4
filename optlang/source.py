"""The text of a rule, and spans in it.

A :class:`Source` owns the text; a :class:`Span` is a half-open range of character offsets in it. Lines and columns are
counted from 1, as in editors. In a composed rule, an :class:`Origin` records which text a span belongs to, and which
use included it.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, total_ordering
from pathlib import Path

#: More than any rule has. A longer file is not read to its end, since it may have none.
MAX_BYTES = 1 << 20


@total_ordering
@dataclass(frozen=True)
class Span:
    """A half-open range ``[start, end)`` of character offsets in a source.

    Attributes:
        start: The first character.
        end: The character after the last one.
        origin: The text that this span belongs to in a composed rule; None in the tree of a single text.
        line: The line in the printed text of a composed rule; 0 until it is known, and in a single text.
    """

    start: int
    end: int
    origin: Origin | None = None
    line: int = 0

    def to(self, other: Span) -> Span:
        """Return the smallest span that covers this one and ``other``."""
        return replace(self, start=min(self.start, other.start), end=max(self.end, other.end))

    def __lt__(self, other: Span) -> bool:
        return (self.line, self.path) < (other.line, other.path)

    @property
    def source(self) -> Source | None:
        """The text that this span belongs to, if known."""
        return None if self.origin is None else self.origin.source

    @property
    def used(self) -> Span | None:
        """The span of the use that included this one; None in the rule's own text."""
        return None if self.origin is None else self.origin.used

    @property
    def path(self) -> tuple[tuple[int, int], ...]:
        """The spans of the enclosing uses and this one, outermost first: a sort key in the order of the rule's text."""
        return (*(() if self.used is None else self.used.path), (self.start, self.end))

    @property
    def uses(self) -> tuple[tuple[str, Source, Span], ...]:
        """The uses that included this span, innermost first: each piece, with the text and the span of its use."""
        if self.origin is None or self.used is None or self.used.source is None:
            return ()
        return ((self.origin.piece, self.used.source, self.used), *self.used.uses)

    def holds(self, other: Span) -> bool:
        """Return whether this span contains another one, directly or through its uses."""
        if self.origin == other.origin and self.start <= other.start and other.end <= self.end:
            return True
        return other.used is not None and self.holds(other.used)

    def moved(self, old: Origin, new: Origin) -> Span:
        """Return this span with the origin ``old`` replaced by ``new``, also in enclosing uses."""
        if self.origin == old:
            return replace(self, origin=new)
        if self.origin is None or self.origin.used is None:
            return self
        return replace(self, origin=replace(self.origin, used=self.origin.used.moved(old, new)))


@dataclass(frozen=True)
class Origin:
    """Where a piece of a composed rule was written, and which use included it.

    Attributes:
        source: The text it was written in.
        piece: The name of the transform or rule it belongs to; empty for the rule itself.
        used: The span of the use of that transform or rule; None for the rule itself.
    """

    source: Source
    piece: str = ""
    used: Span | None = None


@dataclass(frozen=True)
class Source:
    """The text of a rule, with the name to report it under (a file name, or ``<rule>``)."""

    text: str
    name: str = "<rule>"

    @cached_property
    def line_starts(self) -> tuple[int, ...]:
        """Offset of the first character of each line."""
        starts = [0]
        starts.extend(i + 1 for i, character in enumerate(self.text) if character == "\n")
        return tuple(starts)

    def position(self, offset: int) -> tuple[int, int]:
        """Return the line and column, both from 1, of a character offset."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return line ``number`` (from 1) without its newline."""
        start = self.line_starts[number - 1]
        end = self.line_starts[number] if number < len(self.line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r\n")

    def excerpt(self, span: Span) -> str:
        """Return the characters of a span."""
        return self.text[span.start : span.end]


def read_text(path: Path) -> str:
    """Return the text of a file named by a rule; of a file far too long for a rule, only the beginning.

    Raises:
        OSError: If it cannot be read, or is a device, a pipe or a folder.
        ValueError: If it is not UTF-8, or its name is not a valid file name.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "it is not an ordinary file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES)
    return data.decode("utf-8", "strict" if len(data) < MAX_BYTES else "ignore")
