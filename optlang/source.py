"""The text of a rule and places in it.

A :class:`Source` owns the text; a :class:`Span` is a half-open range of character offsets in it. Lines and
columns are counted from 1, as editors do.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: More than any rule has: what is longer is not read to its end, for it may have none.
MAX_BYTES = 1 << 20


@dataclass(frozen=True, order=True)
class Span:
    """A half-open range ``[start, end)`` of character offsets in a source."""

    start: int
    end: int

    def to(self, other: Span) -> Span:
        """Return the smallest span that covers this one and ``other``."""
        return Span(min(self.start, other.start), max(self.end, other.end))


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
