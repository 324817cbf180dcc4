"""The compiler's output, used by the runtime: a rule, its variants, and their generated source.

A *variant* is a rule with its static questions answered (is ``amsgrad`` true? is ``ndim > 1``?). Its step runs a
:class:`Schedule` of stages, each with a :class:`Kernel`. The runtime calls the functions of the generated modules,
those of the variant and of its kernels:

``start(p, g, ...)``   the initial value of every state, as a dict by state name (tensors in p's own shape; floats
                       for states that live on the host); further arguments are named by ``start_arguments``
``group(...)``         the new values of the group states, as a tuple; only if the rule has group states
``host(...)``          float64 arithmetic on Python floats: ``(coefficients, new host states)``, two tuples
``update(...)``        one tensor: the tensors of ``tensors`` viewed as ``layout`` says, then the packed coefficients;
                       writes in place those named in ``written``

Their arguments have the names of :mod:`optlang.inputs`.
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
    from optlang.ir.program import Program  # contains SymPy expressions, which the runtime does not need


class ShapeInfo(NamedTuple):
    """The properties of a tensor that a rule may read, besides its values."""

    ndim: int
    numel: int
    rows: int
    cols: int
    eps_of: float  # machine epsilon of the parameter's storage dtype
    shape: tuple[int, ...] = ()

    def number(self, name: str | DimensionSize) -> Any:
        """Return one of the numeric facts."""
        if isinstance(name, DimensionSize):
            return self.shape[name.dim] if name.dim < len(self.shape) else 1
        return getattr(self, name)

    def named(self) -> dict[GivenName, Any]:
        """Return the numeric facts by name."""
        return {name: self.number(name) for name in FACTS}


#: The sizes of dimensions, which have no names in rules.
DIMENSION_SIZES: tuple[DimensionSize, ...] = tuple(map(DimensionSize, range(8)))
#: Names of the numeric facts.
FACTS: tuple[str | DimensionSize, ...] = ("ndim", "numel", "rows", "cols", "eps_of", *DIMENSION_SIZES)


class Storage(Enum):
    """How a state, or a value passed between stages, is stored; the values are names used in exported files."""

    ELEMENT = "element"  # a tensor shaped like p
    REDUCED = "reduced"  # p's shape, with some sizes 1
    MATRIX = "matrix"  # a tensor with another shape than the parameter
    SCALAR = "scalar"  # a device tensor with one element
    HOST = "host"  # a float on the host, mirrored into a 0-d float64 tensor

    @classmethod
    def of(cls, kind: Kind) -> Storage:
        """Return the storage of a device value."""
        return {
            Level.ELEMENT: cls.ELEMENT,
            Level.SCALAR: cls.SCALAR,
            Level.MATRIX: cls.MATRIX,
            Level.REDUCED: cls.REDUCED,
        }[kind.level]


@dataclass(frozen=True)
class Slot:
    """A state of a variant.

    Attributes:
        name: Its name in the rule.
        key: Its key in ``optimizer.state[p]``, or in the param group.
        storage: Its storage.
        dims: The dimensions over which a reduced state is reduced.
        format: The storage format of its numbers.
        signed: Whether some of its numbers may be negative.
        divides: Whether they are used as a divisor.
        zero: Whether they are 0 before the first step.
        averages: Whether the weight of the old value decreases in every step, so that errors decay.
        cancels: Whether it occurs in a difference that is a divisor or the argument of a root.
        mixed: Whether it is an operand of matrix operations, so that elements are not updated independently.
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
        """Whether it is shaped like the parameter."""
        return self.storage is Storage.ELEMENT

    @cached_property
    def new(self) -> New:
        """The name of its value after the update of group and shared states."""
        return New(self.name)


@dataclass(frozen=True)
class StageTensor:
    """A tensor passed between the stages of a step, or to what happens between stages."""

    name: HandedOn | NumberContribution
    storage: Storage
    dims: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: HandedOn | NumberContribution, kind: Kind) -> StageTensor:
        """Return the tensor for a device value."""
        return cls(name, Storage.of(kind), tuple(sorted(kind.dims)))


#: A tensor that a kernel reads or writes besides p and g.
AnySlot = Slot | StageTensor


@dataclass(frozen=True)
class View:
    """How a tensor is viewed for ``update``.

    ``(0, 0)`` flattens it. Otherwise the first ``front`` and the last ``back`` dimensions are kept and those between
    are merged into one (of size 1 if there are none). ``exact`` keeps the shape.
    """

    front: int = 0
    back: int = 0
    exact: bool = False

    @classmethod
    def of(cls, dims: Collection[int], ndim: int) -> View:
        """Return a view of tensors with ``ndim`` dimensions that keeps the dimensions named in reductions separate."""
        front = max((d + 1 for d in dims if d >= 0), default=0)
        back = max((-d for d in dims if d < 0), default=0)
        return cls(exact=True) if ndim < front + back else cls(front, back)

    @property
    def flat(self) -> bool:
        """Whether tensors are flattened."""
        return not (self.front or self.back or self.exact)

    def shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the view of a tensor with shape ``size``."""
        if self.exact:
            return size
        count = 1
        for n in size[self.front : len(size) - self.back]:
            count *= n
        return (*size[: self.front], count, *size[len(size) - self.back :])


class VariantKey(NamedTuple):
    """The key of a variant; equal keys mean equal variants.

    Attributes:
        answers: The answers to static questions.
        event: The event that runs it; None for a step.
        ndim: The only number of dimensions of the tensor it is valid for; None if any number is valid.
    """

    answers: tuple[Answer, ...]
    event: str | None = None
    ndim: int | None = None

    @classmethod
    def of(cls, core: Core, ndim: int) -> VariantKey:
        """Return the key of specialised statements for a tensor with ``ndim`` dimensions."""
        exact = core.matrices or View.of(core.dims, ndim).exact
        return cls(core.key, core.event, ndim if exact else None)


@dataclass(frozen=True)
class Draw:
    """Random numbers that a stage reads as a tensor: ``kind`` is ``randn`` or ``rand``.

    They are shaped like p, unless the stage has a tensor that declares another shape.
    """

    name: Random
    kind: str

    @cached_property
    def seed(self) -> int:
        """The seed that distinguishes them from those of other calls."""
        assert isinstance(self.name.site, Site)
        return self.name.site.seed()


class Locality(Enum):
    """What an element of a kernel's results depends on; it determines what a backend must support."""

    ELEMENTS = "the same element of other tensors, and numbers"
    SWEEPS = "reductions over whole tensors as well"
    DIMENSIONS = "reductions along dimensions as well"
    STACKS = "whole matrices, of which there may be many in a stack"


class Kernel:
    """The unit of compilation: a computation for one parameter or many, as backends see it.

    A kernel has a Python module with ``host`` and ``update``. Other texts are generated when a backend requests them.

    Attributes:
        name: The rule's name.
        digest: A hash of the computation.
        title: The first line of the docstrings of its modules.
        locality: What elements of its results depend on. A kernel with ``STACKS`` takes stacks of tensors that are
            updated alike, with a leading batch dimension, then the coefficients as numbers, and returns the new values
            of ``written``.
        ndim: The number of dimensions of the parameter it was generated for.
        layout: The view of its tensors.
        slots: The states it reads or writes, and all host states, in order of declaration.
        stage_tensors: The other tensors it reads or writes.
        tensors: Names of the tensors ``update`` takes, in order: ``p``, ``g``, and states.
        written: The names of the tensors it writes.
        host_arguments: Names of the values ``host`` takes.
        coefficients: Names of the packed coefficients, in order (for readability; may be empty).
        source: The Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        texts: The other texts generated so far, by the module that generated them and its options.
        restore: Recompiles the program of a kernel that was loaded from disk.
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
        # Python code that keeps all dimensions may be the same for any number of them; other texts are not.
        exact = ndim if layout.exact else None
        self.digest = hashlib.sha256(repr((sources, tensors, self.kept, layout, exact)).encode()).hexdigest()
        self.texts: dict[tuple[Any, ...], str] = {}
        self.restore: Callable[[], Program] | None = None
        self._program: Program | None = program

    @property
    def program(self) -> Program:
        """Its optimised program."""
        if self._program is None:
            assert self.restore is not None
            self._program = self.restore()
        return self._program

    @property
    def kept(self) -> tuple[AnySlot, ...]:
        """The tensors it reads or writes besides p and g."""
        return (*self.slots, *self.stage_tensors)

    @cached_property
    def storage(self) -> dict[ValueName, Storage]:
        """Their storage, by name."""
        return {slot.name: slot.storage for slot in self.kept}

    @property
    def elementwise(self) -> bool:
        """Whether every element is updated independently, so that parts of a tensor can be updated separately."""
        return self.locality is Locality.ELEMENTS

    @property
    def matrices(self) -> bool:
        """Whether it takes stacks of matrices."""
        return self.locality is Locality.STACKS

    def text(self, module: str, *options: Any) -> str:
        """Return the result of ``emit(kernel)`` of a module in :mod:`optlang.codegen`, generated once and then cached.

        Args:
            module: The module's name, such as ``cpp_source``. It is imported only if the text is not cached.
            options: Additional arguments for ``emit``.
        """
        key = (module, *options)
        if key not in self.texts:
            self.texts[key] = str(import_module(f"optlang.codegen.{module}").emit(self, *options))
        return self.texts[key]

    def __getstate__(self) -> dict[str, Any]:
        """Omit the program, which would load SymPy: it is recompiled when needed."""
        state = {**vars(self), "_program": None, "restore": None}
        state.pop("storage", None)
        return state


@dataclass(frozen=True)
class Stage:
    """A stage of a step: a kernel, what it waits for and what it produces.

    Attributes:
        kernel: The kernel to run.
        needs: Names of the late values that its coefficients depend on.
        totals: Names of the sums over the whole model that it contributes to.
        draws: The random numbers it reads.
        points: Names of the tensors it writes for the closure: points and directions.
        alone: Whether each tensor is processed separately, because its values decide what is computed.
    """

    kernel: Kernel
    needs: tuple[ValueName, ...] = ()
    totals: tuple[NumberContribution, ...] = ()
    draws: tuple[Draw, ...] = ()
    points: tuple[Asked, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Schedule:
    """The stages of each path that a step may take.

    Most rules have one path with one stage, whose kernel computes the host states along with its coefficients
    (``direct``). For all others the variant's module defines ``path`` (which path this step takes), ``numbers_I`` (the
    new host states on path I), ``shared_NAME`` (the new value of a shared state) and ``sizes`` (of random numbers that
    are not shaped like p, by name).

    Attributes:
        paths: The stages of each path, in order.
        direct: Whether a step is a single kernel and nothing else.
        path_arguments: Names of the values ``path`` takes.
        numbers_arguments: Names of the values ``numbers_I`` takes, by path.
        size_arguments: Names of the values ``sizes`` takes, if there are such random numbers.
        shared: The slot of each shared state, and the names of the values that ``shared_NAME`` takes.
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
        """Return the names of all values needed on the host."""
        shared = (names for _, names in self.shared)
        several = (*(kernel.host_arguments for kernel in self.kernels), *self.numbers_arguments, *shared)
        return {*self.path_arguments, *self.size_arguments, *(name for names in several for name in names)}

    @property
    def random(self) -> bool:
        """Whether any stage draws random numbers."""
        return any(stage.draws for stage in self.stages)

    @property
    def matrices(self) -> bool:
        """Whether any stage processes matrices."""
        return any(kernel.matrices for kernel in self.kernels)


@dataclass(frozen=True, eq=False)
class Variant:
    """A rule with its static questions answered, compiled to source.

    Attributes:
        name: The rule's name.
        key: Its key.
        source: The generated Python module (imports ``math`` and ``torch`` only).
        narrow_source: The same for tensors stored in 16 bits, with arithmetic in float32.
        traced_source: ``group`` and ``shared_NAME`` on 0-d float64 tensors instead of floats, for numbers on the device
            and autograd. Each kernel has its own such text, ``traced_source``.
        start_arguments: Names of the values ``start`` takes after ``p, g``.
        group_arguments: Names of the values ``group`` takes.
        slots: The states that exist, in order of declaration.
        group_slots: The group states, in order of declaration: (name, key, initial expression's value).
        layout: The view of its tensors.
        schedule: The schedule of a step.
        min_ndim: The minimum number of dimensions of a tensor for which the reductions are defined.
        counts_steps: Whether the step count ``t`` of each tensor must be kept (under the key ``step``): this variant
            reads it, or a change of hyperparameters may lead to one that does.
        counts_group: Whether the step count of each param group must be kept (under the key ``step``): some variant of
            the rule may read ``group.t``.
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
        """The kernel of a step that consists of a single kernel; None otherwise."""
        return self.schedule.paths[0][0].kernel if self.schedule.direct else None

    @cached_property
    def tensors(self) -> tuple[ValueName, ...]:
        """Names of the tensors that its kernels may read or write: ``p``, ``g``, and states in order of declaration."""
        stored = {name for kernel in self.schedule.kernels for name in kernel.tensors}
        return ("p", "g", *(s.name for s in self.slots if s.storage is not Storage.HOST and s.name in stored))

    @cached_property
    def written(self) -> tuple[ValueName, ...]:
        """Names of the tensors that its kernels may write."""
        return tuple(dict.fromkeys(name for kernel in self.schedule.kernels for name in kernel.written))

    @cached_property
    def storage(self) -> dict[ValueName, Storage]:
        """The storage of its states, by name."""
        return {slot.name: slot.storage for slot in self.slots}

    @property
    def elementwise(self) -> bool:
        """Whether a step updates every element independently, in one kernel."""
        return self.kernel is not None and self.kernel.elementwise

    def text(self) -> str:
        """Return all Python code that runs: the module of the variant and those of its kernels."""
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
        """Return the C++ of the step, kernels and loops; a comment marks stages without C++."""
        texts = []
        for title, kernel in self._titled():
            texts += [] if self.schedule.direct else [f"// {title}"]
            texts.append(kernel.text("cpp_source") or kernel.text("cpp_loops") or NO_CPP)
        return "\n".join(texts)

    def _titled(self) -> Iterator[tuple[str, Kernel]]:
        """Yield the kernels with readable titles."""
        for i, path in enumerate(self.schedule.paths):
            for k, stage in enumerate(path, 1):
                over = "matrices" if stage.kernel.matrices else "elements"
                yield f"path {i}, stage {k} of {len(path)}, over {over}", stage.kernel


#: Placeholder for a kernel that has no C++.
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
        """Names of the hyperparameters and param-group keys that static questions read.

        While these values and a tensor's facts stay the same, so does its variant.
        """

    @property
    def routes(self) -> Sequence[tuple[Compiled, Expr | None]]:
        """The rules to which it routes parameters, in order, with their conditions; empty for other rules."""

    @property
    def group_keys(self) -> tuple[str, ...]:
        """The user's keys that the rule reads from the param group (``group.NAME``)."""

    def problems(self, values: Values) -> list[str]:
        """Return the errors in these hyperparameters (by name): ranges and requirements; empty if there are none."""

    def unfit(self, values: Values, facts: ShapeInfo) -> str | None:
        """Return why a tensor does not suit the rule (a requirement, or its shape); None if it does."""

    def group_initial(self, values: Values) -> dict[str, float]:
        """Return the initial values of group and shared states, by key."""

    def variant_key(self, values: Values, facts: ShapeInfo, event: str | None = None) -> VariantKey:
        """Return the key of the variant that these values select, for a step or for ``on EVENT``."""

    def variant(self, values: Values, facts: ShapeInfo, event: str | None = None) -> Variant:
        """Return the variant that these values select, compiled on first use."""

    def keep(self, variant: Variant) -> None:
        """Cache a variant on disk, so that other processes need not compile it."""
