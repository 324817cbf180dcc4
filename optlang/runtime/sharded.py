"""Distributed parameters: each process updates its own part.

If every element is updated from itself alone, the usual kernels run on the local parts and nothing is communicated. A
rule that reads more than one element (norms, means over rows) runs on gathered copies of the parameter, its gradient
and its states, identically in every process, and each process keeps its part of the result. This is correct for every
rule and placement, at the cost of communicating all of these tensors. State is distributed like its parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor, Replicate

from optlang.artifact import Storage, Variant
from optlang.runtime import sharded_codes as codes
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.checkpoint import numbers_of
from optlang.runtime.plan import GroupPlan, State
from optlang.runtime.records import ParameterState
from optlang.runtime.tensors import address, facts_of, form
from optlang.runtime.work import PendingStep, ScheduledWork
from optlang.storage import Fixed, Format
from optlang.storage.blocks import SCALE, Blocks
from optlang.storage.coded import WHOLE, ElementIndices
from optlang.storage.parameters import KEY

if TYPE_CHECKING:
    from optlang.storage.coded import Key


class ShardedPlan(GroupPlan):
    """The step of a parameter group that contains distributed tensors.

    The usual plan runs on stand-ins: the local part of each parameter, with the local part of its gradient and a dict
    of the local parts of its states.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parts: dict[torch.Tensor, torch.Tensor] = {}  # parameter -> stand-in
        self._whole: dict[torch.Tensor, torch.Tensor] = {}  # stand-in -> parameter
        self._states: dict[torch.Tensor, dict[str, Any]] = {}  # by stand-in
        self._shown: dict[torch.Tensor, dict[str, Any]] = {}  # by parameter: its dict in optimizer.state
        self._exhibited: list[ParameterBatch] = []  # those whose numbers optimizer.state shows
        self._gathered: list[Gathered] = []
        self._copies: set[torch.Tensor] = set()  # gathered parameters
        self._around: dict[torch.Tensor, bool] = {}  # by parameter: the results of _looks_around
        self._around_of: tuple[Any, ...] | None = None
        self.idle = []  # stand-ins, once there are some

    # The first half -----------------------------------------------------------------------------------------

    def prepare(self, state: State, same: bool) -> bool:
        """Collect the local parts and prepare the work of this step; return whether there is any."""
        self._gathered = []
        self.read()
        if self._around_of != self._answers:
            self._around, self._around_of = {}, self._answers
        gathered: list[DTensor] = []
        for p in dict.fromkeys(self.parameters):
            if p.grad is not None:
                self._check_parameter(p)
                self._check_gradient(p, p.grad)
                self._check_placement(p, p.grad)
            if isinstance(p, DTensor) and p.grad is not None and self._looks_around(p):
                gathered.append(p)
            else:
                self._stand_in(p, state)
        busy = super().prepare(self._states, False)
        for p in gathered:  # in the same order in every process
            self._gathered.append(self._gather_whole(p, state))
        self.staged += self._gathered_staged()
        return busy or bool(self._gathered)

    def _gathered_staged(self) -> list[ScheduledWork]:
        """Return the work on gathered copies that must run together with that of other groups."""
        return [each.work for each in self._gathered if isinstance(each.work, ScheduledWork)]

    def _local_staged(self) -> list[ScheduledWork]:
        """Return the local work that must run together with that of other groups."""
        gathered = {id(work) for work in self._gathered_staged()}
        return [work for work in self.staged if id(work) not in gathered]

    def _has_staged(self) -> bool:
        return super()._has_staged() or bool(self._gathered_staged())

    def _check_placement(self, p: torch.Tensor, g: torch.Tensor) -> None:
        if isinstance(p, DTensor) and not isinstance(g, DTensor):
            self._fail(
                p, "is a distributed tensor, but its gradient is not; distribute the gradient like the parameter"
            )

    def _looks_around(self, p: DTensor) -> bool:
        """Return whether elements depend on others, or on sizes, which are those of the whole tensor.

        The answer must be the same in every process, whatever its local part is.
        """
        if p not in self._around:
            prepared = self.kernels.prepared(self._values or {}, self._answers or (), facts_of(p))
            self._around[p] = self.kernels.by_size or not prepared.variant.elementwise
        return self._around[p]

    def _stand_in(self, p: torch.Tensor, state: State) -> None:
        """Update the stand-in of a parameter: its memory, its gradient, its state."""
        local = p.to_local() if isinstance(p, DTensor) else p
        part = self._parts.get(p)
        if part is None or address(part) != address(local) or form(part) != form(local):
            if part is not None:
                self._forget(part)
            part = local.detach() if isinstance(p, DTensor) else p
            self._parts[p], self._whole[part] = part, p
            self.idle.append(part)
        g = p.grad
        part.grad = None if g is None else _local(g, p)
        held = state.get(p, {})
        shown = self._shown.get(p, {})
        if len(held) != len(shown) or any(held[key] is not shown.get(key) for key in held):
            own = self._states.setdefault(part, {})
            own.clear()  # another dict, or changed contents, must be bound again
            own.update({key: _local(value, p) for key, value in held.items()})
            self._shown[p] = dict(held)

    def _forget(self, part: torch.Tensor) -> None:
        """Drop a stand-in whose parameter has moved in memory."""
        for batch in list(self.batches):
            if any(record.parameter is part for record in batch.records):
                self._dissolve(batch)
        self.idle = [q for q in self.idle if q is not part]
        self._shown.pop(self._whole.pop(part), None)
        self._states.pop(part, None)

    @classmethod
    def unfit(cls, variant: Variant, p: torch.Tensor, formats: Mapping[str, Format]) -> str:
        """Return why a parameter's values cannot be stored in some formats; empty if they can."""
        return codes.misplaced(p, formats) if isinstance(p, DTensor) else ""

    def _gather_whole(self, p: DTensor, state: State) -> Gathered:
        """Gather a parameter, its gradient and its states, and prepare the work on the copies."""
        whole = p.full_tensor().detach().clone()
        self._whole[whole] = p  # for messages
        assert isinstance(p.grad, DTensor)
        g = p.grad.full_tensor()
        held = {key: codes.whole(value) for key, value in numbers_of(state.get(p, {})).items()}
        self._copies.add(whole)
        record = self._bound(whole, g, {whole: held})
        record.owner = p
        batch = self._batch([record])
        draw = batch.draw
        batch.gradients = [record.fitting(g)]
        known = self._group_values(record.prepared)
        del self._whole[whole]
        self._copies.remove(whole)
        if batch.schedule is not None:  # every process has its whole contribution to a sum: nothing is sent
            return Gathered(p, record, ScheduledWork(batch, known, self.kernels, self.scratch), draw)
        return Gathered(p, record, self.host(batch, known), draw)

    def _while_stepping(self, p: torch.Tensor, formats: dict[str, Format]) -> dict[str, Format]:
        """Return how states are stored during a step: those of gathered parameters are dequantized."""
        if p not in self._copies:
            return formats
        return {key: Fixed("float32") if isinstance(f, Blocks) else f for key, f in formats.items()}

    def _places_of(self, p: torch.Tensor) -> ElementIndices:
        """Return which elements of a parameter are local."""
        owner = self._whole.get(p, p)
        if not isinstance(owner, DTensor):
            return WHOLE
        return WHOLE if p in self._copies else codes.places_of(owner)

    # The second half ----------------------------------------------------------------------------------------

    def run(self, state: State) -> list[torch.Tensor]:
        """Update the local parts of parameters and states."""
        fresh = [batch for batch in self.batches if not batch.committed]
        self.staged = self._local_staged()
        written = super().run(self._states)
        for batch in fresh:
            for record in batch.records:
                self._show(record, state)
        self._show_numbers(state)
        for each in self._gathered:
            if isinstance(each.work, ScheduledWork):
                each.work.batch.reflect()
                each.record.commit()
                continue
            batch, coefficients, numbers, _ = each.work
            batch.run(coefficients)
            batch.reflect()
            batch.advance(numbers)
            each.record.commit()
            self._take_part(each, state)
        self._gathered = [each for each in self._gathered if isinstance(each.work, ScheduledWork)]
        self.staged += self._gathered_staged()
        return written

    def finish(self, state: State) -> None:
        """Keep this process's part of the results of stages."""
        for each in self._gathered:
            self._take_part(each, state)
        self._gathered = []
        super().finish(state)

    def _take_part(self, each: Gathered, state: State) -> None:
        """Keep this process's part of a gathered parameter and of its states."""
        each.owner.to_local().copy_(_part(each.record.parameter, each.owner))
        self._show_gathered(each, state)

    def begin(self, state: State) -> None:
        """Initialize states, and nothing else."""
        fresh = [batch for batch in self.batches if not batch.committed]
        self.staged = self._local_staged()
        super().begin(self._states)
        for batch in fresh:
            for record in batch.records:
                self._show(record, state)
        for each in self._gathered:
            each.work.batch.reflect()
            each.record.commit()
            self._show_gathered(each, state)
        self._gathered = []

    def _show(self, record: ParameterState, state: State) -> None:
        """Store local states in ``optimizer.state``, distributed like the parameter."""
        p, held = self._whole[record.parameter], record.state
        if not held:
            return
        numbers = record.keys[: record.shown]
        shown = {key: value if key in numbers else _distributed(value, p) for key, value in held.items()}
        if isinstance(p, DTensor):
            for slot in (slot for slot in record.prepared.stored if slot.name in record.coded):
                format, scales = record.coded[slot.name]
                if isinstance(format, Blocks):
                    shown[slot.key + SCALE] = codes.distributed_like(scales, p, format.scales_shape(p.shape))
        state[p] = shown
        self._shown[p] = dict(shown)

    def _show_numbers(self, state: State) -> None:
        """Show the numbers of new batches, which are in other tensors than before."""
        before = {id(batch) for batch in self._exhibited}
        self._exhibited = list(self.batches)
        for record in (r for batch in self.batches if id(batch) not in before for r in batch.records):
            p = self._whole[record.parameter]
            for key, value in zip(record.keys[: record.shown], record.values, strict=False):
                if state[p].get(key) is not value:
                    state[p][key] = self._shown[p][key] = value

    def _show_gathered(self, each: Gathered, state: State) -> None:
        """Store a gathered parameter's states in ``optimizer.state``; states of its shape are distributed like it."""
        p, record, shown = each.owner, each.record, state[each.owner]
        formats = self._formats(record.prepared, p)
        slots = {slot.key: slot.name for slot in record.prepared.variant.slots if slot.storage is Storage.ELEMENT}
        for key, value in record.state.items():
            if key not in (*slots, KEY):
                shown[key] = value.clone() if isinstance(value, torch.Tensor) else value
                continue
            local, format = _part(value, p), formats.get(key)
            new = {key: local}
            if isinstance(format, Blocks):
                draw = record.drawn_by(slots[key]) ^ each.draw
                new[key], new[key + SCALE] = format.encode(local.contiguous(), draw, codes.places_of(p))
            else:
                shown.pop(key + SCALE, None)
            for name, part in new.items():
                self._keep_part(shown, name, part, p, format if name != key else None)

    @staticmethod
    def _keep_part(shown: dict[str, Any], key: str, part: torch.Tensor, p: DTensor, format: Format | None) -> None:
        """Write the local part of a state, or of its scales if a format is given, to where it was stored before."""
        shape = format.scales_shape(p.shape) if isinstance(format, Blocks) else p.shape
        held = shown.get(key)
        if isinstance(held, DTensor) and held.dtype is part.dtype and held.shape == shape:
            held.to_local().copy_(part)
        else:
            shown[key] = codes.distributed_like(part.clone(), p, shape)

    def abandon(self) -> None:
        """Discard a step that was prepared and will not run."""
        self._gathered = []
        super().abandon()

    def warm(self, state: State) -> None:
        """Compile the kernels of the local parts; kernels for gathered copies are compiled in the first step."""
        self.read()
        for p in dict.fromkeys(self.parameters):
            if not (isinstance(p, DTensor) and self._looks_around(p)):
                self._stand_in(p, state)
        super().warm(self._states)

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        return self._whole.get(p, p)

    def _check_parameter(self, p: torch.Tensor) -> None:
        if not (p.is_floating_point() or p.is_complex()):
            super()._check_parameter(p)


class Gathered(NamedTuple):
    """A distributed parameter that is updated as a whole.

    Attributes:
        owner: The parameter.
        record: The copy.
        work: Its step.
        draw: The random-number key of the step, for quantized states.
    """

    owner: DTensor
    record: ParameterState
    work: PendingStep | ScheduledWork
    draw: Key


def _local(t: Any, p: torch.Tensor) -> Any:
    """Return the local part of a tensor that is distributed like a parameter."""
    if not isinstance(t, DTensor) or not isinstance(p, DTensor):
        return t
    if tuple(t.placements) != tuple(p.placements):
        t = t.redistribute(p.device_mesh, p.placements)
    return t.to_local()


def _distributed(value: Any, p: torch.Tensor) -> Any:
    """Return a local state as a distributed tensor if it is per element."""
    if not (isinstance(p, DTensor) and isinstance(value, torch.Tensor) and value.shape == p.to_local().shape):
        return value
    return DTensor.from_local(value, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _part(whole: torch.Tensor, p: DTensor) -> torch.Tensor:
    """Return the local part of a tensor that is whole in every process."""
    mesh = p.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, p.placements).to_local()
