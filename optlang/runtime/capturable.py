"""Steps that never copy values back to the host: for CUDA graphs, with ``capturable=True`` in a parameter group.

Step counts and host states are stored on the parameters' device, and arithmetic on them runs there. A captured graph
therefore keeps counting when it is replayed, and follows hyperparameters that are tensors on the device. This works on
every device, but only pays off on CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from optlang.inputs import ValueName
from optlang.runtime import rng
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.device_scalars import as_number, numbers_of, traced_functions
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.plan import GroupPlan
from optlang.runtime.records import ParameterState
from optlang.runtime.work import PendingStep

if TYPE_CHECKING:
    from optlang.storage.coded import Key


class CapturablePlan(GroupPlan):
    """The step of a parameter group that is ``capturable``."""

    switch = "capturable"
    option = "capturable=True"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seen: list[tuple[Any, int]] = []
        self._numbers: dict[torch.device, dict[ValueName, torch.Tensor]] = {}

    def _batch(self, records: list[ParameterState]) -> ParameterBatch:
        batch = DeviceBatch(records)
        batch.seed = self.group.get(rng.SEED, 0)
        return batch

    def read(self) -> None:
        """Read the hyperparameters again if one was replaced or written to: reading a tensor synchronizes."""
        raw = self.hyper.raw(self.group)
        seen = [(value, value._version if isinstance(value, torch.Tensor) else 0) for value in raw.values()]
        same = len(seen) == len(self._seen) and all(
            v == w and (a is b or (not isinstance(a, torch.Tensor) and type(a) is type(b) and a == b))
            for (a, v), (b, w) in zip(seen, self._seen, strict=True)
        )
        if same:
            return
        super().read()
        self._seen, self._numbers = seen, {}

    def _group_values(self, prepared: LoadedVariant) -> dict[ValueName, Any]:
        variant = prepared.variant
        if variant.group_slots or variant.counts_group:
            raise ValueError(
                f"{self.name} does not support capturable=True: it keeps numbers in the parameter group, which are "
                f"computed on the host and would not change in a graph"
            )
        return super()._group_values(prepared)

    def host(self, batch: ParameterBatch, known: Mapping[ValueName, Any]) -> PendingStep:
        """Compute the coefficients on the device, and find the batch's kernel."""
        assert isinstance(batch, DeviceBatch)
        device = batch.records[0].parameter.device
        raw = self.hyper.raw(self.group)
        if device not in self._numbers:  # tensors are read in every step, everything else once
            fixed = {name: value for name, value in raw.items() if not isinstance(value, torch.Tensor)}
            self._numbers[device] = numbers_of(fixed, device)
        arguments = batch.number_arguments(self._numbers[device], raw)
        call = batch.call
        assert call is not None
        coefficients, hosted = traced_functions(call.prepared.kernel)["host"](*arguments)
        self._see_to_kernel(batch, len(coefficients))
        signature = call.signature
        assert signature is not None
        numbers = [as_number(c, device) for c in coefficients or (0.0,)]
        packed = torch.stack(numbers).to(getattr(torch, signature.coefficient_dtype))
        return PendingStep(batch, packed, tuple(hosted), batch.count)


class DeviceBatch(ParameterBatch):
    """Records whose count and host states are stored on their device.

    Their Python values are those from when the batch was created, since replaying a graph does not update them.
    """

    __slots__ = ()

    @property
    def place(self) -> torch.device:
        """The device on which count and host states are stored."""
        return self.records[0].parameter.device

    @property
    def draw(self) -> Key:
        """The key of the next step's random numbers, for quantized states: a tensor, because the count is one."""
        if not self.records[0].draws:
            return 0
        return rng.mixed_on_device(self.seed, self._rows()[0] + 1) & 0xFFFFFFFF

    def number_arguments(
        self, numbers: Mapping[ValueName, torch.Tensor], raw: Mapping[ValueName, Any]
    ) -> list[torch.Tensor]:
        """Return the arguments of ``host`` for the next step, as numbers on the device."""
        prepared, record = self.prepared, self.records[0]
        assert prepared.direct is not None
        device = record.parameter.device
        count, hosted = self._rows()
        first = count == 0 if prepared.counts else as_number(self.is_new, device)
        own: dict[ValueName, Any] = {"t": count + 1, "first": first}
        own |= {slot.name: value for slot, value in zip(prepared.hosted, hosted, strict=True)}
        own |= {name: as_number(record.facts.number(name), device) for name in prepared.facts}
        found = []
        for name in prepared.direct.kernel.host_arguments:
            value = own.get(name, numbers.get(name))
            found.append(as_number(raw[name], device) if value is None else value)
        return found

    def _rows(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the count and the host states, on the device."""
        device = self.records[0].parameter.device
        if self.mirror is None:
            return as_number(self.count, device), [as_number(n, device) for n in self.numbers]
        rows = [row[0] for row in self.mirror.unbind()]
        return (rows[0], rows[1:]) if self.counts else (as_number(0.0, device), rows)

    def advance(self, numbers: tuple[Any, ...]) -> None:
        """Count a step and write the new values of the host states, in place."""
        self.is_new, counts, call = False, self.counts, self.call
        assert call is not None
        if self.mirror is None:
            call.moved = 0
            return
        if numbers:  # all at once, since some may be views of others' rows
            values = torch.stack([as_number(number, self.mirror.device).double() for number in numbers])
            self.mirror[int(counts) :].copy_(values.unsqueeze(1))
        if self.kept:
            self._write_kept((0.0, *numbers) if counts else numbers)
        if counts:  # last, since it must not run twice
            count = self.mirror[0]
            call.moved = 0
            count.add_(1.0)
        call.moved = 0
        self.version = self.mirror._version

    def split(self, chosen: Any) -> tuple[ParameterBatch, ParameterBatch]:
        """Split the batch into the chosen records and the others; this synchronizes with the device."""
        if self.mirror is not None:
            rows = self.mirror[:, 0].tolist()
            self.count, self.numbers = (rows[0], tuple(rows[1:])) if self.counts else (0.0, tuple(rows))
        return super().split(chosen)
