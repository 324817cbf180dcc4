"""Steps of several passes: in turns where they wait for sums over the whole model, over stacks of matrices.

A batch whose variant is staged makes its step in passes (:class:`optlang.compiled.Pass`). Those over elements are
kernels like any other; those over matrices are torch's own operations on stacks of equally shaped tensors.
:func:`run_together` runs the passes of all batches of an optimizer, and computes what arrives in between: sums over all
of them, and the states that the whole optimizer shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from optlang.backends.loading.signature import Kernel
from optlang.compiled import Pass, Slot, Steering
from optlang.language.rule import Value
from optlang.runtime import chance, host
from optlang.runtime.kernels import Kernels, Prepared
from optlang.runtime.numbers import as_number, traced_functions
from optlang.runtime.records import Batch, Record
from optlang.runtime.tensors import viewed

#: How many bytes of a tensor are stacked at once: enough to keep every core busy with a matrix of its own.
STACK = 64 * 2**20


def _unused(tensors: list[Any]) -> None:
    raise AssertionError("a staged batch is run pass by pass")


class StagedBatch(Batch):
    """Records whose step is made in passes."""

    __slots__ = ("_buffers", "_passes")

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__(records)
        self.kernel = Kernel(_unused, "staged", many=True)
        self._passes: dict[int, list[PassBatch]] = {}
        self._buffers: dict[str, Any] = {}

    @property
    def steering(self) -> Steering:
        """What ties the passes together."""
        steering = self.prepared.variant.steering
        assert steering is not None
        return steering

    def owner(self, record: Record) -> torch.Tensor:
        """Return the parameter of a record, as it is listed in the param groups."""
        return record.parameter

    def likeness(self) -> tuple[Any, ...]:
        """Return what batches that could be one have in common."""
        first = self.records[0]
        variant, *_, facts, types, states, shape = self.key(first)
        return (variant, self.count, self.numbers, self.created, facts, types, states, shape)

    def passes(self, path: int, kernels: Kernels, values: Mapping[str, Value]) -> list[PassBatch]:
        """Return the passes of a path, made and compiled on first use."""
        if path not in self._passes:
            made: list[PassBatch] = []
            for p in self.steering.paths[path]:
                kind: type[PassBatch] = MatrixPass if p.matrices else KernelPass
                made.append(kind(p, self, kernels.prepared_pass(p.kernel), self._buffers))
            for one in made:
                one.compile(kernels, values)
            self._passes[path] = made
        return self._passes[path]

    def named(self, names: Iterable[str], known: Mapping[str, Any]) -> list[Any]:
        """Return values by name as the next step sees them: hyperparameters, facts, counts, host states, late ones."""
        facts, hosted = self.records[0].facts, {s.name: i for i, s in enumerate(self.prepared.hosted)}
        found: list[Any] = []
        for name in names:
            if name in hosted:
                found.append(self.numbers[hosted[name]])
            elif name == "t":
                found.append(self.count + 1.0)
            elif name == "first":
                found.append(self.count == 0.0 if self.prepared.counts else self.created)
            else:
                found.append(known[name] if name in known else getattr(facts, name))
        return found


class PassBatch:
    """One pass of a batch.

    Args:
        own: The pass.
        batch: The batch.
        prepared: The pass's module.
        buffers: What passes of the batch leave for each other, by name.

    Attributes:
        coefficients: Those of the coming step, once what they are computed from is there.
    """

    def __init__(self, own: Pass, batch: StagedBatch, prepared: Prepared, buffers: dict[str, Any]) -> None:
        self.own, self.batch, self.prepared, self.buffers = own, batch, prepared, buffers
        self.coefficients: tuple[Any, ...] = ()
        p = batch.records[0].parameter
        self.arithmetic = torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32
        for slot in own.kernel.slots:
            if slot.name not in buffers and slot.name.startswith(("carry ", "total ", "noise ")):
                buffers[slot.name] = self._buffer(slot)

    def _buffer(self, slot: Slot) -> Any:
        """Return memory for what a pass leaves, or reads as random numbers: one tensor for all records of a shape."""
        p = self.batch.records[0].parameter
        count = len(self.batch.records)
        if slot.place == "scalar":
            return list(torch.zeros(count, 1, dtype=self.arithmetic, device=p.device).unbind())
        if slot.place == "matrix":
            return [None] * count
        shapes = [tuple(r.parameter.shape) for r in self.batch.records]
        if slot.place == "reduced":
            places = [{d % len(shape) for d in slot.dims} for shape in shapes]
            shapes = [tuple(1 if i in at else n for i, n in enumerate(s)) for s, at in zip(shapes, places, strict=True)]
        if p.is_complex():
            shapes = [(*shape, 2) for shape in shapes]
        memory = torch.zeros(sum(map(math.prod, shapes)), dtype=self.arithmetic, device=p.device)
        parts = memory.split(list(map(math.prod, shapes)))
        if len(set(shapes)) == 1:
            self.buffers[f"stack of {slot.name}"] = memory.view(count, *shapes[0])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        if slot.place == "element" and self.batch.prepared.variant.layout.flat:  # in the order of p's memory
            records = zip(views, self.batch.records, strict=True)
            views = [v if r.copied or r.parameter.is_contiguous() else _as_laid_out(v, r.parameter) for v, r in records]
        return views

    def ready(self, known: Mapping[str, Any]) -> bool:
        """Whether everything that the coefficients are computed from is there."""
        return all(name in known for name in self.own.needs)

    def prepare(self, known: Mapping[str, Any]) -> None:
        """Compute the coefficients: numbers, or tensors where they follow from sums that are on a device."""
        arguments = self.batch.named(self.own.kernel.host_arguments, known)
        if any(isinstance(a, torch.Tensor) for a in arguments):
            device = self.batch.records[0].parameter.device
            numbers = [as_number(a, device) for a in arguments]
            self.coefficients = traced_functions(self.own.kernel)["host"](*numbers)[0]
        else:
            self.coefficients = host.call(self.prepared.plain["host"], arguments)[0]

    def compile(self, kernels: Kernels, values: Mapping[str, Value]) -> None:
        """See to everything that takes time."""

    def draw(self, seed: chance.Seed, known: Mapping[str, Any]) -> None:
        """Fill in the random numbers that the pass reads."""
        steering = self.batch.steering
        for draw in self.own.draws:
            if any(slot.name == draw.name and slot.place == "matrix" for slot in self.own.kernel.slots):
                arguments = _numbers(self.batch.named(steering.size_arguments, known))
                size = self.batch.prepared.plain["sizes"](*arguments)[draw.name]
                device = self.batch.records[0].parameter.device
                self.buffers[draw.name] = [
                    torch.empty(size, dtype=self.arithmetic, device=device) for _ in self.batch.records
                ]
            for record, memory in zip(self.batch.records, self.buffers[draw.name], strict=True):
                seed.fill(memory, draw, self.batch.owner(record), int(self.batch.count) + 1)

    def run(self) -> None:
        """Run the pass."""
        raise NotImplementedError

    def parts_of(self, total: str) -> list[Any]:
        """Return each tensor's part of a sum over the whole model; on a device, their sum as a tensor there."""
        parts = torch.cat(self.buffers[total])
        if stays_on_device(parts.device):
            return [parts.sum(dtype=torch.float64)]
        found: list[Any] = parts.tolist()
        return found


def _as_laid_out(view: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the same memory with its elements in the order of a dense parameter's."""
    strides = torch.view_as_real(p.detach()).stride() if p.is_complex() else p.stride()
    return view.as_strided(view.shape, strides, view.storage_offset())


class KernelPass(PassBatch):
    """A pass over elements."""

    def __init__(self, own: Pass, batch: StagedBatch, prepared: Prepared, buffers: dict[str, Any]) -> None:
        super().__init__(own, batch, prepared, buffers)
        self.inner = Batch([self._record(i, record) for i, record in enumerate(batch.records)])
        self.inner.committed = True

    def _record(self, index: int, parent: Record) -> Record:
        """Return a parameter as this pass sees it."""
        record = Record(parent.parameter, self.prepared, parent.state)
        record.gradient_dtype, record.copied, record.careful = parent.gradient_dtype, parent.copied, parent.careful
        layout, places = self.own.kernel.layout, {s.name: s.place for s in self.own.kernel.slots}
        views: list[Any] = [None if record.copied else viewed(record.parameter, layout), None]
        for name in self.own.kernel.tensors[2:]:
            tensor = self.buffers[name][index] if name in self.buffers else parent.tensors[name]
            if places[name] == "scalar":
                views.append(tensor.detach().view(1))
            else:
                views.append(viewed(tensor, layout))
        record.views = views
        return record

    def compile(self, kernels: Kernels, values: Mapping[str, Value]) -> None:
        """Find the kernel, compiling it if need be."""
        inner = self.inner
        signature = inner.records[0].sign(len(self.own.kernel.coefficients) or 1, values)
        for record in inner.records:
            record.signature = signature
        inner.kernel = kernels.kernel(self.own.kernel, signature, self.batch.prepared.variant)

    def run(self) -> None:
        """Run the kernel on every record."""
        inner, gradients = self.inner, self.batch.gradients
        assert inner.kernel is not None
        if inner.kernel.many:
            inner.gradients = gradients
        else:
            inner.gradients = [record.view(g) for record, g in zip(inner.records, gradients, strict=True)]
        if any(isinstance(c, torch.Tensor) for c in self.coefficients):
            first = inner.records[0]
            assert first.signature is not None
            stacked = torch.stack([as_number(c, first.parameter.device) for c in self.coefficients])
            inner.run(stacked.to(getattr(torch, first.signature.coefficient_dtype)))
        else:
            inner.run(inner.packed(self.coefficients))


class MatrixPass(PassBatch):
    """A pass over stacks of matrices."""

    def run(self) -> None:
        """Run the pass on stacks of equally shaped tensors."""
        records = self.batch.records
        size = records[0].facts.numel
        if not size:
            return
        width = max(1, min(len(records), STACK // (size * self.arithmetic.itemsize)))
        for start in range(0, len(records), width):
            self._run(range(start, min(start + width, len(records))))

    def _run(self, chosen: Sequence[int]) -> None:
        kernel = self.own.kernel
        stacks = [self._stack(name, chosen) for name in kernel.tensors]
        numbers = map(float, self.coefficients[: len(kernel.coefficients)])  # there is a 0 where there are none
        results = self.prepared.plain["update"](*stacks, *numbers)
        read = {stack.untyped_storage().data_ptr() for stack in stacks}
        # What is only a view of a tensor that another result may be written to is copied first.
        results = [r.clone() if r.untyped_storage().data_ptr() in read else r for r in results]
        for name, result in zip(kernel.written, results, strict=True):
            ready = self.buffers.get(f"stack of {name}")
            if ready is not None:
                target = ready[chosen[0] : chosen[-1] + 1]
                target.copy_(result.reshape(target.shape) if result.numel() == target.numel() else result)
                continue
            parts = result.expand(len(chosen), *result.shape[1:]).unbind()
            self._write(name, chosen, parts)

    def _stack(self, name: str, chosen: Sequence[int]) -> torch.Tensor:
        """Return a tensor of some records as one, in the number type of the arithmetic."""
        records = self.batch.records
        ready = self.buffers.get(f"stack of {name}")
        if isinstance(ready, torch.Tensor):
            return ready[chosen[0] : chosen[-1] + 1]
        if name == "p":
            tensors = [records[i].parameter.detach() for i in chosen]
        elif name == "g":
            tensors = [self.batch.gradients[i].view(records[i].parameter.shape) for i in chosen]
        elif name in self.buffers:
            tensors = [self.buffers[name][i] for i in chosen]
            if tensors[0].dim() == 1 and self._place(name) == "scalar":
                return torch.cat(tensors)
        else:
            tensors = [records[i].tensors[name].detach() for i in chosen]
            if self._place(name) == "scalar":
                tensors = [t.reshape(()) for t in tensors]
        stack = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
        return stack if stack.dtype is self.arithmetic else stack.to(self.arithmetic)

    def _place(self, name: str) -> str:
        return next((s.place for s in self.own.kernel.slots if s.name == name), "element")

    def _write(self, name: str, chosen: Sequence[int], parts: Sequence[torch.Tensor]) -> None:
        """Write the new values of a tensor of some records."""
        records = self.batch.records
        if name in self.buffers and self._place(name) == "matrix":
            for i, part in zip(chosen, parts, strict=True):
                self.buffers[name][i] = part.to(self.arithmetic)
            return
        if name == "p":
            targets = [records[i].parameter.detach() for i in chosen]
        elif name in self.buffers:
            targets = [self.buffers[name][i] for i in chosen]
        else:
            targets = [records[i].tensors[name].detach() for i in chosen]
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part.reshape(target.shape) if part.numel() == target.numel() else part.expand_as(target))


class StagedWork:
    """A staged batch that is about to make a step: its path is chosen, and compiled.

    Args:
        batch: The batch.
        known: Hyperparameters and the group's values, by name.
        kernels: The kernels of the class.
        values: The hyperparameters alone.
    """

    def __init__(
        self, batch: StagedBatch, known: Mapping[str, Any], kernels: Kernels, values: Mapping[str, Value]
    ) -> None:
        self.batch, self.known, self.rule = batch, known, kernels
        steering, plain = batch.steering, batch.prepared.plain
        self.path = 0
        if len(steering.paths) > 1:
            asked = _numbers(batch.named(steering.path_arguments, known))
            self.path = int(host.call_group(plain["path"], asked)[0])
        for path in range(len(steering.paths)):  # all of them now, so that no later step has to wait
            batch.passes(path, kernels, values)
        self.left = list(batch.passes(self.path, kernels, values))
        for one in self.left:
            if not one.own.needs:
                one.prepare(known)

    def numbers(self, late: Mapping[str, Any]) -> tuple[float, ...]:
        """Return what the host states become."""
        names = self.batch.steering.numbers_arguments[self.path]
        arguments = _numbers(self.batch.named(names, {**self.known, **late}))
        return host.call_group(self.batch.prepared.plain[f"numbers_{self.path}"], arguments)


def _numbers(values: Iterable[Any]) -> list[Any]:
    """Return values as Python has them; one that is on a device is waited for."""
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]


def run_together(works: Sequence[StagedWork], known: Mapping[str, Any], seed: chance.Seed) -> dict[str, Any]:
    """Run the steps of all staged batches of one rule; return the shared states' new values, by key.

    Args:
        works: The batches.
        known: What shared states are computed from besides sums: the values of the first group, with the largest of
            the groups' step counts.
        seed: Draws random numbers.

    Every batch goes on for as long as it can; then the sums that are complete are added up, and the shared states that
    can be computed from them are.
    """
    late: dict[str, Any] = {}
    shared = _Shared(works[0].batch, known)
    totals = {total for w in works for p in w.left for total in p.own.totals}
    wanted = {n for w in works for p in w.left for n in p.own.needs} | shared.needs | _numbers_need(works)
    late.update({name: 0.0 for name in wanted if name.startswith("total ") and name not in totals})
    parts: MutableMapping[str, list[Any]] = {}
    shared.compute(late)
    while any(work.left for work in works):
        before = sum(len(work.left) for work in works), len(late)
        for work in works:
            while work.left and work.left[0].ready(late):
                one = work.left.pop(0)
                if one.own.needs:
                    one.prepare({**work.known, **late})
                one.draw(seed, work.known)
                one.run()
                for total in one.own.totals:
                    parts.setdefault(total, []).extend(one.parts_of(total))
        waiting = {total for w in works for p in w.left for total in p.own.totals}
        for total in sorted(totals - waiting - set(late)):
            late[total] = _sum(parts[total])
        shared.compute(late)
        assert before != (sum(len(work.left) for work in works), len(late)), "passes wait for each other"
    for work in works:
        work.batch.advance(work.numbers(late))
        work.batch.gradients = []
    return shared.results


def stays_on_device(device: torch.device) -> bool:
    """Whether sums stay where they are computed, so that no step waits for them; on the CPU nothing has to wait."""
    return device.type != "cpu"


def _sum(parts: Sequence[Any]) -> Any:
    """Return the sum of some numbers.

    On the CPU it is exact and rounded once, so that it does not depend on how tensors fall into batches.
    """
    if any(isinstance(part, torch.Tensor) for part in parts):
        device = next(part.device for part in parts if isinstance(part, torch.Tensor))
        return torch.stack([as_number(part, device) for part in parts]).sum()
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond the largest number
        return sum(parts)


def _numbers_need(works: Sequence[StagedWork]) -> set[str]:
    names = {n for w in works for n in w.batch.steering.numbers_arguments[w.path]}
    return {name for name in names if name.startswith("total ")}


class _Shared:
    """The states that the whole optimizer shares, computed once a step; any batch knows their formulas."""

    def __init__(self, batch: StagedBatch, known: Mapping[str, Any]) -> None:
        self.known, self.batch = known, batch
        self.left = list(batch.steering.shared)
        self.results: dict[str, Any] = {}
        self.needs = {n for _, names in self.left for n in names if n.startswith("total ")}

    def compute(self, late: MutableMapping[str, Any]) -> None:
        """Compute those whose sums have arrived."""
        prepared = self.batch.prepared
        for slot, names in list(self.left):
            if all(name in late for name in names if name.startswith("total ")):
                name = f"shared_{slot.name}"
                arguments = self.batch.named(names, {**self.known, **late})
                tensor = next((a for a in arguments if isinstance(a, torch.Tensor)), None)
                if tensor is None:
                    (value,) = host.call_group(prepared.plain[name], arguments)
                else:
                    numbers = [as_number(a, tensor.device) for a in arguments]
                    (value,) = traced_functions(prepared.variant)[name](*numbers)
                late[f"{slot.name}'"] = self.results[slot.key] = value
                self.left.remove((slot, names))
