"""What the checker knows of a value: its kind, what sort of thing it is, and what it depends on."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from optlang.checker.matrices import meet
from optlang.functions.shapes import Shape
from optlang.kinds import HOST, STATIC, Kind, Level
from optlang.syntax.tree import StateScope


class Sort(Enum):
    """What one can do with a value."""

    NUMBER = "a number"
    CONDITION = "a condition"
    TEXT = "a string"
    NONE = "none"
    UNKNOWN = "unknown"  # after a mistake that has been reported; fits everywhere


class Uses:
    """What a value depends on besides hyperparameters, as bits of a number.

    Not a ``Flag``: a rule is read dozens of times, and its operators would take a tenth of that.
    """

    NOTHING = 0
    TIME = 1  # t, first
    TENSOR = 2  # p, g, a state of the tensor
    FACT = 4  # ndim, numel, rows, cols
    GROUP = 8  # a state of the group
    SHARED = 16  # a state of the whole optimizer
    TOTAL = 32  # a sum over all tensors of the optimizer
    LOCAL = 64  # a number the rule has computed, which no variant is chosen by
    CALLED = 128  # what the closure is called for in the middle of the step


#: What a state's value depends on, by what the state belongs to.
STATES = {StateScope.TENSOR: Uses.TENSOR, StateScope.GROUP: Uses.GROUP, StateScope.SHARED: Uses.SHARED}
#: What is not known before a step runs.
STEP = Uses.TIME | Uses.TENSOR | Uses.GROUP | Uses.SHARED | Uses.TOTAL | Uses.LOCAL | Uses.CALLED


class Unknown(Enum):
    """The type of :data:`UNKNOWN`, which stands for a value that is not known while checking."""

    UNKNOWN = auto()


UNKNOWN = Unknown.UNKNOWN
Known = float | bool | str | None | Unknown


class CheckedValue(NamedTuple):
    """What is known of the value of an expression in one variant of a rule.

    Attributes:
        kind: Where it lives.
        sort: What sort of thing it is.
        uses: What it depends on.
        known: Its value, where the variant decides it.
        optional: The hyperparameter that may be none and is this value, if it is one.
        bits: Digits (binary) that its exact value may take, when it is made of literals alone.
        literal: Whether it is written as a literal in this variant.
        missing: Whether some path to here does not assign it.
        order: Whether it is an order of elements (``argsort(v)``), which may stand in an index.
        clash: The shapes that it has on the paths to here, as a phrase, where no select can tell between them.
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
        """Whether a variant can be chosen by it."""
        return self.kind.level <= Level.HOST and not self.uses & STEP

    @property
    def truth(self) -> bool | None:
        """Whether it holds as a condition, where the variant decides it."""
        return None if self.known is UNKNOWN or not self.is_static else bool(self.known)


MISTAKE = CheckedValue(STATIC, Sort.UNKNOWN)


def uses_of(values: Iterable[CheckedValue]) -> int:
    """Return everything that some values depend on."""
    result = Uses.NOTHING
    for value in values:
        result |= value.uses
    return result


def combine(values: Iterable[CheckedValue], shape: Shape, sort: Sort = Sort.NUMBER) -> CheckedValue:
    """Return what is known of an elementwise combination of values.

    Args:
        values: The values.
        shape: That of the parameter.
        sort: What sort of thing the result is.

    Raises:
        Mismatch: If their shapes do not meet.
    """
    kinds, uses = [], Uses.NOTHING
    for value in values:
        kinds.append(value.kind)
        uses |= value.uses
        if value.sort is Sort.UNKNOWN:
            sort = Sort.UNKNOWN
    return CheckedValue(meet(kinds, shape), sort, uses)


def merge(values: Iterable[CheckedValue], shape: Shape, condition: CheckedValue | None = None) -> CheckedValue:
    """Return what is known of one of several values, chosen by a condition that is not static.

    Raises:
        Mismatch: If their shapes do not meet.
    """
    several = tuple(values)
    sorts = {v.sort for v in several}
    sort = sorts.pop() if len(sorts) == 1 else (Sort.UNKNOWN if Sort.UNKNOWN in sorts else Sort.NUMBER)
    deciding = (*several, condition) if condition else several
    kind = meet((*(v.kind for v in deciding), HOST), shape)
    missing, order = any(v.missing for v in several), all(v.order for v in several)
    clash = next((v.clash for v in several if v.clash), None)
    return CheckedValue(kind, sort, uses_of(deciding), missing=missing, order=order, clash=clash)
