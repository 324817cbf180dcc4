"""The text of a checked rule and of its pieces: as its author wrote them, or printed where a rule is composed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from optlang.language import tree
from optlang.language.composing.substitute import placed
from optlang.language.rule import Rule, remembering
from optlang.language.unparse import INDENT
from optlang.language.unparse_formulas import Formulas
from optlang.source import Source, Span


class Plain(Formulas):
    """Writes every name canonically, as there is no single text that it could be quoted from."""

    def __init__(self) -> None:
        super().__init__(Source(""))

    def keyword(self, node: tree.Argument, name: str) -> str:
        """Return the name of an argument."""
        return name

    def word(self, node: tree.Node, name: str) -> str:
        """Return a name after a dot."""
        return name

    def key(self, node: tree.StateItem, key: str) -> str:
        """Return the key of a state."""
        return key


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
    return Plain().expression(node) if isinstance(node, tree.Expr) else "\n".join(_lines((node,), 0))


def _head(parsed: tree.Tree) -> list[str]:
    """Return the lines of the docstring of a rule, in which nothing can be escaped."""
    if parsed.doc is None:
        return []
    text = parsed.doc.value.replace('"""', "'''")
    return (f'"""{text} """' if text.endswith('"') else f'"""{text}"""').split("\n")


def _lines(items: Sequence[tree.Decl | tree.Stmt], depth: int) -> Iterator[str]:
    indent, formulas = INDENT * depth, Plain()
    for item in items:
        match item:
            case tree.If():
                for i, (condition, body) in enumerate(item.branches):
                    yield f"{indent}{'elif' if i else 'if'} {formulas.expression(condition)}:"
                    yield from _lines(body, depth + 1)
                if item.other is not None:
                    yield f"{indent}else:"
                    yield from _lines(item.other, depth + 1)
            case tree.Def(body=tuple() as body) | tree.Transform(body=body):
                yield f"{indent}{formulas.simple(item)}:"
                yield from _lines(body, depth + 1)
            case tree.Repeat(body=body) | tree.For(body=body) | tree.Every(body=body) | tree.On(body=body):
                yield f"{indent}{formulas.simple(item)}:"
                yield from _lines(body, depth + 1)
            case tree.OptimizerDecl(reference=str() as reference):
                yield f"{indent}{formulas.simple(item)}  # reference: {reference}"
            case _:
                yield indent + formulas.simple(item)


def numbered(parsed: tree.Tree) -> tree.Tree:
    """Return a composed rule in which every place knows the line that it has come to, as :func:`rule_text` prints it.

    No node stands in two places then, not even the same piece of one formula.
    """
    return replace(parsed, items=_Lines(len(_head(parsed))).block(parsed.items))


class _Lines:
    """Counts lines.

    Args:
        before: How many there are already.
    """

    def __init__(self, before: int) -> None:
        self.line = before

    def next(self, node: Any = ()) -> Any:
        """Return a node, or a tuple of them, on the next line."""
        self.line += 1
        return self.here(node)

    def here(self, node: Any) -> Any:
        """Return a node, or a tuple of them, on this line."""
        line = self.line
        return placed(node, lambda span: Span(span.start, span.end, span.origin, line))

    def block(self, items: Sequence[Any]) -> tuple[Any, ...]:
        """Return statements, each on a line of its own."""
        return tuple(map(self.item, items))

    def item(self, item: Any) -> Any:
        """Return a statement or declaration, with its blocks on the lines that follow."""
        match item:
            case tree.If(branches=branches, other=other):
                made = self.next(replace(item, branches=(), other=None))
                parts = []
                for i, (condition, body) in enumerate(branches):
                    parts.append((self.next(condition) if i else self.here(condition), self.block(body)))
                if other is not None:
                    self.next()
                    other = self.block(other)
                return replace(made, branches=tuple(parts), other=other)
            case tree.Repeat(body=body) | tree.For(body=body) | tree.Every(body=body) | tree.On(body=body):
                return replace(self.next(replace(item, body=())), body=self.block(body))
            case tree.Def(body=tuple() as body):
                return replace(self.next(replace(item, body=())), body=self.block(body))
        return self.next(item)
