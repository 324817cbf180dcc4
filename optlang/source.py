"""The text of a rule and places in it.

A :class:`Source` owns the text; a :class:`Span` is a half-open range of character offsets in it. Lines and
columns are counted from 1, as editors do. In a rule that is made of others, an :class:`Origin` says which text a span
is in, and what brought that piece of it into the rule.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, total_ordering
from pathlib import Path

#: More than any rule has: what is longer is not read to its end, for it may have none.
MAX_BYTES = 1 << 20


@total_ordering
@dataclass(frozen=True)
class Span:
    """A half-open range ``[start, end)`` of character offsets in a source.

    Attributes:
        start: The first character.
        end: The character after the last one.
        origin: Where the text of a composed rule comes from that this is in; None in the tree of a single text.
        line: The line of the composed rule that this has come to; 0 before that is known, and in a single text.
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
        """The text that this is in, if the span knows it."""
        return None if self.origin is None else self.origin.source

    @property
    def used(self) -> Span | None:
        """The place that brought this one into the rule; None for a place in the rule's own text."""
        return None if self.origin is None else self.origin.used

    @property
    def path(self) -> tuple[tuple[int, int], ...]:
        """The places from the one in the rule's own text to this one, which sort in the order of that text."""
        return (*(() if self.used is None else self.used.path), (self.start, self.end))

    @property
    def uses(self) -> tuple[tuple[str, Source, Span], ...]:
        """What brought this into the rule: each piece, from the inside out, with the text and the place that use it."""
        if self.origin is None or self.used is None or self.used.source is None:
            return ()
        return ((self.origin.piece, self.used.source, self.used), *self.used.uses)

    def holds(self, other: Span) -> bool:
        """Whether this span contains another one, or a place that brought it in."""
        if self.origin == other.origin and self.start <= other.start and other.end <= self.end:
            return True
        return other.used is not None and self.holds(other.used)

    def moved(self, old: Origin, new: Origin) -> Span:
        """Return the place as it is where something else has brought a piece in."""
        if self.origin == old:
            return replace(self, origin=new)
        if self.origin is None or self.origin.used is None:
            return self
        return replace(self, origin=replace(self.origin, used=self.origin.used.moved(old, new)))


@dataclass(frozen=True)
class Origin:
    """Where a piece of a composed rule was written, and what brought it into the rule.

    Attributes:
        source: The text that it was written in.
        piece: Name of the transform or rule that it is a part of; empty for the rule itself.
        used: The place that uses that transform or rule; None for the rule itself.
    """

    source: Source
    piece: str = ""
    used: Span | None = None


@dataclass(frozen=True)
class Source:
    """The text of a rule and the name it is reported under (a file name, or ``<rule>``)."""

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
    """Return the text of a file that is named by a rule, the beginning of one that is far too long for a rule.

    Raises:
        OSError: If it cannot be read, or is a device, a pipe or a folder.
        ValueError: If it is not UTF-8, or there can be no file of this name.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "it is not an ordinary file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES)
    return data.decode("utf-8", "strict" if len(data) < MAX_BYTES else "ignore")
