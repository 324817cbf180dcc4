"""A tree put together from several texts -> the text of one rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optlang.language import tree
from optlang.language.unparse import INDENT
from optlang.language.unparse_formulas import Formulas
from optlang.source import Source


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


def written(doc: str | None, items: Sequence[tree.Decl | tree.Stmt]) -> str:
    """Return the text of a rule."""
    head = [] if doc is None else [_docstring(doc)]
    return "".join(f"{line}\n" for line in (*head, *_lines(items, Plain(), 0)))


def _docstring(text: str) -> str:
    """Return a docstring of a rule, in which nothing can be escaped."""
    text = text.replace('"""', "'''")
    return f'"""{text} """' if text.endswith('"') else f'"""{text}"""'


def _lines(items: Sequence[tree.Decl | tree.Stmt], formulas: Plain, depth: int) -> Iterator[str]:
    indent = INDENT * depth
    for item in items:
        match item:
            case tree.If():
                for i, (condition, body) in enumerate(item.branches):
                    yield f"{indent}{'elif' if i else 'if'} {formulas.expression(condition)}:"
                    yield from _lines(body, formulas, depth + 1)
                if item.other is not None:
                    yield f"{indent}else:"
                    yield from _lines(item.other, formulas, depth + 1)
            case tree.Def(body=tuple() as body) | tree.Transform(body=body):
                yield f"{indent}{formulas.simple(item)}:"
                yield from _lines(body, formulas, depth + 1)
            case tree.Repeat(body=body) | tree.For(body=body) | tree.Every(body=body) | tree.On(body=body):
                yield f"{indent}{formulas.simple(item)}:"
                yield from _lines(body, formulas, depth + 1)
            case tree.OptimizerDecl(reference=str() as reference):
                yield f"{indent}{formulas.simple(item)}  # reference: {reference}"
            case _:
                yield indent + formulas.simple(item)
