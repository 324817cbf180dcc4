"""Line ends and indentation: splits tokens into logical lines and blocks.

The grammar sees one ``_NL`` at the end of each logical line, and ``_INDENT`` and ``_DEDENT`` around a block. Line ends
inside brackets are ignored. Size limits are enforced here, because every token passes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from optlang.source import Span
from optlang.syntax.errors.refused import Refused
from optlang.syntax.limits import MAX_BLOCKS, MAX_BRACKETS, MAX_TOKENS

OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")
LAYOUT = frozenset(("_NL", "_INDENT", "_DEDENT"))


class Lexeme(Protocol):
    """A parser token: kind, text and position."""

    @property
    def type(self) -> str:
        """The kind of the token."""

    @property
    def value(self) -> str:
        """Its text."""

    @property
    def start_pos(self) -> int | None:
        """Offset of its first character."""

    @property
    def end_pos(self) -> int | None:
        """Offset after its last character."""


class Movable(Lexeme, Protocol):
    """A token that can be copied with another kind and text at the same position."""

    def update(self: AnyToken, type: str | None = None, value: str | None = None) -> AnyToken:
        """Return the copy."""


AnyToken = TypeVar("AnyToken", bound=Movable)


def span_of(token: Lexeme) -> Span:
    """Return the span of a token (for a line end: the empty range where the line ends)."""
    start, end = token.start_pos or 0, token.end_pos or 0
    return Span(start, start if token.type == "_NL" else end)


class Layout:
    """Turns raw tokens into tokens with logical lines and blocks; an instance is used for one text only.

    Attributes:
        opened: The open brackets, outermost first.
        blocks: The indentation of each enclosing block, outermost first.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.opened: list[Lexeme] = []
        self.blocks: list[str] = []

    def __call__(self, tokens: Iterable[AnyToken]) -> Iterator[AnyToken]:
        """Yield the tokens the grammar expects; raises :class:`Refused` for wrong indentation and exceeded limits."""
        last: AnyToken | None = None
        for count, token in enumerate(tokens):
            if count >= MAX_TOKENS:
                raise Refused(
                    "E501",
                    f"a rule may have at most {MAX_TOKENS:,} names, numbers and signs",
                    span_of(token),
                    help="split it into several rules",
                )
            if token.type == "_NL":
                if last is not None and not self.opened and (token.end_pos or 0) < len(self.text):
                    yield from self._line_end(token)
                continue
            if last is None:
                self.blocks.append(self._indentation(token.start_pos or 0))
            self._brackets(token)
            last = token
            yield token
        if last is not None:
            yield from self._end(last)

    def _indentation(self, start: int) -> str:
        """Return the whitespace between the start of the line and the character at ``start``."""
        before = self.text[self.text.rfind("\n", 0, start) + 1 : start]
        return before.translate({ord("\f"): None, ord("\ufeff"): None, ord("\r"): None})

    def _line_end(self, token: AnyToken) -> Iterator[AnyToken]:
        """Yield the line end, and the block starts and ends that follow from the next line's indentation."""
        end = token.end_pos or 0
        found = self._indentation(end)
        yield token
        if found == self.blocks[-1]:
            return
        place = Span(end - len(found), end)
        if found.startswith(self.blocks[-1]):
            if len(self.blocks) > MAX_BLOCKS:
                raise Refused(
                    "E501",
                    f"blocks may be nested at most {MAX_BLOCKS} deep",
                    place,
                    help="join conditions with `and`",
                )
            self.blocks.append(found)
            yield token.update("_INDENT", found)
            return
        mixed = "\t" in found + self.blocks[-1] and " " in found + self.blocks[-1]
        while len(self.blocks) > 1 and found != self.blocks[-1]:
            self.blocks.pop()
            yield token.update("_DEDENT", "")
        if found != self.blocks[-1]:
            raise _ragged(place, mixed)

    def _brackets(self, token: Lexeme) -> None:
        if token.value in OPENING:
            if len(self.opened) >= MAX_BRACKETS:
                raise Refused(
                    "E501",
                    f"brackets may be nested at most {MAX_BRACKETS} deep",
                    span_of(token),
                    help="assign an inner part to a name on a separate line",
                )
            self.opened.append(token)
        elif token.value in CLOSING and self.opened:
            self.opened.pop()

    def _end(self, last: AnyToken) -> Iterator[AnyToken]:
        """Yield the tokens that close the last line and the open blocks."""
        if self.opened:
            bracket = self.opened[-1]
            raise Refused(
                "E104",
                f"this `{bracket.value}` is never closed",
                span_of(bracket),
                label=f"needs a closing `{CLOSING[OPENING.index(bracket.value)]}`",
                help="inside brackets, a statement may span several lines; this one continues to the end of the rule",
            )
        yield last.update("_NL", "")
        for _ in self.blocks[1:]:
            yield last.update("_DEDENT", "")


def _ragged(place: Span, mixed: bool) -> Refused:
    """Return the error for a line whose indentation matches no open block."""
    return Refused(
        "E109",
        "the indentation of this line matches no block around it",
        place,
        label="no enclosing block begins in this column",
        help="indent with spaces only or with tabs only; here the two are mixed"
        if mixed
        else "begin the line in the same column as the other lines of its block",
    )
