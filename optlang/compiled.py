"""What the compiler hands to the runtime: a rule, its variants, and the generated source of each.

A *variant* is a rule with its static questions answered (is ``amsgrad`` true? is ``ndim > 1``?). One variant has one
generated module, whose functions the runtime calls:

``start(p, g, ...)``   the initial value of every state, as a dict by state name (tensors in p's own shape; floats
                       for states that live on the host); further arguments are named by ``start_arguments``
``group(...)``         the new values of the group states, as a tuple; only if the rule has group states
``host(...)``          float64 arithmetic on Python floats: ``(coefficients, new host states)``, two tuples
``update(...)``        one tensor: the tensors of ``tensors`` viewed as ``layout`` says, then the packed coefficients;
                       writes in place those named in ``written``

Values that these take have the names of :mod:`optlang.inputs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from optlang.inputs import Asked, HandedOn, New, NumberContribution, Random, ValueName
from optlang.language.kinds import Kind, Level
from optlang.language.rule import Rule, Value
from optlang.language.tree import Expr

if TYPE_CHECKING:
    from optlang.language.specialise import Special


class Facts(NamedTuple):
    """What a rule may know of a tensor besides its values."""

    ndim: int
    numel: int
    rows: int
    cols: int
    eps_of: float  # machine epsilon of the type the parameter is stored in
    shape: tuple[int, ...] = ()

    @property
    def _lead(self) -> int:
        """Size of the first dimension, by which ``matrix(p)`` is made; no name that a rule could write."""
        return self.shape[0] if self.shape else 1

    def __getattr__(self, name: str) -> int:
        """Return the size of a dimension in the middle, ``_size1`` to ``_size7``; 1 where there is none."""
        place = int(name[5:]) if name in MIDDLE else -1
        if place < 0:
            raise AttributeError(name)
        return self.shape[place] if place < len(self.shape) else 1

    def named(self) -> dict[str, Any]:
        """Return the facts that are numbers, by name."""
        return {name: getattr(self, name) for name in FACTS}


#: Names of the sizes of dimensions in the middle; no names that a rule could write.
MIDDLE: tuple[str, ...] = tuple(f"_size{i}" for i in range(1, 8))
#: Names of the facts that are numbers.
FACTS: tuple[str, ...] = ("ndim", "numel", "rows", "cols", "eps_of", "_lead", *MIDDLE)


class Storage(Enum):
    """How a state, or what one pass leaves for another, is kept; values are what files of the targets call them."""

    ELEMENT = "element"  # a tensor shaped like p
    REDUCED = "reduced"  # p's shape, with some sizes 1
    MATRIX = "matrix"  # a tensor whose shape is not the parameter's
    SCALAR = "scalar"  # a device tensor with one element
    HOST = "host"  # a float on the host, mirrored into a 0-d float64 tensor

    @classmethod
    def of(cls, kind: Kind) -> Storage:
        """Return how a value on the device is kept."""
        return {
            Level.ELEMENT: cls.ELEMENT,
            Level.SCALAR: cls.SCALAR,
            Level.MATRIX: cls.MATRIX,
            Level.REDUCED: cls.REDUCED,
        }[kind.level]


@dataclass(frozen=True)
class Slot:
    """A state that exists in a variant; ``dims`` are those over which a reduced one is reduced."""

    name: str
    key: str
    storage: Storage
    dims: tuple[int, ...] = ()

    @cached_property
    def new(self) -> New:
        """The name of its value after the update of a group's or the optimizer's states."""
        return New(self.name)


@dataclass(frozen=True)
class PassTensor:
    """A tensor that one pass of a step leaves for another, or for what is done between passes."""

    name: HandedOn | NumberContribution
    storage: Storage
    dims: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: HandedOn | NumberContribution, kind: Kind) -> PassTensor:
        """Return the tensor of a value on the device."""
        return cls(name, Storage.of(kind), tuple(sorted(kind.dims)))


#: What the kernel of a pass reads and writes besides p and g.
AnySlot = Slot | PassTensor

#: Storage of states that many elements have in common: they are few, and so they are kept in 32 bits at least. A count
#: in bfloat16 stops at 256, and a mean over many steps stops as soon as what is added is less than its last digit.
IN_COMMON = (Storage.SCALAR, Storage.REDUCED)


@dataclass(frozen=True)
class Layout:
    """How a tensor is viewed before ``update`` is called.

    ``(0, 0)`` is flat, one dimension. Otherwise the first ``front`` and the last ``back`` dimensions stay and those
    between are merged into one (of size 1 if there are none); ``exact`` keeps the tensor's own shape.
    """

    front: int = 0
    back: int = 0
    exact: bool = False

    @classmethod
    def of(cls, dims: Collection[int], ndim: int) -> Layout:
        """Return how tensors of ``ndim`` dimensions are viewed: those that reductions name stay apart."""
        front = max((d + 1 for d in dims if d >= 0), default=0)
        back = max((-d for d in dims if d < 0), default=0)
        return cls(exact=True) if ndim < front + back else cls(front, back)

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


class VariantKey(NamedTuple):
    """What a variant is for; equal keys mean equal variants.

    Attributes:
        answers: The answers to static questions; of a pass, what stands for its source.
        event: The event whose statements it is, None for a step.
        ndim: Dimensions of the tensor, if it is for no other number of them.
    """

    answers: tuple[Value, ...]
    event: str | None = None
    ndim: int | None = None

    @classmethod
    def of(cls, special: Special, ndim: int) -> VariantKey:
        """Return the key of statements for a tensor of ``ndim`` dimensions."""
        exact = special.matrices or Layout.of(special.dims, ndim).exact
        return cls(special.key, special.event, ndim if exact else None)


@dataclass(frozen=True)
class Draw:
    """Random numbers that a pass reads as a tensor: ``kind`` is ``randn`` or ``rand``, ``site`` tells calls apart.

    They are shaped like p, unless a slot of the pass says that they have a shape of their own.
    """

    name: Random
    kind: str
    site: int


@dataclass(frozen=True)
class Pass:
    """One pass of a staged step over some tensors.

    Attributes:
        kernel: Its module (``host`` and ``update``) and tensors: those of the step, and what passes hand on. In a
            pass over matrices, ``update`` takes each tensor with one
            dimension more in front, of tensors that are treated alike, then the coefficients as numbers, and returns
            the new values of ``written``.
        matrices: Whether it works on whole matrices.
        needs: Names of the late values that its coefficients are computed from.
        totals: Names of the sums over the whole model that it gives its part of.
        draws: The random numbers it reads.
        points: Names of the tensors it writes for the closure to be called at, or for a direction.
        alone: Whether each tensor is worked on by itself, because the tensors decide what is done.
    """

    kernel: Variant
    matrices: bool
    needs: tuple[ValueName, ...]
    totals: tuple[NumberContribution, ...]
    draws: tuple[Draw, ...]
    points: tuple[Asked, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Steering:
    """What ties the passes of a step together, where it is more than one pass or not always the same ones.

    The variant's ``source`` then holds ``start``, ``group``, ``path`` (which of the paths this step takes),
    ``numbers_I`` (what the host states become on path I), ``shared_NAME`` (what a shared state becomes) and ``sizes``
    (of random numbers that are not shaped like p, by name).

    Attributes:
        paths: The passes of each path, in order.
        path_arguments: Names of the values ``path`` takes.
        numbers_arguments: Names of the values ``numbers_I`` takes, by path.
        size_arguments: Names of the values ``sizes`` takes, where there are such random numbers.
        shared: For each shared state its slot, and the names of the values that ``shared_NAME`` takes.
    """

    paths: tuple[tuple[Pass, ...], ...]
    path_arguments: tuple[ValueName, ...]
    numbers_arguments: tuple[tuple[ValueName, ...], ...]
    shared: tuple[tuple[Slot, tuple[ValueName, ...]], ...]
    size_arguments: tuple[ValueName, ...] = ()

    def arguments(self) -> set[ValueName]:
        """Return the names of all values that are asked for on the host."""
        kernels = (p.kernel.host_arguments for path in self.paths for p in path)
        shared = (names for _, names in self.shared)
        several = (*kernels, *self.numbers_arguments, *shared)
        return {*self.path_arguments, *self.size_arguments, *(name for names in several for name in names)}

    @property
    def random(self) -> bool:
        """Whether some pass draws random numbers."""
        return any(p.draws for path in self.paths for p in path)

    @property
    def matrices(self) -> bool:
        """Whether some pass works on whole matrices."""
        return any(p.matrices for path in self.paths for p in path)


@dataclass(frozen=True)
class Variant:
    """A rule with its static questions answered, compiled to source.

    Attributes:
        name: The rule's name.
        key: What it is for.
        source: The generated Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        traced_source: ``host`` and ``group`` once more, on 0-d float64 tensors instead of floats, and ``updated``,
            which returns what ``update`` writes (in the order of ``written``): for counters on the device and autograd.
        start_arguments: Names of the values ``start`` takes after ``p, g``.
        group_arguments: Names of the values ``group`` takes.
        host_arguments: Names of the values ``host`` takes.
        coefficients: Names of the packed coefficients, in order (for people; may be empty).
        slots: The states that exist, in order of declaration.
        pass_tensors: Of a pass, what else it reads or writes.
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
        triton_source: The generated Triton kernels for many parameters at once (imports ``triton`` only); empty if the
            variant reduces along dimensions or knows matrices.
        cpp_source: The generated C++ kernels for many parameters at once, for any types; empty if the variant
            knows matrices, or a function that is unknown in C++.
        steering: For a step of several passes: what they are, and what decides between them. The variant itself then
            has no ``update``; ``tensors`` are all that the passes may read.
    """

    name: str
    key: VariantKey
    source: str
    narrow_source: str
    traced_source: str
    start_arguments: tuple[ValueName, ...]
    group_arguments: tuple[ValueName, ...]
    host_arguments: tuple[ValueName, ...]
    coefficients: tuple[str, ...]
    slots: tuple[Slot, ...]
    group_slots: tuple[Slot, ...]
    tensors: tuple[ValueName, ...]
    written: tuple[ValueName, ...]
    layout: Layout
    min_ndim: int = 0
    counts_steps: bool = False
    counts_group: bool = False
    elementwise: bool = False
    triton_source: str = ""
    cpp_source: str = ""
    steering: Steering | None = None
    pass_tensors: tuple[PassTensor, ...] = ()

    @property
    def kept(self) -> tuple[AnySlot, ...]:
        """Its states, and of a pass what it leaves for others or reads of them."""
        return (*self.slots, *self.pass_tensors)

    @property
    def storage(self) -> dict[ValueName, Storage]:
        """How these are kept, by name."""
        return {slot.name: slot.storage for slot in self.kept}

    def text(self) -> str:
        """Return everything that runs, as Python: the module, and those of the passes of its step."""
        if self.steering is None:
            return self.source
        parts = [self.source]
        shown: dict[str, str] = {}
        for i, path in enumerate(self.steering.paths):
            for k, one in enumerate(path, 1):
                title = f"path {i}, pass {k} of {len(path)}, over {'matrices' if one.matrices else 'elements'}"
                same = shown.setdefault(one.kernel.source, title)
                parts.append(f"# {'-' * 20} {title} {'-' * 20}\n")
                parts.append(one.kernel.source if same == title else f"# the same as {same}\n")
        return "\n".join(parts)

    def cpp_text(self) -> str:
        """Return the C++ kernels of the step; where a pass has none there is a comment that says so."""
        if self.steering is None:
            return self.cpp_source or NO_CPP
        texts = []
        for i, path in enumerate(self.steering.paths):
            for k, one in enumerate(path, 1):
                texts += [f"// path {i}, pass {k} of {len(path)}", one.kernel.cpp_source or NO_CPP]
        return "\n".join(texts)


#: What stands in the place of C++ kernels that there are not.
NO_CPP = "// Not in C++: it works on matrices, or calls a function that is not known there.\n"


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
    def routes(self) -> Sequence[tuple[Compiled, Expr | None]]:
        """The rules that it sends parameters to, in order, and when; empty for a rule with formulas of its own."""

    @property
    def group_keys(self) -> tuple[str, ...]:
        """Keys of the user's own that the rule reads from the param group (``group.NAME``)."""

    def problems(self, values: Mapping[str, Value]) -> list[str]:
        """Return what is wrong with these hyperparameters (by name): ranges and requirements; empty if nothing."""

    def unfit(self, values: Mapping[str, Value], facts: Facts) -> str | None:
        """Return why a tensor does not suit the rule (a requirement on facts, shapes), None if it does."""

    def group_initial(self, values: Mapping[str, Value]) -> dict[str, float]:
        """Return the initial value of each state of the group and of the whole optimizer, by key."""

    def variant_key(self, values: Mapping[str, Value], facts: Facts, event: str | None = None) -> VariantKey:
        """Return the key of the variant that these values select, for a step or for ``on EVENT``."""

    def variant(self, values: Mapping[str, Value], facts: Facts, event: str | None = None) -> Variant:
        """Return the variant that these values select, compiled on first use."""

    def keep(self, variant: Variant) -> None:
        """Keep a variant on disk, so that other processes need not compile it."""
