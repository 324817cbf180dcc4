"""How param groups begin: what they may ask for, which rule takes their parameters, and what is kept in them."""

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

#: Switches of ``torch.optim`` that change what a step may do, with the plans that do it.
PLANS: dict[str | None, type[GroupPlan]] = {
    plan.switch: plan for plan in (GroupPlan, CapturablePlan, DifferentiablePlan, LazyPlan)
}


def plan_kind(group: dict[str, Any], part: RoutedRule) -> type[GroupPlan]:
    """Return the kind of plan that a param group needs for a rule."""
    if part.compiled.rule.flat:
        return FlatPlan
    kind = PLANS[switched(group)]
    if kind is GroupPlan and any(hasattr(p, "to_local") for p in group["params"]):
        from optlang.runtime.sharded import ShardedPlan  # here, as only those who distribute tensors should wait for it

        return ShardedPlan
    return kind


def check_options(parts: Parts, group: dict[str, Any]) -> None:
    """Raise ValueError if a group asks, by keys that are no hyperparameters, for what the class does not do."""
    sparse.check(parts.name, group)
    keeping.check_names(parts.name, group, parts.state_keys)


def check_new(parts: Parts, group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Tidy the hyperparameters of a group that is to be added; raise ValueError if something cannot be as it says.

    Args:
        parts: The rules of the class.
        group: The group, without the keys for which it has the defaults.
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
    """Yield each rule with the parameters of a group that go to it; each parameter must go to one."""
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
    """Give a param group what its rules keep there, and refuse parameters that do not suit them.

    Args:
        parts: The rules of the class.
        group: The group.
        groups: All groups of the optimizer, this one among them.
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
    """Raise ValueError if the shape of a parameter does not suit the rule that takes it."""
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
    """Give a param group the numbers that a rule keeps there, as far as it has none.

    Its count is there from the start: a checkpoint is loaded into the keys that an optimizer has. A number for the
    whole optimizer is that of ``others``.
    """
    if part.counts_steps_of(group, [unit for _, unit in flat.seen(part, members)]):
        group.setdefault(part.hyper.kept(STEP), 0.0)
    shared = {state.key for state in part.compiled.rule.states if state.scope is StateScope.SHARED}
    for key, value in part.compiled.group_initial(part.hyper.read(group)).items():
        kept = part.hyper.kept(key)
        group.setdefault(kept, others.get(kept, value) if key in shared else value)


@torch.no_grad()
def states_before_steps(parts: Parts, group: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Yield the parameters of a new group with their states, for a class that has these before the first step."""
    (part,) = parts.parts
    for p in group["params"]:
        if p.is_floating_point() or p.is_complex():
            yield p, part.started(group, p)
