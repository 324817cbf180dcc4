"""Steps that are like the one before: nothing has changed but gradients, counts and hyperparameters.

Nearly all steps are, and where parameters are small, Python takes longer than the kernels. So what the plans of an
optimizer would find out once more is compared with what they found, and only the rest is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch

from optlang.inputs import ValueName
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.plan import GroupPlan, divided
from optlang.runtime.tensors import makes_fakes

#: Types of values in a param group that cannot change while the object is the same.
CONSTANT = {float, int, bool, str, type(None)}


class UsualSteps:
    """What has to be as it was for a step to be a usual one.

    Args:
        groups: The param groups of the optimizer.
        plans: Their plans, which have just made a step.

    Attributes:
        possible: Whether any step can be a usual one.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], plans: Sequence[GroupPlan]) -> None:
        self._groups, self._plans = list(groups), list(plans)
        self.possible = all(type(plan) is GroupPlan and plan.group is g for plan, g in zip(plans, groups, strict=True))
        self._parts = [_UsualGroup(plan) for plan in plans] if self.possible else []
        self.possible = self.possible and all(part.possible for part in self._parts)

    def prepare(self, groups: Sequence[dict[str, Any]], plans: Sequence[GroupPlan]) -> bool:
        """Do the first half of a step, if it is a usual one; return whether it is. Nothing is touched.

        Args:
            groups: The param groups.
            plans: The plans of the optimizer.
        """
        return (
            len(groups) == len(self._groups)
            and all(map(is_, groups, self._groups))
            and len(plans) == len(self._plans)
            and all(map(is_, plans, self._plans))
            and not torch.is_inference_mode_enabled()
            and not makes_fakes()
            and all(part.prepare() for part in self._parts)
        )


class _UsualGroup:
    """One param group of those."""

    def __init__(self, plan: GroupPlan) -> None:
        self.plan, self._batches = plan, list(plan.batches)
        self._divided = sum(batch.schedule is not None for batch in self._batches) > 1
        self.possible = plan.is_settled() and all(_is_usual(batch) for batch in self._batches)
        self._take()

    def _take(self) -> None:
        """Take note of what the group holds."""
        self._keys, self._values = [*self.plan.group], [*self.plan.group.values()]
        self.possible = self.possible and all(map(_is_constant, self._keys, self._values))
        self._known: Mapping[ValueName, Any] = self.plan.values

    def prepare(self) -> bool:
        """Prepare the work of the group's plan; return whether everything is usual."""
        plan, group, batches = self.plan, self.plan.group, self._batches
        if [*group] != self._keys or plan.batches != batches:
            return False
        if not all(map(is_, group.values(), self._values)) and not self._reread():
            return False
        members = group["params"]
        if len(members) != len(plan.members) or not all(map(is_, members, plan.members)):
            return False
        if plan.idle and any(p.grad is not None for p in plan.idle):
            return False
        if self._divided and divided(batches):
            return False
        for batch in batches:
            gradients = None if batch.is_overwritten() else batch.usual(None)
            if gradients is None:
                return False
            batch.gradients = gradients
        plan.work, plan.staged = [], []
        for batch in batches:
            plan.lay_out(batch, self._known)
        return True

    def _reread(self) -> bool:
        """Read other hyperparameters; return whether they leave everything as it is."""
        if not self.plan.fits(self.plan.group):
            return False
        try:
            self.plan.read()
        except ValueError:  # the plan says so itself
            return False
        self._take()
        return self.possible and self.plan.batches == self._batches


def _is_usual(batch: ParameterBatch) -> bool:
    """Whether a batch has its kernels, which need no views of gradients, and shows its numbers to nobody else."""
    ready = batch.call is None or (batch.call.many and batch.call.loaded is not None)
    return ready and not (batch.volatile or batch.kept)


def _is_constant(key: str, value: Any) -> bool:
    """Whether a value of a group cannot change while it is the same object; the parameters are looked at apart."""
    if type(value) is tuple:
        return CONSTANT.issuperset(map(type, value))
    return key == "params" or type(value) in CONSTANT
