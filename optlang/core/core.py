"""Core: a rule specialised to one set of answers to its static questions.

Core has no user functions, derived functions, static branches or counted loops. It is a closed set of nodes, which
:func:`verify` checks. From the syntax tree come numbers, names, arithmetic, comparisons, choices, single assignments,
``if`` and ``every`` on runtime values, and ``for`` over a history. Calls, members and indices are replaced by the typed
nodes below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from optlang.functions.table import ASKING, BUILTINS, FACT_NAMES, SIZES
from optlang.identity import Count, GivenName, GroupKey, NamedPoint, Site
from optlang.rule import Answer, Rule, State, Value
from optlang.syntax import tree as ast
from optlang.syntax.walk import expressions, own_expressions, statements, subscripted

#: Whether every Core is verified when it is built, as in all tests: ``OPTLANG_VERIFY=1`` in the environment.
VERIFYING = os.environ.get("OPTLANG_VERIFY", "0") not in ("", "0")


@dataclass(frozen=True)
class Key(ast.Later):
    """``group.NAME``: a number of the parameter group, or ``group.t``."""

    key: GroupKey | Count


@dataclass(frozen=True)
class KnownSize(ast.Later):
    """A size of a value, ``rows(x)``, for a tensor of known shape; ``factors`` is its formula, if known."""

    value: int
    factors: tuple[GivenName | int, ...] | None = None


@dataclass(frozen=True)
class SizeOf(ast.Later):
    """``rows(x)``, ``cols(x)`` or ``size(x, dim)``."""

    function: str
    value: ast.Expr
    dim: ast.Expr | None = None

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The value, and the dimension if there is one."""
        return (self.value,) if self.dim is None else (self.value, self.dim)


@dataclass(frozen=True)
class Operation(ast.Later):
    """A primitive function applied to values.

    Attributes:
        function: The name of its row in the function table.
        arguments: All arguments, with defaults filled in.
        dims: The dimensions given by ``dim=``, counted from 0 or from -1; None for a function of whole tensors.
    """

    function: str
    arguments: tuple[ast.Expr, ...]
    dims: tuple[int, ...] | None = None

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The arguments."""
        return self.arguments


@dataclass(frozen=True)
class Result(ast.Later):
    """One result of a function with several results."""

    operation: Operation
    index: int

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The operation."""
        return (self.operation,)


@dataclass(frozen=True)
class Transposed(ast.Later):
    """``x.T``."""

    value: ast.Expr

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The matrix."""
        return (self.value,)


@dataclass(frozen=True)
class Part(ast.Later):
    """``x[i, :r]``: one index or slice for each of the leading dimensions."""

    value: ast.Expr
    items: tuple[ast.Expr | ast.Slice, ...]

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The value and the expressions in the brackets."""
        return (self.value, *subscripted(self.items))


@dataclass(frozen=True)
class ModelSum(ast.Later):
    """``total(x)``: a sum over all tensors of the optimizer, available only in the middle of a step."""

    site: Site
    value: ast.Expr

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The summand."""
        return (self.value,)


@dataclass(frozen=True)
class Evaluated(ast.Later):
    """A closure evaluation in the middle of a step: ``loss(x)``, ``grad(x)``, ``hvp(v)`` or a line search.

    Attributes:
        function: The name of the function.
        site: The identity of the call; calls at the same named point share one evaluation.
        arguments: The point or direction, followed by the options of a search.
    """

    function: str
    site: Site | NamedPoint
    arguments: tuple[ast.Expr, ...]

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The arguments."""
        return self.arguments


@dataclass(frozen=True)
class Drawn(ast.Later):
    """Random numbers: ``randn`` or ``rand``, shaped like the parameter unless sizes are given."""

    function: str
    site: Site
    sizes: tuple[ast.Expr, ...] = ()

    @property
    def inside(self) -> tuple[ast.Expr, ...]:
        """The sizes."""
        return self.sizes


#: The expressions of Core; nodes of the syntax tree come first.
CoreExpr: TypeAlias = (
    ast.Number
    | ast.Infinity
    | ast.Bool
    | ast.Name
    | ast.Unary
    | ast.Binary
    | ast.Compare
    | ast.Ternary
    | Key
    | KnownSize
    | SizeOf
    | Operation
    | Result
    | Transposed
    | Part
    | ModelSum
    | Evaluated
    | Drawn
)


@dataclass(frozen=True)
class Core:
    """A rule specialised to one set of answers.

    Attributes:
        key: The answers, in the order in which the questions were asked.
        states: The states that exist in this variant.
        start: Statements that initialise the states (a state without one starts at zero).
        body: The statements of a step: single assignments, ``if`` and ``every`` on runtime values.
        dims: The dimensions named by any reduction.
        matrices: Whether the rule uses matrices.
        ndim: The number of dimensions of the tensor; 2 if unknown.
        event: The event that runs the statements; None for a step.
        questions: The questions, in the order of the answers. Each is an expression whose truth value or number is the
            answer. For an optional hyperparameter the question is whether it is none; for an option it is its value.
        asked: The numeric questions with their answers. Sizes are symbolic here if the shape was given symbolically.
        known: The values of locals that these questions name.
        fixed_ndim: Whether the statements are valid only for tensors with ``ndim`` dimensions.
    """

    key: tuple[Answer, ...]
    states: tuple[State, ...]
    start: tuple[ast.Stmt, ...]
    body: tuple[ast.Stmt, ...]
    dims: frozenset[int]
    matrices: bool = False
    ndim: int = 2
    event: str | None = None
    questions: tuple[ast.Expr, ...] = ()
    asked: tuple[tuple[ast.Expr, Value], ...] = ()
    known: Mapping[str, ast.Expr] = field(default_factory=dict)
    fixed_ndim: bool = False


def verify(core: Core, rule: Rule) -> None:
    """Check that a specialised rule is valid Core.

    Raises:
        AssertionError: If a node or name is not allowed in Core.
    """
    given = {"p", "g", "t", "first", "loss", *FACT_NAMES, *(h.name for h in rule.hypers)}
    names = given | {state.name for state in core.states}
    for block in (core.start, core.body):
        _verify_block(block, set(names))


def _verify_block(block: Sequence[ast.Stmt], names: set[str]) -> None:
    """Check statements in order, adding the names they assign to ``names``."""
    for statement in block:
        for node in own_expressions(statement):
            _verify_expression(node, names)
        match statement:
            case ast.Assign(targets=(target,)):
                names.add(target.name)
            case ast.If(branches=branches, other=other):
                sides = [inner for _, inner in branches] + [other or ()]
                found = []
                for inner in sides:
                    found.append(set(names))
                    _verify_block(inner, found[-1])
                names |= set().union(*found)  # the checker guarantees that no path reads an unassigned name
            case ast.Every(body=inner):
                _verify_block(inner, names)
            case ast.For(names=turn, body=inner, rows=()):
                assigned = {t.name for s in statements(inner) if isinstance(s, ast.Assign) for t in s.targets}
                _verify_block(inner, names | assigned | {name.name for name in turn})
                names |= assigned
            case _:
                raise AssertionError(f"{type(statement).__name__} is no statement of Core")


def _verify_expression(top: ast.Expr, names: set[str]) -> None:
    """Check an expression and its subexpressions."""
    for node in expressions(top):
        assert isinstance(node, CoreExpr | ast.Slice), f"{type(node).__name__} is no expression of Core"
        match node:
            case ast.Name(name=name):
                assert name in names, f"`{name}` has no value here"
            case ast.Compare(ops=ops):
                assert len(ops) == 1, "a chain of comparisons"
            case ast.Binary(op=op):
                assert op != "??", "a default for what may be none"
            case Operation(function=name, dims=dims):
                assert BUILTINS[name].definition is None, f"`{name}` is defined by other functions"
                assert dims is None or BUILTINS[name].takes_dim, f"`{name}` takes no dimensions"
            case Evaluated(function=name):
                assert name in ASKING, f"`{name}` calls no closure"
            case SizeOf(function=name):
                assert name in SIZES, f"`{name}` is no size"
