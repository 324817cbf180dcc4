"""Detects bfloat16 parameters whose updates are rounded away, in a few steps, and warns once.

A bfloat16 number changes only by about 1/512 of itself or more. If steps are smaller, a model does not train, and
nothing shows it except a loss that stays constant. So some elements of each parameter are compared with their values
before a step. This is done in the 10th step, which detects a model that never trains, and in the 100th and the 1000th,
because a step size often starts small. The first steps are skipped: some rules make none while their averages are new.
All other steps compare one integer, and only these three synchronize with a device.
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

#: The steps after which parameters are compared.
LOOKS = (10, 100, 1000)
#: The maximum number of elements compared per parameter, and the minimum number that is conclusive.
ELEMENTS, FEWEST = 2048, 8
#: The fraction of the elements with a gradient that do not change if updates are rounded away.
STUCK = 0.99
#: The maximum number of parameters named in the warning.
NAMED = 3

#: A parameter, its parameter group, and copies of some elements.
Before = tuple[torch.Tensor, Mapping[str, Any], torch.Tensor]


class Vanishing:
    """Looks for updates that are rounded away, until it has found some or has looked often enough.

    Attributes:
        steps: The number of steps so far.
        over: Whether nothing remains to be checked.
    """

    def __init__(self) -> None:
        self.steps, self.over = 0, False

    def before(self, plans: Sequence[GroupPlan]) -> list[Before]:
        """Count a step that is about to be made; return what to compare after it, which is usually nothing."""
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
        """Warn about parameters that a step should have changed and did not.

        Args:
            name: The optimizer's class.
            compared: The result of :meth:`before`.
            groups: The parameter groups.
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
    """Yield the parameters of a plan to compare: those in bfloat16 that a step is about to update."""
    rule = plan.kernels.compiled.rule
    # Steps of other plans must not synchronize, or are not about single parameters.
    usual = type(plan) is GroupPlan and plan.evaluation is None and plan.group.get(ROUNDING) is None
    if usual and not _waits(rule) and not any(stored.name == "p" for stored in rule.stored):
        for p in plan.parameters:
            if p.dtype is torch.bfloat16 and p.grad is not None and not (p.is_meta or is_fake(p) or p.grad.is_sparse):
                yield p


def _stuck(compared: Sequence[Before]) -> Iterator[tuple[torch.Tensor, Mapping[str, Any]]]:
    """Yield the parameters that have not changed, with their groups; synchronizes once if all are on one device."""
    counts = []
    for p, _, before in compared:
        g = p.grad if p.grad is not None else torch.zeros_like(p)
        # Any update changes a 0; if it stays 0 (because of a projection), the cause is not rounding.
        live = (_some(g) != 0) & (before != 0)
        counts += [live.sum(), (live & (_some(p) == before)).sum()]
    numbers = torch.stack(counts).tolist()
    for (p, group, _), live, same in zip(compared, numbers[::2], numbers[1::2], strict=True):
        if live >= FEWEST and same >= STUCK * live:
            yield p, group


def _named(groups: Sequence[Mapping[str, Any]], group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter, or its index."""
    place = next(i for i, other in enumerate(group["params"]) if other is p)
    names = group.get("param_names")
    return repr(names[place]) if names else f"parameter {place} of group {[*map(id, groups)].index(id(group))}"


@remembering
def _waits(rule: Rule) -> bool:
    """Return whether a rule may leave the parameter unchanged in some steps, which is not rounding."""
    known = {*(hyper.name for hyper in rule.hypers), *FACT_NAMES, *known_locals(rule)}
    for statement in statements(rule.body):
        if isinstance(statement, Every):
            return True
        if isinstance(statement, If):
            asks = not all(is_known(condition, known, rule.functions) for condition, _ in statement.branches)
            if asks and any(name.name == "p" for name in assigned((statement,))):
                return True
    return bool(sizes_of(rule.tree))  # a history must fill first


def _has_narrow(plan: GroupPlan) -> bool:
    return any(p.dtype is torch.bfloat16 for p in plan.parameters)


def _is_moving(group: Mapping[str, Any]) -> bool:
    """Return whether a step has its intended size: not 0, and not the beginning of a warm-up."""
    lr, usual = group.get("lr", 1.0), group.get("initial_lr")
    if isinstance(lr, torch.Tensor) or not lr:
        return False
    return usual is None or isinstance(usual, torch.Tensor) or float(lr) >= float(usual) / 2


def _some(t: torch.Tensor) -> torch.Tensor:
    """Return elements spread over a tensor."""
    flat = t.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // ELEMENTS))]
