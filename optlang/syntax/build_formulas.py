"""Builds the syntax tree of expressions and statements.

Each method is documented by the grammar rule it is named after.
"""

# ruff: noqa: D102

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from optlang.functions.table import BUILTINS, MEMBERS
from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.errors.members import MODULES, OBJECTS, foreign_member
from optlang.syntax.errors.refused import Refused
from optlang.syntax.indentation import Lexeme, span_of
from optlang.syntax.limits import MAX_DIGITS, MAX_EXPONENT, MAX_NAME
from optlang.syntax.names import RESERVED, canonical_name, superscript
from optlang.syntax.pieces import Pieces, after, flatten, is_token, later, names_of, nodes, span
from optlang.syntax.walk import assigned

STATEMENTS = (tree.Assign, tree.If, tree.Push, tree.Return, tree.Repeat, tree.For, tree.Every, tree.Unsupported)


#: The value of pi, exact to float64 and beyond.
PI = Fraction("3.14159265358979323846264338327950288")


@dataclass(frozen=True)
class Alone(tree.Node):
    """A line that is just a value; only applying an inner rule is allowed."""

    value: tree.Expr


class FormulaBuilder:
    """Builds expressions."""

    def name(self, pieces: Pieces) -> tree.Name:
        token: Lexeme = pieces[0]
        text, place = token.value, span_of(token)
        if len(text) > MAX_NAME:
            raise Refused("E503", f"a name may have at most {MAX_NAME} characters", place, help="choose a shorter one")
        if raised := superscript(text):
            head = text.rstrip("⁰¹²³⁴⁵⁶⁷⁸⁹")
            raise Refused(
                "E113",
                "a raised digit is not a power here",
                place,
                help=f"write the power with `^`: `{head}^{raised}`",
            )
        if text.startswith("_"):
            raise Refused(
                "E113",
                f"the name `{text}` begins with `_`",
                place,
                label="such names belong to the compiler",
                help=f"choose another name, such as `{text.strip('_') or 'x'}`",
            )
        name = canonical_name(text)
        if name in RESERVED or not name.isidentifier():
            raise Refused("E113", f"`{text}` cannot be a name", place, help="use letters, digits and `_`")
        return tree.Name(place, name, text)

    def number(self, pieces: Pieces) -> tree.Number:
        text, place = pieces[0].value, span_of(pieces[0])
        digits, _, exponent = text.lower().replace("_", "").partition("e")
        if len(digits) > MAX_DIGITS:
            raise Refused(
                "E502", f"a number may have at most {MAX_DIGITS} digits", place, help="float64 keeps 17 digits"
            )
        if len(exponent) > 8 or abs(int(exponent or "0")) > MAX_EXPONENT:
            raise Refused(
                "E502",
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

    def circle(self, pieces: Pieces) -> tree.Number:
        return tree.Number(span_of(pieces[0]), pieces[0].value, PI)

    def boolean(self, pieces: Pieces) -> tree.Bool:
        return tree.Bool(span_of(pieces[0]), pieces[0].type == "TRUE")

    def nothing(self, pieces: Pieces) -> tree.Nothing:
        return tree.Nothing(span_of(pieces[0]))

    def parenthesised(self, pieces: Pieces) -> tree.Expr:
        inner: tree.Expr = replace(pieces[1], span=span(pieces))
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

    def matmul(self, pieces: Pieces) -> tree.Binary:
        return self.binary(pieces)

    def pipe(self, pieces: Pieces) -> tree.Pipe:
        value, _, stage = pieces
        of_rule = isinstance(stage, tree.Member) and stage.name not in (*MEMBERS, "direction")
        if of_rule or not isinstance(stage, tree.Name | tree.Call | tree.Member):
            raise Refused(
                "E209",
                "the right side of `|>` is not a function",
                stage.span,
                label="expected a function or a transform",
                help="`x |> f(a)` is `f(x, a)`; put the chain in brackets where it is part of a sum or an `if`",
            )
        return tree.Pipe(span(pieces), value, stage)

    def index(self, pieces: Pieces) -> tree.Index:
        items = list[Any]()
        for piece in _between_commas(pieces[2:-1]):
            if any(is_token(x, "COLON") for x in piece):
                items.append(_slice(piece))
            else:
                items.append(piece[0])
        return tree.Index(span(pieces), pieces[0], tuple(items))

    def member(self, pieces: Pieces) -> tree.Member | tree.Unsupported:
        value, _, name = pieces
        if isinstance(value, tree.Name) and value.name == "group":
            return tree.Member(span(pieces), value, name.name)
        if name.name in MEMBERS and not (isinstance(value, tree.Name) and value.name in MODULES | OBJECTS):
            return tree.Member(span(pieces), value, name.name)
        if isinstance(value, tree.Call) and isinstance(value.function, tree.Name):
            builtin = BUILTINS.get(value.function.name)
            if builtin is not None and builtin.results:
                return tree.Member(span(pieces), value, name.name)
        base = value.text if isinstance(value, tree.Name) else None
        if name.name == "direction" and isinstance(value, tree.Name):
            return tree.Member(span(pieces), value, name.name)
        if refused := foreign_member(base, name.text, span(pieces)):
            raise refused
        if base is not None:  # of an inner rule, which may be declared later
            return tree.Member(span(pieces), value, name.name)
        return later(pieces, f"`.{name.text}`")

    def call(self, pieces: Pieces) -> tree.Call | tree.Unsupported:
        function, arguments = pieces[0], pieces[2]
        if isinstance(function, tree.Unsupported):
            return later(pieces, function.what)
        direction = isinstance(function, tree.Member) and function.name == "direction"
        if isinstance(function, tree.Member) and not direction and function.name not in MEMBERS:
            return later(pieces, f"`.{function.name}`")
        if not isinstance(function, tree.Name) and not direction:
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

    def span(self, pieces: Pieces) -> tree.Slice:
        return _slice(pieces)

    def tuple(self, pieces: Pieces) -> tree.Tuple:
        return tree.Tuple(span(pieces), nodes(pieces))


class Statements(FormulaBuilder):
    """Builds statements and blocks."""

    def assign(self, pieces: Pieces) -> tree.Assign | tree.Unsupported:
        at = next(i for i, x in enumerate(pieces) if is_token(x, "EQUAL", "CHANGE"))
        targets, op, values = nodes(pieces[:at]), str(pieces[at]), nodes(pieces[at + 1 :])
        if len(values) > 1 and len(targets) == 1:
            raise Refused(
                "E112",
                "an assignment takes one value",
                values[1].span,
                label="a second value",
                help="assign on separate lines, or name both: `a, b = x, y`",
            )
        if len(targets) > 1 and op != "=":
            raise Refused(
                "E115",
                f"`{op}` changes one name at a time",
                span(targets),
                label="expected one name",
                help="write a statement for each name",
            )
        if len(targets) == 1 and (entry := _entry(targets[0])) is not None:
            return tree.Assign(span(pieces), entry[:1], op, values[0], entry[1])
        for target in targets:
            if not isinstance(target, tree.Name | tree.Unsupported):
                raise _not_assignable(target)
        if unsupported := nodes(targets, tree.Unsupported):
            return later(pieces, unsupported[0].what, (*names_of(targets), *unsupported[0].defines))
        if len(values) == 1:
            return tree.Assign(span(pieces), targets, op, values[0])
        if len(values) != len(targets):
            raise Refused(
                "E214",
                f"{len(values)} values cannot be assigned to {len(targets)} names",
                span(values),
                label=f"expected {len(targets)} values",
                help="write a value for each name, or a call of a function that returns as many",
            )
        return tree.Assign(span(pieces), targets, op, tree.Tuple(span(values), values))

    def alone(self, pieces: Pieces) -> Alone:
        return Alone(pieces[0].span, pieces[0])

    def return_(self, pieces: Pieces) -> tree.Return:
        return tree.Return(span(pieces), nodes(pieces))

    def suite(self, pieces: Pieces) -> tuple[Any, ...]:
        return tuple(x for x in flatten(pieces) if not is_token(x))

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

    def rows(self, pieces: Pieces) -> tree.Tuple:
        return tree.Tuple(span(pieces), nodes(pieces))

    @staticmethod
    def _rows(
        place: Span, names: tuple[tree.Name, ...], over: tree.Tuple, body: tuple[tree.Stmt, ...], backwards: bool
    ) -> tree.For:
        """Return a loop over literal rows; each row must have a value for every name."""
        if len(names) > 1 and not any(isinstance(item, tree.Tuple) for item in over.items):
            over = tree.Tuple(over.span, (over,))  # `((1, 2))` is one row
        loop = tree.For(place, names[0], over, body, backwards, names[1:])
        for row, item in zip(loop.rows[:: -1 if backwards else 1], over.items, strict=True):
            if len(row) != len(names):
                raise Refused(
                    "E214",
                    f"{_counted(len(names), 'name')} for {_counted(len(row), 'value')} here",
                    item.span,
                    label=f"expected {_counted(len(names), 'value')}",
                    help="write a value for each name in every row: `for a, b in ((1, 2), (3, 4)):`",
                )
        return loop

    def repeat(self, pieces: Pieces) -> tree.Repeat:
        return tree.Repeat(span(pieces), pieces[1], statements(pieces[-1]))

    def for_block(self, pieces: Pieces) -> tree.For | tree.Unsupported:
        at = next(i for i, piece in enumerate(pieces) if is_token(piece, "IN"))
        names, over, backwards = nodes(pieces[:at], tree.Name), pieces[at + 1], False
        if isinstance(over, tree.Call) and isinstance(over.function, tree.Name) and over.function.name == "reversed":
            values = [argument.value for argument in over.arguments if argument.name is None]
            over, backwards = (values[0] if len(values) == 1 else over), True
        if isinstance(over, tree.Tuple):
            return self._rows(span(pieces), names, over, statements(pieces[-1]), backwards)
        if not isinstance(over, tree.Name):
            inside = [name.name for name in assigned(statements(pieces[-1]))]
            defined = dict.fromkeys((*names_of(pieces[:at]), *inside))
            return later(pieces, "`for` over anything but a history or a tuple of hyperparameters", tuple(defined))
        if len(names) > 1:
            raise Refused(
                "E115",
                "`for` loops over one tuple of hyperparameters",
                span(names),
                label="expected one name",
                help="write `for b in betas:` with `hyper betas = (beta1 = 0.9, beta2 = 0.99)`; to count, `repeat n:`",
            )
        return tree.For(span(pieces), names[0], over, statements(pieces[-1]), backwards)

    def push(self, pieces: Pieces) -> tree.Push:
        return tree.Push(span(pieces), tuple(piece for piece in pieces if isinstance(piece, tuple)))

    def push_item(self, pieces: Pieces) -> tuple[tree.Name, tree.Expr]:
        name, sign, value = pieces
        pushed = _without_sign(value, value.span.start) if str(sign) == "<" else None
        if pushed is None:
            raise Refused(
                "E115",
                "`push` is written with an arrow",
                span_of(sign),
                label="expected `<-`",
                help=f"write `push {name.text} <- VALUE`",
            )
        return name, pushed

    def every(self, pieces: Pieces) -> tree.Every:
        period, start, first = pieces[1], after(pieces, "FROM"), False
        last = period if start is None else start
        # `k or first` was parsed as one condition.
        if isinstance(last, tree.Binary) and last.op == "or" and _is_first(last.right):
            first = True
            period, start = (last.left, None) if start is None else (period, last.left)
        return tree.Every(span(pieces), period, start, first, statements(pieces[-1]))

    def def_block(self, pieces: Pieces) -> tree.Def:
        return tree.Def(span(pieces), pieces[1], pieces[3], statements(pieces[-1]))

    def def_line(self, pieces: Pieces) -> tree.Def:
        return tree.Def(span(pieces), pieces[1], pieces[3], pieces[-1])

    def parameters(self, pieces: Pieces) -> tuple[tree.Parameter, ...]:
        return nodes(pieces, tree.Parameter)

    def parameter(self, pieces: Pieces) -> tree.Parameter:
        domain = next(iter(nodes(pieces, tree.Interval, tree.Choices)), None)
        return tree.Parameter(span(pieces), pieces[0], after(pieces, "EQUAL"), domain)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _slice(pieces: Pieces) -> tree.Slice:
    """Return ``start:stop``."""
    at = next(i for i, x in enumerate(pieces) if is_token(x, "COLON"))
    return tree.Slice(span(pieces), next(iter(pieces[:at]), None), next(iter(pieces[at + 1 :]), None))


def _between_commas(pieces: Pieces) -> list[list[Any]]:
    """Split pieces at commas."""
    parts: list[list[Any]] = [[]]
    for piece in pieces:
        if is_token(piece, "COMMA"):
            parts.append([])
        else:
            parts[-1].append(piece)
    return parts


def _without_sign(node: tree.Expr, start: int) -> tree.Expr | None:
    """Return an expression without its leading minus sign, which belongs to an arrow; None without one."""
    match node:
        case tree.Unary(op="-", operand=operand) if node.span.start == start:
            return operand
        case tree.Binary(left=first) | tree.Ternary(then=first) | tree.Pipe(value=first):
            field = {tree.Binary: "left", tree.Ternary: "then"}.get(type(node), "value")
        case tree.Compare(operands=(first, *others)):
            inner = _without_sign(first, start)
            place = None if inner is None else Span(inner.span.start, node.span.end)
            return None if inner is None or place is None else tree.Compare(place, node.ops, (inner, *others))
        case _:
            return None
    inner = _without_sign(first, start)
    changed = {field: inner, "span": Span(0 if inner is None else inner.span.start, node.span.end)}
    return None if inner is None else replace(node, **changed)  # type: ignore[arg-type]


def _entry(target: tree.Node) -> tuple[tree.Name, tree.Name] | None:
    """Return the names in ``a[i]``; None for any other target."""
    if isinstance(target, tree.Index) and isinstance(target.value, tree.Name) and len(target.items) == 1:
        (item,) = target.items
        return (target.value, item) if isinstance(item, tree.Name) else None
    return None


def _is_first(expr: tree.Expr) -> bool:
    return isinstance(expr, tree.Name) and expr.name == "first"


def _not_assignable(target: tree.Node) -> Refused:
    grouped = isinstance(target, tree.Member) and isinstance(target.value, tree.Name) and target.value.name == "group"
    what = {tree.Call: "a call", tree.Index: "part of a tensor"}.get(type(target), "a value")
    helps = {
        tree.Index: "assign the whole tensor, computed from its parts",
        tree.Member: "assign the whole value to a name",
    }
    return Refused(
        "E115",
        f"{'a key of the parameter group' if grouped else what} cannot be assigned",
        target.span,
        label="expected a name",
        help="a rule never writes to the parameter group; to keep a value, declare a `group state`"
        if grouped
        else helps.get(type(target), "to compare, write `==`; to define a function, write `def f(x) = ...`"),
    )


def arguments_of(pieces: Pieces) -> tuple[tree.Argument, ...]:
    """Return the arguments after the name of a rule, if any."""
    return next((tuple(x) for x in pieces if isinstance(x, tuple)), ())


def statements(body: tuple[Any, ...], help: str | None = None) -> tuple[tree.Stmt, ...]:
    """Return the statements of a block. A declaration among them is an error; ``help`` says where it belongs."""
    for item in body:
        if not isinstance(item, (*STATEMENTS, Alone)):
            raise Refused(
                "E114",
                "a declaration cannot be inside a block",
                item.span,
                label="move it out of the block",
                help=help
                or (
                    "to declare a state that exists only under a condition, write `state x when CONDITION`"
                    if isinstance(item, tree.StateDecl)
                    else "declarations hold for the whole rule; put them at the top, without indentation"
                ),
            )
    return body
