"""The fast path for steps that repeat the one before: only gradients, counts and hyperparameters have changed.

Nearly all steps do, and if parameters are small, Python takes longer than the kernels. So the inputs of the plans are
compared with those of the last step, and only the remaining work is done.
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

#: Types of parameter-group values that cannot change while the object is the same.
CONSTANT = {float, int, bool, str, type(None)}


class UsualSteps:
    """The conditions for a step to take the fast path.

    Args:
        groups: The parameter groups of the optimizer.
        plans: Their plans, which have just made a step.

    Attributes:
        possible: Whether any step can take the fast path.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], plans: Sequence[GroupPlan]) -> None:
        self._groups, self._plans = list(groups), list(plans)
        self.possible = all(type(plan) is GroupPlan and plan.group is g for plan, g in zip(plans, groups, strict=True))
        self._parts = [_UsualGroup(plan) for plan in plans] if self.possible else []
        self.possible = self.possible and all(part.possible for part in self._parts)

    def prepare(self, groups: Sequence[dict[str, Any]], plans: Sequence[GroupPlan]) -> bool:
        """Run the first half of a step if it takes the fast path; return whether it does. Nothing is modified.

        Args:
            groups: The parameter groups.
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
    """One of these parameter groups."""

    def __init__(self, plan: GroupPlan) -> None:
        self.plan, self._batches = plan, list(plan.batches)
        self._divided = sum(batch.schedule is not None for batch in self._batches) > 1
        self.possible = plan.is_settled() and all(_is_usual(batch) for batch in self._batches)
        self._take()

    def _take(self) -> None:
        """Record the contents of the group."""
        self._keys, self._values = [*self.plan.group], [*self.plan.group.values()]
        self.possible = self.possible and all(map(_is_constant, self._keys, self._values))
        self._known: Mapping[ValueName, Any] = self.plan.values

    def prepare(self) -> bool:
        """Prepare the work of the group's plan; return whether the fast path applies."""
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
        """Read changed hyperparameters; return whether the plan stays valid."""
        if not self.plan.fits(self.plan.group):
            return False
        try:
            self.plan.read()
        except ValueError:  # the plan reports the error itself
            return False
        self._take()
        return self.possible and self.plan.batches == self._batches


def _is_usual(batch: ParameterBatch) -> bool:
    """Return whether a batch has loaded kernels that need no gradient views, and has no numbers outside its mirror."""
    ready = batch.call is None or (batch.call.many and batch.call.loaded is not None)
    return ready and not (batch.volatile or batch.kept)


def _is_constant(key: str, value: Any) -> bool:
    """Return whether a group's value cannot change while it is the same object; parameters are checked separately."""
    if type(value) is tuple:
        return CONSTANT.issuperset(map(type, value))
    return key == "params" or type(value) in CONSTANT
