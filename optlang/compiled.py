"""What the compiler hands to the runtime: a rule, its variants, and the generated source of each.

A *variant* is a rule with its static questions answered (is ``amsgrad`` true? is ``ndim > 1``?). One variant has one
generated module, whose functions the runtime calls:

``start(p, g, ...)``   the initial value of every state, as a dict by state name (tensors in p's own shape; floats
                       for states that live on the host); further arguments are named by ``start_arguments``
``group(...)``         the new values of the group states, as a tuple; only if the rule has group states
``host(...)``          float64 arithmetic on Python floats: ``(coefficients, new host states)``, two tuples
``update(...)``        one tensor: the tensors of ``tensors`` viewed as ``layout`` says, then the packed coefficients;
                       writes in place those named in ``written``

Values that these take are named: a hyperparameter's name, ``t``, ``first``, a fact (``ndim numel rows cols eps_of``),
``group.NAME`` (a key of the param group; ``group.t`` is the group's step, from 1), a state's name (its value before
the step), or a group state's name with a ``'`` behind it (its value after the group's update).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from optlang.language.rule import Rule, Value


class Facts(NamedTuple):
    """What a rule may know of a tensor besides its values."""

    ndim: int
    numel: int
    rows: int
    cols: int
    eps_of: float  # machine epsilon of the type the parameter is stored in


@dataclass(frozen=True)
class Slot:
    """A state that exists in a variant.

    ``place`` is ``element`` (shaped like p), ``reduced`` (p's shape with some sizes 1), ``scalar`` (a device tensor
    with one element) or ``host`` (a float kept on the host and mirrored into a 0-d float64 tensor).
    """

    name: str
    key: str
    place: str


@dataclass(frozen=True)
class Layout:
    """How a tensor is viewed before ``update`` is called.

    ``(0, 0)`` is flat, one dimension. Otherwise the first ``front`` and the last ``back`` dimensions stay and those
    between are merged into one (of size 1 if there are none); ``exact`` keeps the tensor's own shape.
    """

    front: int = 0
    back: int = 0
    exact: bool = False

    @property
    def flat(self) -> bool:
        """Whether tensors are viewed as one dimension."""
        return not (self.front or self.back or self.exact)

    def shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the viewed shape of a tensor of shape ``size``."""
        if self.exact:
            return size
        count = 1
        for n in size[self.front : len(size) - self.back]:
            count *= n
        return (*size[: self.front], count, *size[len(size) - self.back :])


@dataclass(frozen=True)
class Variant:
    """A rule with its static questions answered, compiled to source.

    Attributes:
        name: The rule's name.
        key: The answers; equal keys mean equal variants.
        source: The generated Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        traced_source: ``host`` and ``group`` once more, on 0-d float64 tensors instead of floats, and ``updated``,
            which returns what ``update`` writes (in the order of ``written``): for counters on the device and autograd.
        start_arguments: Names of the values ``start`` takes after ``p, g``.
        group_arguments: Names of the values ``group`` takes.
        host_arguments: Names of the values ``host`` takes.
        coefficients: Names of the packed coefficients, in order (for people; may be empty).
        slots: The states that exist, in order of declaration.
        group_slots: The group states, in order of declaration: (name, key, initial expression's value).
        tensors: Names of the tensors ``update`` takes, in order: ``p``, ``g``, and states.
        written: Which of them it writes.
        layout: How they are viewed.
        min_ndim: Dimensions a tensor must have for the reductions of this variant to make sense.
        counts_steps: Whether the step count ``t`` of each tensor must be kept (under the key ``step``): this variant
            reads it, or one does to which a change of hyperparameters may lead.
        counts_group: Whether the steps of each param group must be kept (under the key ``step``): some variant of the
            rule may read ``group.t``.
        elementwise: Whether every element is updated from itself alone, so that any part of a tensor may be updated
            without the rest: nothing is reduced, and every tensor is shaped like the parameter.
        triton_source: The generated Triton kernel for many parameters at once (imports ``triton`` only); empty if the
            variant is not elementwise.
    """

    name: str
    key: tuple[Value, ...]
    source: str
    narrow_source: str
    traced_source: str
    start_arguments: tuple[str, ...]
    group_arguments: tuple[str, ...]
    host_arguments: tuple[str, ...]
    coefficients: tuple[str, ...]
    slots: tuple[Slot, ...]
    group_slots: tuple[Slot, ...]
    tensors: tuple[str, ...]
    written: tuple[str, ...]
    layout: Layout
    min_ndim: int = 0
    counts_steps: bool = False
    counts_group: bool = False
    elementwise: bool = False
    triton_source: str = ""


class Compiled(Protocol):
    """A compiled rule, as the runtime sees it."""

    @property
    def rule(self) -> Rule:
        """The checked rule."""

    @property
    def name(self) -> str:
        """The class name."""

    @property
    def static_names(self) -> frozenset[str]:
        """Names of the hyperparameters and ``group.NAME`` keys that some static question reads.

        As long as these values and a tensor's facts stay, its variant stays.
        """

    @property
    def group_keys(self) -> tuple[str, ...]:
        """Keys of the user's own that the rule reads from the param group (``group.NAME``)."""

    def problems(self, values: Mapping[str, Value]) -> list[str]:
        """Return what is wrong with these hyperparameters (by name): ranges and requirements; empty if nothing."""

    def group_initial(self, values: Mapping[str, Value]) -> dict[str, float]:
        """Return the initial value of each group state, by key."""

    def variant_key(self, values: Mapping[str, Value], facts: Facts) -> tuple[Value, ...]:
        """Return the key of the variant that these values select."""

    def variant(self, values: Mapping[str, Value], facts: Facts) -> Variant:
        """Return the variant that these values select, compiled on first use."""

    def keep(self, variant: Variant) -> None:
        """Keep a variant on disk, so that other processes need not compile it."""
