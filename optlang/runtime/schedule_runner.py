"""Runs the schedules of a rule's batches in turns, because stages may wait for sums over the whole model.

:func:`run_schedule` runs the stages of all batches of a rule, and computes what arrives in between: sums over all
batches, results of the closure at other points, and the states of the whole optimizer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from optlang.inputs import (
    Asked,
    IterationControl,
    Late,
    LateNumber,
    NumberContribution,
    Progress,
    SearchDirection,
    Total,
    ValueName,
    text,
    waits_for,
)
from optlang.runtime import host, rng
from optlang.runtime.device_scalars import as_number, traced_functions
from optlang.runtime.evaluation import Evaluation
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.stages import Segment
from optlang.runtime.work import ScheduledWork

_NUMBERS = {float}


def run_schedule(
    works: Sequence[ScheduledWork],
    prepared: LoadedVariant,
    known: Mapping[ValueName, Any],
    seed: rng.Seed | None,
    shared: dict[str, Any],
    evaluation: Evaluation | None = None,
) -> None:
    """Run the steps of all batches of one rule whose steps have a schedule.

    Every batch runs for as long as it can; then complete sums are added up, and the shared states that depend on them
    are computed.

    Args:
        works: The batches.
        prepared: The variant of the first group, whose formulas of shared states apply.
        known: The inputs of shared states besides sums: the values of the first group, with the largest of the groups'
            step counts.
        seed: Draws random numbers, for a rule that needs them.
        shared: Receives the new values of shared states, by key, also those computed before an interruption.
        evaluation: Calls the closure, for a rule that needs it.

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
        if not isinstance(error, RuntimeError):  # torch's own errors; others interrupt
            for work in works:
                work.settle(late)
        raise


class Turn(NamedTuple):
    """The stages that run without waiting, and what arrives after them.

    Attributes:
        runs: The stages, with the index of their batch.
        sums: The sums that are complete after them.
        decides: Whether it is then known whether a step is made at all.
        points: The points at which the closure is then called.
    """

    runs: tuple[tuple[int, Segment], ...]
    sums: tuple[NumberContribution, ...]
    decides: bool
    points: tuple[Asked, ...]


@dataclass(frozen=True)
class Agenda:
    """The turns of some batches in a step; they are the same in every step that takes the same paths.

    Attributes:
        prepared: The variant whose formulas of shared states apply.
        paths: The stages of each batch, which identify the agenda.
        turns: The turns.
        nothing: The sums that are read but that no tensor contributes to: they are 0.
    """

    prepared: LoadedVariant
    paths: tuple[Sequence[Segment], ...]
    turns: tuple[Turn, ...]
    nothing: Mapping[ValueName, float]

    @classmethod
    def of(cls, works: Sequence[ScheduledWork], shared: _Shared, late: Mapping[ValueName, Any]) -> Agenda:
        """Return the agenda of some batches; ``late`` holds what is available at the start."""
        paths = tuple(work.path for work in works)
        segments = [segment for path in paths for segment in path]
        wanted = {name for segment in segments for name in segment.needs} | shared.needs
        wanted |= {name for work in works for name in work.schedule.own.numbers_arguments[work.chosen]}
        given = {total for segment in segments for total in segment.totals}
        nothing: dict[ValueName, float] = {n: 0.0 for n in wanted if isinstance(n, Total) and n not in given}
        turns = _turns(paths, shared, wanted, {*late, *nothing})
        return cls(shared.prepared, paths, tuple(turns), nothing)

    def fits(self, works: Sequence[ScheduledWork], shared: _Shared) -> bool:
        """Return whether the agenda is for these batches on their current paths."""
        return (
            self.prepared is shared.prepared
            and len(self.paths) == len(works)
            and all(path is work.path for path, work in zip(self.paths, works, strict=True))
        )


def _turns(
    paths: Sequence[Sequence[Segment]], shared: _Shared, wanted: Iterable[ValueName], there: set[ValueName]
) -> Iterator[Turn]:
    """Yield the turns in which some stages can run.

    Args:
        paths: The stages of each batch.
        shared: The states of the whole optimizer.
        wanted: Names of the values that are read.
        there: Names of the values that have arrived; updated in place.
    """
    left = [list(path) for path in paths]
    totals = Counter(total for path in paths for segment in path for total in segment.totals)
    points = Counter(point for path in paths for segment in path for point in segment.points)
    asking = IterationControl.STOP in totals
    there |= shared.arriving(there)
    while any(left):
        runs = []
        for place, path in enumerate(left):
            while path and path[0].needs <= there:
                # Nothing is updated before all calls of the closure, or while the iteration may still end; and what
                # only a step needs is not computed before it is known that the step is made.
                given = asking and not any(IterationControl.STOP in segment.totals for segment in path)
                if given or ((points or asking) and path[0].writes):
                    break
                runs.append((place, path.pop(0)))
                totals.subtract(runs[-1][1].totals)
                points.subtract(runs[-1][1].points)
        sums = sorted((t for t, count in totals.items() if not count and t not in there), key=text)
        there.update(sums)
        decides = asking and IterationControl.STOP in there
        asking = asking and not decides
        complete = (p for p, count in points.items() if not count and _options(p, totals.keys()) <= there)
        asked = () if asking else sorted(complete, key=text)
        for point in asked:
            del points[point]
        there.update(n for n in wanted if isinstance(n, Late) and any(p in waits_for(n) for p in asked))
        there |= shared.arriving(there)
        assert runs or sums or asked, "stages wait for each other"
        yield Turn(tuple(runs), tuple(sums), decides, tuple(asked))


def _options(point: Asked, totals: Set[NumberContribution]) -> Set[NumberContribution]:
    """Return the values that a search reads; this waits for them."""
    return totals & {*point.search.options} if isinstance(point, SearchDirection) else set()


def _run_in_turns(
    works: Sequence[ScheduledWork],
    shared: _Shared,
    late: dict[ValueName, Any],
    seed: rng.Seed | None,
    evaluation: Evaluation | None,
) -> None:
    """Run the steps of batches with a schedule, adding what arrives to ``late``."""
    first = works[0].schedule  # it stores the agenda
    if not (isinstance(first.agenda, Agenda) and first.agenda.fits(works, shared)):
        first.agenda = Agenda.of(works, shared, late)
    late.update(first.agenda.nothing)
    parts: MutableMapping[NumberContribution, list[Any]] = {}
    shared.compute(late)
    for runs, sums, decides, points in first.agenda.turns:
        for place, _ in runs:
            work = works[place]
            for total in work.run(late, seed).totals:
                parts.setdefault(total, []).extend(work.schedule.summed(total))
        for total in sums:
            late[total] = _sum(parts[total]) if isinstance(total, Total) else parts[total][0]
        if decides:
            assert evaluation is not None
            evaluation.look_ahead(late)
        for point in points:
            assert evaluation is not None
            late.update(evaluation.at(point, works, late))
        shared.compute(late)
    for work in works:
        work.advance(late)


def _sum(parts: Sequence[Any]) -> Any:
    """Return the sum of some numbers.

    On the CPU it is exact and rounded once, so it does not depend on how tensors are batched.
    """
    if not _NUMBERS.issuperset(map(type, parts)) and any(isinstance(part, torch.Tensor) for part in parts):
        device = next(part.device for part in parts if isinstance(part, torch.Tensor))
        return torch.stack([as_number(part, device) for part in parts]).sum()
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # infinities of both signs, or overflow
        return sum(parts)


class _Shared:
    """The states of the whole optimizer, computed once per step into ``results``."""

    def __init__(self, prepared: LoadedVariant, known: Mapping[ValueName, Any], results: dict[str, Any]) -> None:
        self.known, self.prepared, self.results = known, prepared, results
        self.left = list(prepared.variant.schedule.shared)
        self.needs = {name for _, names in self.left for name in names if isinstance(name, LateNumber)}

    def arriving(self, there: Set[ValueName]) -> set[ValueName]:
        """Return names of the states that can be computed from the values that have arrived."""
        return {slot.new for slot, names in self.left if {n for n in names if isinstance(n, LateNumber)} <= there}

    def compute(self, late: MutableMapping[ValueName, Any]) -> None:
        """Compute the states whose sums have arrived."""
        if not self.left:
            return
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
