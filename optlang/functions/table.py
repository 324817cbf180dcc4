"""The table of functions, and the names that rules may read without declaring them.

The rows are in the modules of :mod:`optlang.functions`, one per kind; :class:`Builtin` documents the columns.
"""

from __future__ import annotations

from optlang.functions import elementwise, matrices, proximal, reductions, steps
from optlang.functions.row import (
    CLOSURE,
    COUNT,
    ELEMENTWISE,
    EMPTY,
    HALT,
    HISTORY,
    LINEAR,
    MATRIX,
    ORDER,
    PROXIMAL,
    PUSH,
    RANDOM,
    REDUCTION,
    TIME,
    TYPES,
    WHOLE,
    Builtin,
)

__all__ = ["CLOSURE", "COUNT", "ELEMENTWISE", "EMPTY", "HALT", "HISTORY", "LINEAR", "MATRIX", "ORDER"]
__all__ += ["PROXIMAL", "PUSH", "RANDOM", "REDUCTION", "TIME", "TYPES", "WHOLE", "Builtin"]

TABLE: tuple[Builtin, ...] = (
    *elementwise.FUNCTIONS,
    *reductions.FUNCTIONS,
    *steps.SCHEDULES,
    *steps.MODEL,
    *matrices.FUNCTIONS,
    *steps.DRAWS,
    *proximal.FUNCTIONS,
    *elementwise.ROUNDING,
)

BUILTINS: dict[str, Builtin] = {row.name: row for row in (*TABLE, *steps.INTERNAL)}

TENSOR_NAMES: dict[str, str] = {"p": "the parameter", "g": "its gradient"}

FACT_NAMES: dict[str, str] = {
    "ndim": "number of dimensions of this tensor",
    "numel": "number of elements of this tensor",
    "rows": "size of dimension -2 of this tensor (1 if it has fewer than two dimensions)",
    "cols": "size of the last dimension of this tensor (1 if it has none)",
}

TIME_NAMES: dict[str, str] = {
    "t": "this tensor's updates, counted from 1",
    "first": "whether this is the tensor's first update (t == 1)",
}

#: Members of values: the transpose, and the results of functions with several results.
MEMBERS = frozenset(("T", *(result for row in BUILTINS.values() for result in row.results)))

#: Functions that evaluate the closure; the first is also the name of the loss at the start of the step.
EVALUATIONS: frozenset[str] = frozenset(
    ("loss", "grad", "hvp", "strong_wolfe", "backtracking", "iteration", "evaluations", HALT)
)

#: Functions that return counters of the step.
PROGRESS: tuple[str, ...] = ("iteration", "evaluations")

#: Functions that search along a direction.
SEARCHES: tuple[str, ...] = ("strong_wolfe", "backtracking")

#: Functions that evaluate the closure in the middle of a step.
ASKING: tuple[str, ...] = ("loss", "grad", "hvp", *SEARCHES)

#: Functions that return sizes; the first two have the same names as the facts of p.
SIZES: tuple[str, ...] = ("rows", "cols", "size")

#: Functions that create tensors of given sizes.
MAKERS: frozenset[str] = frozenset(("zeros", "ones", "eye"))

#: Functions that draw random numbers; the first two are primitive.
RANDOMS: tuple[str, ...] = ("randn", "rand", "rademacher", "bernoulli")

#: Functions whose use makes a rule a matrix rule.
MATRIX_FUNCTIONS: frozenset[str] = frozenset(row.name for row in BUILTINS.values() if row.matrix)
