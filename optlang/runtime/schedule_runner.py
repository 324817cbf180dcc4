"""Running the schedules of a rule's batches: in turns, where they wait for sums over the whole model.

:func:`run_schedule` runs the stages of all batches of a rule, and computes what arrives in between: sums over all of
them, what the closure returns elsewhere, and the states that the whole optimizer shares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optlang.inputs import (
    Asked,
    Iterate,
    LateNumber,
    NumberContribution,
    Progress,
    SearchDirection,
    Total,
    ValueName,
    text,
)
from optlang.runtime import chance, host
from optlang.runtime.evaluation import Evaluation
from optlang.runtime.kernels import Prepared
from optlang.runtime.numbers import as_number, traced_functions
from optlang.runtime.stages import Segment
from optlang.runtime.work import ScheduledWork


def run_schedule(
    works: Sequence[ScheduledWork],
    prepared: Prepared,
    known: Mapping[ValueName, Any],
    seed: chance.Seed,
    shared: dict[str, Any],
    evaluation: Evaluation | None = None,
) -> None:
    """Run the steps of all batches of one rule whose steps have a schedule.

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


@dataclass(frozen=True)
class Agenda:
    """What the stages of some batches give and ask for in a step; it is the same in every step on the same paths.

    Attributes:
        prepared: The variant whose formulas of shared states hold.
        paths: The stages of each batch, by which an agenda is known again.
        segments: How many there are of what runs without waiting.
        totals: The sums, with how many of these give a part of each.
        points: What the closure is called for, with how many of these leave tensors for each.
        nothing: The sums that are read and that no tensor has a part of: they are 0.
    """

    prepared: Prepared
    paths: tuple[Sequence[Segment], ...]
    segments: int
    totals: Mapping[NumberContribution, int]
    points: Mapping[Asked, int]
    nothing: Mapping[ValueName, float]

    @classmethod
    def of(cls, works: Sequence[ScheduledWork], shared: _Shared) -> Agenda:
        """Return the agenda of some batches."""
        segments = [segment for work in works for segment in work.path]
        totals = Counter(total for segment in segments for total in segment.totals)
        points = Counter(point for segment in segments for point in segment.points)
        wanted = {name for segment in segments for name in segment.needs} | shared.needs
        wanted |= {name for work in works for name in work.schedule.own.numbers_arguments[work.chosen]}
        nothing: dict[ValueName, float] = {n: 0.0 for n in wanted if isinstance(n, Total) and n not in totals}
        paths = tuple(work.path for work in works)
        return cls(shared.prepared, paths, len(segments), totals, points, nothing)

    def fits(self, works: Sequence[ScheduledWork], shared: _Shared) -> bool:
        """Whether it is that of these batches on their paths."""
        return (
            self.prepared is shared.prepared
            and len(self.paths) == len(works)
            and all(path is work.path for path, work in zip(self.paths, works, strict=True))
        )


def _agenda(works: Sequence[ScheduledWork], shared: _Shared) -> Agenda:
    """Return the agenda of some batches, which is kept with the first of them."""
    first = works[0].schedule
    if not (isinstance(first.agenda, Agenda) and first.agenda.fits(works, shared)):
        first.agenda = Agenda.of(works, shared)
    return first.agenda


def _run_in_turns(
    works: Sequence[ScheduledWork],
    shared: _Shared,
    late: dict[ValueName, Any],
    seed: chance.Seed,
    evaluation: Evaluation | None,
) -> None:
    """Run the steps of batches with a schedule, putting what arrives into ``late``."""
    agenda = _agenda(works, shared)
    late.update(agenda.nothing)
    totals, points, left = dict(agenda.totals), dict(agenda.points), agenda.segments
    parts: MutableMapping[NumberContribution, list[Any]] = {}
    shared.compute(late)
    asking = Iterate.STOP in totals
    while left:
        before = left, len(late)
        for work in works:
            while work.left and work.left[0].needs <= late.keys():
                # Nothing moves before the closure has been called everywhere, or while the steps may end; and what
                # only a step needs is not computed before it is known that there is one.
                given = asking and not any(Iterate.STOP in segment.totals for segment in work.left)
                if given or ((points or asking) and work.left[0].writes):
                    break
                segment = work.run(late, seed)
                left -= 1
                for total in segment.totals:
                    parts.setdefault(total, []).extend(work.schedule.summed(total))
                    totals[total] -= 1
                for point in segment.points:
                    points[point] -= 1
        for total in sorted((t for t, count in totals.items() if not count and t not in late), key=text):
            late[total] = _sum(parts[total]) if isinstance(total, Total) else parts[total][0]
        if asking and Iterate.STOP in late:
            assert evaluation is not None
            evaluation.look_ahead(late)
            asking = False
        for point in () if asking else sorted((p for p, count in points.items() if not count), key=text):
            if isinstance(point, SearchDirection) and not late.keys() >= totals.keys() & {*point.search.options}:
                continue  # the numbers that the search goes by
            assert evaluation is not None
            late.update(evaluation.at(point, works, late))
            del points[point]
        shared.compute(late)
        assert before != (left, len(late)), "stages wait for each other"
    for work in works:
        work.advance(late)


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
        self.left = list(prepared.variant.schedule.shared)
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
