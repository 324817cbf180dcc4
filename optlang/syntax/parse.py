"""Text to syntax tree."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.resources import files
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.lark import PostLex

from optlang.cache import folders, sealed
from optlang.diagnostics import OptlangError
from optlang.source import Source, Span
from optlang.syntax import tree
from optlang.syntax.build import Builder
from optlang.syntax.errors.characters import refuse_character
from optlang.syntax.errors.refused import Refused
from optlang.syntax.errors.stop import Stop
from optlang.syntax.errors.syntax_errors import Table, explain, table
from optlang.syntax.finish import finish
from optlang.syntax.indentation import LAYOUT, Layout
from optlang.syntax.limits import MAX_CHARACTERS
from optlang.syntax.recover import without_statement


def grammar() -> str:
    """Return the text of the grammar, from the installed package or a checkout."""
    packaged = files("optlang") / "grammars" / "optlang.lark"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "grammars" / "optlang.lark").read_text(encoding="utf-8")


class LineEnds(PostLex):
    """Accepts line ends everywhere; :class:`Layout` decides which of them are significant."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Return the tokens unchanged."""
        return stream


@cache
def parser() -> Lark:
    """Return the parser, built on first use. Its tables take a while to compute, so they are cached on disk."""
    if not folders.usable():
        return _made()
    name = sealed.file_name("grammar", sealed.key(grammar(), lark.__version__, sys.version), ".tables")
    content = sealed.read(name)
    if content is not None:
        with suppress(Exception):  # the cache folder is only written by us, as for compiled kernels
            return Lark.load(BytesIO(content))
    made, tables = _made(), BytesIO()
    made.save(tables)
    sealed.keep(name, tables.getvalue())
    return made


def _made() -> Lark:
    """Build the parser and its tables."""
    return Lark(
        grammar(),
        parser="lalr",
        lexer="contextual",
        postlex=LineEnds(),
        transformer=Builder(),
        keep_all_tokens=True,
        maybe_placeholders=False,
    )


def parse(source: Source) -> tree.Tree:
    """Return the syntax tree of a rule.

    Raises:
        OptlangError: If the text is not a rule. Its diagnostics cover several statements if several are wrong.
    """
    text, refused = source.text, list[Refused]()
    for tries in count(1):
        reading = _ParserRun(text)
        try:
            doc, items = reading.run()
            break
        except Refused as mistake:
            if all((mistake.code, mistake.message) != (x.code, x.message) for x in refused):
                refused.append(mistake)
            rest = None if mistake.code in FINAL else reading.without(mistake.span)
            if rest is None or rest == text or tries >= MAX_MISTAKES:
                raise OptlangError([x.diagnostic(source) for x in refused]) from None
            text = rest
    if refused:
        raise OptlangError([x.diagnostic(source) for x in refused])
    return finish(source, doc, items)


#: Errors after which the rest of the text cannot be trusted: brackets, quotes, indentation.
FINAL = frozenset(("E104", "E105", "E109", "E501"))
#: How often a text is reparsed without a faulty statement.
MAX_MISTAKES = 10


class _ParserRun:
    """One run of the parser over a text.

    Attributes:
        text: The text.
        parser: The interactive parser.
        seen: The tokens accepted so far.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.parser = parser().parse_interactive(text)
        self.seen: list[Token] = []

    def run(self) -> tuple[tree.Text | None, tuple[Any, ...]]:
        """Return the docstring and the items; raises :class:`Refused` at the first error."""
        if len(self.text) > MAX_CHARACTERS:
            raise Refused(
                "E501",
                f"a rule may have at most {MAX_CHARACTERS:,} characters",
                Span(0, 0),
                help="split it into several rules",
            )
        try:
            return self.feed()
        except UnexpectedToken as e:
            accepts = frozenset(self.parser.accepts())  # type: ignore[no-untyped-call]
            stop = Stop(self.text, tuple(self.seen), e.token, e.state.position, accepts)
            self.seen.append(e.token)
            raise explain(stop, _examples()) from None
        except UnexpectedCharacters as e:
            raise refuse_character(self.text, e.pos_in_stream or 0) from None

    def feed(self) -> tuple[tree.Text | None, tuple[Any, ...]]:
        """Feed all tokens to the parser and return its result; raises the parser's own errors."""
        raw = self.parser.lexer_thread.lex(self.parser.parser_state)  # type: ignore[no-untyped-call]
        for token in Layout(self.text)(raw):
            self.parser.feed_token(token)
            self.seen.append(token)
        last = self.seen[-1] if self.seen else None
        result: tuple[tree.Text | None, tuple[Any, ...]] = self.parser.feed_eof(last)  # type: ignore[no-untyped-call]
        return result

    def without(self, place: Span) -> str | None:
        """Return the text without the statement at ``place``, or None if that is not possible."""
        start, ended = place.start, True
        for token in self.seen:
            at = token.start_pos or 0
            if at > place.start or (at == place.start and token.type in LAYOUT):
                break
            if ended and token.type not in LAYOUT:
                start = at
            ended = token.type in LAYOUT
        return without_statement(self.text, place.start if ended else start)


@cache
def _examples() -> Table:
    """Return the table of example mistakes, built on the first syntax error."""
    return table(_failure)


def _failure(text: str) -> tuple[int, str]:
    """Return where the parser stops on an invalid text."""
    try:
        _ParserRun(text).feed()
    except UnexpectedToken as e:
        return e.state.position, e.token.type
    raise AssertionError(f"this example is no mistake of syntax: {text!r}")
