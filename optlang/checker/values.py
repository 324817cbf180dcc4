"""Abstract values of the checker: kind, sort and dependencies."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from optlang.checker.matrices import meet
from optlang.functions.shapes import Shape
from optlang.kinds import HOST, STATIC, Kind, Level
from optlang.syntax.tree import StateScope


class Sort(Enum):
    """The sort of a value: what can be done with it."""

    NUMBER = "a number"
    CONDITION = "a condition"
    TEXT = "a string"
    NONE = "none"
    UNKNOWN = "unknown"  # after a reported error; compatible with everything


class Uses:
    """What a value depends on besides hyperparameters, as a bit set.

    Not a ``Flag``: a rule is interpreted dozens of times, and the operators of ``Flag`` would take a tenth of the time.
    """

    NOTHING = 0
    TIME = 1  # t, first
    TENSOR = 2  # p, g, a state of the tensor
    FACT = 4  # ndim, numel, rows, cols
    GROUP = 8  # a group state
    SHARED = 16  # a shared state
    TOTAL = 32  # a sum over all tensors of the optimizer
    LOCAL = 64  # a computed number, which cannot select a variant
    CALLED = 128  # a closure evaluation in the middle of the step


#: The dependency on a state, by its scope.
STATES = {StateScope.TENSOR: Uses.TENSOR, StateScope.GROUP: Uses.GROUP, StateScope.SHARED: Uses.SHARED}
#: Dependencies that are not known before a step.
STEP = Uses.TIME | Uses.TENSOR | Uses.GROUP | Uses.SHARED | Uses.TOTAL | Uses.LOCAL | Uses.CALLED


class Unknown(Enum):
    """The type of :data:`UNKNOWN`, which represents a value that is unknown during checks."""

    UNKNOWN = auto()


UNKNOWN = Unknown.UNKNOWN
Known = float | bool | str | None | Unknown


class CheckedValue(NamedTuple):
    """The abstract value of an expression in one variant of a rule.

    Attributes:
        kind: Its kind.
        sort: Its sort.
        uses: Its dependencies.
        known: Its value, if the variant determines it.
        optional: The hyperparameter that it is, if that may be none.
        bits: The maximum number of bits in its exact value, for an expression of literals.
        literal: Whether it is a literal in this variant.
        missing: Whether some path here does not assign it.
        order: Whether it is an order of elements (``argsort(v)``), which can be an index.
        clash: A phrase for its shapes on different paths here, if no select can join them.
    """

    kind: Kind
    sort: Sort = Sort.NUMBER
    uses: int = Uses.NOTHING
    known: Known = UNKNOWN
    optional: str | None = None
    bits: int | None = None
    literal: bool = False
    missing: bool = False
    order: bool = False
    clash: str | None = None

    @property
    def is_static(self) -> bool:
        """Whether it can select a variant."""
        return self.kind.level <= Level.HOST and not self.uses & STEP

    @property
    def truth(self) -> bool | None:
        """Its truth as a condition, if the variant determines it."""
        return None if self.known is UNKNOWN or not self.is_static else bool(self.known)


MISTAKE = CheckedValue(STATIC, Sort.UNKNOWN)


def uses_of(values: Iterable[CheckedValue]) -> int:
    """Return the union of the dependencies of values."""
    result = Uses.NOTHING
    for value in values:
        result |= value.uses
    return result


def combine(values: Iterable[CheckedValue], shape: Shape, sort: Sort = Sort.NUMBER) -> CheckedValue:
    """Return the elementwise combination of values.

    Args:
        values: The values.
        shape: The shape of the parameter.
        sort: The sort of the result.

    Raises:
        Mismatch: If their shapes do not match.
    """
    kinds, uses = [], Uses.NOTHING
    for value in values:
        kinds.append(value.kind)
        uses |= value.uses
        if value.sort is Sort.UNKNOWN:
            sort = Sort.UNKNOWN
    return CheckedValue(meet(kinds, shape), sort, uses)


def merge(values: Iterable[CheckedValue], shape: Shape, condition: CheckedValue | None = None) -> CheckedValue:
    """Return the join of several values, selected by a runtime condition.

    Raises:
        Mismatch: If their shapes do not match.
    """
    several = tuple(values)
    sorts = {v.sort for v in several}
    sort = sorts.pop() if len(sorts) == 1 else (Sort.UNKNOWN if Sort.UNKNOWN in sorts else Sort.NUMBER)
    deciding = (*several, condition) if condition else several
    kind = meet((*(v.kind for v in deciding), HOST), shape)
    missing, order = any(v.missing for v in several), all(v.order for v in several)
    clash = next((v.clash for v in several if v.clash), None)
    return CheckedValue(kind, sort, uses_of(deciding), missing=missing, order=order, clash=clash)
