"""Builds the syntax tree of rules and declarations.

The parser calls a method as soon as it has recognised the grammar rule with that name. The method gets the pieces of
the rule in source order, including signs and keywords, and returns a node. Since nodes are built bottom-up, no nesting
depth can exhaust Python's stack here.
"""

# ruff: noqa: D102

from __future__ import annotations

from typing import Any

from optlang.syntax import tree
from optlang.syntax.build_formulas import Statements, arguments_of, statements
from optlang.syntax.errors.refused import Refused
from optlang.syntax.indentation import span_of
from optlang.syntax.pieces import Pieces, after, is_token, later, names_of, nodes, span


class Builder(Statements):
    """Builds rules and declarations; methods have the names of grammar rules."""

    def start(self, pieces: Pieces) -> tuple[tree.Text | None, tuple[Any, ...]]:
        doc = next(iter(nodes(pieces, tree.Text)), None)
        return doc, tuple(x for line in pieces if isinstance(line, tuple) for x in line)

    def docstring(self, pieces: Pieces) -> tree.Text:
        quotes = 3 if pieces[0].type == "DOCSTRING" else 1
        return tree.Text(span_of(pieces[0]), pieces[0].value[quotes:-quotes])

    def optimizer(self, pieces: Pieces) -> tree.OptimizerDecl:
        return tree.OptimizerDecl(span(pieces), pieces[1])

    def hyper(self, pieces: Pieces) -> tree.HyperDecl:
        doc = self.text(pieces[-1:]).value if is_token(pieces[-1], "STRING") else None
        return tree.HyperDecl(span(pieces), nodes(pieces, tree.HyperItem), doc)

    def hyper_item(self, pieces: Pieces) -> tree.HyperItem:
        default = after(pieces, "EQUAL")
        domain = next(iter(nodes(pieces, tree.Interval, tree.Choices)), None)
        if isinstance(default, tuple):
            return tree.HyperItem(span(pieces), pieces[0], None, domain, default)
        optional = any(is_token(piece, "OR") for piece in pieces)
        return tree.HyperItem(span(pieces), pieces[0], default, domain, optional=optional)

    def parts(self, pieces: Pieces) -> tuple[Any, ...]:
        return nodes(pieces, tree.HyperItem)

    part_given = hyper_item

    def part(self, pieces: Pieces) -> tree.HyperItem:
        item: tree.HyperItem = pieces[0]
        return item

    def part_required(self, pieces: Pieces) -> tree.HyperItem:
        return tree.HyperItem(pieces[0].span, pieces[0], None, None)

    def bound(self, pieces: Pieces) -> tree.Interval:
        sign, value, place = str(pieces[0]), pieces[1], span(pieces)
        if sign in ("==", "!="):
            raise Refused(
                "E110",
                f"`{sign}` is not a range",
                span_of(pieces[0]),
                label="expected `>=`, `>`, `<=`, `<` or `in`",
                help="a default is given with `=`: `hyper lr = 1e-3 >= 0`",
            )
        endless = tree.Infinity(place)
        if sign.startswith(">"):
            return tree.Interval(place, value, endless, sign == ">=", False, "")
        return tree.Interval(place, tree.Unary(place, "-", endless), value, False, sign == "<=", "")

    def interval(self, pieces: Pieces) -> tree.Interval:
        _, opening, low, _, high, closing = pieces
        return tree.Interval(span(pieces), low, high, opening == "[", closing == "]", "")

    def choices(self, pieces: Pieces) -> tree.Choices:
        return tree.Choices(span(pieces), nodes(pieces), "")

    def require(self, pieces: Pieces) -> tree.Require:
        message = self.text(pieces[-1:]).value if is_token(pieces[-1], "STRING") else None
        return tree.Require(span(pieces), pieces[1], message)

    def state(self, pieces: Pieces) -> tree.StateDecl:
        items = nodes(pieces, tree.StateItem)
        scopes = {"GROUP": tree.StateScope.GROUP, "SHARED": tree.StateScope.SHARED}
        scope = (s for token, s in scopes.items() if is_token(pieces[0], token))
        return tree.StateDecl(span(pieces), next(scope, tree.StateScope.TENSOR), items, after(pieces, "WHEN"))

    def state_item(self, pieces: Pieces) -> tree.StateItem:
        kind, initial, key = after(pieces, "COLON"), after(pieces, "EQUAL"), after(pieces, "AS")
        if kind is not None and kind.name != "scalar":
            raise Refused(
                "E110",
                f"`{kind.text}` is not a type of state",
                kind.span,
                label="expected `scalar`",
                help="write `: scalar` for one number per tensor; without a type, the initial value decides the shape",
            )
        if key is not None:  # `momentum.b` is two names
            at = next(i for i, piece in enumerate(pieces) if is_token(piece, "AS"))
            key = ".".join(names_of(pieces[at:]))
        return tree.StateItem(span(pieces), pieces[0], kind and kind.name, initial, key)

    def use(self, pieces: Pieces) -> tree.Use:
        return tree.Use(span(pieces), self.rule_of(pieces[1]), arguments_of(pieces))

    def inner(self, pieces: Pieces) -> tree.Inner:
        return tree.Inner(span(pieces), pieces[1], self.rule_of(pieces[3]), arguments_of(pieces), after(pieces, "LIKE"))

    def rule_of(self, piece: Any) -> tree.Name | tree.Text:
        """Return the name of a rule or of its file."""
        return self.text([piece]) if is_token(piece, "STRING") else piece

    def route(self, pieces: Pieces) -> tree.Route:
        return tree.Route(span(pieces), self.rule_of(pieces[1]), after(pieces, "WHEN"))

    def store(self, pieces: Pieces) -> tree.StoreDecl:
        colon = next(i for i, piece in enumerate(pieces) if is_token(piece, "COLON"))
        names = nodes(pieces[:colon], tree.Name)
        return tree.StoreDecl(span(pieces), names, pieces[colon + 1], after(pieces, "WHEN"))

    def format(self, pieces: Pieces) -> tree.StoreFormat:
        name, *rest = (tree.Word(p.span, p.text) if isinstance(p, tree.Name) else p for p in pieces)
        if not rest:
            return tree.StoreFormat(name.span, name)
        if is_token(rest[0], "LPAR"):
            return tree.StoreFormat(span(pieces), name, arguments_of(pieces))
        if isinstance(rest[0], tree.Word):
            return tree.StoreFormat(span(pieces), name, rounding=rest[0])
        if rest[0] != "+":
            raise Refused(
                "E110",
                f"`{rest[0]}` cannot be used here",
                span_of(rest[0]),
                label="expected `+`",
                help="`store p: bf16+8` keeps eight more bits of the parameter",
            )
        return tree.StoreFormat(span(pieces), name, bits=self.number(rest[1:]))

    def compute(self, pieces: Pieces) -> tree.Unsupported:
        return later(pieces, "`compute`")

    def input(self, pieces: Pieces) -> tree.Unsupported:
        return later(pieces, "`input`", names_of(pieces))

    def history(self, pieces: Pieces) -> tree.History:
        colon = next(i for i, piece in enumerate(pieces) if is_token(piece, "COLON"))
        kind = pieces[colon + 1] if isinstance(pieces[colon + 1], tree.Name) else None
        if kind is not None and kind.name != "scalar":
            raise Refused(
                "E110",
                f"`{kind.text}` is not a type of history",
                kind.span,
                label="expected `scalar` or `size`",
                help="`history s: size 10` keeps values shaped like p, `history r: scalar size 10` numbers",
            )
        return tree.History(span(pieces), nodes(pieces[:colon], tree.Name), kind and kind.name, after(pieces, "SIZE"))

    def flat(self, pieces: Pieces) -> tree.Flat:
        return tree.Flat(span(pieces))

    def sparse(self, pieces: Pieces) -> tree.Sparse:
        return tree.Sparse(span(pieces))

    def iterate(self, pieces: Pieces) -> tree.Iterate:
        return tree.Iterate(span(pieces), pieces[1], after(pieces, "UNTIL"))

    def transform(self, pieces: Pieces) -> tree.TransformDecl:
        body: tuple[Any, ...] = pieces[-1]
        others = tuple(item for item in body if not isinstance(item, tree.StateDecl | tree.History | tree.StoreDecl))
        statements(others, "a transform may declare only states, their formats, and histories")
        return tree.TransformDecl(span(pieces), pieces[1], tuple(map(_ranged, pieces[3])), body)

    def on_block(self, pieces: Pieces) -> tree.On:
        event = pieces[1]
        if event.name not in ("eval", "train"):
            raise Refused(
                "E110",
                f"there is no event `{event.text}`",
                event.span,
                label="expected `eval` or `train`",
                help="`on eval:` runs in `optimizer.eval()`, `on train:` in `optimizer.train()`",
            )
        return tree.On(span(pieces), event.name, statements(pieces[-1]))


def _ranged(parameter: tree.Parameter) -> tree.Parameter:
    """Return a parameter of a transform; in its head, `x = 1 >= 0` was parsed as a comparison."""
    default = parameter.default
    if parameter.domain is not None or not isinstance(default, tree.Compare) or len(default.ops) > 1:
        return parameter
    (op,), (value, bound), place = default.ops, default.operands, default.operands[1].span
    if op in ("==", "!="):
        return parameter
    endless, text = tree.Infinity(place), op
    low, high = (bound, endless) if op.startswith(">") else (tree.Unary(place, "-", endless), bound)
    domain = tree.Interval(place, low, high, op == ">=", op == "<=", text)
    return tree.Parameter(parameter.span, parameter.name, value, domain)
