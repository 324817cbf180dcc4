"""New parameter groups: their options, the rule that updates each parameter, and the values stored in the group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from optlang.core.needs import needs
from optlang.functions.table import SEARCHES
from optlang.runtime import flat, keeping, sparse
from optlang.runtime.capturable import CapturablePlan
from optlang.runtime.differentiable import DifferentiablePlan
from optlang.runtime.events import TRAINING
from optlang.runtime.flat import FlatPlan
from optlang.runtime.parameter_names import named
from optlang.runtime.plan import GroupPlan, switched
from optlang.runtime.records import STEP
from optlang.runtime.routing import Parts, RoutedRule
from optlang.runtime.sparse import LazyPlan
from optlang.runtime.tensors import facts_of
from optlang.syntax.tree import StateScope

#: Switches of ``torch.optim`` that change what a step supports, with the plans that implement them.
PLANS: dict[str | None, type[GroupPlan]] = {
    plan.switch: plan for plan in (GroupPlan, CapturablePlan, DifferentiablePlan, LazyPlan)
}


def plan_kind(group: dict[str, Any], part: RoutedRule) -> type[GroupPlan]:
    """Return the kind of plan that a parameter group needs for a rule."""
    if part.compiled.rule.flat:
        return FlatPlan
    kind = PLANS[switched(group)]
    if kind is GroupPlan and any(hasattr(p, "to_local") for p in group["params"]):
        from optlang.runtime.sharded import ShardedPlan  # only users of distributed tensors pay for this import

        return ShardedPlan
    return kind


def check_options(parts: Parts, group: dict[str, Any]) -> None:
    """Raise ValueError if a group sets an option, not a hyperparameter, that the class does not support."""
    sparse.check(parts.name, group)
    keeping.check_names(parts.name, group, parts.state_keys)


def check_new(parts: Parts, group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Normalize the hyperparameters of a new group; raise ValueError if a value is invalid.

    Args:
        parts: The rules of the class.
        group: The group, without the keys that take their default.
        defaults: The defaults of the optimizer.
    """
    group.update(parts.tidied(group))
    parts.derive(group, defaults)
    parts.check({**defaults, **group})
    for key, value in parts.counterpart.marks.items():
        if group.get(key, value) != value:
            raise ValueError(f"{parts.name}: {key} is always {value} here; use the class that has this argument")
    sparse.check(parts.name, {**defaults, **group})
    keeping.check_names(parts.name, group, parts.state_keys)


def placed(parts: Parts, group: Mapping[str, Any]) -> Iterator[tuple[RoutedRule, list[torch.Tensor]]]:
    """Yield each rule with the parameters of a group that it updates; every parameter must match one rule."""
    chosen = parts.split(group)
    taken = {id(p) for members in chosen for p in members}
    for p in group["params"]:
        if id(p) not in taken:
            raise ValueError(
                f"{parts.name}: no route takes {named(group, p)}; "
                "add `route RULE otherwise`, or give it to another optimizer"
            )
    yield from zip(parts.parts, chosen, strict=True)


def begin(parts: Parts, group: dict[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Store the rules' own entries in a parameter group, and reject parameters that do not suit the rules.

    Args:
        parts: The rules of the class.
        group: The group.
        groups: All groups of the optimizer, including this one.
    """
    for part, members in placed(parts, group):
        if parts.has_events:
            group.setdefault(TRAINING, groups[0].get(TRAINING, True))
        if switched(group) == LazyPlan.switch:
            sparse.check_rule(part, group, members)
        keeping.check(part, group, members, plan_kind(group, part))
        searches = bool(needs(part.compiled.rule).calls & {*SEARCHES})
        flat.check(part, group, len(groups), members, searches)
        _check_shapes(part, group, members)
        begin_numbers(part, group, members, groups[0])


def _check_shapes(part: RoutedRule, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> None:
    """Raise ValueError if the shape of a parameter does not suit the rule that updates it."""
    if not part.kernels.by_shape:
        return
    values = part.hyper.read(group)
    known: set[Any] = set()
    for p, unit in flat.seen(part, members):
        facts = facts_of(unit)
        reason = None if facts in known else part.compiled.unfit(values, facts)
        known.add(facts)
        if reason is not None:
            raise ValueError(f"{part.compiled.name}: {named(group, p)} does not suit the rule: {reason}")


def begin_numbers(
    part: RoutedRule, group: dict[str, Any], members: Sequence[torch.Tensor], others: Mapping[str, Any]
) -> None:
    """Add the numbers that a rule stores in parameter groups, unless the group has them.

    The count exists from the start, because a checkpoint is loaded into existing keys. A number for the whole optimizer
    is copied from ``others``.
    """
    if part.counts_steps_of(group, [unit for _, unit in flat.seen(part, members)]):
        group.setdefault(part.hyper.kept(STEP), 0.0)
    shared = {state.key for state in part.compiled.rule.states if state.scope is StateScope.SHARED}
    for key, value in part.compiled.group_initial(part.hyper.read(group)).items():
        kept = part.hyper.kept(key)
        group.setdefault(kept, others.get(kept, value) if key in shared else value)


@torch.no_grad()
def states_before_steps(parts: Parts, group: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Yield the parameters of a new group with their states, for a class whose states exist before the first step."""
    (part,) = parts.parts
    for p in group["params"]:
        if p.is_floating_point() or p.is_complex():
            yield p, part.started(group, p)
