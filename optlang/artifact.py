"""What the compiler hands to the runtime: a rule, its variants, and the generated source of each.

A *variant* is a rule with its static questions answered (is ``amsgrad`` true? is ``ndim > 1``?). What a step of it runs
is a :class:`Schedule` of stages, each of which is a :class:`Kernel`. The functions of the generated modules, of the
variant and of its kernels, are called by the runtime:

``start(p, g, ...)``   the initial value of every state, as a dict by state name (tensors in p's own shape; floats
                       for states that live on the host); further arguments are named by ``start_arguments``
``group(...)``         the new values of the group states, as a tuple; only if the rule has group states
``host(...)``          float64 arithmetic on Python floats: ``(coefficients, new host states)``, two tuples
``update(...)``        one tensor: the tensors of ``tensors`` viewed as ``layout`` says, then the packed coefficients;
                       writes in place those named in ``written``

Values that these take have the names of :mod:`optlang.inputs`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from optlang.identity import DimensionSize, GivenName, Site
from optlang.inputs import Asked, HandedOn, New, NumberContribution, Random, ValueName
from optlang.kinds import Kind, Level
from optlang.rule import Answer, Rule, Values
from optlang.storage import ON_HOST, Format
from optlang.syntax.tree import Expr

if TYPE_CHECKING:
    from optlang.core.core import Core
    from optlang.ir.program import Program  # it is made of SymPy, which the runtime does without


class ShapeInfo(NamedTuple):
    """What a rule may know of a tensor besides its values."""

    ndim: int
    numel: int
    rows: int
    cols: int
    eps_of: float  # machine epsilon of the type the parameter is stored in
    shape: tuple[int, ...] = ()

    def number(self, name: str | DimensionSize) -> Any:
        """Return one of the facts that are numbers."""
        if isinstance(name, DimensionSize):
            return self.shape[name.dim] if name.dim < len(self.shape) else 1
        return getattr(self, name)

    def named(self) -> dict[GivenName, Any]:
        """Return the facts that are numbers, by name."""
        return {name: self.number(name) for name in FACTS}


#: The sizes of dimensions that no name of a rule's stands for.
DIMENSION_SIZES: tuple[DimensionSize, ...] = tuple(map(DimensionSize, range(8)))
#: Names of the facts that are numbers.
FACTS: tuple[str | DimensionSize, ...] = ("ndim", "numel", "rows", "cols", "eps_of", *DIMENSION_SIZES)


class Storage(Enum):
    """How a state, or what one stage leaves for another, is kept; values are what files of the targets call them."""

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
    """A state that exists in a variant.

    Attributes:
        name: What the rule calls it.
        key: Its key in ``optimizer.state[p]``, or in the param group.
        storage: What it is shaped like.
        dims: The dimensions over which a reduced one is reduced.
        format: How its numbers are kept.
        signed: Whether some of its numbers may be negative.
        divides: Whether something is divided by them.
        zero: Whether they are 0 before the first step.
        averages: Whether what was kept has less weight with every step, so that errors fade.
        cancels: Whether something is divided by a difference in which it stands, or a root is taken of one.
        mixed: Whether it is given to operations on matrices, so that no element is updated from itself alone.
    """

    name: str
    key: str
    storage: Storage
    dims: tuple[int, ...] = ()
    format: Format = ON_HOST
    signed: bool = True
    divides: bool = False
    zero: bool = False
    averages: bool = False
    cancels: bool = False
    mixed: bool = False

    @property
    def of_elements(self) -> bool:
        """Whether it is shaped like its parameter."""
        return self.storage is Storage.ELEMENT

    @cached_property
    def new(self) -> New:
        """The name of its value after the update of a group's or the optimizer's states."""
        return New(self.name)


@dataclass(frozen=True)
class StageTensor:
    """A tensor that one stage of a step leaves for another, or for what is done between stages."""

    name: HandedOn | NumberContribution
    storage: Storage
    dims: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: HandedOn | NumberContribution, kind: Kind) -> StageTensor:
        """Return the tensor of a value on the device."""
        return cls(name, Storage.of(kind), tuple(sorted(kind.dims)))


#: What a kernel reads and writes besides p and g.
AnySlot = Slot | StageTensor


@dataclass(frozen=True)
class View:
    """How a tensor is viewed before ``update`` is called.

    ``(0, 0)`` is flat, one dimension. Otherwise the first ``front`` and the last ``back`` dimensions stay and those
    between are merged into one (of size 1 if there are none); ``exact`` keeps the tensor's own shape.
    """

    front: int = 0
    back: int = 0
    exact: bool = False

    @classmethod
    def of(cls, dims: Collection[int], ndim: int) -> View:
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
        answers: The answers to static questions.
        event: The event whose statements it is, None for a step.
        ndim: Dimensions of the tensor, if it is for no other number of them.
    """

    answers: tuple[Answer, ...]
    event: str | None = None
    ndim: int | None = None

    @classmethod
    def of(cls, core: Core, ndim: int) -> VariantKey:
        """Return the key of statements for a tensor of ``ndim`` dimensions."""
        exact = core.matrices or View.of(core.dims, ndim).exact
        return cls(core.key, core.event, ndim if exact else None)


@dataclass(frozen=True)
class Draw:
    """Random numbers that a stage reads as a tensor: ``kind`` is ``randn`` or ``rand``.

    They are shaped like p, unless a tensor of the stage says that they have a shape of their own.
    """

    name: Random
    kind: str

    @cached_property
    def seed(self) -> int:
        """The number by which they differ from those of other calls."""
        assert isinstance(self.name.site, Site)
        return self.name.site.seed()


class Locality(Enum):
    """What an element of the results of a kernel depends on: what a backend must be able to do."""

    ELEMENTS = "the same element of other tensors, and numbers"
    SWEEPS = "reductions over whole tensors as well"
    DIMENSIONS = "reductions along dimensions as well"
    STACKS = "whole matrices, of which there may be many in a stack"


class Kernel:
    """What is computed in one go for one parameter or for many: the unit that backends see.

    A kernel has a Python module with ``host`` and ``update``. Other texts are written when a backend asks for them.

    Attributes:
        name: The rule's name.
        digest: Differs whenever what is computed does.
        title: First line of the docstrings of its modules.
        locality: What elements of its results depend on. A kernel of ``STACKS`` takes each tensor with one dimension
            more in front, of tensors that are treated alike, then the coefficients as numbers, and returns the new
            values of ``written``.
        ndim: Dimensions of the parameter that it was made for.
        layout: How tensors are viewed.
        slots: The states that it reads or writes, in order of declaration, and all that live on the host.
        stage_tensors: What else it reads or writes.
        tensors: Names of the tensors ``update`` takes, in order: ``p``, ``g``, and states.
        written: Which of them it writes.
        host_arguments: Names of the values ``host`` takes.
        coefficients: Names of the packed coefficients, in order (for people; may be empty).
        source: The Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        texts: The other texts that have been asked for, by the modules that wrote them, with what these were given.
        restore: Makes the program again, for a kernel that was found on disk.
    """

    def __init__(
        self,
        program: Program,
        *,
        name: str,
        title: str,
        locality: Locality,
        ndim: int,
        layout: View,
        slots: tuple[Slot, ...],
        stage_tensors: tuple[StageTensor, ...],
        tensors: tuple[ValueName, ...],
        host_arguments: tuple[ValueName, ...],
        sources: tuple[str, str],
    ) -> None:
        self.name, self.title, self.locality, self.ndim, self.layout = name, title, locality, ndim, layout
        self.slots, self.stage_tensors, self.tensors, self.host_arguments = (
            slots,
            stage_tensors,
            tensors,
            host_arguments,
        )
        self.coefficients = tuple(map(str, program.coefficients()))
        self.written: tuple[ValueName, ...] = tuple(s.target for s in program.stores if s.kind.on_device)
        self.source, self.narrow_source = sources
        # Python that keeps all dimensions may be the same for any number of them; other texts are not.
        exact = ndim if layout.exact else None
        self.digest = hashlib.sha256(repr((sources, tensors, self.kept, layout, exact)).encode()).hexdigest()
        self.texts: dict[tuple[Any, ...], str] = {}
        self.restore: Callable[[], Program] | None = None
        self._program: Program | None = program

    @property
    def program(self) -> Program:
        """What it computes, after the passes of the compiler."""
        if self._program is None:
            assert self.restore is not None
            self._program = self.restore()
        return self._program

    @property
    def kept(self) -> tuple[AnySlot, ...]:
        """What it reads or writes besides p and g."""
        return (*self.slots, *self.stage_tensors)

    @cached_property
    def storage(self) -> dict[ValueName, Storage]:
        """How these are kept, by name."""
        return {slot.name: slot.storage for slot in self.kept}

    @property
    def elementwise(self) -> bool:
        """Whether every element is updated from itself alone, so that any part of a tensor may be without the rest."""
        return self.locality is Locality.ELEMENTS

    @property
    def matrices(self) -> bool:
        """Whether it takes stacks of whole matrices."""
        return self.locality is Locality.STACKS

    def text(self, module: str, *options: Any) -> str:
        """Return what ``emit(kernel)`` of a module of :mod:`optlang.backends` writes; once, and then from memory.

        Args:
            module: The module's name, such as ``cpp_source``. It is imported only if the text is not there yet.
            options: What ``emit`` takes besides.
        """
        key = (module, *options)
        if key not in self.texts:
            self.texts[key] = str(import_module(f"optlang.codegen.{module}").emit(self, *options))
        return self.texts[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the program, which would load SymPy: it is made again when it is needed."""
        state = {**vars(self), "_program": None, "restore": None}
        state.pop("storage", None)
        return state


@dataclass(frozen=True)
class Stage:
    """One stage of a step over some tensors: a kernel, and what it waits for and leaves.

    Attributes:
        kernel: What is run.
        needs: Names of the late values that its coefficients are computed from.
        totals: Names of the sums over the whole model that it gives its part of.
        draws: The random numbers it reads.
        points: Names of the tensors it writes for the closure to be called at, or for a direction.
        alone: Whether each tensor is worked on by itself, because the tensors decide what is done.
    """

    kernel: Kernel
    needs: tuple[ValueName, ...] = ()
    totals: tuple[NumberContribution, ...] = ()
    draws: tuple[Draw, ...] = ()
    points: tuple[Asked, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Schedule:
    """The shape of a step: the stages of each path that it may take.

    Most rules have one path of one stage, whose kernel computes the host states with its coefficients (``direct``).
    For all others the variant's module holds ``path`` (which of the paths this step takes), ``numbers_I`` (what the
    host states become on path I), ``shared_NAME`` (what a shared state becomes) and ``sizes`` (of random numbers that
    are not shaped like p, by name).

    Attributes:
        paths: The stages of each path, in order.
        direct: Whether a step is the one kernel there is, and nothing else.
        path_arguments: Names of the values ``path`` takes.
        numbers_arguments: Names of the values ``numbers_I`` takes, by path.
        size_arguments: Names of the values ``sizes`` takes, where there are such random numbers.
        shared: For each shared state its slot, and the names of the values that ``shared_NAME`` takes.
    """

    paths: tuple[tuple[Stage, ...], ...]
    direct: bool = False
    path_arguments: tuple[ValueName, ...] = ()
    numbers_arguments: tuple[tuple[ValueName, ...], ...] = ()
    shared: tuple[tuple[Slot, tuple[ValueName, ...]], ...] = ()
    size_arguments: tuple[ValueName, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of all paths."""
        return tuple(stage for path in self.paths for stage in path)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of all paths."""
        return tuple(stage.kernel for stage in self.stages)

    def arguments(self) -> set[ValueName]:
        """Return the names of all values that are asked for on the host."""
        shared = (names for _, names in self.shared)
        several = (*(kernel.host_arguments for kernel in self.kernels), *self.numbers_arguments, *shared)
        return {*self.path_arguments, *self.size_arguments, *(name for names in several for name in names)}

    @property
    def random(self) -> bool:
        """Whether some stage draws random numbers."""
        return any(stage.draws for stage in self.stages)

    @property
    def matrices(self) -> bool:
        """Whether some stage works on whole matrices."""
        return any(kernel.matrices for kernel in self.kernels)


@dataclass(frozen=True, eq=False)
class Variant:
    """A rule with its static questions answered, compiled to source.

    Attributes:
        name: The rule's name.
        key: What it is for.
        source: The generated Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        traced_source: ``group`` and ``shared_NAME`` once more, on 0-d float64 tensors instead of floats: for numbers on
            the device and autograd. Kernels have such a text of their own, ``traced_source``.
        start_arguments: Names of the values ``start`` takes after ``p, g``.
        group_arguments: Names of the values ``group`` takes.
        slots: The states that exist, in order of declaration.
        group_slots: The group states, in order of declaration: (name, key, initial expression's value).
        layout: How its tensors are viewed.
        schedule: What a step runs.
        min_ndim: Dimensions a tensor must have for the reductions of this variant to make sense.
        counts_steps: Whether the step count ``t`` of each tensor must be kept (under the key ``step``): this variant
            reads it, or one does to which a change of hyperparameters may lead.
        counts_group: Whether the steps of each param group must be kept (under the key ``step``): some variant of the
            rule may read ``group.t``.
    """

    name: str
    key: VariantKey
    source: str
    narrow_source: str
    traced_source: str
    start_arguments: tuple[ValueName, ...]
    group_arguments: tuple[ValueName, ...]
    slots: tuple[Slot, ...]
    group_slots: tuple[Slot, ...]
    layout: View
    schedule: Schedule
    min_ndim: int = 0
    counts_steps: bool = False
    counts_group: bool = False

    @property
    def kernel(self) -> Kernel | None:
        """The kernel of a step that is one kernel and nothing else."""
        return self.schedule.paths[0][0].kernel if self.schedule.direct else None

    @cached_property
    def tensors(self) -> tuple[ValueName, ...]:
        """Names of the tensors that its kernels may read or write: ``p``, ``g``, and states as they are declared."""
        stored = {name for kernel in self.schedule.kernels for name in kernel.tensors}
        return ("p", "g", *(s.name for s in self.slots if s.storage is not Storage.HOST and s.name in stored))

    @cached_property
    def written(self) -> tuple[ValueName, ...]:
        """Names of the tensors that its kernels may write."""
        return tuple(dict.fromkeys(name for kernel in self.schedule.kernels for name in kernel.written))

    @cached_property
    def storage(self) -> dict[ValueName, Storage]:
        """How its states are kept, by name."""
        return {slot.name: slot.storage for slot in self.slots}

    @property
    def elementwise(self) -> bool:
        """Whether a step updates every element from itself alone, in one kernel."""
        return self.kernel is not None and self.kernel.elementwise

    def text(self) -> str:
        """Return everything that runs, as Python: the module, and those of its kernels."""
        parts = [self.source]
        shown = {self.source: ""}
        for title, kernel in self._titled():
            if kernel.source == self.source:
                continue
            same = shown.setdefault(kernel.source, title)
            parts.append(f"# {'-' * 20} {title} {'-' * 20}\n")
            parts.append(kernel.source if same == title else f"# the same as {same}\n")
        return "\n".join(parts)

    def cpp_text(self) -> str:
        """Return the C++ of the step, kernels and loops; where a stage has none there is a comment that says so."""
        texts = []
        for title, kernel in self._titled():
            texts += [] if self.schedule.direct else [f"// {title}"]
            texts.append(kernel.text("cpp_source") or kernel.text("cpp_loops") or NO_CPP)
        return "\n".join(texts)

    def _titled(self) -> Iterator[tuple[str, Kernel]]:
        """Yield the kernels with what they are called in a text for people."""
        for i, path in enumerate(self.schedule.paths):
            for k, stage in enumerate(path, 1):
                over = "matrices" if stage.kernel.matrices else "elements"
                yield f"path {i}, stage {k} of {len(path)}, over {over}", stage.kernel


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
    def static_names(self) -> frozenset[GivenName]:
        """Names of the hyperparameters and keys of the param group that some static question reads.

        As long as these values and a tensor's facts stay, its variant stays.
        """

    @property
    def routes(self) -> Sequence[tuple[Compiled, Expr | None]]:
        """The rules that it sends parameters to, in order, and when; empty for a rule with formulas of its own."""

    @property
    def group_keys(self) -> tuple[str, ...]:
        """Keys of the user's own that the rule reads from the param group (``group.NAME``)."""

    def problems(self, values: Values) -> list[str]:
        """Return what is wrong with these hyperparameters (by name): ranges and requirements; empty if nothing."""

    def unfit(self, values: Values, facts: ShapeInfo) -> str | None:
        """Return why a tensor does not suit the rule (a requirement on facts, shapes), None if it does."""

    def group_initial(self, values: Values) -> dict[str, float]:
        """Return the initial value of each state of the group and of the whole optimizer, by key."""

    def variant_key(self, values: Values, facts: ShapeInfo, event: str | None = None) -> VariantKey:
        """Return the key of the variant that these values select, for a step or for ``on EVENT``."""

    def variant(self, values: Values, facts: ShapeInfo, event: str | None = None) -> Variant:
        """Return the variant that these values select, compiled on first use."""

    def keep(self, variant: Variant) -> None:
        """Keep a variant on disk, so that other processes need not compile it."""
