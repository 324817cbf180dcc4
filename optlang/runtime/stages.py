"""The stages of a step: elementwise kernels, and torch's own operations over stacks of matrices.

Stages pass values on in reusable scratch memory: a batch is split into chunks, and each chunk runs through all stages
that need not wait for others before the next chunk starts. Only values that cross a sum over the whole model must exist
for every tensor at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from optlang.artifact import AnySlot, Stage, StageTensor, Storage, Variant
from optlang.backends.loading.signature import LoadedKernel
from optlang.inputs import Exchanged, HandedOn, IterationControl, NumberContribution, Total, ValueName
from optlang.runtime import host, rng
from optlang.runtime.calls import KernelCall
from optlang.runtime.device_scalars import as_number, stays_on_device, traced_functions
from optlang.runtime.kernels import KernelModule, LoadedVariant, VariantCache
from optlang.runtime.records import ParameterState
from optlang.runtime.tensors import arithmetic, is_wrapper

if TYPE_CHECKING:
    from optlang.storage.coded import Key

#: How many bytes a tensor of a chunk may take. On the CPU, this is small enough that the result of one operation is
#: still in a cache for the next (two of the largest matrices of GPT-2 small); elsewhere, large enough to keep every
#: core busy. Stages over matrices make many passes over their stacks, each into new memory.
CHUNK = {"cpu": 20 * 2**20}
STACK = {"cpu": 512 * 2**10}
LARGEST = 64 * 2**20

_PLAIN = {float, int, bool, str, type(None)}

#: Tensors by name, one for each record; under ``("stack", name)``, all of them as one tensor, where possible.
Buffers = dict[Any, Any]


class BatchSlice(Sequence[torch.Tensor]):
    """Some of the tensors of a batch; matrices, which have no memory before they are computed, are replaced whole."""

    def __init__(self, whole: list[torch.Tensor], start: int, stop: int) -> None:
        self.whole, self.places = whole, range(start, stop)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        places = self.places[index]
        return [self.whole[i] for i in places] if isinstance(places, range) else self.whole[places]

    def put(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace the tensors."""
        self.whole[self.places.start : self.places.stop] = tensors


class Scratch:
    """Memory in which stages pass values on, shared by all batches of an optimizer, which run one after another."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def lane(self, number: int, count: int, like: torch.Tensor) -> torch.Tensor:
        """Return memory for ``count`` numbers of the type of ``like``; a ``number`` identifies the memory."""
        key = (number, like.dtype, like.device)
        held = self._lanes.get(key)
        if held is None or held.numel() < count:
            # Views keep the old memory alive, so grow in large steps.
            enough = count if held is None else max(count, min(2 * held.numel(), LARGEST // like.itemsize))
            held = self._lanes[key] = torch.empty(enough, dtype=like.dtype, device=like.device)
        return held[:count]


class PlannedStage:
    """One stage of a batch, common to all its chunks.

    Args:
        own: The stage.
        owner: The variant whose step it is part of.
        prepared: The stage's kernel.

    Attributes:
        coefficients: The coefficients of the next step, once their inputs are available.
        on_device: Whether they are tensors, because they depend on sums that are on a device, and not numbers.
        loaded: The kernel for the types of the batch, for an elementwise stage.
        writes: Whether it writes parameters or states.
    """

    def __init__(self, own: Stage, owner: Variant, prepared: KernelModule) -> None:
        self.own, self.owner, self.prepared, self.kernel = own, owner, prepared, own.kernel
        self.coefficients: tuple[Any, ...] = ()
        self.on_device = False
        self.loaded: LoadedKernel | None = None
        self.writes = any(isinstance(name, str) for name in self.kernel.written)

    def prepare(self, arguments: Sequence[Any], device: torch.device) -> None:
        """Compute the coefficients of a step.

        Args:
            arguments: The arguments of ``host``: numbers, or 0-d tensors.
            device: The device of the parameters.
        """
        self.on_device = not _PLAIN.issuperset(map(type, arguments)) and any(
            isinstance(a, torch.Tensor) for a in arguments
        )
        if self.on_device:
            numbers = [as_number(a, device) for a in arguments]
            self.coefficients = traced_functions(self.prepared.kernel)["host"](*numbers)[0]
        else:
            self.coefficients = host.call(self.prepared.functions["host"], arguments)[0]


class Chunk:
    """One stage for some records of a batch.

    Args:
        plan: The stage.
        start: The index of the first record in the batch.
        records: The records.
        buffers: The values that stages pass on, for these records.
    """

    def __init__(self, plan: PlannedStage, start: int, records: Sequence[ParameterState], buffers: Buffers) -> None:
        self.plan, self.start, self.records, self.buffers = plan, start, records, buffers
        self._begun = False
        self._draw: Key = 0

    def begin(self, draw: Key) -> None:
        """Reset for a new run; ``draw`` is the random-number key for quantized states."""
        self._begun, self._draw = False, draw

    def written(self) -> Sequence[int]:
        """Return the batch indices of the records whose parameters or states it has begun to write."""
        return range(self.start, self.start + len(self.records)) if self._begun and self.plan.writes else ()

    def compile(self, kernels: VariantCache) -> None:
        """Do everything that takes time, such as compiling."""

    def draw(self, seed: rng.Seed, count: int, sizes: Mapping[str, Sequence[int]]) -> None:
        """Fill in the random numbers that the stage reads.

        Args:
            seed: Draws them.
            count: The number of the step, from 1.
            sizes: The sizes of random numbers that are not shaped like p, by name.
        """
        for draw in self.plan.own.draws:
            if self.plan.kernel.storage.get(draw.name) is Storage.MATRIX:
                p, size = self.records[0].parameter, sizes[str(draw.name)]
                self.buffers[draw.name] = [
                    torch.empty(size, dtype=arithmetic(p), device=p.device) for _ in self.records
                ]
            for record, memory in zip(self.records, self.buffers[draw.name], strict=True):
                seed.fill(memory, draw, record.owner, count)

    def run(self, gradients: Sequence[Any], addresses: Iterable[int] | None = None) -> None:
        """Run the stage.

        Args:
            gradients: The gradients of its records.
            addresses: The addresses of these gradients, if already known.
        """
        raise NotImplementedError


class DecodeChunk(Chunk):
    """Dequantizes states that several stages use.

    Args:
        plan: The first of these stages.
        start: The index of the first record in the batch.
        records: The records.
        buffers: The values that stages pass on, for these records, including the dequantized ones by name.
        names: The quantized tensors.
    """

    def __init__(
        self,
        plan: PlannedStage,
        start: int,
        records: Sequence[ParameterState],
        buffers: Buffers,
        names: Sequence[ValueName],
    ) -> None:
        super().__init__(plan, start, records, buffers)
        self.names = names

    def written(self) -> Sequence[int]:
        """Return no indices: nothing permanent is written."""
        return ()

    def draw(self, seed: rng.Seed, count: int, sizes: Mapping[str, Sequence[int]]) -> None:
        """Draw nothing; the stages do."""

    def run(self, gradients: Sequence[Any], addresses: Iterable[int] | None = None) -> None:
        """Dequantize the states."""
        for name in self.names:
            for record, numbers in zip(self.records, self.buffers[name], strict=True):
                numbers.copy_(record.uncoded(name).view_as(numbers))


class EncodeChunk(DecodeChunk):
    """Quantizes such states again after the last of the stages."""

    def written(self) -> Sequence[int]:
        """Return the batch indices of the records whose states it has begun to write."""
        return range(self.start, self.start + len(self.records)) if self._begun else ()

    def run(self, gradients: Sequence[Any], addresses: Iterable[int] | None = None) -> None:
        """Quantize the states."""
        self._begun = True
        for name in self.names:
            for record, numbers in zip(self.records, self.buffers[name], strict=True):
                record.keep(name, numbers, self._draw)


class KernelChunk(Chunk):
    """An elementwise stage."""

    def __init__(self, plan: PlannedStage, start: int, records: Sequence[ParameterState], buffers: Buffers) -> None:
        super().__init__(plan, start, records, buffers)
        self.call = KernelCall(plan.prepared, records, buffers)

    def begin(self, draw: Key) -> None:
        """Reset for a new run; ``draw`` is the random-number key for quantized states."""
        self.call.moved, self.call.draw = 0, draw

    def written(self) -> Sequence[int]:
        """Return the batch indices of the records whose parameters or states it has begun to write."""
        self._begun = self.call.moved > 0
        if self.call.moved >= len(self.records) or not self._begun:
            return super().written()
        return sorted(self.start + i for i in self.call.begun()) if self.plan.writes else ()

    def compile(self, kernels: VariantCache) -> None:
        """Find the kernel, compiling it if necessary."""
        plan = self.plan
        self.call.see_to(kernels, len(plan.kernel.coefficients), plan.owner, plan.loaded)
        plan.loaded = self.call.loaded

    def run(self, gradients: Sequence[Any], addresses: Iterable[int] | None = None) -> None:
        """Run the kernel on every record."""
        call, coefficients = self.call, self.plan.coefficients
        if self.plan.on_device:
            assert call.signature is not None
            stacked = torch.stack([as_number(c, self.records[0].parameter.device) for c in coefficients])
            packed = stacked.to(getattr(torch, call.signature.coefficient_dtype))
        else:
            packed = call.packed(coefficients)
        call.run(call.view(gradients), packed, addresses)


class MatrixChunk(Chunk):
    """A stage over a stack of tensors with the same shape."""

    def __init__(self, plan: PlannedStage, start: int, records: Sequence[ParameterState], buffers: Buffers) -> None:
        super().__init__(plan, start, records, buffers)
        self._views: dict[ValueName, torch.Tensor] = {}  # views of tensors whose memory does not move

    def compile(self, kernels: VariantCache) -> None:
        """Load the stage's C++ code, if there is any."""
        kernels.quicken(self.plan.prepared, self.records[0].parameter)

    def run(self, gradients: Sequence[Any], addresses: Iterable[int] | None = None) -> None:
        """Run the stage."""
        if not self.records[0].facts.numel:
            return
        kernel = self.plan.kernel
        stacks = [self._stack(name, gradients) for name in kernel.tensors]
        numbers = map(float, self.plan.coefficients[: len(kernel.coefficients)])  # padded with a 0
        results = self.plan.prepared.functions["update"](*stacks, *numbers)
        given = dict(zip(kernel.tensors, stacks, strict=True))
        read = {_memory(given[name]) for name in kernel.written if name in given}

        def apart(result: Any) -> Any:
            """Return a result, copied if it is only a view of a tensor that another result may be written to."""
            if isinstance(result, tuple):  # the values pushed to a history
                return result[0], [apart(x) for x in result[1]]
            return result.clone() if _memory(result) in read else result

        pairs = zip(kernel.written, results, strict=True)
        changed = [(n, apart(r)) for n, r in pairs if r is not given.get(n)]
        try:
            self._write_all(changed)
        except KeyboardInterrupt:  # so that no tensor is a step ahead of the others
            self._write_all(changed)
            raise

    def _write_all(self, changed: Sequence[tuple[ValueName, Any]]) -> None:
        """Write new values by name."""
        for name, result in changed:
            self._begun = True
            if isinstance(result, tuple):
                self._push(name, *result)
            else:
                self._write(name, result)

    def _storage(self, name: ValueName) -> Storage:
        return self.plan.kernel.storage.get(name, Storage.ELEMENT)

    def _tensors(self, name: ValueName, gradients: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """Return the tensors with a name, one for each record."""
        if name in self.records[0].coded and name not in self.buffers:
            return [record.uncoded(name) for record in self.records]
        if name == "p":
            return [record.parameter.detach() for record in self.records]
        if name == "g":
            return [g.view(r.parameter.shape) for g, r in zip(gradients, self.records, strict=True)]
        if name in self.buffers:
            return list(self.buffers[name])
        return [record.tensors[name].detach() for record in self.records]

    def _stack(self, name: ValueName, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the tensors with a name as one tensor, in the type in which the rule computes."""
        if name in self._views:
            return self._views[name]
        ready = self.buffers.get(("stack", name))
        if isinstance(ready, torch.Tensor):
            return ready
        tensors = self._tensors(name, gradients)
        if self._storage(name) is Storage.SCALAR:
            tensors = [t.reshape(()) for t in tensors]
        stack = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
        found = stack.to(arithmetic(self.records[0].parameter))
        changes = name in ("p", "g") or (name in self.buffers and self._storage(name) is Storage.MATRIX)
        if len(tensors) == 1 and found is stack and not changes and name not in self.records[0].coded:
            self._views[name] = found
        return found

    def _push(self, name: ValueName, start: int, entries: Sequence[torch.Tensor]) -> None:
        """Write entries into the rows of a history before its new start."""
        (history,) = self._tensors(name)
        entries = entries[-len(history) :]
        for place, entry in enumerate(entries, start - len(entries)):
            history[place % len(history)].copy_(entry[0])

    def _write(self, name: ValueName, result: torch.Tensor) -> None:
        """Write the new values of a name."""
        ready = self.buffers.get(("stack", name))
        if ready is not None:
            ready.copy_(result.reshape(ready.shape) if result.numel() == ready.numel() else result)
            return
        parts = result.expand(len(self.records), *result.shape[1:]).unbind()
        if name in self.buffers and self._storage(name) is Storage.MATRIX:
            matrices = [part.to(arithmetic(self.records[0].parameter)) for part in parts]
            if isinstance(self.buffers[name], BatchSlice):
                self.buffers[name].put(matrices)
            else:
                self.buffers[name] = matrices
            return
        if name in self.records[0].coded and name not in self.buffers:
            for record, part in zip(self.records, parts, strict=True):
                record.keep(name, part, self._draw)
            return
        for target, part in zip(self._tensors(name), parts, strict=True):
            target.copy_(part.reshape(target.shape) if part.numel() == target.numel() else part.expand_as(target))


def _memory(t: torch.Tensor) -> int:
    """Return an identifier that tensors sharing memory have in common; wrappers may share memory in any way."""
    if is_wrapper(t):
        return 0
    try:
        return int(t.untyped_storage()._cdata)
    except NotImplementedError:  # one of a functional transform
        return 0


class Segment:
    """Stages that wait for nothing but each other, chunk by chunk.

    Attributes:
        plans: The stages, in order.
        needs: Names of the late values that they wait for.
        totals: Names of the sums that they contribute to.
        points: Names of the points that they prepare for the closure.
        writes: Whether they write parameters or states.
        chunks: The chunks to run, in order.
    """

    def __init__(self, plans: Sequence[PlannedStage]) -> None:
        self.plans = list(plans)
        self.needs = frozenset(name for plan in plans for name in plan.own.needs)
        self.totals = tuple(dict.fromkeys(name for plan in plans for name in plan.own.totals))
        self.points = tuple(dict.fromkeys(name for plan in plans for name in plan.own.points))
        self.writes = any(plan.writes for plan in plans)
        self.chunks: list[Chunk] = []

    def buffers(self) -> dict[HandedOn, StageTensor]:
        """Return the values that its stages pass on, or read as random numbers, by name."""
        tensors = (tensor for plan in self.plans for tensor in plan.kernel.stage_tensors)
        return {tensor.name: tensor for tensor in tensors if isinstance(tensor.name, HandedOn)}

    def reuses(self, name: ValueName) -> bool:
        """Return whether a stage reads a state after another has written it."""
        users = [plan for plan in self.plans if name in plan.kernel.tensors]
        return any(name in plan.kernel.written for plan in users[:-1])


def segments(plans: Sequence[PlannedStage]) -> list[Segment]:
    """Split the stages of a path wherever one waits for something that the stages before it do not wait for."""
    cut: list[list[PlannedStage]] = []
    there: set[ValueName] = set()
    for plan in plans:
        # Nothing is written before the closure has been called at the points of the earlier stages, and nothing is
        # computed before it is known whether a step is made.
        asks = bool(cut) and any(each.own.points for each in cut[-1])
        halts = bool(cut) and any(IterationControl.STOP in each.own.totals for each in cut[-1])
        if not cut or halts or (asks and plan.writes) or not set(plan.own.needs) <= there:
            cut.append([])
            there |= set(plan.own.needs)
        cut[-1].append(plan)
    return [Segment(each) for each in cut]


class BatchSchedule:
    """The stages of a schedule with the tensors of a batch.

    Args:
        prepared: The variant.
        records: The records of the batch.

    Attributes:
        agenda: Storage for the schedule runner, kept from step to step.
    """

    def __init__(self, prepared: LoadedVariant, records: Sequence[ParameterState]) -> None:
        self.prepared, self.records, self.own = prepared, records, prepared.variant.schedule
        self.agenda: object = None
        self._paths: dict[int, list[Segment]] = {}
        self._common: dict[int, Buffers] = {}
        self._parts: dict[NumberContribution, torch.Tensor] = {}

    def path(self, path: int, kernels: VariantCache, scratch: Scratch) -> list[Segment]:
        """Return the stages of a path, created and compiled on first use."""
        if path not in self._paths:
            variant, device = self.prepared.variant, self.records[0].parameter.device
            for stage in self.own.stages:  # before kernels are compiled: both are cached together
                if stage.needs and stays_on_device(device):
                    stage.kernel.text("traced_source")
                kernels.foresee(stage.kernel, device.type)
            made = segments([PlannedStage(each, variant, kernels.stage(each.kernel)) for each in self.own.paths[path]])
            self._common[path] = lay_out(self, made, scratch)
            for segment in made:
                for chunk in segment.chunks:
                    chunk.compile(kernels)
            self._paths[path] = made
        return self._paths[path]

    def exchanged(self, path: int, name: Exchanged) -> list[torch.Tensor]:
        """Return the tensors that are exchanged with the closure under a name, one for each record; may be empty."""
        return list(self._common[path].get(name, ()))

    def parts_of(self, total: NumberContribution) -> list[torch.Tensor]:
        """Return memory for each record's contribution to a sum over the whole model."""
        if total not in self._parts:
            p = self.records[0].parameter
            self._parts[total] = torch.zeros(len(self.records), dtype=arithmetic(p), device=p.device)
        return list(self._parts[total].view(-1, 1).unbind())

    def summed(self, total: NumberContribution) -> list[Any]:
        """Return each record's contribution to a sum; on a device, their sum as a tensor there."""
        parts = self._parts[total]
        if not isinstance(total, Total):  # one number for all
            return [parts[0] if stays_on_device(parts.device) else float(parts[0])]
        if stays_on_device(parts.device):
            return [parts.sum(dtype=torch.float64)]
        found: list[Any] = parts.tolist()
        return found


def lay_out(batch: BatchSchedule, path: Sequence[Segment], scratch: Scratch) -> Buffers:
    """Split a batch into chunks and allocate the memory in which the stages of a path pass values on.

    Returns:
        The values that exist for every tensor at once.
    """
    held = [segment.buffers() for segment in path]
    common: Buffers = {}
    for name in {name for slots in held for name in slots}:
        where = [slots[name] for slots in held if name in slots]
        if len(where) > 1 or isinstance(name, Exchanged):  # needed across a sum or a call: one for every tensor at once
            common |= _allotted(where[0], batch.records, None, 0)
    for segment, slots in zip(path, held, strict=True):
        # Stages compute with exact values, even if states are quantized: quantization follows the last stage.
        coded = batch.records[0].coded
        reused = [slot for slot in batch.prepared.stored if slot.name in coded and segment.reuses(slot.name)]
        uncoded = [slot.name for slot in reused]
        local: list[AnySlot] = [*(slot for name, slot in slots.items() if name not in common), *reused]
        matrices = any(plan.kernel.matrices for plan in segment.plans)
        whole = not matrices and not any(slot.storage is Storage.ELEMENT for slot in local)
        alone = any(plan.own.alone for plan in segment.plans)
        cuts = [(i, i + 1) for i in range(len(batch.records))] if alone else _cuts(batch.records, matrices)
        for start, stop in [(0, len(batch.records))] if whole else cuts:
            records = batch.records[start:stop]
            buffers: Buffers = {
                name: BatchSlice(tensors, start, stop)
                for name, tensors in common.items()
                if not isinstance(name, tuple)
            }
            for number, slot in enumerate(local):
                buffers |= _allotted(slot, records, scratch, number)
            if uncoded:
                segment.chunks.append(DecodeChunk(segment.plans[0], start, records, buffers, uncoded))
            for plan in segment.plans:
                for total in plan.own.totals:
                    buffers[total] = batch.parts_of(total)[start:stop]
                kind: type[Chunk] = MatrixChunk if plan.kernel.matrices else KernelChunk
                segment.chunks.append(kind(plan, start, records, buffers))
            if uncoded:
                segment.chunks.append(EncodeChunk(segment.plans[-1], start, records, buffers, uncoded))
    return common


def _cuts(records: Sequence[ParameterState], matrices: bool) -> list[tuple[int, int]]:
    """Return where to split a batch so that no tensor of a chunk exceeds the limit, unless it is alone."""
    p = records[0].parameter
    most = (STACK if matrices else CHUNK).get(p.device.type, LARGEST) // arithmetic(p).itemsize
    largest = [max(r.facts.numel, *(t.numel() for t in r.tensors.values()), 1) for r in records]
    cuts, start, size = [], 0, 0
    for i, more in enumerate(largest):
        if i > start and size + more > most:
            cuts.append((start, i))
            start, size = i, 0
        size += more
    return [*cuts, (start, len(records))]


def _allotted(slot: AnySlot, records: Sequence[ParameterState], scratch: Scratch | None, lane: int) -> Buffers:
    """Allocate tensors for a value that stages pass on; without ``scratch``, in new memory."""
    if slot.storage is Storage.MATRIX:
        return {slot.name: [None] * len(records)}
    p = records[0].parameter
    shapes = [_shape(slot, record) for record in records]
    if not records[0].ordinary:  # results computed from wrappers need wrappers
        owners = [record.parameter.detach() for record in records]
        return {slot.name: [t.new_empty(s, dtype=arithmetic(p)) for t, s in zip(owners, shapes, strict=True)]}
    sizes = list(map(math.prod, shapes))
    like = torch.empty(0, dtype=arithmetic(p), device=p.device)
    memory = like.new_empty(sum(sizes)) if scratch is None else scratch.lane(lane, sum(sizes), like)
    views = [part.view(shape) for part, shape in zip(memory.split(sizes), shapes, strict=True)]
    found: Buffers = {}
    if slot.storage is Storage.ELEMENT and records[0].prepared.variant.layout.flat:
        # In the parameter's memory order, like elementwise kernels.
        pairs = zip(views, records, strict=True)
        views = [v if r.copied or r.parameter.is_contiguous() else _as_laid_out(v, r.parameter) for v, r in pairs]
    elif len(set(shapes)) == 1:
        shape = shapes[0] if slot.storage is not Storage.SCALAR else ()
        found["stack", slot.name] = memory.view(len(records), *shape)
    found[slot.name] = views
    return found


def _shape(slot: AnySlot, record: ParameterState) -> tuple[int, ...]:
    """Return the shape of a value that stages pass on, for a record."""
    shape = tuple(record.parameter.shape)
    if slot.storage is Storage.SCALAR:
        return (1,)
    if slot.storage is Storage.REDUCED:
        gone = {d % len(shape) for d in slot.dims}
        shape = tuple(1 if i in gone else n for i, n in enumerate(shape))
    return (*shape, 2) if record.parameter.is_complex() else shape


def _as_laid_out(view: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the same memory with its elements in the order of a dense parameter's."""
    strides = torch.view_as_real(p.detach()).stride() if p.is_complex() else p.stride()
    return view.as_strided(view.shape, strides, view.storage_offset())


def numbers_of(values: Sequence[Any]) -> list[Any]:
    """Return values as Python numbers; this waits for values on a device."""
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]
