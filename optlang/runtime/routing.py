"""The rules of an optimizer class, often only one, and the keys of its parameter groups.

A rule with routes has no formulas: the class holds the rules it routes to, and each parameter is updated by the first
rule whose condition it meets. Keys that several of them share are prefixed with the name of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from optlang.artifact import Compiled
from optlang.core.evaluate import evaluate, truth
from optlang.core.needs import needs
from optlang.identity import GroupKey
from optlang.rule import Value, Values
from optlang.runtime.counterpart import Counterpart
from optlang.runtime.kernels import VariantCache
from optlang.runtime.records import STEP
from optlang.runtime.tensors import facts_of
from optlang.runtime.values import Hyperparameters, plain, python_value
from optlang.syntax.tree import Expr, Member, StateScope
from optlang.syntax.walk import expressions


class RoutedRule:
    """One rule of a class.

    Args:
        compiled: The rule.
        hyper: Reads its hyperparameters.
        kernels: Its variants and kernels.
        when: The condition under which the rule updates a parameter; None for always.

    Attributes:
        keeps_numbers: Whether it stores numbers in parameter groups.
    """

    def __init__(
        self, compiled: Compiled, hyper: Hyperparameters, kernels: VariantCache, when: Expr | None = None
    ) -> None:
        self.compiled, self.hyper, self.kernels, self.when = compiled, hyper, kernels, when
        nodes = expressions(when) if when is not None else ()
        states = compiled.rule.states
        self.keeps_numbers = needs(compiled.rule).group_time or any(
            state.scope is not StateScope.TENSOR for state in states
        )
        self.asks = tuple(dict.fromkeys(node.name for node in nodes if isinstance(node, Member)))

    def started(self, group: Mapping[str, Any], p: torch.Tensor) -> dict[str, Any]:
        """Return the state of a group's parameter before its first step."""
        values, facts = self.hyper.read(group), facts_of(p)
        prepared = self.kernels.prepared(values, self.hyper.answers(values), facts)
        fresh = prepared.started(p.detach(), torch.zeros_like(p), {**values, **facts.named()})
        numbers = {slot.key: torch.tensor(fresh[slot.name], dtype=torch.float64) for slot in prepared.hosted}
        count = {STEP: torch.tensor(0.0, dtype=torch.float64)} if prepared.counts else {}
        return {**count, **numbers, **{slot.key: fresh[slot.name] for slot in prepared.stored}}

    def counts_steps_of(self, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> bool:
        """Return whether a group with these parameters counts its steps, because a formula reads ``group.t``."""
        if needs(self.compiled.rule).group_time:
            return True
        if not members or not self.keeps_numbers:
            return False
        values = self.hyper.read(group)  # formulas that are not per tensor may read it as `t`
        prepared = self.kernels.prepared(values, self.hyper.answers(values), facts_of(members[0]))
        return prepared.variant.counts_group

    def answers(self, group: Mapping[str, Any]) -> tuple[Value, ...]:
        """Return the parameter-group values that decide which parameters the rule updates; 0 for missing keys."""
        return tuple(plain(group.get(key, 0.0)) for key in self.asks)

    def takes(self, group: Mapping[str, Any], p: torch.Tensor) -> bool:
        """Return whether the rule updates a group's parameter, unless an earlier rule does."""
        if self.when is None:
            return True
        known: Values = dict(zip(map(GroupKey, self.asks), self.answers(group), strict=True))
        return truth(evaluate(self.when, {**facts_of(p).named(), **known}))


class Parts:
    """The rules of a class, in the order in which they are tried for each parameter.

    Args:
        compiled: The rule of the class.
        parts: This rule, or the rules that it routes to.
        counterpart: What the class shares with one of ``torch.optim``; nothing by default.

    Attributes:
        name: Name of the class.
        keys: The keys of parameter groups, with their defaults; keys without a default are in ``required``.
        required: Keys that the user must give.
        state_keys: The keys of the parameters' states.
        random: Whether random numbers are drawn.
        sparse: Whether the rule is for sparse gradients.
        has_events: Whether parameters differ between training and evaluation.
    """

    def __init__(self, compiled: Compiled, parts: Sequence[RoutedRule], counterpart: Counterpart | None = None) -> None:
        self.name, self.sparse = compiled.name, compiled.rule.sparse
        self.parts, self.counterpart = tuple(parts), counterpart or Counterpart()
        rules = [part.compiled.rule for part in parts]
        self.random = any(needs(rule).draws for rule in rules)
        self.has_events = any(rule.events for rule in rules)
        self.state_keys = [s.key for rule in rules for s in rule.states if s.scope is StateScope.TENSOR]
        self.keys = {key: hypers for part in parts for key, hypers in part.hyper.keys.items()}
        self.defaults = {key: value for part in parts for key, value in part.hyper.defaults.items()}
        self.required = [key for key in self.keys if key not in self.defaults]

    @classmethod
    def of(cls, compiled: Compiled, backend: str) -> Parts:
        """Return the rules of a class: the rule itself, or those that it routes to."""
        if not compiled.routes:
            part = RoutedRule(compiled, Hyperparameters(compiled), VariantCache(compiled, backend))
            return cls(compiled, [part], Counterpart.of(compiled.rule))
        parts: list[RoutedRule] = []
        taken: set[str] = set()
        for other, when in compiled.routes:
            own = [s.key for s in other.rule.states if s.scope is not StateScope.TENSOR]
            own += [*Hyperparameters(other).keys, STEP]
            renamed = {key: f"{other.name.lower()}_{key}" for key in own if key in taken}
            hyper = Hyperparameters(other, renamed)
            taken |= {hyper.kept(key) for key in own}
            parts.append(RoutedRule(other, hyper, VariantCache(other, backend), when))
        return cls(compiled, parts)

    def split(self, group: Mapping[str, Any]) -> list[list[torch.Tensor]]:
        """Return the parameters of a group by the rule that updates them; those that no rule takes are left out."""
        if len(self.parts) == 1 and self.parts[0].when is None:
            return [list(group["params"])]
        chosen: list[list[torch.Tensor]] = [[] for _ in self.parts]
        for p in group["params"]:
            place = next((i for i, part in enumerate(self.parts) if part.takes(group, p)), None)
            if place is not None:
                chosen[place].append(p)
        return chosen

    def answers(self, group: Mapping[str, Any]) -> tuple[Value, ...]:
        """Return the values, besides shapes, that decide which rules update the parameters of a group."""
        return tuple(answer for part in self.parts for answer in part.answers(group))

    def derive(self, group: MutableMapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Set the keys of a parameter group that are derived from its other keys, or from their defaults if missing."""
        for part in self.parts:
            whole = {**defaults, **group}
            part.hyper.derive(whole)
            group.update((key, whole[key]) for key in part.hyper.derived)

    def tidied(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a parameter group in normalized form: Python types, with counts as int."""
        kept = {k: v if k in ("params", "param_names") else python_value(v) for k, v in group.items()}
        for part in self.parts:
            kept.update(part.hyper.tidied(kept))
        return kept

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError, naming every range that a hyperparameter of a group violates."""
        for part in self.parts:
            part.hyper.check(part.hyper.read(group))
