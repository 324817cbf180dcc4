"""Batches of parameters that step together, and the numbers they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from optlang.inputs import ValueName, as_values
from optlang.runtime import rng
from optlang.runtime.calls import KernelCall
from optlang.runtime.records import OURS, ParameterState, is_kept
from optlang.runtime.stages import BatchSchedule
from optlang.runtime.watched import Watched

if TYPE_CHECKING:
    from optlang.storage.coded import Key


class ParameterBatch:
    """Records that step in the same way: they share counts, host numbers and coefficients.

    The constructor decides once how they step: with one kernel call, or with the stages of a schedule.

    Attributes:
        records: The records.
        parameters: Their parameters.
        gradients: During a step, their gradients as the kernel takes them.
        addresses: The addresses of these gradients, if already known.
        call: The kernel call with their tensors, if a step is a single kernel.
        schedule: The stages with their tensors, for all other steps.
        counts: Whether their updates are counted.
        count: The number of updates so far.
        numbers: The values of their host states.
        is_new: Whether their states were initialized in this step.
        mirror: The memory of the tensors that show the count and the numbers in ``optimizer.state``, or None.
        version: The version of that memory after our last write; a different version means that someone else wrote to
            it.
        volatile: Whether some records must be bound in every step.
        kept: Numbers that someone else put into ``optimizer.state``, by row of the mirror; they are written in place.
        committed: Whether ``optimizer.state`` holds the records' states.
    """

    __slots__ = (
        "_arguments",
        "_arguments_of",
        "_facts",
        "_kept_versions",
        "_watched",
        "addresses",
        "call",
        "committed",
        "count",
        "counts",
        "device",
        "gradients",
        "is_new",
        "kept",
        "mirror",
        "numbers",
        "parameters",
        "prepared",
        "records",
        "schedule",
        "seed",
        "version",
        "volatile",
    )

    def __init__(self, records: Sequence[ParameterState]) -> None:
        self.records = list(records)
        self.parameters = [record.parameter for record in records]
        self.gradients: Sequence[Any] = ()
        first = self.records[0]
        self.prepared, self.count, self.numbers = first.prepared, first.count, first.numbers
        self.is_new, self.counts = first.is_new, first.counts
        self.device = first.parameter.device
        self._facts = as_values(first.facts.named())
        self.volatile = any(record.volatile for record in self.records)
        direct = self.prepared.direct
        self.call = None if direct is None else KernelCall(direct, self.records, {})
        self.schedule = BatchSchedule(self.prepared, self.records) if direct is None else None
        self.mirror: torch.Tensor | None = None
        self.version, self.seed = 0, 0
        self.kept: dict[int, list[torch.Tensor]] = {}
        self._kept_versions: list[int] = []
        self.committed = False
        self._arguments: list[Any] = []  # the previous arguments of host
        self._arguments_of: Mapping[ValueName, Any] | None = None
        self._watched: Watched | None = None
        self.addresses: Iterable[int] | None = None

    @staticmethod
    def key(record: ParameterState) -> tuple[Any, ...]:
        """Return the properties that all records of a batch share."""
        # Records that do not count their updates may differ in count.
        count = record.count if record.counts else 0.0
        return (*_fixed(record), count, record.numbers, record.is_new)

    def likeness(self) -> tuple[Any, ...]:
        """Return the properties that batches must share to be merged."""
        count = self.count if self.counts else 0.0
        return (*_fixed(self.records[0]), count, self.numbers, self.is_new)

    def usual(self, state: Mapping[Any, Any] | None) -> list[torch.Tensor] | None:
        """Return the gradients if every record has one and nothing has changed since the last step.

        This is the common case, so all records are checked at once.
        """
        if self._watched is None:
            self._watched = Watched(self.records)
        found = self._watched.gradients(state)
        self.addresses = None if found is None else self._watched.addresses
        return found

    @property
    def many(self) -> bool:
        """Whether gradients may have shapes that differ from their parameters'."""
        return self.call is None or self.call.many

    # Host numbers -------------------------------------------------------------------------------------------

    def host_arguments(self, known: Mapping[ValueName, Any]) -> list[Any]:
        """Return the arguments of ``host`` for the next step.

        Args:
            known: Hyperparameters and the group's values; if the same mapping is passed again, its contents must be
                unchanged.
        """
        prepared, direct, arguments = self.prepared, self.prepared.direct, self._arguments
        assert direct is not None
        if known is not self._arguments_of:
            found = {**self._facts, **known}
            arguments[:] = [found.get(name) for name in direct.kernel.host_arguments]
            self._arguments_of = known
        for place, what in direct.varying:
            if isinstance(what, int):
                arguments[place] = self.numbers[what]
            elif what == "t":
                arguments[place] = self.count + 1.0
            else:
                arguments[place] = self.count == 0.0 if prepared.counts else self.is_new
        return arguments

    def values(self, known: Mapping[ValueName, Any]) -> dict[ValueName, Any]:
        """Return all values that host functions read in the next step, by name, except those that arrive during it."""
        prepared = self.prepared
        return {
            **self._facts,
            **known,
            "t": self.count + 1.0,
            "first": self.count == 0.0 if prepared.counts else self.is_new,
            **{slot.name: number for slot, number in zip(prepared.hosted, self.numbers, strict=True)},
        }

    @property
    def draw(self) -> Key:
        """The key of the next step's random numbers, for states that are quantized."""
        return rng.mixed(self.seed, int(self.count) + 1) & 0xFFFFFFFF if self.records[0].draws else 0

    # Running ------------------------------------------------------------------------------------------------

    def run(self, coefficients: torch.Tensor) -> None:
        """Run the kernel of a step that is one kernel."""
        assert self.call is not None
        self.call.draw = self.draw
        self.call.run(self.gradients, coefficients, self.addresses)
        self.gradients = ()

    @property
    def moved(self) -> bool:
        """Whether a step has begun to update some records and has not been counted yet."""
        return self.call is not None and self.call.moved > 0

    def begun(self) -> list[ParameterState]:
        """Return the records that an interrupted step has updated, or was about to."""
        assert self.call is not None
        return [self.records[i] for i in self.call.begun()]

    def bytes_moved(self) -> int:
        """Return how many bytes a step moves: each tensor once, and once more if it is written."""
        variant, total = self.prepared.variant, 0
        for record in self.records:
            tensors = {"p": record.parameter, "g": record.parameter, **record.tensors}
            for name in variant.tensors:
                memory = tensors[name]
                size = memory.numel() * memory.element_size()
                size += record.coded[name][1].nbytes if name in record.coded else 0
                total += size * (2 if name in variant.written else 1)
        return total

    # State --------------------------------------------------------------------------------------------------

    @property
    def place(self) -> torch.device:
        """The device on which count and host states are shown: the host, where they are computed."""
        return torch.device("cpu")

    def reflect(self) -> None:
        """Create the tensors in ``optimizer.state`` that show the count and the host states, if there are none."""
        rows = [self.count] if self.counts else []
        rows += self.numbers
        if not rows:
            return
        self.kept = {}
        with torch.inference_mode(False):  # inference tensors have no versions
            memory = torch.tensor(rows, dtype=torch.float64, device=self.place)
            self.mirror = memory.unsqueeze(1).repeat(1, len(self.records))
            setattr(self.mirror, OURS, True)
            columns = [self.mirror[:, i].unbind() for i in range(len(self.records))]
        for record, shown in zip(self.records, columns, strict=True):
            numbers = list(shown)
            for row, key in enumerate(record.keys[: len(rows)]):
                held = record.state.get(key)
                if is_kept(held) and held.device == self.place:
                    numbers[row] = held
                    self.kept.setdefault(row, []).append(held)
            record.hold(numbers, record.values[len(rows) :])
            record.state.update(zip(record.keys, numbers, strict=False))
        self._look_back()

    def advance(self, numbers: tuple[float, ...]) -> None:
        """Count a step and store the new values of the host states."""
        self.count += 1.0
        self.numbers, self.is_new = numbers, False
        if self.mirror is not None:
            rows = (self.count, *numbers) if self.counts else numbers
            if len(rows) == 1:
                self.mirror.fill_(rows[0])
            else:
                self.mirror.copy_(torch.tensor(rows, dtype=torch.float64, device="cpu").unsqueeze(1))
            if self.kept:
                self._write_kept(rows)
            self.version = self.mirror._version
        if self.call is not None:
            self.call.moved = 0

    def _write_kept(self, rows: Sequence[Any]) -> None:
        """Write the numbers outside the mirror; a count is incremented, since other processes may count as well."""
        for row, tensors in self.kept.items():
            if row == 0 and self.counts:
                torch._foreach_add_(tensors, 1.0)
            else:
                for tensor in tensors:
                    tensor.copy_(rows[row]) if isinstance(rows[row], torch.Tensor) else tensor.fill_(rows[row])
        self._look_back()

    def _look_back(self) -> None:
        """Record the versions of the numbers that are shown."""
        assert self.mirror is not None
        self.version = self.mirror._version
        self._kept_versions = [tensor._version for tensors in self.kept.values() for tensor in tensors]

    def is_overwritten(self) -> bool:
        """Return whether someone else has written to the numbers that are shown."""
        if self.mirror is None:
            return False
        if self.mirror._version != self.version:
            return True
        kept = self.kept and [tensor._version for tensors in self.kept.values() for tensor in tensors]
        return bool(kept) and kept != self._kept_versions

    def split(self, chosen: Sequence[ParameterState]) -> tuple[ParameterBatch, ParameterBatch]:
        """Split the batch into the chosen records, with their gradients, and the others."""
        ids = {id(record) for record in chosen}
        others = [record for record in self.records if id(record) not in ids]
        parts: list[ParameterBatch] = []
        for records in (list(chosen), others):
            part = type(self)(records)
            part.count, part.numbers, part.is_new, part.seed = self.count, self.numbers, self.is_new, self.seed
            if part.call is not None and self.call is not None:
                part.call.loaded, part.call.signature = self.call.loaded, self.call.signature
            part.reflect()
            part.committed = True
            parts.append(part)
        parts[0].gradients = self.gradients
        return parts[0], parts[1]


def _fixed(record: ParameterState) -> tuple[Any, ...]:
    """Return the properties that all records of a batch share and that no step changes."""
    prepared = record.prepared
    variant = prepared.variant
    facts = tuple(record.facts.number(name) for name in prepared.facts)
    ndim = 0 if variant.layout.flat else record.facts.ndim
    types = (record.dtype, record.gradient_dtype, record.parameter.device, ndim)
    states = tuple((record.tensors[n].dtype, record.coded.get(n, (None,))[0]) for n in variant.tensors[2:])
    shape = record.shape if variant.schedule.matrices else ()
    return (variant.key, record.ordinary, facts, types, states, shape)
