r"""A rule's formulas as LaTeX, for documentation.

Names are typeset but not changed: ``beta1`` is $\beta_1$, ``weight_decay`` is upright. A statement is one line of an
``aligned`` block. Conditions become words, or braces where they choose a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import assert_never

from optlang.functions.table import BUILTINS
from optlang.syntax.tree import (
    Apply,
    Argument,
    Assign,
    Binary,
    Bool,
    Call,
    Compare,
    Def,
    Every,
    Expr,
    For,
    If,
    Index,
    Infinity,
    Later,
    Member,
    Name,
    Nothing,
    Number,
    On,
    Pipe,
    Push,
    Repeat,
    Return,
    Route,
    Slice,
    Stmt,
    Ternary,
    Text,
    Tree,
    Tuple,
    Unary,
    Unsupported,
)

GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"),
        *("mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"),
    )
)
#: Names that papers write as a single letter.
LETTERS: Mapping[str, str] = {"eps": r"\epsilon"}
COMPARISONS: Mapping[str, str] = {
    "<": "<",
    "<=": r"\le",
    ">": ">",
    ">=": r"\ge",
    "==": "=",
    "!=": r"\ne",
}
WORDS: Mapping[str, str] = {"and": r"\land", "or": r"\lor", "??": r"\mathbin{??}", "|>": r"\triangleright"}


class Tight(IntEnum):
    """How tightly a LaTeX expression binds; looser ones are put in parentheses."""

    CHOICE = 0
    LOGIC = 1
    COMPARISON = 2
    SUM = 3
    SIGN = 4
    PRODUCT = 5
    POWER = 6
    ATOM = 7


def rule_latex(tree: Tree) -> str:
    """Return the statements of a rule as an ``aligned`` block, its ``def`` functions first."""
    lines: list[str] = []
    for item in tree.items:
        match item:
            case Def():
                lines += _definition(item)
            case On():
                lines.append(rf"&\textbf{{on {item.event}:}}")
                lines += _block(item.body, 0)
            case Route():
                lines.append(f"&{_route(item)}")
            case Assign() | If() | Apply() | Push() | Repeat() | For() | Every() | Return():
                lines += _statement(item, 0)
            case _:
                pass
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def name_latex(name: str) -> str:
    r"""Return a name typeset: a letter or Greek name in italics, a word upright, trailing digits as a subscript."""
    stem, digits = re.fullmatch(r"(.*?)_?(\d*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    head, underscore, tail = stem.partition("_")
    if stem in LETTERS:
        base = LETTERS[stem]
    elif stem in GREEK:
        base = f"\\{stem}"
    elif len(stem) == 1:
        base = stem
    elif underscore and (len(head) == 1 or head in GREEK) and "_" not in tail:
        letter = f"\\{head}" if head in GREEK else head
        return f"{letter}_{{{_word(tail)}{digits}}}"
    else:
        base = _word(stem)
    return f"{base}_{{{digits}}}" if digits else base


def expression_latex(expr: Expr) -> str:
    """Return an expression as LaTeX."""
    return _render(expr)[0]


def _word(text: str) -> str:
    escaped = text.replace("_", r"\_")
    return text if len(text) == 1 else rf"\mathrm{{{escaped}}}"


# Statements -------------------------------------------------------------------------------------------------


def _statement(statement: Stmt, depth: int) -> list[str]:
    """Return the lines of one statement, ``depth`` blocks deep."""
    indent = "&" + r"\quad " * depth
    match statement:
        case Assign():
            return [indent + _assignment(statement)]
        case Return(values=values):
            return [rf"{indent}\textbf{{return }} " + ",\\; ".join(map(expression_latex, values))]
        case If():
            return _conditional(statement, depth)
        case Repeat(count=count, body=body):
            times = rf"\textbf{{repeat }} {expression_latex(count)} \textbf{{ times:}}"
            return [indent + times, *_block(body, depth)]
        case For(names=names, over=over, body=body, backwards=backwards):
            order = r"\textbf{ in reversed }" if backwards else r"\textbf{ in }"
            named = ",\\; ".join(name_latex(name.name) for name in names)
            head = rf"\textbf{{for }} {named} {order} {expression_latex(over)}\textbf{{:}}"
            return [indent + head, *_block(body, depth)]
        case Push(items=items):
            pushed = (rf"{name_latex(name.name)} \leftarrow {expression_latex(value)}" for name, value in items)
            return [rf"{indent}\textbf{{push }} " + ",\\; ".join(pushed)]
        case Every(body=body):
            return [f"{indent}{_due(statement)}\\textbf{{:}}", *_block(body, depth)]
        case Apply(call=call):
            return [indent + expression_latex(call)]
        case Unsupported():
            return [rf"{indent}\text{{({_escape(statement.what)})}}"]
        case _:
            assert_never(statement)


def _due(node: Every) -> str:
    """Return a phrase for the steps in which a block runs."""
    start = "" if node.start is None else rf" \textbf{{ from }} {expression_latex(node.start)}"
    first = r" \textbf{ or first}" if node.first else ""
    return rf"\textbf{{every }} {expression_latex(node.period)}{start}{first}"


def _route(route: Route) -> str:
    """Return a phrase for the tensors that go to another rule."""
    when = r"\text{ otherwise}" if route.when is None else rf"\text{{ if }} {expression_latex(route.when)}"
    return rf"p \rightarrow {_word(route.title)}{when}"


def _assignment(statement: Assign) -> str:
    targets = ",\\; ".join(name_latex(target.name) for target in statement.targets)
    if statement.at is not None:
        targets = rf"{targets}_{{{name_latex(statement.at.name)}}}"
    value = statement.value
    if statement.op != "=":
        # p -= x is written as p = p - x, because readers look for the update.
        value = Binary(statement.span, statement.op.removesuffix("="), statement.targets[0], value)
    values = value.items if isinstance(value, Tuple) else (value,)
    return rf"{targets} \leftarrow " + ",\\; ".join(map(expression_latex, values))


def _conditional(statement: If, depth: int) -> list[str]:
    indent = "&" + r"\quad " * depth
    lines = []
    for number, (condition, body) in enumerate(statement.branches):
        word = "if" if number == 0 else "else if"
        lines.append(rf"{indent}\textbf{{{word} }} {expression_latex(condition)}\textbf{{:}}")
        lines += _block(body, depth)
    if statement.other is not None:
        lines.append(rf"{indent}\textbf{{else:}}")
        lines += _block(statement.other, depth)
    return lines


def _block(body: Iterable[Stmt], depth: int) -> list[str]:
    return [line for statement in body for line in _statement(statement, depth + 1)]


def _definition(function: Def) -> list[str]:
    parameters = ", ".join(name_latex(p.name.name) for p in function.parameters)
    head = rf"&{name_latex(function.name.name)}({parameters})"
    if isinstance(function.body, tuple):
        return [rf"{head}\textbf{{:}}", *_block(function.body, 0)]
    return [f"{head} = {expression_latex(function.body)}"]


# Expressions ------------------------------------------------------------------------------------------------


def _render(expr: Expr) -> tuple[str, Tight]:
    """Return an expression and the precedence of its outermost operator."""
    match expr:
        case Number():
            return _number(expr.text)
        case Name(name=name):
            return name_latex(name), Tight.ATOM
        case Infinity():
            return r"\infty", Tight.ATOM
        case Bool(value=value):
            return rf"\text{{{'true' if value else 'false'}}}", Tight.ATOM
        case Nothing():
            return r"\text{none}", Tight.ATOM
        case Text(value=value):
            return rf"\text{{“{_escape(value)}”}}", Tight.ATOM
        case Member(value=value, name="T"):
            return f"{_base(value)}^{{\\top}}", Tight.POWER
        case Index(value=value, items=subscripts):
            return f"{_at(value, Tight.ATOM)}_{{{', '.join(map(_subscript, subscripts))}}}", Tight.ATOM
        case Member(value=value, name=name):
            return rf"{_at(value, Tight.ATOM)}.{_word(name)}", Tight.ATOM
        case Slice():
            return _subscript(expr), Tight.ATOM
        case Tuple(items=items):
            return f"({', '.join(map(expression_latex, items))})", Tight.ATOM
        case Unary(op=op, operand=operand):
            sign = r"\lnot " if op == "not" else op
            return f"{sign}{_at(operand, Tight.PRODUCT)}", Tight.SIGN
        case Binary():
            return _binary(expr)
        case Compare(ops=ops, operands=operands):
            parts = [_at(operands[0], Tight.SUM)]
            for op, operand in zip(ops, operands[1:], strict=True):
                parts += [COMPARISONS[op], _at(operand, Tight.SUM)]
            return " ".join(parts), Tight.COMPARISON
        case Ternary():
            return _choice(expr)
        case Call():
            return _call(expr)
        case Pipe(value=value, stage=stage):
            return rf"{_at(value, Tight.CHOICE)} \triangleright {_at(stage, Tight.ATOM)}", Tight.CHOICE
        case Unsupported():
            return rf"\text{{({_escape(expr.what)})}}", Tight.ATOM
        case Later():
            raise AssertionError("no rule says this")
        case _:
            assert_never(expr)


def _subscript(item: Expr | Slice) -> str:
    """Return one item of an index: ``:r`` is kept, a slice from i to j is written with a colon."""
    if not isinstance(item, Slice):
        return expression_latex(item)
    ends = ("" if end is None else expression_latex(end) for end in (item.start, item.stop))
    return "{:}".join(ends)


def _at(expr: Expr, least: Tight) -> str:
    """Return an expression, in parentheses if it binds less tightly than ``least``."""
    text, tight = _render(expr)
    return text if tight >= least else rf"\left({text}\right)"


def _number(text: str) -> tuple[str, Tight]:
    if text in ("pi", "π"):
        return r"\pi", Tight.ATOM
    mantissa, exponent, power = re.fullmatch(r"([^eE]*)([eE]?)\+?(.*)", text).groups()  # type: ignore[union-attr]
    if not exponent:
        return text, Tight.ATOM
    ten = f"10^{{{int(power)}}}"
    return (ten if mantissa in ("1", "1.", "1.0") else rf"{mantissa} \cdot {ten}"), Tight.PRODUCT


def _binary(expr: Binary) -> tuple[str, Tight]:
    left, right = expr.left, expr.right
    match expr.op:
        case "+":
            return f"{_at(left, Tight.SUM)} + {_at(right, Tight.PRODUCT)}", Tight.SUM
        case "-":
            return f"{_at(left, Tight.SUM)} - {_at(right, Tight.PRODUCT)}", Tight.SUM
        case "/":
            return rf"\frac{{{expression_latex(left)}}}{{{expression_latex(right)}}}", Tight.PRODUCT
        case "*":
            first, second = _at(left, Tight.PRODUCT), _at(right, Tight.PRODUCT)
            times = r"\cdot" if second[:1].isdigit() else r"\,"
            return f"{first} {times} {second}", Tight.PRODUCT
        case "%":
            return rf"{_at(left, Tight.PRODUCT)} \bmod {_at(right, Tight.POWER)}", Tight.PRODUCT
        case "@":
            return rf"{_at(left, Tight.PRODUCT)} \, {_at(right, Tight.POWER)}", Tight.PRODUCT
        case "^":
            return f"{_base(left)}^{{{expression_latex(right)}}}", Tight.POWER
        case op:
            return f"{_at(left, Tight.COMPARISON)} {WORDS[op]} {_at(right, Tight.COMPARISON)}", Tight.LOGIC


def _base(expr: Expr) -> str:
    """Return the base of a power; calls get parentheses, so that the power does not seem to apply to the argument."""
    text, tight = _render(expr)
    plain = tight is Tight.ATOM and not isinstance(expr, Call)
    return text if plain else rf"\left({text}\right)"


def _choice(expr: Ternary) -> tuple[str, Tight]:
    """Return ``a if c else b if d else e`` as one brace with a row per case."""
    rows = []
    rest: Expr = expr
    while isinstance(rest, Ternary):
        rows.append(rf"{expression_latex(rest.then)} & \text{{if }} {expression_latex(rest.condition)}")
        rest = rest.other
    rows.append(rf"{expression_latex(rest)} & \text{{otherwise}}")
    table = r" \\ ".join(rows)
    return rf"\begin{{cases}}{table}\end{{cases}}", Tight.CHOICE


def _call(expr: Call) -> tuple[str, Tight]:
    name = expr.function.name if isinstance(expr.function, Name) else ""
    arguments = expr.arguments
    spelling = BUILTINS[name].latex or "" if name in BUILTINS else ""
    if len(arguments) == 1 and "{0}" in spelling:
        return spelling.replace("{0}", expression_latex(arguments[0].value)), Tight.ATOM
    if name == "norm" and len(arguments) == 2 and arguments[1].name in (None, "ord"):
        order = expression_latex(arguments[1].value)
        return f"{spelling.replace('{0}', expression_latex(arguments[0].value))}_{{{order}}}", Tight.ATOM
    if spelling and "{0}" not in spelling:
        function = spelling
    elif name:
        function = rf"\operatorname{{{_escape(name)}}}" if len(name) > 1 else name
    else:
        function = _at(expr.function, Tight.ATOM)
    dims = [a for a in arguments if a.name == "dim"]
    if dims:
        function += rf"_{{\mathrm{{dim}} {expression_latex(dims[0].value)}}}"
    shown = ", ".join(_argument(a) for a in arguments if a.name != "dim")
    return rf"{function}\left({shown}\right)", Tight.ATOM


def _argument(argument: Argument) -> str:
    value = expression_latex(argument.value)
    return f"{name_latex(argument.name)} = {value}" if argument.name else value


def _escape(text: str) -> str:
    return re.sub(r"([_{}#$%&])", r"\\\1", text)
