"""Running the schedules of a rule's batches: in turns, where they wait for sums over the whole model.

:func:`run_schedule` runs the stages of all batches of a rule, and computes what arrives in between: sums over all of
them, what the closure returns elsewhere, and the states that the whole optimizer shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from optlang.inputs import (
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


def _run_in_turns(
    works: Sequence[ScheduledWork],
    shared: _Shared,
    late: dict[ValueName, Any],
    seed: chance.Seed,
    evaluation: Evaluation | None,
) -> None:
    """Run the steps of batches with a schedule, putting what arrives into ``late``."""
    totals = {total for work in works for segment in work.left for total in segment.totals}
    wanted = {name for work in works for segment in work.left for name in segment.needs} | shared.needs
    wanted |= {name for work in works for name in work.schedule.own.numbers_arguments[work.chosen]}
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
                # Nothing moves before the closure has been called everywhere, or while the steps may end.
                if (points or asking) and work.left[0].writes:
                    break
                for total in work.run(late, seed).totals:
                    parts.setdefault(total, []).extend(work.schedule.summed(total))
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
        assert before != (sum(len(work.left) for work in works), len(late)), "stages wait for each other"
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
