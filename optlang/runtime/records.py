"""One parameter made ready for a kernel: its state, the views that the kernel takes, and when they go stale."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any, TypeGuard

import torch

from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import IN_COMMON, Facts, Storage
from optlang.inputs import ValueName
from optlang.language.rule import Value
from optlang.runtime.kernels import Prepared
from optlang.runtime.tensors import (
    address,
    arithmetic,
    as_laid_out,
    facts_of,
    fakes_of,
    form,
    is_dense,
    is_fake,
    is_marked,
    is_shared,
    lost,
    overlapping,
    resolved,
    same_order,
    viewed,
)

_pointer, _is_contiguous, _is_neg = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
_dtype, _shape = attrgetter("dtype"), attrgetter("shape")

_TENSORS = {torch.Tensor}

#: What Dynamo compares tensors with, in C++; it is not public, so nothing but the time of a step rests on it.
_Guard: Any = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "TensorGuards", None)

#: Attribute of the memory whose parts show the numbers of many parameters.
_OURS = "optlang_mirror"

#: Key of a tensor's step count in ``optimizer.state[p]``, and of a group's in the param group.
STEP = "step"


class Record:
    """A parameter, its state, and the views of them that its kernel takes.

    Attributes:
        parameter: The parameter.
        prepared: Its variant.
        facts: What the rule may know of it.
        state: Its dict in ``optimizer.state``.
        keys: Keys of the state this record has views or copies of, mirrors of host numbers first.
        values: The objects under these keys when the views were made.
        pointers: Where these lay then.
        forms: How their elements were read from there.
        count: Updates so far.
        numbers: Values of the host states.
        created: Whether none of its states existed before.
        tensors: The state tensors, by name.
        views: The tensors of ``Variant.tensors``, viewed; None for the gradient, and for a parameter that is copied.
        careful: Whether each gradient has to be looked at (complex numbers, orders of memory other than C's).
        copied: Whether the parameter itself cannot be viewed, so that it is copied in and out.
        ordinary: Whether all tensors lie at addresses, which a kernel can be given; others take torch's own operations.
        whole: Whether nothing is viewed, as torch's own operations on elements take tensors of any shape.
        volatile: Whether the tensors may change in a way that does not show, so that they are bound in every step.
    """

    __slots__ = (
        "careful",
        "copied",
        "count",
        "created",
        "dtype",
        "facts",
        "form",
        "forms",
        "gradient_dtype",
        "keys",
        "numbers",
        "ordinary",
        "parameter",
        "pointer",
        "pointers",
        "prepared",
        "shape",
        "signature",
        "staged",
        "state",
        "tensors",
        "values",
        "views",
        "volatile",
        "whole",
    )

    def __init__(self, parameter: torch.Tensor, prepared: Prepared, state: dict[str, Any]) -> None:
        self.parameter, self.prepared, self.state = parameter, prepared, state
        self.facts: Facts = facts_of(parameter)
        self.shape, self.dtype, self.form = parameter.shape, parameter.dtype, form(parameter)
        self.pointer = address(parameter)
        self.staged: dict[str, Any] = {}
        self.keys: tuple[str, ...] = ()
        self.values: tuple[Any, ...] = ()
        self.pointers: tuple[int, ...] = ()
        self.forms: tuple[Any, ...] = ()
        self.ordinary, self.volatile, self.whole = True, False, False
        self.views: list[Any] = []
        self.tensors: dict[ValueName, torch.Tensor] = {}
        self.numbers: tuple[float, ...] = ()
        self.count, self.created, self.careful, self.copied = 0.0, False, False, False
        self.gradient_dtype = parameter.dtype
        self.signature: Signature | None = None

    # Making ready -------------------------------------------------------------------------------------------

    def bind(self, g: torch.Tensor, values: Mapping[str, Value]) -> None:
        """Take state from ``optimizer.state``, starting what is missing, and make the views.

        Nothing is written to ``optimizer.state`` yet: what has to be is staged for :meth:`commit`.
        """
        p, layout = self.parameter, self.prepared.variant.layout
        self.gradient_dtype = g.dtype
        self.copied = is_marked(p) or (not is_dense(p) if layout.flat else not p.is_contiguous())
        states = self.tensors = self._states(g, {**values, **self.facts.named()})
        self.ordinary = all(address(t) or not t.numel() for t in (p, g, *states.values()) if not t.is_sparse)
        self.volatile |= p.is_inference() or not (self.ordinary or is_fake(p) or p.is_meta)
        variant = self.prepared.variant
        self.whole = not self.ordinary and layout.flat and variant.elementwise and variant.steering is None
        self.whole &= not p.is_complex()
        self.copied &= not self.whole
        self.careful = self.copied or p.is_complex() or not p.is_contiguous() or not self.ordinary
        tensors: list[Any] = [None if self.copied else self._viewed(p), None]
        storage = self.prepared.variant.storage
        for name in self.prepared.variant.tensors[2:]:
            state = states[name]
            if storage[name] is Storage.SCALAR:
                tensors.append(state.detach().view(1))
            else:  # a state of another shape has views of its own in each pass
                tensors.append(state.detach() if storage[name] is Storage.MATRIX else self._viewed(state))
        self.views = tensors

    def _states(self, g: torch.Tensor, values: Mapping[str, Value]) -> dict[ValueName, torch.Tensor]:
        """Return the state tensors by name, each as its kernel wants it, and set the host's numbers."""
        prepared, held = self.prepared, self.state
        slots = prepared.variant.slots
        missing = [slot for slot in slots if held.get(slot.key) is None]
        present = len(missing) < len(slots)
        self.created = bool(slots) and not present
        step = held.get(STEP)
        # Without a count, but with state: there has been a step, so this is not the first.
        self.count = _number(step) if step is not None else float(present)
        if missing and g.is_sparse:  # a state may start from it
            g = g.to_dense()
        fresh = prepared.started(self.parameter, g, values) if missing else {}
        numbers: list[float] = []
        tensors: dict[ValueName, torch.Tensor] = {}
        types: dict[str, torch.dtype] = {}
        shapes = prepared.shapes(self.parameter, values) if present else {}
        for slot in slots:
            if slot.key in shapes and slot not in missing and tuple(held[slot.key].shape) != shapes[slot.key]:
                found = tuple(held[slot.key].shape)
                raise ValueError(f"state {slot.key!r} has shape {found}, but its shape is {shapes[slot.key]}")
            value = fresh[slot.name] if slot in missing else held[slot.key]
            if slot.storage is Storage.HOST:
                numbers.append(_number(value))
                continue
            tensor = self._fitting(slot.key, slot.storage, value)
            if slot not in missing and self._is_cut(slot.storage, tensor):
                types = types or prepared.types(self.parameter, values)
                tensor = tensor.to(types[slot.key])
            if tensor is not held.get(slot.key):
                self.staged[slot.key] = tensor
            tensors[slot.name] = tensor
        self.numbers = tuple(numbers)
        mirrored = [STEP] if prepared.counts else []
        mirrored += [slot.key for slot in prepared.hosted]
        self.keys = (*mirrored, *(slot.key for slot in prepared.stored))
        self.volatile = any(_is_kept(v) and is_shared(v) for v in map(held.get, mirrored))
        self.hold([None] * len(mirrored), [tensors[slot.name] for slot in prepared.stored])
        return tensors

    def hold(self, mirrors: Sequence[Any], stored: Sequence[torch.Tensor]) -> None:
        """Take note of the tensors under the keys, and of where they lie."""
        self.values = (*mirrors, *stored)
        self.pointers = tuple(0 if value is None else address(value) for value in self.values)
        self.forms = tuple(None if value is None else form(value) for value in self.values)

    @staticmethod
    def _is_cut(storage: Storage, tensor: torch.Tensor) -> bool:
        """Whether a state from a checkpoint may have fewer bits than the rule keeps it in."""
        return tensor.dtype is torch.float16 or (tensor.dtype is torch.bfloat16 and storage in IN_COMMON)

    def _fitting(self, key: str, storage: Storage, held: Any) -> torch.Tensor:
        """Return a state tensor as the kernel wants it: on the device, shaped and laid out like the parameter."""
        p = self.parameter
        value: torch.Tensor = held if isinstance(held, torch.Tensor) else torch.tensor(held, dtype=arithmetic(p))
        if reason := lost(value):
            raise ValueError(f"state {key!r} {reason}")
        if is_fake(value) is not is_fake(p):
            raise ValueError(f"state {key!r} is a {'fake' if is_fake(value) else 'real'} tensor, and the other is not")
        if value.is_inference():  # it could not be written to outside of inference mode
            value = value.clone()
        if value.device != p.device:
            value = value.to(p.device)
        if not (value.is_floating_point() or value.is_complex()):  # a mask, or whole numbers: arithmetic needs more
            value = value.to(p.dtype)
        value = resolved(value)
        if storage is Storage.SCALAR:
            if value.numel() != 1:
                raise ValueError(f"state {key!r} must be one number, but has shape {tuple(value.shape)}")
            return value
        if storage is Storage.ELEMENT and value.shape != p.shape:
            raise ValueError(f"state {key!r} has shape {tuple(value.shape)}, its parameter has shape {tuple(p.shape)}")
        if storage is Storage.ELEMENT and not self.copied and self.prepared.variant.layout.flat:
            return value if same_order(value, p) else as_laid_out(value, p)
        return value.contiguous()

    def is_in_place(self) -> bool:
        """Whether the parameter lies as it did when the views were made."""
        p = self.parameter
        return address(p) == self.pointer and form(p) == self.form

    def is_current(self, held: dict[str, Any] | None) -> bool:
        """Whether ``optimizer.state`` still holds what the views were made of."""
        if not self.keys:
            return True
        if held is not self.state or not all(map(is_, map(held.get, self.keys), self.values)):
            return False
        return tuple(map(address, self.values)) == self.pointers and tuple(map(form, self.values)) == self.forms

    def commit(self) -> None:
        """Write what was staged to the state."""
        self.state.update(self.staged)
        self.staged = {}

    def sign(self, coefficients: int, values: Mapping[str, Value]) -> Signature:
        """Return the types of the kernel's arguments."""
        device, dtypes = self.parameter.device.type, [self.dtype, self.gradient_dtype]
        dtypes += [tensor.dtype for tensor in self.views[2:]]
        dims = self.prepared.dims(self.facts.ndim, {**values, **self.facts.named()})
        names = tuple(_real_name(dtype) for dtype in dtypes)
        self.signature = Signature(names, dims, device, max(1, coefficients))
        return self.signature

    # Each step ----------------------------------------------------------------------------------------------

    def fitting(self, g: torch.Tensor) -> torch.Tensor:
        """Return a gradient whose elements lie in memory as the kernel expects."""
        p = self.parameter
        g = resolved(g.detach())
        if self.copied or not self.prepared.variant.layout.flat:
            return g.contiguous()
        if self.whole:
            return g
        return g if same_order(g, p) else as_laid_out(g, p)

    def view(self, g: torch.Tensor) -> torch.Tensor:
        """Return a fitting gradient viewed like the parameter."""
        return self._viewed(g)

    def _viewed(self, t: torch.Tensor) -> torch.Tensor:
        """Return a tensor viewed like the parameter."""
        return t.detach() if self.whole else viewed(t, self.prepared.variant.layout)

    def copied_in(self, g: torch.Tensor, coefficients: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Return a contiguous copy of the parameter, and a kernel's arguments with it."""
        copy = resolved(self.parameter.detach()).contiguous()
        return copy, [self._viewed(copy), self.view(g), *self.views[2:], coefficients]

    def copy_out(self, copy: torch.Tensor) -> None:
        """Take the result."""
        if "p" in self.prepared.variant.written:
            self.parameter.detach().copy_(copy)


def _number(value: Any) -> float:
    """Return a number that a checkpoint or the user may have given as a tensor."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"a state that is one number has shape {tuple(value.shape)}")
        try:
            value = value.item()
        except RuntimeError as error:  # it is fake, or on `meta`
            raise ValueError(f"a state that is one number has no value: {error}") from None
    return float(value)


def _is_kept(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a number that somebody put into the state is written to where it is: not those that we made."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float32, torch.float64)
        and not value.is_inference()
        and not hasattr(value._base, _OURS)
    )


def _real_name(dtype: torch.dtype) -> str:
    return str(dtype.to_real() if dtype.is_complex else dtype)[6:]


class Watched:
    """What has to be as it was for the views of some records to be right.

    Everything is compared for all records at once, where there is a way in C++, by that: this is what a step costs.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.parameters = [record.parameter for record in records]
        self.pointers = [record.pointer for record in records]
        self.states = [record.state for record in records]
        self.values = [value for record in records for value in record.values]
        self.value_pointers = [pointer for record in records for pointer in record.pointers]
        first, shown = records[0], len(records[0].values) - len(records[0].prepared.stored)
        self.stored = [value for record in records for value in record.values[shown:]]
        self.forms = [form for record in records for form in record.forms[shown:]]
        self.dtypes, self.gradient_dtypes, keys = {first.dtype}, {first.gradient_dtype}, first.keys
        # A kernel over one dimension needs as many numbers as the parameter has, in whatever shape.
        flat = first.prepared.variant.layout.flat
        self.size = torch.Tensor.numel if flat else _shape
        self.sizes = [record.facts.numel if flat else record.shape for record in records]
        self.simple = not any(record.careful for record in records)
        # One key alone is got bare, so it is asked for twice.
        self.get = itemgetter(*(keys if len(keys) > 1 else keys * 2)) if keys else None
        self.held = self.values
        if len(keys) == 1:
            self.held = [v for value in self.values for v in (value, value)]
        self.addresses: list[int] = []  # of the gradients that were returned last
        self._guard: Any = None
        self._is_guarded = _Guard is not None

    def gradients(self, state: Mapping[Any, Any] | None) -> list[torch.Tensor] | None:
        """Return the gradients, or None if anything is not as it was; without ``state``, its dicts are the same."""
        if not self.simple:
            return None
        parameters = self.parameters
        gradients: list[Any] = [p.grad for p in parameters]
        try:
            if list(map(_pointer, parameters)) != self.pointers or not self._are_alike(gradients):
                return None
            addresses = list(map(_pointer, gradients))
            if not all(addresses):
                return None
            if self.get is not None:
                held = chain.from_iterable(map(self.get, self.states))
                if not all(map(is_, held, self.held)) or list(map(_pointer, self.values)) != self.value_pointers:
                    return None
                if state is not None and not all(map(is_, map(state.get, parameters), self.states)):
                    return None
        except (AttributeError, KeyError, RuntimeError):  # no gradient, no such state, no such memory
            return None
        self.addresses = addresses
        return gradients

    def _are_alike(self, gradients: Sequence[Any]) -> bool:
        """Whether types, shapes and strides of parameters, gradients and states are as the kernel expects."""
        if self._guard is not None and self._guard.check(*self.parameters, *gradients, *self.stored):
            return True
        alike = (
            {*map(_dtype, self.parameters)} == self.dtypes
            and all(map(_is_contiguous, self.parameters))
            and not any(map(_is_neg, self.parameters))
            and {*map(type, gradients)} == _TENSORS
            and {*map(_dtype, gradients)} == self.gradient_dtypes
            and list(map(self.size, gradients)) == self.sizes
            and all(map(_is_contiguous, gradients))
            and not any(map(_is_neg, gradients))
            and list(map(form, self.stored)) == self.forms
        )
        if self._is_guarded and alike:
            tensors = [*self.parameters, *gradients, *self.stored]
            self._guard = _guard(tensors)
            self._is_guarded = self._guard.check(*tensors)  # it never holds for a tensor that is there twice
        return alike


def _guard(tensors: Sequence[torch.Tensor]) -> Any:
    """Return what tells whether tensors have the types, devices, shapes and strides that these have."""
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    assert _Guard is not None
    return _Guard(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)


class Addresses:
    """Where the tensors of some parameters lie, as kernels take it that need no more.

    Args:
        views: The tensors of each parameter, the gradient (None) second.
        stride: How many there are of each.
    """

    def __init__(self, views: Sequence[torch.Tensor | None], stride: int) -> None:
        self.stride = stride
        self.count = len(views) // stride
        self.sizes = array("q", (n for view in views[::stride] if view is not None for n in view.shape))
        self.places = array("q", (0 if view is None else view.data_ptr() for view in views))
        self.fixed = self.count, self.sizes.buffer_info()[0], self.places.buffer_info()[0]

    def of(self, gradients: Iterable[int]) -> tuple[int, int, int]:
        """Return how many parameters there are, and where their sizes and addresses stand, with those of gradients."""
        self.places[1 :: self.stride] = array("q", gradients)
        return self.fixed


class Batch:
    """Records that share a kernel, host numbers and coefficients: one call of ``host`` serves them all.

    Attributes:
        records: The records.
        parameters: Their parameters.
        gradients: During a step, their gradients as the kernel takes them.
        count: Their updates so far.
        numbers: Values of their host states.
        created: Whether their states were started in this step.
        mirror: Memory of the tensors that show count and numbers in ``optimizer.state``, or None if there are none.
        version: Version of that memory after our last write; another version means that somebody wrote to it.
        kept: Numbers that somebody else put into ``optimizer.state``, by row of the mirror: they are written in place.
        committed: Whether ``optimizer.state`` holds the records' states.
        moved: How many records a step has begun to update that is not counted yet, those that are copied first.
    """

    __slots__ = (
        "_addresses",
        "_arguments",
        "_arguments_of",
        "_coefficients",
        "_direct",
        "_found",
        "_kept_versions",
        "_packed",
        "_watched",
        "committed",
        "count",
        "created",
        "gradients",
        "kept",
        "kernel",
        "mirror",
        "moved",
        "numbers",
        "parameters",
        "prepared",
        "records",
        "version",
    )

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.parameters = [record.parameter for record in records]
        self.gradients: list[Any] = []
        first = self.records[0]
        self.prepared, self.count, self.numbers = first.prepared, first.count, first.numbers
        self.created = first.created
        self.kernel: Kernel | None = None
        self.mirror: torch.Tensor | None = None
        self.version = 0
        self.kept: dict[int, list[torch.Tensor]] = {}
        self._kept_versions: list[int] = []
        self.committed = False
        self.moved = 0
        self._arguments: list[Any] = []  # of host, as they were
        self._arguments_of: Mapping[ValueName, Any] | None = None
        self._coefficients: tuple[array[float], torch.Tensor] | None = None
        self._direct: list[int] | None = None  # those that are neither empty nor copied
        self._packed: list[Any] | None = None
        self._watched: Watched | None = None
        self._addresses: Addresses | None = None
        self._found: list[int] | None = None  # where the gradients of this step lie, if that has been asked already

    @staticmethod
    def key(record: Record) -> tuple[Any, ...]:
        """Return what records of one batch have in common."""
        facts = tuple(getattr(record.facts, name) for name in record.prepared.facts)
        ndim = 0 if record.prepared.variant.layout.flat else record.facts.ndim
        types = (record.dtype, record.gradient_dtype, record.parameter.device, ndim)
        states = tuple(tensor.dtype for tensor in record.views[2:])
        steering = record.prepared.variant.steering
        shape = record.shape if steering is not None and steering.matrices else ()
        # What does not count its updates need not have had as many.
        count = record.count if record.prepared.counts else 0.0
        here = (record.prepared.variant.key, record.ordinary)
        return (*here, count, record.numbers, record.created, facts, types, states, shape)

    def usual(self, state: Mapping[Any, Any] | None) -> list[torch.Tensor] | None:
        """Return the gradients if every record has one and nothing has changed since the last step.

        This is what nearly every step comes to, so it is done for all records at once.
        """
        if self._watched is None:
            self._watched = Watched(self.records)
        found = self._watched.gradients(state)
        self._found = None if found is None else self._watched.addresses
        return found

    # Host numbers -------------------------------------------------------------------------------------------

    def host_arguments(self, known: Mapping[ValueName, Any]) -> list[Any]:
        """Return the arguments of ``host`` for the next step.

        Args:
            known: Hyperparameters and the group's values; a mapping that was given before has the same contents.
        """
        prepared, arguments = self.prepared, self._arguments
        if known is not self._arguments_of:
            facts: dict[ValueName, Any] = {name: getattr(self.records[0].facts, name) for name in prepared.facts}
            found = {**known, **facts}
            arguments[:] = [found.get(name) for name in prepared.variant.host_arguments]
            self._arguments_of = known
        for place, what in prepared.varying:
            if isinstance(what, int):
                arguments[place] = self.numbers[what]
            elif what == "t":
                arguments[place] = self.count + 1.0
            else:
                arguments[place] = self.count == 0.0 if prepared.counts else self.created
        return arguments

    def packed(self, coefficients: Sequence[float]) -> torch.Tensor:
        """Return the coefficients as the kernel takes them."""
        signature, first = self.records[0].signature, self.records[0]
        assert signature is not None
        device = first.parameter.device
        coefficients = coefficients or (0.0,)
        if not first.ordinary:
            with fakes_of(first.parameter):
                dtype = getattr(torch, signature.coefficient_dtype)
                return torch.tensor(coefficients, dtype=dtype, device="cpu").to(device)
        if device.type != "cpu":
            packed = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
            packed = packed.to(getattr(torch, signature.coefficient_dtype))
            # From pinned memory the copy is queued, and no step waits for the ones before it.
            return (packed.pin_memory() if device.type == "cuda" else packed).to(device, non_blocking=True)
        if self._coefficients is None:  # in memory that every step writes anew
            numbers = array("d" if signature.coefficient_dtype == "float64" else "f", coefficients)
            tensor = torch.frombuffer(numbers, dtype=getattr(torch, signature.coefficient_dtype))
            self._coefficients = (numbers, tensor)
        numbers, tensor = self._coefficients
        numbers[:] = array(numbers.typecode, coefficients)
        return tensor

    # Running ------------------------------------------------------------------------------------------------

    def run(self, coefficients: torch.Tensor) -> None:
        """Run the kernel on every record.

        Nothing interrupts Python between a mark in ``moved`` and the call that it stands before.
        """
        kernel, records = self.kernel, self.records
        assert kernel is not None
        if self._direct is None:
            self._direct = [i for i, r in enumerate(records) if r.facts.numel and not r.copied]
            if kernel.many and not overlapping([records[i].parameter for i in self._direct]):
                self._packed = [view for i in self._direct for view in records[i].views]
                self._packed.append(None)
        moved, run = 0, kernel.run
        if len(self._direct) != len(records):
            for record, g in zip(records, self.gradients, strict=True):
                if record.copied and record.facts.numel:
                    copy, tensors = record.copied_in(g, coefficients)
                    moved += 1
                    try:
                        self.moved = moved
                        run(tensors)
                        record.copy_out(copy)
                    except KeyboardInterrupt:  # the states may be written
                        record.copy_out(copy)
                        raise
        if self._packed is None:
            for i in self._direct:
                p, _, *states = records[i].views
                tensors = [p, self.gradients[i], *states, coefficients]
                moved += 1
                self.moved = moved
                run(tensors)
        elif self._direct:
            self._run_packed(kernel, coefficients)
        self.gradients = []

    def _run_packed(self, kernel: Kernel, coefficients: torch.Tensor) -> None:
        """Run the kernel once, on the tensors of all records that can be viewed."""
        packed, direct = self._packed, self._direct
        assert packed is not None and direct is not None
        stride, count = len(self.records[0].views), len(self.records)
        gradients = self.gradients if len(direct) == count else [self.gradients[i] for i in direct]
        if kernel.at is not None:
            if self._addresses is None:
                self._addresses = Addresses(packed[:-1], stride)
            known = self._found if self._found is not None and len(direct) == count else map(_pointer, gradients)
            arguments = (*self._addresses.of(known), coefficients.data_ptr(), torch.get_num_threads())
            at = kernel.at
            self.moved = count
            at(*arguments)
            return
        packed[1::stride] = gradients
        packed[-1] = coefficients
        run = kernel.run
        try:
            self.moved = count
            run(packed)
        finally:
            packed[1::stride] = [None] * len(direct)  # gradients are not kept alive

    def bytes_moved(self) -> int:
        """Return how many bytes a step has to move: every tensor once, and once more if it is written."""
        variant, total = self.prepared.variant, 0
        for record in self.records:
            for name, view in zip(variant.tensors, record.views, strict=True):
                memory = record.parameter if view is None else view
                total += memory.numel() * memory.element_size() * (2 if name in variant.written else 1)
        return total

    # State --------------------------------------------------------------------------------------------------

    @property
    def place(self) -> torch.device:
        """Where count and host states are shown: on the host, where they are computed."""
        return torch.device("cpu")

    def reflect(self) -> None:
        """Make the tensors in ``optimizer.state`` that show the count and the host states, where there are none."""
        rows = [self.count] if self.prepared.counts else []
        rows += self.numbers
        if not rows:
            return
        self.kept = {}
        with torch.inference_mode(False):  # what is made there has no versions
            memory = torch.tensor(rows, dtype=torch.float64, device=self.place)
            self.mirror = memory.unsqueeze(1).repeat(1, len(self.records))
            setattr(self.mirror, _OURS, True)
            columns = [self.mirror[:, i].unbind() for i in range(len(self.records))]
        for record, shown in zip(self.records, columns, strict=True):
            numbers = list(shown)
            for row, key in enumerate(record.keys[: len(rows)]):
                held = record.state.get(key)
                if _is_kept(held) and held.device == self.place:
                    numbers[row] = held
                    self.kept.setdefault(row, []).append(held)
            record.hold(numbers, record.values[len(rows) :])
            record.state.update(zip(record.keys, numbers, strict=False))
        self._look_back()

    def advance(self, numbers: tuple[float, ...]) -> None:
        """Count a step and take the new values of the host states."""
        self.count += 1.0
        self.numbers, self.created = numbers, False
        if self.mirror is not None:
            rows = (self.count, *numbers) if self.prepared.counts else numbers
            if len(rows) == 1:
                self.mirror.fill_(rows[0])
            else:
                self.mirror.copy_(torch.tensor(rows, dtype=torch.float64, device="cpu").unsqueeze(1))
            if self.kept:
                self._write_kept(rows)
            self.version = self.mirror._version
        self.moved = 0

    def begun(self) -> list[Record]:
        """Return the records that an interrupted step has updated, or was about to."""
        order = [r for r in self.records if r.copied and r.facts.numel]
        order += [r for r in self.records if not r.copied and r.facts.numel]
        return self.records if self.moved >= len(order) else order[: self.moved]

    def _write_kept(self, rows: Sequence[Any]) -> None:
        """Write the numbers that are not in the mirror; a count is added to, as other processes may count as well."""
        for row, tensors in self.kept.items():
            if row == 0 and self.prepared.counts:
                torch._foreach_add_(tensors, 1.0)
            else:
                for tensor in tensors:
                    tensor.copy_(rows[row]) if isinstance(rows[row], torch.Tensor) else tensor.fill_(rows[row])
        self._look_back()

    def _look_back(self) -> None:
        """Take note of the versions of the numbers that are shown."""
        assert self.mirror is not None
        self.version = self.mirror._version
        self._kept_versions = [tensor._version for tensors in self.kept.values() for tensor in tensors]

    def is_overwritten(self) -> bool:
        """Whether somebody has written to the numbers that are shown."""
        if self.mirror is None:
            return False
        if self.mirror._version != self.version:
            return True
        kept = self.kept and [tensor._version for tensors in self.kept.values() for tensor in tensors]
        return bool(kept) and kept != self._kept_versions

    def split(self, chosen: Sequence[Record]) -> tuple[Batch, Batch]:
        """Return the chosen records, with the gradients, and the others as batches of their own."""
        ids = {id(record) for record in chosen}
        others = [record for record in self.records if id(record) not in ids]
        parts: list[Batch] = []
        for records in (list(chosen), others):
            part = type(self)(records)
            part.count, part.numbers, part.created, part.kernel = self.count, self.numbers, self.created, self.kernel
            part.reflect()
            part.committed = True
            parts.append(part)
        parts[0].gradients = self.gradients
        return parts[0], parts[1]
