"""What is known of one function: all that the checker, the compiler, its backends, the targets and the docs need."""

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

#: What histories are made of (see :mod:`optlang.expand.histories`), under names that no rule could write.
EMPTY, PUSH, COUNT = "empty history", "push onto", "count"
#: What `iterate` is made of (see :mod:`optlang.expand.iterations`).
HALT = "iterate until"


@dataclass(frozen=True)
class Builtin:
    """One function of the language.

    A *derived* function is written in the language itself (``definition``) and expanded when a rule is lowered. A
    *primitive* has spellings instead: ``{0}`` stands for the first argument, and so on, ``{*}`` for all of them. A
    spelling of generated Python may call functions of :mod:`optlang.codegen.helpers`. A primitive of any number of
    values is spelled for two.

    Attributes:
        name: What a rule calls it.
        signature: Parameters as a rule may name them, with defaults, in the language's notation.
        group: The heading it is documented under.
        summary: One sentence.
        torch: Spelling on tensors; on stacks of matrices for one of whole matrices, which then have one dimension more
            in front.
        host: Spelling on Python floats.
        cpp: Spelling on numbers of a C++ kernel, with the functions of ``cpp_kernels.h`` and of the C library.
        triton: Spelling on blocks of a Triton kernel; ``{real}`` is the type of the arithmetic.
        one: Spelling on one matrix, where it is not that on stacks.
        latex: What it is called in LaTeX, or how it is written around its argument, ``{0}``.
        definition: The body in the language, for a derived function.
        value: The function on Python floats, under the rules of IEEE 754: what checks and questions go by.
        static: Whether questions that are answered before the first step may call it.
        cost: About what it costs on an element, beside an addition.
        parts: How a Triton kernel reduces: where it starts, and how two parts become one.
        reduction: Whether it reduces (takes ``dim=``).
        boolean: Whether its result is a condition.
        of_conditions: Whether a condition is no mistake where it takes one number.
        results: Names of its results, for a function with several: ``U, S, Vh = svd(x)``, ``svd(x).S``, ``svd(x)[1]``.
        bare: Which of several results stands for the function in a formula; None if it must be said.
        orders: Names of those results that are orders of elements, its own name if its only result is one.
        matrix: Whether it works on whole matrices.
        shape: The shape of its result, or the shapes of several, given its name and the shapes of its arguments; in the
            place of the second one stands a number, if it is one (``numbered``, ``sized``). Of a derived function: what
            it takes.
        sized: Whether its second argument is a size, known before the first step.
        free: Whether a rule may define a value with this name.
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
        """Whether its definition is a block of statements that returns."""
        return self.definition is not None and "\n" in self.definition

    @property
    def variadic(self) -> bool:
        """Whether it takes any number of values."""
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
        """How many of its parameters have no default."""
        return sum(default is None for _, default in self.parameters)

    @property
    def numbered(self) -> bool:
        """Whether its second argument is a whole number that is written as one: a dimension, mostly."""
        return self.shape is not None and self.definition is None and self.required == 1 < len(self.parameters)

    def shapes(self, *arguments: Any) -> Any:
        """Return the shape of the result of a function of whole matrices, or the shapes of its results."""
        assert self.shape is not None, f"{self.name} has no rule of shapes"
        return self.shape(self.name, *arguments)
