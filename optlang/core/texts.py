"""The text of a checked rule and of its pieces: as its author wrote them, or printed where a rule is composed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from optlang.core.substitute import placed
from optlang.rule import Rule, remembering
from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.unparse import INDENT
from optlang.syntax.unparse_formulas import Formulas


@remembering
def rule_text(rule: Rule) -> str:
    """Return the text of a rule: that of its author, or that of the plain rule which a composed one stands for."""
    parsed = rule.tree
    if parsed.span.origin is None:
        return parsed.source.text
    return "".join(f"{line}\n" for line in (*_head(parsed), *_lines(parsed.items, 0)))


def text_of(parsed: tree.Tree, node: tree.Expr | tree.Decl | tree.Stmt) -> str:
    """Return the text of a piece of a rule, the lines of a statement without the indentation of the first."""
    if parsed.span.origin is None:
        return parsed.source.excerpt(node.span)
    return Formulas().expression(node) if isinstance(node, tree.Expr) else "\n".join(_lines((node,), 0))


def _head(parsed: tree.Tree) -> list[str]:
    """Return the lines of the docstring of a rule, in which nothing can be escaped."""
    if parsed.doc is None:
        return []
    text = parsed.doc.value.replace('"""', "'''")
    return (f'"""{text} """' if text.endswith('"') else f'"""{text}"""').split("\n")


def _lines(items: Sequence[tree.Decl | tree.Stmt], depth: int) -> Iterator[str]:
    indent, formulas = INDENT * depth, Formulas()
    for item in items:
        match item:
            case tree.If():
                for i, (condition, body) in enumerate(item.branches):
                    yield f"{indent}{'elif' if i else 'if'} {formulas.expression(condition)}:"
                    yield from _lines(body, depth + 1)
                if item.other is not None:
                    yield f"{indent}else:"
                    yield from _lines(item.other, depth + 1)
            case tree.Repeat() | tree.For() | tree.Every() | tree.On() | tree.Def(body=tuple()):
                yield f"{indent}{formulas.simple(item)}:"
                yield from _lines(item.body, depth + 1)  # type: ignore[arg-type]
            case tree.OptimizerDecl(reference=str() as reference):
                yield f"{indent}{formulas.simple(item)}  # reference: {reference}"
            case _:
                yield indent + formulas.simple(item)


def numbered(parsed: tree.Tree) -> tree.Tree:
    """Return a composed rule in which every place knows the line that it has come to, as :func:`rule_text` prints it.

    No node stands in two places then, not even the same piece of one formula.
    """
    return replace(parsed, items=_numbered(parsed.items, count(len(_head(parsed)) + 1)))


def _numbered(items: Any, lines: Iterator[int]) -> Any:
    """Return statements and declarations, each on the next line, and their blocks on those that follow."""
    return tuple(_at_line(item, next(lines), lines) for item in items)


def _at_line(item: Any, line: int, lines: Iterator[int]) -> Any:
    blocks: dict[str, Any] = {}
    match item:
        case tree.If():
            blocks["branches"] = tuple(
                (_placed(condition, next(lines) if i else line), _numbered(body, lines))
                for i, (condition, body) in enumerate(item.branches)
            )
            if item.other is not None:
                next(lines)  # of `else`
                blocks["other"] = _numbered(item.other, lines)
        case tree.Repeat() | tree.For() | tree.Every() | tree.On() | tree.Def(body=tuple()):
            blocks["body"] = _numbered(item.body, lines)
    return replace(_placed(replace(item, **dict.fromkeys(blocks, ())), line), **blocks)


def _placed(node: Any, line: int) -> Any:
    return placed(node, lambda span: Span(span.start, span.end, span.origin, line))
