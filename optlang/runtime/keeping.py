"""Checks of the storage that parameter groups request with ``store`` and ``rounding``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optlang.artifact import Slot
from optlang.runtime.parameter_names import named
from optlang.runtime.plan import GroupPlan
from optlang.runtime.routing import RoutedRule
from optlang.runtime.stored import ROUNDING, STORE, formats_of, storage_asked, warn
from optlang.runtime.tensors import facts_of
from optlang.storage import choice, parameters


def check_names(who: str, group: dict[str, Any], states: Sequence[str]) -> None:
    """Raise ValueError if a group requests an unknown format."""
    if STORE in group:
        group[STORE] = choice.checked(who, group[STORE], states)
    if ROUNDING in group:
        group[ROUNDING] = parameters.checked(who, group[ROUNDING])


def check(part: RoutedRule, group: Mapping[str, Any], members: Sequence[torch.Tensor], kind: type[GroupPlan]) -> None:
    """Raise ValueError if the parameters of a group that a rule updates cannot be stored as the group requests.

    Formats that do not suit the rule cause a warning.

    Args:
        part: The rule.
        group: The group.
        members: The parameters.
        kind: The kind of plan that the group uses.
    """
    who, need = part.compiled.name, storage_asked(part.compiled, group, members)
    if not need:
        return
    if kind.unlike:
        raise ValueError(f"{who}: {need} cannot be given {kind.unlike}")
    if need == ROUNDING and not any(p.dtype is torch.bfloat16 for p in members):
        raise ValueError(f"{who}: rounding is for parameters in bfloat16, but there are none here")
    values, states = part.hyper.read(group), dict[str, Slot]()
    answers = part.hyper.answers(values)
    for p in _different(members):
        prepared = part.kernels.prepared(values, answers, facts_of(p))
        if reason := kind.unfit(prepared.variant, p, formats_of(part.compiled, group, prepared, p)):
            raise ValueError(f"{who}: {need} cannot be given for {named(group, p)}: it {reason}")
        states |= {slot.key: slot for slot in prepared.stored}
    warn(part.compiled, group, list(states.values()), values)


def _different(members: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return one parameter for each combination of shape, type and placement: the check depends on nothing else."""
    return list({(facts_of(p), p.dtype, str(getattr(p, "placements", ""))): p for p in members}.values())
