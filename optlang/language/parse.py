"""Text to syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.lark import PostLex

from optlang.diagnostics import OptlangError
from optlang.language import tree
from optlang.language.build import Alone, Builder
from optlang.language.layout import Layout
from optlang.language.limits import MAX_CHARACTERS, MAX_DEPTH
from optlang.language.mistakes import Mistake
from optlang.source import Source, Span


def grammar() -> str:
    """Return the grammar's text: from the installed package, or from the top of a checkout."""
    packaged = files("optlang") / "grammars" / "optlang.lark"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "grammars" / "optlang.lark").read_text(encoding="utf-8")


class LineEnds(PostLex):
    """Lets line ends through wherever they stand; :class:`Layout` decides which of them mean something."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Return the tokens as they are."""
        return stream


@cache
def parser() -> Lark:
    """Return the parser, made on first use."""
    return Lark(
        grammar(),
        parser="lalr",
        lexer="contextual",
        postlex=LineEnds(),
        transformer=Builder(),  # type: ignore[arg-type]
        keep_all_tokens=True,
        maybe_placeholders=False,
    )


def parse(source: Source) -> tree.Tree:
    """Return the syntax tree of a rule.

    Raises:
        OptlangError: If the text is not a rule; carries what is wrong and where.
    """
    try:
        doc, items = _read(source)
        return _finish(source, doc, items)
    except Mistake as mistake:
        raise OptlangError([mistake.diagnostic(source)]) from None


def _read(source: Source) -> tuple[tree.Text | None, tuple[Any, ...]]:
    """Run the parser over the text."""
    if len(source.text) > MAX_CHARACTERS:
        raise Mistake("E501", f"a rule may have at most {MAX_CHARACTERS:,} characters", Span(0, 0))
    layout = Layout(source.text)
    interactive = parser().parse_interactive(source.text)
    seen: list[Token] = []
    try:
        for token in layout(interactive.lexer_thread.lex(interactive.parser_state)):
            interactive.feed_token(token)
            seen.append(token)
        return interactive.feed_eof(seen[-1] if seen else None)
    except UnexpectedToken as e:
        raise Mistake("E101", f"unexpected {e.token!r}", Span(e.token.start_pos, e.token.end_pos)) from None
    except UnexpectedCharacters as e:
        raise Mistake("E101", "unexpected char", Span(e.pos_in_stream, e.pos_in_stream + 1)) from None


COMMENTS = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|\'[^\'\n]*\'|(?P<comment>#[^\n]*)')
REFERENCE = re.compile(r"#\s*reference:\s*(.*)")


def comments_of(source: Source) -> tuple[tree.Comment, ...]:
    """Return the comments of a text whose strings are all closed."""
    found = []
    for match in COMMENTS.finditer(source.text):
        if text := match["comment"]:
            start = match.start()
            line = source.text[source.text.rfind("\n", 0, start) + 1 : start]
            text = text.rstrip()
            found.append(tree.Comment(Span(start, start + len(text)), text, not line.strip()))
    return tuple(found)


def _finish(source: Source, doc: tree.Text | None, items: tuple[Any, ...]) -> tree.Tree:
    """Return the tree, with what needs more than one item to be known."""
    comments = comments_of(source)
    inner = {
        name for x in items if isinstance(x, tree.Unsupported) and "inner" in x.what for name in x.defines
    }
    done = tuple(_settle(source, x, comments, inner) for x in items)
    _check_depth(done)
    return tree.Tree(Span(0, len(source.text)), source, doc, done, comments)


def _settle(source: Source, item: Any, comments: Iterable[tree.Comment], inner: set[str]) -> Any:
    """Return an item with the texts it quotes, and with values that stand alone decided."""
    match item:
        case tree.OptimizerDecl():
            return replace(item, reference=_reference(source, item, comments))
        case tree.HyperDecl():
            return replace(item, items=tuple(_quote(source, x) for x in item.items))
        case tree.Return():
            raise Mistake("E115", "`return` outside a function", item.span, help="assign to `p` instead")
    return _settle_statement(item, inner)


def _settle_statement(item: Any, inner: set[str]) -> Any:
    match item:
        case Alone(value=tree.Call(function=tree.Name(name=name))) if name in inner:
            return tree.Unsupported(item.span, "applying an `inner` rule")
        case Alone():
            raise Mistake(
                "E112",
                "a value alone does nothing",
                item.span,
                label="its result is not used",
                help="assign it to a name: `x = ...`",
            )
        case tree.If():
            branches = tuple(
                (condition, tuple(_settle_statement(x, inner) for x in body)) for condition, body in item.branches
            )
            other = item.other and tuple(_settle_statement(x, inner) for x in item.other)
            return replace(item, branches=branches, other=other)
        case tree.Def() if isinstance(item.body, tuple):
            return replace(item, body=tuple(_settle_statement(x, inner) for x in item.body))
    return item


def _reference(source: Source, item: tree.Node, comments: Iterable[tree.Comment]) -> str | None:
    line = source.position(item.span.start)[0]
    for comment in comments:
        if source.position(comment.span.start)[0] == line and (match := REFERENCE.match(comment.text)):
            return match[1].strip() or None
    return None


def _quote(source: Source, item: tree.HyperItem) -> tree.HyperItem:
    domain = item.domain and replace(item.domain, text=source.excerpt(item.domain.span))
    return replace(item, domain=domain, parts=item.parts and tuple(_quote(source, x) for x in item.parts))


def _check_depth(items: Iterable[Any]) -> None:
    """Raise a mistake if operations are nested so deeply that walking the tree would exhaust the stack."""
    stack = [(item, 0) for item in items]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise Mistake("E504", f"operations may be nested at most {MAX_DEPTH} deep", node.span)
        for value in vars(node).values():
            stack.extend((x, depth + 1) for x in _inside(value))


def _inside(value: Any) -> Iterator[tree.Node]:
    if isinstance(value, tree.Node):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _inside(part)
