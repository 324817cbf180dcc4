"""From grammar to tree: one method per grammar rule, called as soon as the parser has recognised it.

A method gets the pieces of its rule in textual order, signs and keywords included, and returns a node. Since nodes
are built from the bottom up, no depth of nesting can exhaust Python's stack here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from optlang.language import tree
from optlang.language.layout import LAYOUT, Lexeme, span_of
from optlang.language.limits import MAX_DIGITS, MAX_EXPONENT, MAX_NAME
from optlang.language.refused import Refused
from optlang.language.names import RESERVED, canonical_name, superscript
from optlang.source import Span

Pieces = Sequence[Any]
EXPRESSIONS = (
    tree.Number,
    tree.Infinity,
    tree.Text,
    tree.Bool,
    tree.Nothing,
    tree.Name,
    tree.Member,
    tree.Unary,
    tree.Binary,
    tree.Compare,
    tree.Ternary,
    tree.Call,
    tree.Tuple,
    tree.Unsupported,
)
STATEMENTS = (tree.Assign, tree.If, tree.Return, tree.Unsupported)


@dataclass(frozen=True)
class Alone(tree.Node):
    """A value that stands alone on a line; only applying an inner rule may."""

    value: tree.Expr


def is_token(piece: Any, *types: str) -> bool:
    """Whether a piece is a token (of one of ``types``, if any are given)."""
    kind = getattr(piece, "type", None)
    return isinstance(piece, str) and isinstance(kind, str) and (not types or kind in types)


def place_of(piece: Any) -> Span:
    """Return the span of a token or node."""
    return span_of(piece) if is_token(piece) else piece.span


def span(pieces: Iterable[Any]) -> Span:
    """Return the characters from the first to the last of some pieces."""
    places = [place_of(x) for x in _flat(pieces) if not is_token(x, *LAYOUT)]
    return Span(min(x.start for x in places), max(x.end for x in places)) if places else Span(0, 0)


def _flat(pieces: Iterable[Any]) -> Iterator[Any]:
    for piece in pieces:
        if isinstance(piece, tuple):
            yield from _flat(piece)
        elif piece is not None:
            yield piece


def nodes(pieces: Iterable[Any], *kinds: type) -> tuple[Any, ...]:
    """Return the pieces that are nodes (of the given kinds), leaving out signs and keywords."""
    return tuple(x for x in pieces if isinstance(x, kinds or tree.Node) and not is_token(x))


def after(pieces: Pieces, *types: str) -> Any:
    """Return the piece that follows the first token of one of ``types``, or None without such a token."""
    for piece, following in zip(pieces, pieces[1:], strict=False):
        if is_token(piece, *types):
            return following
    return None


def defined(items: Iterable[Any]) -> tuple[str, ...]:
    """Return the names that statements and declarations give a meaning to, each once."""
    found: dict[str, None] = {}
    for item in items:
        match item:
            case tree.Assign(targets=names):
                found.update(dict.fromkeys(name.name for name in names))
            case tree.If(branches=branches, other=other):
                for _, body in branches:
                    found.update(dict.fromkeys(defined(body)))
                found.update(dict.fromkeys(defined(other or ())))
            case tree.Unsupported(defines=names):
                found.update(dict.fromkeys(names))
            case tree.Def(name=name):
                found[name.name] = None
            case tree.StateDecl(items=states):
                found.update(dict.fromkeys(state.name.name for state in states))
            case tree.HyperDecl(items=hypers):
                for hyper in hypers:
                    found.update(dict.fromkeys(x.name.name for x in (hyper, *(hyper.parts or ()))))
    return tuple(found)


def _later(pieces: Pieces, what: str, defines: Iterable[str] = ()) -> tree.Unsupported:
    return tree.Unsupported(span(pieces), what, tuple(defines))


def _names(pieces: Pieces) -> tuple[str, ...]:
    return tuple(name.name for name in nodes(pieces, tree.Name))


class Expressions:
    """Builds expressions."""

    def name(self, pieces: Pieces) -> tree.Name:
        token: Lexeme = pieces[0]
        text, place = token.value, span_of(token)
        if len(text) > MAX_NAME:
            raise Refused("E506", f"a name may have at most {MAX_NAME} characters", place)
        if raised := superscript(text):
            head = text.rstrip("⁰¹²³⁴⁵⁶⁷⁸⁹")
            raise Refused(
                "E114",
                "a raised digit is not a power here",
                place,
                help=f"write the power with `^`: `{head}^{raised}`",
            )
        if text.startswith("_"):
            raise Refused(
                "E114",
                f"the name `{text}` begins with `_`",
                place,
                label="such names belong to the compiler",
                help=f"choose another name, such as `{text.strip('_') or 'x'}`",
            )
        name = canonical_name(text)
        if name in RESERVED or not name.isidentifier():
            raise Refused("E114", f"`{text}` cannot be a name", place, help="use letters, digits and `_`")
        return tree.Name(place, name, text)

    def number(self, pieces: Pieces) -> tree.Number:
        text, place = pieces[0].value, span_of(pieces[0])
        digits, _, exponent = text.lower().replace("_", "").partition("e")
        if len(digits) > MAX_DIGITS:
            raise Refused("E505", f"a number may have at most {MAX_DIGITS} digits", place)
        if len(exponent) > 8 or abs(int(exponent or "0")) > MAX_EXPONENT:
            raise Refused(
                "E505",
                f"the exponent of this number is beyond {MAX_EXPONENT}",
                place,
                label="float64 ends near 1.8e308 and 5e-324",
                help="write `inf` if no bound is meant",
            )
        return tree.Number(place, text, Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or "0"))

    def text(self, pieces: Pieces) -> tree.Text:
        return tree.Text(span_of(pieces[0]), pieces[0].value[1:-1])

    def infinity(self, pieces: Pieces) -> tree.Infinity:
        return tree.Infinity(span_of(pieces[0]))

    def boolean(self, pieces: Pieces) -> tree.Bool:
        return tree.Bool(span_of(pieces[0]), pieces[0].type == "TRUE")

    def nothing(self, pieces: Pieces) -> tree.Nothing:
        return tree.Nothing(span_of(pieces[0]))

    def parenthesised(self, pieces: Pieces) -> tree.Expr:
        inner: tree.Expr = pieces[1]
        return inner

    def unary(self, pieces: Pieces) -> tree.Unary:
        return tree.Unary(span(pieces), str(pieces[0]), pieces[1])

    def binary(self, pieces: Pieces) -> tree.Binary:
        left, op, right = pieces
        return tree.Binary(span(pieces), "^" if op == "**" else str(op), left, right)

    def comparison(self, pieces: Pieces) -> tree.Compare:
        return tree.Compare(span(pieces), tuple(map(str, pieces[1::2])), tuple(pieces[::2]))

    def ternary(self, pieces: Pieces) -> tree.Ternary:
        then, _, condition, _, other = pieces
        return tree.Ternary(span(pieces), condition, then, other)

    def matmul(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "the matrix product `@`")

    def pipe(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "the pipe `|>`")

    def index(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "indexing with `[...]`", _names(pieces[:1]))

    def member(self, pieces: Pieces) -> tree.Member | tree.Unsupported:
        value, _, name = pieces
        if isinstance(value, tree.Name) and value.name == "group":
            return tree.Member(span(pieces), value, name.name)
        return _later(pieces, "the transpose `.T`" if name.name == "T" else f"`.{name.text}`")

    def call(self, pieces: Pieces) -> tree.Call | tree.Unsupported:
        function, arguments = pieces[0], pieces[2]
        if isinstance(function, tree.Unsupported):
            return _later(pieces, function.what)
        if not isinstance(function, tree.Name):
            raise Refused(
                "E103",
                "missing operator before `(`",
                span_of(pieces[1]),
                label="expected `*` or another operator",
                help="only a name can be called as a function; for a product write `*`",
            )
        return tree.Call(span(pieces), function, arguments)

    def arguments(self, pieces: Pieces) -> tuple[tree.Argument, ...]:
        return nodes(pieces, tree.Argument)

    def argument(self, pieces: Pieces) -> tree.Argument:
        name = pieces[0].name if len(pieces) > 1 else None
        return tree.Argument(span(pieces), name, pieces[-1])

    def tuple(self, pieces: Pieces) -> tree.Tuple:
        return tree.Tuple(span(pieces), nodes(pieces))


class Statements(Expressions):
    """Builds statements and blocks."""

    def assign(self, pieces: Pieces) -> tree.Assign | tree.Unsupported:
        at = next(i for i, x in enumerate(pieces) if is_token(x, "EQUAL", "CHANGE"))
        targets, op, values = nodes(pieces[:at]), str(pieces[at]), nodes(pieces[at + 1 :])
        if len(values) > 1:
            raise Refused(
                "E113",
                "an assignment takes one value",
                values[1].span,
                label="a second value",
                help="assign on separate lines; only a function that returns several results fills several names",
            )
        if len(targets) > 1 and op != "=":
            raise Refused(
                "E117",
                f"`{op}` changes one name at a time",
                span(targets),
                label="expected one name",
                help="write a statement for each name",
            )
        for target in targets:
            if not isinstance(target, tree.Name | tree.Unsupported):
                raise _not_assignable(target)
        if later := nodes(targets, tree.Unsupported):
            return _later(pieces, later[0].what, (*_names(targets), *later[0].defines))
        return tree.Assign(span(pieces), targets, op, values[0])

    def alone(self, pieces: Pieces) -> Alone:
        return Alone(pieces[0].span, pieces[0])

    def return_(self, pieces: Pieces) -> tree.Return:
        return tree.Return(span(pieces), nodes(pieces))

    def suite(self, pieces: Pieces) -> tuple[Any, ...]:
        return tuple(x for x in _flat(pieces) if not is_token(x))

    def line(self, pieces: Pieces) -> tuple[Any, ...]:
        return nodes(pieces)

    def if_block(self, pieces: Pieces) -> tree.If:
        branches: list[tuple[tree.Expr, tuple[tree.Stmt, ...]]] = []
        other: tuple[tree.Stmt, ...] | None = None
        for i, piece in enumerate(pieces):
            if is_token(piece, "IF", "ELIF"):
                branches.append((pieces[i + 1], statements(pieces[i + 3])))
            elif is_token(piece, "ELSE"):
                other = statements(pieces[i + 2])
        return tree.If(span(pieces), tuple(branches), other)

    def def_block(self, pieces: Pieces) -> tree.Def:
        return tree.Def(span(pieces), pieces[1], pieces[3], statements(pieces[-1]))

    def def_line(self, pieces: Pieces) -> tree.Def:
        return tree.Def(span(pieces), pieces[1], pieces[3], pieces[-1])

    def parameters(self, pieces: Pieces) -> tuple[tree.Parameter, ...]:
        return nodes(pieces, tree.Parameter)

    def parameter(self, pieces: Pieces) -> tree.Parameter:
        return tree.Parameter(span(pieces), pieces[0], pieces[2] if len(pieces) > 1 else None)


def _not_assignable(target: tree.Node) -> Refused:
    what = {tree.Call: "a call", tree.Member: "a key of the param group"}.get(type(target), "a value")
    return Refused(
        "E117",
        f"{what} cannot be assigned",
        target.span,
        label="expected a name",
        help="a rule never writes to the param group; use `group state` for what it keeps"
        if isinstance(target, tree.Member)
        else "to compare, write `==`; to define a function, write `def f(x) = ...`",
    )


def statements(body: tuple[Any, ...]) -> tuple[tree.Stmt, ...]:
    """Return the statements of a block; a declaration among them is a mistake."""
    for item in body:
        if not isinstance(item, (*STATEMENTS, Alone)):
            raise Refused(
                "E115",
                "a declaration cannot stand in a block",
                item.span,
                label="move it out of the block",
                help="state that exists only under a condition is declared with `state x when CONDITION`"
                if isinstance(item, tree.StateDecl)
                else "declarations hold for the whole rule; put them at the top, without indentation",
            )
    return body


class Builder(Statements):
    """Builds whole rules: the parser calls its methods by the grammar's rule names."""

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
        return tree.HyperItem(span(pieces), pieces[0], default, domain)

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
                "E111",
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

    def state(self, pieces: Pieces) -> tree.StateDecl | tree.Unsupported:
        items = nodes(pieces, tree.StateItem)
        if is_token(pieces[0], "SHARED"):
            return _later(pieces, "`shared state`", (item.name.name for item in items))
        scope = "group" if is_token(pieces[0], "GROUP") else "tensor"
        return tree.StateDecl(span(pieces), scope, items, after(pieces, "WHEN"))

    def state_item(self, pieces: Pieces) -> tree.StateItem:
        kind, initial, key = after(pieces, "COLON"), after(pieces, "EQUAL"), after(pieces, "AS")
        if kind is not None and kind.name != "scalar":
            raise Refused(
                "E111",
                f"`{kind.text}` is not a type of state",
                kind.span,
                label="expected `scalar`",
                help="write `: scalar` for one number per tensor; without a type the initial value decides the shape",
            )
        return tree.StateItem(span(pieces), pieces[0], kind and kind.name, initial, key and key.name)

    def use(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`use`")

    def inner(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "an `inner` rule", _names(pieces[:2]))

    def route(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`route`")

    def store(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`store`")

    def compute(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`compute`")

    def input(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`input`", _names(pieces))

    def history(self, pieces: Pieces) -> tree.Unsupported:
        colon = next(i for i, piece in enumerate(pieces) if is_token(piece, "COLON"))
        return _later(pieces, "`history`", _names(pieces[:colon]))

    def push(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`push`")

    def push_item(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`push`")

    def flat(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`flat`")

    def transform(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`transform`", _names(pieces[:2]))

    def on_block(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, f"`on {pieces[1].text}`", defined(pieces[-1]))

    def repeat(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`repeat`", defined(pieces[-1]))

    def for_block(self, pieces: Pieces) -> tree.Unsupported:
        at = next(i for i, piece in enumerate(pieces) if is_token(piece, "IN"))
        return _later(pieces, "`for`", (*_names(pieces[:at]), *defined(pieces[-1])))

    def every(self, pieces: Pieces) -> tree.Unsupported:
        return _later(pieces, "`every`", defined(pieces[-1]))
