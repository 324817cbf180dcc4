"""A batch's work in a step: one kernel call, or the stages of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from optlang.inputs import ValueName
from optlang.runtime import host, rng
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.kernels import VariantCache
from optlang.runtime.stages import Chunk, Scratch, Segment, numbers_of


class PendingStep(NamedTuple):
    """A batch that is about to call its kernel."""

    batch: ParameterBatch
    coefficients: torch.Tensor
    numbers: tuple[float, ...]
    before: float  # the count before the step

    def rehearse(self) -> None:
        """Run a kernel that compiles on its first call on copies."""
        assert self.batch.call is not None
        self.batch.call.rehearse(self.batch.gradients, self.coefficients)


class ScheduledWork:
    """A batch with a schedule that is about to make a step: its path has been chosen and compiled.

    Args:
        batch: The batch.
        known: Hyperparameters and the group's values, by name.
        kernels: The kernels of the rule.
        scratch: Memory in which stages pass values on.
    """

    def __init__(
        self, batch: ParameterBatch, known: Mapping[ValueName, Any], kernels: VariantCache, scratch: Scratch
    ) -> None:
        assert batch.schedule is not None
        self.batch, self.rule, self.schedule = batch, kernels, batch.schedule
        self.values = batch.values(known)  # the inputs of host functions, by name; late values are added
        self.count, self._numbers, self._is_new = batch.count, batch.numbers, batch.is_new
        self._counted = False
        own, plain = self.schedule.own, batch.prepared.plain
        self.chosen = 0
        if len(own.paths) > 1:
            self.chosen = int(host.call_group(plain["path"], self._found(own.path_arguments))[0])
        self._sizes: Mapping[str, Sequence[int]] = {}
        if "sizes" in plain:
            self._sizes = plain["sizes"](*self._found(own.size_arguments))
        for path in range(len(own.paths)):  # all of them now, so that no later step has to wait
            self.schedule.path(path, kernels, scratch)
        self.path = self.schedule.path(self.chosen, kernels, scratch)
        self.left = list(self.path)
        draw = batch.draw
        for segment in self.left:
            for chunk in segment.chunks:
                chunk.begin(draw)
            if not segment.needs:
                self._prepare(segment)

    def run(self, late: Mapping[ValueName, Any], seed: rng.Seed | None = None) -> Segment:
        """Run the next stages, and return them."""
        segment = self.left.pop(0)
        if segment.needs:
            self.values.update(late)
            self._prepare(segment)
        at = 0
        try:
            for chunk in segment.chunks:
                self._run_chunk(chunk, seed)
                at += 1
        except KeyboardInterrupt:
            self._go_through(segment.chunks[at:], seed)
            raise
        return segment

    def _begun(self) -> set[int]:
        """Return the batch indices of the records that are written and not counted yet."""
        chunks = (chunk for segment in self.path for chunk in segment.chunks)
        return set() if self._counted else {place for chunk in chunks for place in chunk.written()}

    def _go_through(self, chunks: Sequence[Chunk], seed: rng.Seed | None) -> None:
        """Run the remaining stages for the records that were interrupted in the first of these, if they are written."""
        alike = [chunk for chunk in chunks if chunk.start == chunks[0].start]
        if alike and self._begun() & {*range(alike[0].start, alike[0].start + len(alike[0].records))}:
            for chunk in alike:  # a stage that only passes values on may run again
                if not chunk.written():
                    self._run_chunk(chunk, seed)

    def _run_chunk(self, chunk: Chunk, seed: rng.Seed | None) -> None:
        """Run one stage for some records."""
        batch = self.batch
        if seed is not None and chunk.plan.own.draws:
            chunk.draw(seed, int(batch.count) + 1, self._sizes)
        if len(chunk.records) == len(batch.records):
            chunk.run(batch.gradients, batch.addresses)
        else:
            chunk.run(batch.gradients[chunk.start : chunk.start + len(chunk.records)])

    def advance(self, late: Mapping[ValueName, Any]) -> None:
        """Count the step, starting from the original count: an interrupted step may have been counted already."""
        batch = self.batch
        batch.count, batch.numbers, batch.is_new = self.count, self._numbers, self._is_new
        batch.advance(self.numbers(late))
        self.batch.gradients, self._counted = [], True

    def settle(self, late: Mapping[ValueName, Any]) -> None:
        """Count an interrupted step for the records that it has written."""
        begun, records = self._begun(), self.batch.records
        if not begun:
            return
        if any(record.facts.numel and i not in begun for i, record in enumerate(records)):
            self.batch, _ = self.batch.split([records[i] for i in sorted(begun)])
        try:
            self.advance(late)
        except KeyError:  # a sum that host states depend on has not arrived: they stay
            self.batch.advance(self.batch.numbers)
            self._counted = True

    def _found(self, names: Sequence[ValueName]) -> list[Any]:
        """Return values by name, as Python numbers."""
        return numbers_of([self.values[name] for name in names])

    def _prepare(self, segment: Segment) -> None:
        """Compute the coefficients of stages."""
        values = self.values
        for plan in segment.plans:
            plan.prepare([values[name] for name in plan.kernel.host_arguments], self.batch.device)

    def numbers(self, late: Mapping[ValueName, Any]) -> tuple[float, ...]:
        """Return the new values of the host states."""
        if not self.batch.prepared.hosted:
            return ()
        self.values.update(late)
        arguments = self._found(self.schedule.own.numbers_arguments[self.chosen])
        return host.call_group(self.batch.prepared.plain[f"numbers_{self.chosen}"], arguments)
