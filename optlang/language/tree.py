"""The syntax tree: what a rule file says, before anything is checked.

Nodes are frozen; every node has the span of its characters. Names are stored twice: ``name`` is canonical
(Greek letters spelt out, Unicode normalised: ``β₁`` is ``beta1``), ``text`` is what the file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from optlang.source import Source, Span


@dataclass(frozen=True)
class Node:
    """Any piece of a rule."""

    span: Span


# Expressions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number(Node):
    """A literal such as ``0.9`` or ``1e-8``; ``value`` is exact."""

    text: str
    value: Fraction


@dataclass(frozen=True)
class Infinity(Node):
    """The literal ``inf``."""


@dataclass(frozen=True)
class Text(Node):
    """A quoted string; ``value`` is without its quotes."""

    value: str


@dataclass(frozen=True)
class Bool(Node):
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True)
class Nothing(Node):
    """``none``."""


@dataclass(frozen=True)
class Name(Node):
    """A name; ``name`` is canonical, ``text`` as written."""

    name: str
    text: str


@dataclass(frozen=True)
class Member(Node):
    """``group.x``, ``x.T``: a name after a dot."""

    value: Expr
    name: str


@dataclass(frozen=True)
class Unary(Node):
    """``-x``, ``+x``, ``not x``; ``op`` is the word or sign."""

    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Node):
    """``left op right`` with op one of ``+ - * / % @ ^ ?? |> and or`` (``**`` is stored as ``^``)."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Compare(Node):
    """``a < b <= c``: one more operand than operators (``< <= > >= == !=``); all must hold."""

    ops: tuple[str, ...]
    operands: tuple[Expr, ...]


@dataclass(frozen=True)
class Ternary(Node):
    """``then if condition else other``."""

    condition: Expr
    then: Expr
    other: Expr


@dataclass(frozen=True)
class Argument(Node):
    """One argument of a call; ``name`` is None for a positional one."""

    name: str | None
    value: Expr


@dataclass(frozen=True)
class Call(Node):
    """``function(arguments)``."""

    function: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Tuple(Node):
    """``(a, b)``: only for ``dim=(...)``."""

    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Unsupported(Node):
    """A construct that the grammar knows and this version does not compile; ``what`` names it.

    It may stand for an expression, a statement or a declaration, and holds the names it would define so that
    their later uses are not reported as unknown.
    """

    what: str
    defines: tuple[str, ...] = ()


Expr = (
    Number
    | Infinity
    | Text
    | Bool
    | Nothing
    | Name
    | Member
    | Unary
    | Binary
    | Compare
    | Ternary
    | Call
    | Tuple
    | Unsupported
)


# Statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assign(Node):
    """``targets op value``; op is ``=`` or one of ``+= -= *= /= ^=``; several targets take several results."""

    targets: tuple[Name, ...]
    op: str
    value: Expr


@dataclass(frozen=True)
class If(Node):
    """``if``/``elif``/``else``: ``branches`` are (condition, body) pairs; ``other`` is None without ``else``."""

    branches: tuple[tuple[Expr, tuple[Stmt, ...]], ...]
    other: tuple[Stmt, ...] | None


@dataclass(frozen=True)
class Return(Node):
    """``return a, b``, inside a function."""

    values: tuple[Expr, ...]


Stmt = Assign | If | Return | Unsupported


# Declarations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerDecl(Node):
    """``optimizer NAME``; ``reference`` is the text of the comment ``# reference: ...`` on its line, if any."""

    name: Name
    reference: str | None = None


@dataclass(frozen=True)
class Interval(Node):
    """``in [low, high)``; a bound on one side (``>= 0``) is an interval with an infinite other end."""

    low: Expr
    high: Expr
    low_closed: bool
    high_closed: bool
    text: str  # as written: "in [0, 1)", ">= 0"


@dataclass(frozen=True)
class Choices(Node):
    """``in {"l2", "decoupled"}``."""

    items: tuple[Expr, ...]
    text: str


Domain = Interval | Choices


@dataclass(frozen=True)
class HyperItem(Node):
    """One hyperparameter, or a tuple of them when ``parts`` is given (then ``default`` is None).

    The domain of a tuple holds for each part.
    """

    name: Name
    default: Expr | None
    domain: Domain | None
    parts: tuple[HyperItem, ...] | None = None


@dataclass(frozen=True)
class HyperDecl(Node):
    """``hyper a = 1, b = 2 >= 0  "what it is"``; ``doc`` is the trailing string."""

    items: tuple[HyperItem, ...]
    doc: str | None


@dataclass(frozen=True)
class Require(Node):
    """``require COND "message"``."""

    condition: Expr
    message: str | None


@dataclass(frozen=True)
class StateItem(Node):
    """``m: scalar = EXPR as key``; ``type`` is None or ``scalar``."""

    name: Name
    type: str | None
    initial: Expr | None
    key: str | None


@dataclass(frozen=True)
class StateDecl(Node):
    """``state ...``, ``group state ...`` (``scope`` is ``tensor`` or ``group``); ``when`` holds for every item."""

    scope: str
    items: tuple[StateItem, ...]
    when: Expr | None


@dataclass(frozen=True)
class Parameter(Node):
    """A parameter of a ``def``."""

    name: Name
    default: Expr | None


@dataclass(frozen=True)
class Def(Node):
    """``def f(x, y) = EXPR`` (``body`` is an expression) or a block (``body`` is statements)."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: Expr | tuple[Stmt, ...]


Decl = OptimizerDecl | HyperDecl | Require | StateDecl | Def | Unsupported


@dataclass(frozen=True)
class Comment(Node):
    """A comment, ``#`` included; ``own_line`` is whether nothing stands before it on its line."""

    text: str
    own_line: bool


@dataclass(frozen=True)
class Tree(Node):
    """A whole rule file, its items in textual order."""

    source: Source
    doc: Text | None
    items: tuple[Decl | Stmt, ...]
    comments: tuple[Comment, ...]
