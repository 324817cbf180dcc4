"""The position where parsing stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from optlang.source import Span
from optlang.syntax.indentation import CLOSING, LAYOUT, OPENING, Lexeme, span_of

#: Tokens that are values by themselves.
VALUES = frozenset(("NAME", "NUMBER", "STRING", "DOCSTRING", "INF", "PI", "TRUE", "FALSE", "NONE"))


@dataclass(frozen=True)
class Stop:
    """Where and why parsing stopped.

    Attributes:
        text: The rule.
        seen: The tokens accepted so far.
        token: The token that was not accepted.
        position: The parser's state.
        accepts: The token kinds that would have been accepted.
    """

    text: str
    seen: Sequence[Lexeme]
    token: Lexeme
    position: int
    accepts: frozenset[str]

    @property
    def type(self) -> str:
        """The kind of the token that was not accepted."""
        return self.token.type

    @cached_property
    def span(self) -> Span:
        """Its span; one column at the end of the line if it is empty."""
        if self.type == "_INDENT":
            end = self.token.end_pos or 0
            return Span(self.text.rfind("\n", 0, end) + 1, end)
        found = span_of(self.token)
        if self.type in LAYOUT or self.type == "$END":
            end = found.end if self.type == "$END" else found.start
            return Span(end, end)
        return found

    @cached_property
    def line(self) -> tuple[Lexeme, ...]:
        """The accepted tokens of this logical line."""
        start = next((i for i in range(len(self.seen), 0, -1) if self.seen[i - 1].type in LAYOUT), 0)
        return tuple(self.seen[start:])

    @property
    def before(self) -> Lexeme | None:
        """The previous token on the same logical line."""
        return self.line[-1] if self.line else None

    @property
    def before_type(self) -> str:
        """The kind of the previous token, or an empty string."""
        return self.before.type if self.before else ""

    @property
    def head(self) -> str:
        """The kind of the first token of the line, or an empty string."""
        return self.line[0].type if self.line else ""

    @property
    def pair(self) -> Span:
        """The span of the previous token and this one."""
        return span_of(self.before).to(self.span) if self.before else self.span

    @property
    def wants_value(self) -> bool:
        """Whether a value could have followed."""
        return "NUMBER" in self.accepts

    @property
    def after_value(self) -> bool:
        """Whether a value has just ended."""
        return "TIMES" in self.accepts

    @cached_property
    def opened(self) -> tuple[Lexeme, ...]:
        """The open brackets, outermost first."""
        found: list[Lexeme] = []
        for token in self.line:
            if token.value in OPENING:
                found.append(token)
            elif token.value in CLOSING and found:
                found.pop()
        return tuple(found)
