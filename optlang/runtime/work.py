"""What a batch is going to do in a step: call one kernel, or run the stages of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from optlang.inputs import ValueName
from optlang.runtime import chance, host
from optlang.runtime.batches import Batch
from optlang.runtime.kernels import Kernels
from optlang.runtime.stages import Chunk, Scratch, Segment, numbers_of


class DirectWork(NamedTuple):
    """A batch that is about to call its kernel."""

    batch: Batch
    coefficients: torch.Tensor
    numbers: tuple[float, ...]
    before: float  # updates until now

    def rehearse(self) -> None:
        """Run a kernel that compiles when it is first called, on copies."""
        assert self.batch.call is not None
        self.batch.call.rehearse(self.batch.gradients, self.coefficients)


class ScheduledWork:
    """A batch with a schedule that is about to make a step: its path is chosen, and compiled.

    Args:
        batch: The batch.
        known: Hyperparameters and the group's values, by name.
        kernels: The kernels of the rule.
        scratch: Memory in which stages hand things on.
    """

    def __init__(self, batch: Batch, known: Mapping[ValueName, Any], kernels: Kernels, scratch: Scratch) -> None:
        assert batch.schedule is not None
        self.batch, self.known, self.rule, self.schedule = batch, known, kernels, batch.schedule
        self.count, self._numbers, self._created = batch.count, batch.numbers, batch.created
        self.begun: set[int] = set()  # places in the batch of those that are written and not counted yet
        own, plain = self.schedule.own, batch.prepared.plain
        self.chosen = 0
        if len(own.paths) > 1:
            asked = numbers_of(batch.named(own.path_arguments, known))
            self.chosen = int(host.call_group(plain["path"], asked)[0])
        self._sizes: Mapping[str, Sequence[int]] = {}
        if "sizes" in plain:
            self._sizes = plain["sizes"](*numbers_of(batch.named(own.size_arguments, known)))
        for path in range(len(own.paths)):  # all of them now, so that no later step has to wait
            self.schedule.path(path, kernels, scratch)
        self.path = self.schedule.path(self.chosen, kernels, scratch)
        self.left = list(self.path)
        for segment in self.left:
            if not segment.needs:
                self._prepare(segment, known)

    def run(self, late: Mapping[ValueName, Any], seed: chance.Seed | None = None) -> Segment:
        """Run the next stages, and return them."""
        segment = self.left.pop(0)
        if segment.needs:
            self._prepare(segment, {**self.known, **late})
        for chunk in segment.chunks:
            chunk.begin()
        at = 0
        try:
            for chunk in segment.chunks:
                self._run_chunk(chunk, seed)
                at += 1
        except KeyboardInterrupt:
            self._go_through(segment.chunks[at:], seed)
            raise
        return segment

    def _go_through(self, chunks: Sequence[Chunk], seed: chance.Seed | None) -> None:
        """Run the other stages of the records that were interrupted in the first of these, if they are written."""
        alike = [chunk for chunk in chunks if chunk.start == chunks[0].start]
        if alike and self.begun & {*range(alike[0].start, alike[0].start + len(alike[0].records))}:
            for chunk in alike:  # one that only hands on may do that again
                if not chunk.written():
                    self._run_chunk(chunk, seed)

    def _run_chunk(self, chunk: Chunk, seed: chance.Seed | None) -> None:
        """Run one stage of some records, and note which of them it has written."""
        try:
            if seed is not None:
                chunk.draw(seed, int(self.batch.count) + 1, self._sizes)
            chunk.run(self.batch.gradients[chunk.start : chunk.start + len(chunk.records)])
            self.begun.update(chunk.written())
        except BaseException:
            self.begun.update(chunk.written())
            raise

    def advance(self, late: Mapping[ValueName, Any]) -> None:
        """Count the step, from where it started: one that was interrupted may have been counted already."""
        batch = self.batch
        batch.count, batch.numbers, batch.created = self.count, self._numbers, self._created
        batch.advance(self.numbers(late))
        self.batch.gradients, self.begun = [], set()

    def settle(self, late: Mapping[ValueName, Any]) -> None:
        """Count a step that was interrupted, for those that it has written."""
        if not self.begun:
            return
        records = self.batch.records
        if any(record.facts.numel and i not in self.begun for i, record in enumerate(records)):
            self.batch, _ = self.batch.split([records[i] for i in sorted(self.begun)])
        try:
            self.advance(late)
        except KeyError:  # a sum that host states are computed from has not arrived: they stay
            self.batch.advance(self.batch.numbers)
            self.begun = set()

    def _prepare(self, segment: Segment, known: Mapping[ValueName, Any]) -> None:
        """Compute the coefficients of stages."""
        device = self.batch.records[0].parameter.device
        for plan in segment.plans:
            plan.prepare(self.batch.named(plan.kernel.host_arguments, known), device)

    def numbers(self, late: Mapping[ValueName, Any]) -> tuple[float, ...]:
        """Return what the host states become."""
        names = self.schedule.own.numbers_arguments[self.chosen]
        arguments = numbers_of(self.batch.named(names, {**self.known, **late}))
        return host.call_group(self.batch.prepared.plain[f"numbers_{self.chosen}"], arguments)
