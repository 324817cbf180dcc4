"""The description of one function, used by the checker, the compiler, the backends, the targets and the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ELEMENTWISE, REDUCTION = "Elementwise", "Reductions (whole tensor, or dim= with kept dimensions)"
MATRIX, LINEAR, ORDER = "Matrices", "Linear algebra (of each tensor's matrices)", "Orders"
WHOLE, RANDOM = "The whole model", "Random numbers (from the optimizer's seed)"
HISTORY = "Histories"
CLOSURE = "Loss and curvature (from the closure that `step` is given)"
TIME, TYPES = "Time and schedules", "Number types"
PROXIMAL = "Projections and proximal maps (whole tensor, or dim= for each part along these dimensions)"

#: Functions that implement histories (see :mod:`optlang.expand.histories`); no rule can write these names.
EMPTY, PUSH, COUNT = "empty history", "push onto", "count"
#: The function that implements `iterate` (see :mod:`optlang.expand.iterations`).
HALT = "iterate until"


@dataclass(frozen=True)
class Builtin:
    """One function of the language.

    A *derived* function is defined in the language itself (``definition``) and inlined when a rule is lowered. A
    *primitive* has spellings instead, in which ``{0}`` is the first argument, and so on, and ``{*}`` all of them.
    Spellings in generated Python may call functions of :mod:`optlang.codegen.helpers`. A variadic primitive is spelled
    for two arguments.

    Attributes:
        name: The name in rules.
        signature: The parameters with defaults, in the language's notation.
        group: The heading in the documentation.
        summary: A one-sentence description.
        torch: Spelling on tensors; for matrix functions, on stacks of matrices, which have a leading batch dimension.
        host: Spelling on Python floats.
        cpp: Spelling on numbers in a C++ kernel, using ``cpp_kernels.h`` and the C library.
        triton: Spelling on blocks in a Triton kernel; ``{real}`` is the compute dtype.
        one: Spelling on a single matrix, if it differs from that on stacks.
        latex: The LaTeX name, or a template around its argument, ``{0}``.
        definition: The body of a derived function.
        value: The function on Python floats with IEEE 754 semantics, used by checks and static questions.
        static: Whether static questions may call it.
        cost: The approximate cost per element, relative to an addition.
        parts: The initial value of a reduction in a Triton kernel, and how to combine two partial results.
        reduction: Whether it is a reduction (takes ``dim=``).
        boolean: Whether its result is a condition.
        of_conditions: Whether its argument may be a condition, where it takes one number.
        results: Names of its results, if it has several: ``U, S, Vh = svd(x)``, ``svd(x).S``, ``svd(x)[1]``.
        bare: Index of the result that the function denotes in a formula; None if the result must be named.
        orders: Names of the results that are orders of elements; the function's name if its only result is one.
        matrix: Whether it operates on whole matrices.
        shape: Returns the shape of its result, or the shapes of several, given its name and the shapes of its
            arguments. If the second argument is a number (``numbered``, ``sized``), it is passed instead of a shape.
            For a derived function it only checks the argument.
        sized: Whether its second argument is a size, known before the first step.
        free: Whether a rule may reuse the name for a value.
    """

    name: str
    signature: str
    group: str
    summary: str
    torch: str | None = None
    host: str | None = None
    cpp: str | None = None
    triton: str | None = None
    one: str | None = None
    latex: str | None = None
    definition: str | None = None
    value: Callable[..., float | bool] | None = None
    static: bool = True
    cost: int = 12
    parts: tuple[str, str] | None = None
    reduction: bool = False
    boolean: bool = False
    of_conditions: bool = False
    results: tuple[str, ...] = ()
    bare: int | None = None
    orders: tuple[str, ...] = ()
    matrix: bool = False
    shape: Callable[..., Any] | None = None
    sized: bool = False
    free: bool = False

    @cached_property
    def block(self) -> bool:
        """Whether its definition is a block of statements ending in ``return``."""
        return self.definition is not None and "\n" in self.definition

    @property
    def variadic(self) -> bool:
        """Whether it is variadic."""
        return self.signature.startswith("*")

    @cached_property
    def parameters(self) -> tuple[tuple[str, str | None], ...]:
        """The parameters as (name, default text or None); ``*x`` takes any number."""
        pairs = []
        for part in filter(None, (s.strip() for s in self.signature.split(","))):
            name, _, default = (s.strip() for s in part.partition("="))
            pairs.append((name, default or None))
        return tuple(pairs)

    @cached_property
    def takes_dim(self) -> bool:
        """Whether a call may have ``dim=``."""
        return self.reduction or any(name == "dim" for name, _ in self.parameters)

    @cached_property
    def required(self) -> int:
        """The number of parameters without a default."""
        return sum(default is None for _, default in self.parameters)

    @property
    def numbered(self) -> bool:
        """Whether its second argument is a literal integer, usually a dimension."""
        return self.shape is not None and self.definition is None and self.required == 1 < len(self.parameters)

    def shapes(self, *arguments: Any) -> Any:
        """Return the shape of the result of a matrix function, or the shapes of its results."""
        assert self.shape is not None, f"{self.name} has no rule of shapes"
        return self.shape(self.name, *arguments)
