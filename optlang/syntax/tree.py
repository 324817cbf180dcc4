"""The syntax tree of a rule file, before any checks.

Nodes are frozen, and every node has a span. Names are stored twice: ``name`` is canonical (Greek letters spelt out,
Unicode normalised: ``β₁`` is ``beta1``), ``text`` is the spelling in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from optlang.source import Source, Span


@dataclass(frozen=True)
class Node:
    """Base class of all nodes."""

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
    """``-x``, ``+x``, ``not x``; ``op`` is the operator."""

    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Node):
    """``left op right`` with op one of ``+ - * / % @ ^ ?? and or`` (``**`` is stored as ``^``)."""

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
class Pipe(Node):
    """``value |> stage``: the stage is a function name or a call, which takes the value as first argument."""

    value: Expr
    stage: Expr


@dataclass(frozen=True)
class Tuple(Node):
    """``(a, b)``: only for ``dim=(...)``."""

    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Slice(Node):
    """``start:stop`` in an index, or ``dim=1:`` in a call; either end may be left out."""

    start: Expr | None
    stop: Expr | None


@dataclass(frozen=True)
class Index(Node):
    """``x[i, :r]``: one item per leading dimension, a number, an order (``x[order, :]``) or a slice.

    For a function with several results, ``f(x)[i]`` is result ``i``.
    """

    value: Expr
    items: tuple[Expr | Slice, ...]


@dataclass(frozen=True)
class Unsupported(Node):
    """A construct that the grammar accepts but this version does not compile; ``what`` names it.

    It may be an expression, a statement or a declaration. It records the names it would define, so that later uses of
    them are not reported as unknown.
    """

    what: str
    defines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Later(Node):
    """An expression without syntax, inserted by a later stage in place of another (:mod:`optlang.core.core`)."""

    @property
    def inside(self) -> tuple[Expr, ...]:
        """The expressions directly inside."""
        return ()


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
    | Pipe
    | Tuple
    | Slice
    | Index
    | Unsupported
    | Later
)


# Statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assign(Node):
    """``targets op value``; op is ``=`` or one of ``+= -= *= /= ^=``; several targets take several results.

    ``at`` is the ``i`` of ``a[i] = value`` in a ``for`` over a history, which gives ``a`` one value per entry.
    """

    targets: tuple[Name, ...]
    op: str
    value: Expr
    at: Name | None = None


@dataclass(frozen=True)
class If(Node):
    """``if``/``elif``/``else``: ``branches`` are (condition, body) pairs; ``other`` is None without ``else``."""

    branches: tuple[tuple[Expr, tuple[Stmt, ...]], ...]
    other: tuple[Stmt, ...] | None


@dataclass(frozen=True)
class Apply(Node):
    """``B(p, g)``: applies an inner rule, or a transform for its effect on the state it keeps."""

    call: Call


@dataclass(frozen=True)
class Return(Node):
    """``return a, b``, inside a function."""

    values: tuple[Expr, ...]


@dataclass(frozen=True)
class Repeat(Node):
    """``repeat count:``; the count is known before the first step."""

    count: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class For(Node):
    """``for b in betas:``, an iteration for each part of a hyperparameter that is a tuple.

    ``for i in s:`` iterates over the filled positions of the history ``s``, from the oldest or, with ``for i in
    reversed(s):``, ``backwards`` from the newest. ``for a, b in ((1, 2), (3, 4)):`` iterates over literal rows;
    ``others`` are the loop variables after the first.
    """

    name: Name
    over: Name | Tuple
    body: tuple[Stmt, ...]
    backwards: bool = False
    others: tuple[Name, ...] = ()

    @property
    def names(self) -> tuple[Name, ...]:
        """The loop variables."""
        return (self.name, *self.others)

    @property
    def over_name(self) -> str:
        """The name of what it iterates over; empty for literal rows."""
        return self.over.name if isinstance(self.over, Name) else ""

    @property
    def rows(self) -> tuple[tuple[Expr, ...], ...]:
        """The values of the loop variables in each iteration, for literal rows."""
        items = self.over.items if isinstance(self.over, Tuple) else ()
        rows = tuple(item.items if isinstance(item, Tuple) else (item,) for item in items)
        return rows[::-1] if self.backwards else rows


@dataclass(frozen=True)
class Push(Node):
    """``push s <- x, y <- z``: appends a newest entry to each history; a full history loses its oldest one."""

    items: tuple[tuple[Name, Expr], ...]


@dataclass(frozen=True)
class Every(Node):
    """``every period from start or first:``; ``start`` is None without ``from``, ``first`` records ``or first``.

    The block runs in updates t with t % period == 0, or (t - start) % period == 0 from ``start`` on.
    """

    period: Expr
    start: Expr | None
    first: bool
    body: tuple[Stmt, ...]


Stmt = Assign | If | Apply | Push | Return | Repeat | For | Every | Unsupported


# Declarations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerDecl(Node):
    """``optimizer NAME``; ``reference`` is the text of a comment ``# reference: ...`` on its line, if any."""

    name: Name
    reference: str | None = None


@dataclass(frozen=True)
class Interval(Node):
    """``in [low, high)``; a one-sided bound (``>= 0``) is an interval that is infinite on the other side."""

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

    The domain of a tuple applies to each part. ``optional`` means that it may be none although its default is not.
    """

    name: Name
    default: Expr | None
    domain: Domain | None
    parts: tuple[HyperItem, ...] | None = None
    optional: bool = False


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


class StateScope(Enum):
    """The scope of a state; the values of the last two are the keywords that declare them."""

    TENSOR = "tensor"
    GROUP = "group"
    SHARED = "shared"


@dataclass(frozen=True)
class StateDecl(Node):
    """``state ...``, ``group state ...``, ``shared state ...``; ``when`` applies to every item."""

    scope: StateScope
    items: tuple[StateItem, ...]
    when: Expr | None


@dataclass(frozen=True)
class Word(Node):
    """A word of the language that is not a name of the rule: ``fp8``."""

    text: str


@dataclass(frozen=True)
class StoreFormat(Node):
    """``int8(block = 256)``, ``bf16 stochastic`` or ``bf16+8``: a name with its options."""

    name: Word
    options: tuple[Argument, ...] = ()
    rounding: Word | None = None
    bits: Number | None = None


@dataclass(frozen=True)
class StoreDecl(Node):
    """``store m, v: FORMAT when CONDITION``: how states are stored, or how the parameter ``p`` is rounded."""

    names: tuple[Name, ...]
    format: StoreFormat
    when: Expr | None


@dataclass(frozen=True)
class History(Node):
    """``history s, y: size k``: the last k pushed values; ``type`` is None or ``scalar``, for numbers."""

    names: tuple[Name, ...]
    type: str | None
    size: Expr


@dataclass(frozen=True)
class Flat(Node):
    """``flat``: the parameters of a param group form one vector ``p``, their gradients one vector ``g``."""


@dataclass(frozen=True)
class Sparse(Node):
    """``sparse``: gradients are sparse, and a step updates the rows they touch."""


@dataclass(frozen=True)
class Iterate(Node):
    """``iterate n until c``: ``step()`` runs up to n steps of the rule; ``until`` is None without a condition."""

    count: Expr
    until: Expr | None


@dataclass(frozen=True)
class Parameter(Node):
    """A parameter of a ``def`` or a ``transform``; only those of transforms may have a range."""

    name: Name
    default: Expr | None
    domain: Domain | None = None


@dataclass(frozen=True)
class Def(Node):
    """``def f(x, y) = EXPR`` (``body`` is an expression) or a block (``body`` is statements)."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: Expr | tuple[Stmt, ...]


@dataclass(frozen=True)
class TransformDecl(Node):
    """``transform f(u, beta = 0.9 in [0, 1)):`` with a block that may declare states and returns one value."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: tuple[Decl | Stmt, ...]


@dataclass(frozen=True)
class Use(Node):
    """``use AdamW(lr = 3e-4)``: another rule with other defaults; ``rule`` may be a file name."""

    rule: Name | Text
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Inner(Node):
    """``inner B = SGD(lr = 0.1) like EXPR``: a named rule whose states have the shape of ``like`` (or ``p``)."""

    name: Name
    rule: Name | Text
    arguments: tuple[Argument, ...]
    like: Expr | None


@dataclass(frozen=True)
class On(Node):
    """``on eval:`` or ``on train:`` (``event``): statements that ``optimizer.eval()`` or ``.train()`` runs."""

    event: str
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class Route(Node):
    """``route RULE when CONDITION`` or ``route RULE otherwise`` (``when`` is None); ``rule`` may be a file name."""

    rule: Name | Text
    when: Expr | None

    @property
    def title(self) -> str:
        """The name of the rule as written, without quotes."""
        return self.rule.text if isinstance(self.rule, Name) else self.rule.value


Decl = (
    OptimizerDecl
    | HyperDecl
    | Require
    | StateDecl
    | StoreDecl
    | History
    | Flat
    | Sparse
    | Iterate
    | Def
    | TransformDecl
    | Use
    | Inner
    | On
    | Route
    | Unsupported
    | Later
)


@dataclass(frozen=True)
class Comment(Node):
    """A comment, ``#`` included; ``own_line`` says whether it is alone on its line."""

    text: str
    own_line: bool


@dataclass(frozen=True)
class Tree(Node):
    """A whole rule file, with its items in source order."""

    source: Source
    doc: Text | None
    items: tuple[Decl | Stmt, ...]
    comments: tuple[Comment, ...]
