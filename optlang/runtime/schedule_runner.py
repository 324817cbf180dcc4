"""Running the schedules of a rule's batches: in turns, where they wait for sums over the whole model.

:func:`run_schedule` runs the stages of all batches of a rule, and computes what arrives in between: sums over all of
them, what the closure returns elsewhere, and the states that the whole optimizer shares.
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

    Every batch goes on for as long as it can; then the sums that are complete are added up, and the shared states that
    can be computed from them are.

    Args:
        works: The batches.
        prepared: The variant of the first group, whose formulas of shared states hold.
        known: What shared states are computed from besides sums: the values of the first group, with the largest of
            the groups' step counts.
        seed: Draws random numbers, for a rule that has some.
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


class Turn(NamedTuple):
    """What runs without waiting, and what arrives then.

    Attributes:
        runs: The stages, each with the place of its batch.
        sums: What is complete after them.
        decides: Whether it is known then whether there is a step at all.
        points: What the closure is called for then.
    """

    runs: tuple[tuple[int, Segment], ...]
    sums: tuple[NumberContribution, ...]
    decides: bool
    points: tuple[Asked, ...]


@dataclass(frozen=True)
class Agenda:
    """The turns of some batches in a step; they are the same in every step on the same paths.

    Attributes:
        prepared: The variant whose formulas of shared states hold.
        paths: The stages of each batch, by which an agenda is known again.
        turns: The turns.
        nothing: The sums that are read and that no tensor has a part of: they are 0.
    """

    prepared: LoadedVariant
    paths: tuple[Sequence[Segment], ...]
    turns: tuple[Turn, ...]
    nothing: Mapping[ValueName, float]

    @classmethod
    def of(cls, works: Sequence[ScheduledWork], shared: _Shared, late: Mapping[ValueName, Any]) -> Agenda:
        """Return the agenda of some batches; ``late`` is what is there when they start."""
        paths = tuple(work.path for work in works)
        segments = [segment for path in paths for segment in path]
        wanted = {name for segment in segments for name in segment.needs} | shared.needs
        wanted |= {name for work in works for name in work.schedule.own.numbers_arguments[work.chosen]}
        given = {total for segment in segments for total in segment.totals}
        nothing: dict[ValueName, float] = {n: 0.0 for n in wanted if isinstance(n, Total) and n not in given}
        turns = _turns(paths, shared, wanted, {*late, *nothing})
        return cls(shared.prepared, paths, tuple(turns), nothing)

    def fits(self, works: Sequence[ScheduledWork], shared: _Shared) -> bool:
        """Return whether it is that of these batches on their paths."""
        return (
            self.prepared is shared.prepared
            and len(self.paths) == len(works)
            and all(path is work.path for path, work in zip(self.paths, works, strict=True))
        )


def _turns(
    paths: Sequence[Sequence[Segment]], shared: _Shared, wanted: Iterable[ValueName], there: set[ValueName]
) -> Iterator[Turn]:
    """Yield the turns in which some stages can be run.

    Args:
        paths: The stages of each batch.
        shared: The states that the whole optimizer shares.
        wanted: Names of what is read.
        there: Names of what has arrived, which grows.
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
                # Nothing moves before the closure has been called everywhere, or while the steps may end; and what
                # only a step needs is not computed before it is known that there is one.
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
    """Return the numbers among some that a search goes by; it waits for them."""
    return totals & {*point.search.options} if isinstance(point, SearchDirection) else set()


def _run_in_turns(
    works: Sequence[ScheduledWork],
    shared: _Shared,
    late: dict[ValueName, Any],
    seed: rng.Seed | None,
    evaluation: Evaluation | None,
) -> None:
    """Run the steps of batches with a schedule, putting what arrives into ``late``."""
    first = works[0].schedule  # it keeps the agenda
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

    On the CPU it is exact and rounded once, so that it does not depend on how tensors fall into batches.
    """
    if not _NUMBERS.issuperset(map(type, parts)) and any(isinstance(part, torch.Tensor) for part in parts):
        device = next(part.device for part in parts if isinstance(part, torch.Tensor))
        return torch.stack([as_number(part, device) for part in parts]).sum()
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond the largest number
        return sum(parts)


class _Shared:
    """The states that the whole optimizer shares, computed once a step into ``results``."""

    def __init__(self, prepared: LoadedVariant, known: Mapping[ValueName, Any], results: dict[str, Any]) -> None:
        self.known, self.prepared, self.results = known, prepared, results
        self.left = list(prepared.variant.schedule.shared)
        self.needs = {name for _, names in self.left for name in names if isinstance(name, LateNumber)}

    def arriving(self, there: Set[ValueName]) -> set[ValueName]:
        """Return names of those that can be computed when the values of some names are there."""
        return {slot.new for slot, names in self.left if {n for n in names if isinstance(n, LateNumber)} <= there}

    def compute(self, late: MutableMapping[ValueName, Any]) -> None:
        """Compute those whose sums have arrived."""
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
