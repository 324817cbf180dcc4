"""The last step of parsing: checks that need the whole text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from optlang.diagnostics import OptlangError
from optlang.source import Source, Span
from optlang.syntax import tree
from optlang.syntax.build_formulas import Alone
from optlang.syntax.errors.foreign import PYTHON, python_statement
from optlang.syntax.errors.refused import Refused
from optlang.syntax.library import transform_files
from optlang.syntax.limits import MAX_DEPTH
from optlang.syntax.pieces import flatten

COMMENTS = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|\'[^\'\n]*\'|(?P<comment>#[^\n]*)')
REFERENCE = re.compile(r"#\s*reference:\s*(.*)")


def finish(source: Source, doc: tree.Text | None, items: tuple[Any, ...]) -> tree.Tree:
    """Return the tree of a text, given its docstring and items.

    Raises:
        OptlangError: If a line is just a value, ``return`` is outside a function, or operations nest too deeply.
    """
    comments = comments_of(source)
    # Applying an inner rule or a transform has side effects, so its value may be unused.
    inner = {x.name.name for x in items if isinstance(x, (tree.Inner, tree.TransformDecl))} | set(transform_files())
    done, refused = list[Any](), list[Refused]()
    for item in items:
        try:
            check_depth(item)
            done.append(_statement(_declaration(source, item, comments), inner))
        except Refused as mistake:
            refused.append(mistake)
    if refused:
        raise OptlangError([mistake.diagnostic(source) for mistake in refused])
    return tree.Tree(Span(0, len(source.text)), source, doc, tuple(done), comments)


def comments_of(source: Source) -> tuple[tree.Comment, ...]:
    """Return the comments of a text whose strings are all closed."""
    found = []
    for match in COMMENTS.finditer(source.text):
        if text := match["comment"]:
            start = match.start()
            line = source.text[source.text.rfind("\n", 0, start) + 1 : start]
            text = text.rstrip()
            found.append(tree.Comment(Span(start, start + len(text)), text, not line.strip("\ufeff \t\f\r")))
    return tuple(found)


def check_depth(item: tree.Node) -> None:
    """Raise an error if operations are nested so deeply that walking the tree would exhaust the stack."""
    pending = [(item, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise Refused(
                "E501",
                f"operations may be nested at most {MAX_DEPTH} deep",
                node.span,
                label="one too many",
                help="assign an inner part to a name on a separate line",
            )
        pending.extend((child, depth + 1) for child in flatten(vars(node).values()) if isinstance(child, tree.Node))


def _declaration(source: Source, item: Any, comments: Iterable[tree.Comment]) -> Any:
    """Return an item; declarations that quote the source get the quoted text."""
    match item:
        case tree.OptimizerDecl():
            return replace(item, reference=_reference(source, item, comments))
        case tree.HyperDecl():
            return replace(item, items=tuple(_quote(source, x) for x in item.items))
        case tree.TransformDecl():
            return replace(item, parameters=tuple(_quote_range(source, x) for x in item.parameters))
    return item


def _reference(source: Source, item: tree.Node, comments: Iterable[tree.Comment]) -> str | None:
    """Return the reference in a comment ``# reference: ...`` on the line of an item."""
    line = source.position(item.span.start)[0]
    for comment in comments:
        if source.position(comment.span.start)[0] == line and (match := REFERENCE.match(comment.text)):
            return match[1].strip() or None
    return None


def _quote(source: Source, item: tree.HyperItem) -> tree.HyperItem:
    """Return a hyperparameter with its range as written."""
    domain = item.domain and replace(item.domain, text=source.excerpt(item.domain.span))
    return replace(item, domain=domain, parts=item.parts and tuple(_quote(source, x) for x in item.parts))


def _quote_range(source: Source, item: tree.Parameter) -> tree.Parameter:
    """Return a parameter with its range as written; the sign of a bound has already been parsed."""
    if item.domain is None:
        return item
    text = f"{item.domain.text} {source.excerpt(item.domain.span)}".strip()
    return replace(item, domain=replace(item.domain, text=text))


def _statement(item: Any, inner: set[str], function: bool = False) -> Any:
    """Return a statement with bare values resolved; ``inner`` holds the names of inner rules and transforms."""
    match item:
        case Alone(value=tree.Call(function=tree.Name(name=name)) as call) if name in inner:
            return tree.Apply(item.span, call)
        case Alone(value=tree.Name(text=word) | tree.Call(function=tree.Name(text=word))) if word in PYTHON:
            raise python_statement(word, item.span)
        case Alone():
            raise Refused(
                "E111",
                "a value alone does nothing",
                item.span,
                label="its result is not used",
                help="to return it, write `return` before it" if function else "assign it to a name: `x = ...`",
            )
        case tree.Return() if not function:
            raise Refused("E114", "`return` outside a function", item.span, help="assign to `p` instead")
        case tree.Repeat() | tree.For() | tree.Every() | tree.On():
            return replace(item, body=_block(item.body, inner, function))
        case tree.If():
            branches = tuple((test, _block(body, inner, function)) for test, body in item.branches)
            return replace(item, branches=branches, other=item.other and _block(item.other, inner, function))
        case tree.TransformDecl():
            return replace(item, body=_block(item.body, inner, function=True))
        case tree.Def() if isinstance(item.body, tuple):
            return replace(item, body=_block(item.body, inner, function=True))
    return item


def _block(body: tuple[Any, ...], inner: set[str], function: bool) -> tuple[Any, ...]:
    return tuple(_statement(x, inner, function) for x in body)
