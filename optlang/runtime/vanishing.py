"""Parameters in bfloat16 whose updates are rounded away: found in a few steps, and said once.

A number in bfloat16 changes only by a 512th of itself or more. Where a step is smaller, a model does not train, and
nothing shows it but a loss that stays. So some elements of each parameter are compared with what they were before a
step. That is done in the 10th step, which shows a model that never trains, and in the 100th and the 1000th, as a step
size often starts small. The first steps are not looked at: some rules make none while their averages are new. In all
other steps there is one comparison of whole numbers, and a device is waited for in these three alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from optlang.core.known import is_known, known_locals
from optlang.expand.histories import sizes_of
from optlang.functions.table import FACT_NAMES
from optlang.rule import Rule, remembering
from optlang.runtime.plan import GroupPlan
from optlang.runtime.stored import ROUNDING, callers
from optlang.runtime.tensors import is_fake
from optlang.syntax.tree import Every, If
from optlang.syntax.walk import assigned, statements

#: The steps after which is looked.
LOOKS = (10, 100, 1000)
#: How many elements of a parameter are looked at, at most, and how many say something.
ELEMENTS, FEWEST = 2048, 8
#: The part of the elements with a gradient that stay as they are where updates are rounded away.
STUCK = 0.99
#: How many parameters are named.
NAMED = 3

#: A parameter, its param group, and some elements as they were.
Before = tuple[torch.Tensor, Mapping[str, Any], torch.Tensor]


class Vanishing:
    """Looks for updates that are rounded away, until it has found some or has looked often enough.

    Attributes:
        steps: The steps so far.
        over: Whether there is nothing to look for any more.
    """

    def __init__(self) -> None:
        self.steps, self.over = 0, False

    def before(self, plans: Sequence[GroupPlan]) -> list[Before]:
        """Count a step that is about to be made; return what is to be compared after it, which is mostly nothing."""
        self.steps += 1
        if self.steps not in LOOKS:
            return []
        self.over = self.steps == LOOKS[-1]
        # A graph that is being captured has no values to compare.
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return []
        watched = [(plan, p) for plan in plans for p in _watched(plan)]
        self.over |= self.steps == LOOKS[0] and not any(_has_narrow(plan) for plan in plans)
        return [(p, plan.group, _some(p).clone()) for plan, p in watched if _is_moving(plan.group)]

    def after(self, name: str, compared: Sequence[Before], groups: Sequence[Mapping[str, Any]]) -> None:
        """Warn of the parameters that a step was to change and did not.

        Args:
            name: The optimizer's class.
            compared: What :meth:`before` returned.
            groups: The param groups.
        """
        devices = dict.fromkeys(p.device for p, _, _ in compared)
        stuck = [
            _named(groups, group, p)
            for device in devices
            for p, group in _stuck([each for each in compared if each[0].device == device])
        ]
        if stuck:
            self.over = True
            shown = ", ".join(stuck[:NAMED]) + (f" and {len(stuck) - NAMED} more" if len(stuck) > NAMED else "")
            warnings.warn(
                f"{name}: step {self.steps} changed almost nothing in {shown}: the updates are less than half a unit "
                f"in the last place of bfloat16, and are rounded away. rounding='stochastic' applies them on average; "
                f"'kahan', 'bf16+8' and 'bf16+16' keep the rounding errors; 'nearest' only silences this warning",
                UserWarning,
                stacklevel=callers(),
            )


def _watched(plan: GroupPlan) -> Iterator[torch.Tensor]:
    """Yield the parameters of a plan that are looked at: those in bfloat16 that a step is about to update."""
    rule = plan.kernels.compiled.rule
    # Other kinds of plans make steps whose values nobody may ask for, or that are not about single parameters.
    usual = type(plan) is GroupPlan and plan.evaluation is None and plan.group.get(ROUNDING) is None
    if usual and not _waits(rule) and not any(stored.name == "p" for stored in rule.stored):
        for p in plan.parameters:
            if p.dtype is torch.bfloat16 and p.grad is not None and not (p.is_meta or is_fake(p) or p.grad.is_sparse):
                yield p


def _stuck(compared: Sequence[Before]) -> Iterator[tuple[torch.Tensor, Mapping[str, Any]]]:
    """Yield the parameters that have not changed, and their groups; the device that all are on is asked once."""
    counts = []
    for p, _, before in compared:
        g = p.grad if p.grad is not None else torch.zeros_like(p)
        # Whatever moves a 0 changes it, and what holds it there (a projection) is no rounding.
        live = (_some(g) != 0) & (before != 0)
        counts += [live.sum(), (live & (_some(p) == before)).sum()]
    numbers = torch.stack(counts).tolist()
    for (p, group, _), live, same in zip(compared, numbers[::2], numbers[1::2], strict=True):
        if live >= FEWEST and same >= STUCK * live:
            yield p, group


def _named(groups: Sequence[Mapping[str, Any]], group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter, or its place."""
    place = next(i for i, other in enumerate(group["params"]) if other is p)
    names = group.get("param_names")
    return repr(names[place]) if names else f"parameter {place} of group {[*map(id, groups)].index(id(group))}"


@remembering
def _waits(rule: Rule) -> bool:
    """Return whether a rule may leave the parameter as it is in some steps, which is no rounding."""
    known = {*(hyper.name for hyper in rule.hypers), *FACT_NAMES, *known_locals(rule)}
    for statement in statements(rule.body):
        if isinstance(statement, Every):
            return True
        if isinstance(statement, If):
            asks = not all(is_known(condition, known, rule.functions) for condition, _ in statement.branches)
            if asks and any(name.name == "p" for name in assigned((statement,))):
                return True
    return bool(sizes_of(rule.tree))  # a history has to fill


def _has_narrow(plan: GroupPlan) -> bool:
    return any(p.dtype is torch.bfloat16 for p in plan.parameters)


def _is_moving(group: Mapping[str, Any]) -> bool:
    """Return whether a step has the size that it is meant to have: not 0, and not the beginning of a warm-up."""
    lr, usual = group.get("lr", 1.0), group.get("initial_lr")
    if isinstance(lr, torch.Tensor) or not lr:
        return False
    return usual is None or isinstance(usual, torch.Tensor) or float(lr) >= float(usual) / 2


def _some(t: torch.Tensor) -> torch.Tensor:
    """Return elements from all over a tensor."""
    flat = t.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // ELEMENTS))]
