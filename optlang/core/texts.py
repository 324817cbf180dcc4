"""The text of a checked rule and its parts: as written by the author, or printed for a composed rule."""

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
    """Return the text of a rule: the author's, or for a composed rule that of the plain rule it expands to."""
    parsed = rule.tree
    if parsed.span.origin is None:
        return parsed.source.text
    return "".join(f"{line}\n" for line in (*_head(parsed), *_lines(parsed.items, 0)))


def text_of(parsed: tree.Tree, node: tree.Expr | tree.Decl | tree.Stmt) -> str:
    """Return the text of a node; lines of a statement are dedented by the first line's indentation."""
    if parsed.span.origin is None:
        return parsed.source.excerpt(node.span)
    return Formulas().expression(node) if isinstance(node, tree.Expr) else "\n".join(_lines((node,), 0))


def _head(parsed: tree.Tree) -> list[str]:
    """Return the lines of a rule's docstring, in which nothing can be escaped."""
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
    """Return a composed rule in which every span points to its line in the text printed by :func:`rule_text`.

    Every node in the result is distinct, even where a formula was copied.
    """
    return replace(parsed, items=_numbered(parsed.items, count(len(_head(parsed)) + 1)))


def _numbered(items: Any, lines: Iterator[int]) -> Any:
    """Return statements and declarations with line numbers assigned, including nested blocks."""
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
                next(lines)  # for `else`
                blocks["other"] = _numbered(item.other, lines)
        case tree.Repeat() | tree.For() | tree.Every() | tree.On() | tree.Def(body=tuple()):
            blocks["body"] = _numbered(item.body, lines)
    return replace(_placed(replace(item, **dict.fromkeys(blocks, ())), line), **blocks)


def _placed(node: Any, line: int) -> Any:
    return placed(node, lambda span: Span(span.start, span.end, span.origin, line))
