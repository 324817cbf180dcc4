"""Steps of several passes: in turns where they wait for sums over the whole model.

A batch whose variant is staged makes its step in passes (:class:`optlang.compiled.Pass`). :func:`run_together` runs
those of all batches of a rule, and computes what arrives in between: sums over all of them, and the states that the
whole optimizer shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from optlang.backends.loading.signature import Kernel
from optlang.compiled import Steering
from optlang.inputs import (
    Exchanged,
    Iterate,
    LateNumber,
    NumberContribution,
    Progress,
    SearchDirection,
    Total,
    ValueName,
    text,
)
from optlang.language.rule import Value
from optlang.runtime import chance, host
from optlang.runtime.evaluation import Evaluation
from optlang.runtime.kernels import Kernels, Prepared
from optlang.runtime.numbers import as_number, traced_functions
from optlang.runtime.passes import Buffers, Chunk, PlannedPass, Scratch, Segment, lay_out, numbers_of, segments
from optlang.runtime.records import Batch, Record
from optlang.runtime.tensors import arithmetic, pieces


def _unused(tensors: list[Any]) -> None:
    raise AssertionError("a staged batch is run pass by pass")


class StagedBatch(Batch):
    """Records whose step is made in passes."""

    __slots__ = ("_common", "_parts", "_paths")

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__(records)
        self.kernel = Kernel(_unused, "staged", many=True)
        self._paths: dict[int, list[Segment]] = {}
        self._common: dict[int, Buffers] = {}
        self._parts: dict[NumberContribution, torch.Tensor] = {}

    @property
    def steering(self) -> Steering:
        """What ties the passes together."""
        steering = self.prepared.variant.steering
        assert steering is not None
        return steering

    def owner(self, record: Record) -> torch.Tensor:
        """Return the parameter of a record, as it is listed in the param groups."""
        p, _ = next(pieces(record.parameter, record.parameter))
        return p

    def likeness(self) -> tuple[Any, ...]:
        """Return what batches that could be one have in common."""
        first = self.records[0]
        variant, *_, facts, types, states, shape = self.key(first)
        count = self.count if self.prepared.counts else 0.0
        return (variant, count, self.numbers, self.created, facts, types, states, shape)

    def path(self, path: int, kernels: Kernels, values: Mapping[str, Value], scratch: Scratch) -> list[Segment]:
        """Return the passes of a path, made and compiled on first use."""
        if path not in self._paths:
            own = self.steering.paths[path]
            made = segments([PlannedPass(each, self, kernels.prepared_pass(each.kernel)) for each in own])
            self._common[path] = lay_out(self, made, scratch)
            for segment in made:
                for chunk in segment.chunks:
                    chunk.compile(kernels, values)
            self._paths[path] = made
        return self._paths[path]

    def exchanged(self, path: int, name: Exchanged) -> list[torch.Tensor]:
        """Return the tensors that are exchanged with the closure under a name, one for each record; none is allowed."""
        return list(self._common[path].get(name, ()))

    def parts_of(self, total: NumberContribution) -> list[torch.Tensor]:
        """Return memory for each record's part of a sum over the whole model."""
        if total not in self._parts:
            p = self.records[0].parameter
            self._parts[total] = torch.zeros(len(self.records), 1, dtype=arithmetic(p), device=p.device)
        return list(self._parts[total].unbind())

    def summed(self, total: NumberContribution) -> list[Any]:
        """Return each record's part of a sum; on a device, their sum as a tensor there."""
        parts = self._parts[total].flatten()
        if not isinstance(total, Total):  # one number for all
            return [parts[0] if stays_on_device(parts.device) else float(parts[0])]
        if stays_on_device(parts.device):
            return [parts.sum(dtype=torch.float64)]
        found: list[Any] = parts.tolist()
        return found

    def named(self, names: Iterable[ValueName], known: Mapping[ValueName, Any]) -> list[Any]:
        """Return values by name as the next step sees them: hyperparameters, facts, counts, host states, late ones."""
        facts = self.records[0].facts
        hosted: dict[ValueName, int] = {s.name: i for i, s in enumerate(self.prepared.hosted)}
        found: list[Any] = []
        for name in names:
            if name in hosted:
                found.append(self.numbers[hosted[name]])
            elif name == "t":
                found.append(self.count + 1.0)
            elif name == "first":
                found.append(self.count == 0.0 if self.prepared.counts else self.created)
            elif isinstance(name, str) and name not in known:
                found.append(getattr(facts, name))
            else:
                found.append(known[name])
        return found


class StagedWork:
    """A staged batch that is about to make a step: its path is chosen, and compiled.

    Args:
        batch: The batch.
        known: Hyperparameters and the group's values, by name.
        kernels: The kernels of the rule.
        values: The hyperparameters alone.
        scratch: Memory in which passes hand things on.
    """

    def __init__(
        self,
        batch: StagedBatch,
        known: Mapping[ValueName, Any],
        kernels: Kernels,
        values: Mapping[str, Value],
        scratch: Scratch,
    ) -> None:
        self.batch, self.known, self.rule = batch, known, kernels
        self.count = batch.count
        self.begun: set[int] = set()  # places in the batch of those that are written and not counted yet
        steering, plain = batch.steering, batch.prepared.plain
        self.chosen = 0
        if len(steering.paths) > 1:
            asked = numbers_of(batch.named(steering.path_arguments, known))
            self.chosen = int(host.call_group(plain["path"], asked)[0])
        for path in range(len(steering.paths)):  # all of them now, so that no later step has to wait
            batch.path(path, kernels, values, scratch)
        self.left = list(batch.path(self.chosen, kernels, values, scratch))
        for segment in self.left:
            if not segment.needs:
                self._prepare(segment, known)

    def run(self, late: Mapping[ValueName, Any], seed: chance.Seed | None = None) -> Segment:
        """Run the next passes, and return them."""
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
        """Run the other passes of the records that were interrupted in the first of these, if they are written."""
        alike = [chunk for chunk in chunks if chunk.start == chunks[0].start]
        if alike and self.begun & {*range(alike[0].start, alike[0].start + len(alike[0].records))}:
            for chunk in alike:  # one that only hands on may do that again
                if not chunk.written():
                    self._run_chunk(chunk, seed)

    def _run_chunk(self, chunk: Chunk, seed: chance.Seed | None) -> None:
        """Run one pass of some records, and note which of them it has written."""
        try:
            if seed is not None:
                chunk.draw(seed, self.known)
            chunk.run()
            self.begun.update(chunk.written())
        except BaseException:
            self.begun.update(chunk.written())
            raise

    def advance(self, late: Mapping[ValueName, Any]) -> None:
        """Count the step."""
        self.batch.count = self.count
        self.batch.advance(self.numbers(late))
        self.batch.gradients, self.begun = [], set()

    def settle(self, late: Mapping[ValueName, Any]) -> None:
        """Count a step that was interrupted, for those that it has written."""
        if not self.begun:
            return
        records = self.batch.records
        if any(record.facts.numel and i not in self.begun for i, record in enumerate(records)):
            part, _ = self.batch.split([records[i] for i in sorted(self.begun)])
            assert isinstance(part, StagedBatch)
            self.batch = part
        try:
            self.advance(late)
        except KeyError:  # a sum that host states are computed from has not arrived: they stay
            self.batch.advance(self.batch.numbers)
            self.begun = set()

    @staticmethod
    def _prepare(segment: Segment, known: Mapping[ValueName, Any]) -> None:
        for plan in segment.plans:
            plan.prepare(known)

    def numbers(self, late: Mapping[ValueName, Any]) -> tuple[float, ...]:
        """Return what the host states become."""
        names = self.batch.steering.numbers_arguments[self.chosen]
        arguments = numbers_of(self.batch.named(names, {**self.known, **late}))
        return host.call_group(self.batch.prepared.plain[f"numbers_{self.chosen}"], arguments)


def run_together(
    works: Sequence[StagedWork],
    prepared: Prepared,
    known: Mapping[ValueName, Any],
    seed: chance.Seed,
    shared: dict[str, Any],
    evaluation: Evaluation | None = None,
) -> None:
    """Run the steps of all staged batches of one rule.

    Every batch goes on for as long as it can; then the sums that are complete are added up, and the shared states that
    can be computed from them are.

    Args:
        works: The batches.
        prepared: The variant of the first group, whose formulas of shared states hold.
        known: What shared states are computed from besides sums: the values of the first group, with the largest of
            the groups' step counts.
        seed: Draws random numbers.
        shared: Gets the shared states' new values, by key; those that it has when it is interrupted, too.
        evaluation: Calls the closure, for a rule that asks for that.

    Raises:
        Stopped: If the rule makes no more steps in this call of ``step()``.
    """
    late: dict[ValueName, Any] = {}
    if evaluation is not None:
        late |= {
            Progress.LOSS: evaluation.loss,
            Progress.ITERATION: evaluation.iteration,
            Progress.EVALUATIONS: evaluation.calls,
        }
    try:
        _run_in_turns(works, _Shared(prepared, known, shared), late, seed, evaluation)
    except BaseException as error:
        if not isinstance(error, RuntimeError):  # those are torch's own; others interrupt
            for work in works:
                work.settle(late)
        raise


def _run_in_turns(
    works: Sequence[StagedWork],
    shared: _Shared,
    late: dict[ValueName, Any],
    seed: chance.Seed,
    evaluation: Evaluation | None,
) -> None:
    """Run the steps of staged batches, putting what arrives into ``late``."""
    totals = {total for work in works for segment in work.left for total in segment.totals}
    wanted = {name for work in works for segment in work.left for name in segment.needs} | shared.needs
    wanted |= {name for work in works for name in work.batch.steering.numbers_arguments[work.chosen]}
    # What no tensor has a part of in this step is 0.
    late.update({name: 0.0 for name in wanted if isinstance(name, Total) and name not in totals})
    parts: MutableMapping[NumberContribution, list[Any]] = {}
    shared.compute(late)
    points = {point for work in works for segment in work.left for point in segment.points}
    asking = Iterate.STOP in totals
    while any(work.left for work in works):
        before = sum(len(work.left) for work in works), len(late)
        for work in works:
            while work.left and all(name in late for name in work.left[0].needs):
                # Nothing moves before the closure has been called everywhere, or while the steps may end; and what
                # only a step needs is not computed before it is known that there is one.
                given = asking and not any(Iterate.STOP in segment.totals for segment in work.left)
                if given or ((points or asking) and work.left[0].writes):
                    break
                for total in work.run(late, seed).totals:
                    parts.setdefault(total, []).extend(work.batch.summed(total))
        waiting = {total for work in works for segment in work.left for total in segment.totals}
        for total in sorted(totals - waiting - late.keys(), key=text):
            late[total] = _sum(parts[total]) if isinstance(total, Total) else parts[total][0]
        if asking and Iterate.STOP in late:
            assert evaluation is not None
            evaluation.look_ahead(late)
            asking = False
        left = {point for work in works for segment in work.left for point in segment.points}
        for point in () if asking else sorted(points - left, key=text):
            if isinstance(point, SearchDirection) and not late.keys() >= totals.intersection(point.search.options):
                continue  # the numbers that the search goes by
            assert evaluation is not None
            late.update(evaluation.at(point, works, late))
            points.remove(point)
        shared.compute(late)
        assert before != (sum(len(work.left) for work in works), len(late)), "passes wait for each other"
    for work in works:
        work.advance(late)


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


class _Shared:
    """The states that the whole optimizer shares, computed once a step into ``results``."""

    def __init__(self, prepared: Prepared, known: Mapping[ValueName, Any], results: dict[str, Any]) -> None:
        self.known, self.prepared, self.results = known, prepared, results
        steering = prepared.variant.steering
        self.left = list(steering.shared) if steering is not None else []
        self.needs = {name for _, names in self.left for name in names if isinstance(name, LateNumber)}

    def compute(self, late: MutableMapping[ValueName, Any]) -> None:
        """Compute those whose sums have arrived."""
        prepared = self.prepared
        for slot, names in list(self.left):
            if all(name in late for name in names if isinstance(name, LateNumber)):
                name = f"shared_{slot.name}"
                values = {**self.known, **late}
                arguments = [values[name] for name in names]
                tensor = next((a for a in arguments if isinstance(a, torch.Tensor)), None)
                if tensor is None:
                    (value,) = host.call_group(prepared.plain[name], arguments)
                else:
                    numbers = [as_number(a, tensor.device) for a in arguments]
                    (value,) = traced_functions(prepared.variant)[name](*numbers)
                late[slot.new] = self.results[slot.key] = value
                self.left.remove((slot, names))
