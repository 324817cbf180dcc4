"""How states are stored and parameters rounded, as requested by a parameter group and by its rule."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optlang.artifact import Compiled, Slot
from optlang.checker.state_behavior import behavior_with, slow_averages
from optlang.core.evaluate import evaluate, truth
from optlang.rule import Values
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.routing import RoutedRule
from optlang.runtime.tensors import facts_of, real_name
from optlang.storage import Format, choice
from optlang.storage.formats import SIZES
from optlang.storage.parameters import KEY, NEAREST, WAYS

#: Key of a parameter group for the storage of its states.
STORE = "store"
#: Key of a parameter group for the storage of its parameters' rounding errors.
ROUNDING = "rounding"


def asked(group: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a parameter group's requests: how its states are stored, and how its parameters are rounded."""
    return group.get(STORE), group.get(ROUNDING)


def storage_asked(compiled: Compiled, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> str:
    """Return the storage that a parameter group, or its rule, requests and that only ordinary steps support.

    Args:
        compiled: The rule.
        group: The parameter group.
        members: The parameters of the group that the rule updates.
    """
    store, way = asked(group)
    if store is not None and store != choice.OFF:
        return STORE
    if way is not None and way != NEAREST:
        return ROUNDING
    ruled = {each.key for each in compiled.rule.stored}
    if store is None and ruled - {KEY}:
        return f"`store` of the rule (store={choice.OFF!r} ignores it)"
    if way is None and KEY in ruled and any(p.dtype is torch.bfloat16 for p in members):
        return f"`store p` of the rule (rounding={NEAREST!r} ignores it)"
    return ""


def formats_of(
    compiled: Compiled, group: Mapping[str, Any], prepared: LoadedVariant, p: torch.Tensor
) -> dict[str, Format]:
    """Return the storage formats of a parameter and of states that are not stored in their own types, by key."""
    store, way = asked(group)
    if store is way is None and not compiled.rule.stored:
        return {}
    facts = facts_of(p).named()
    ruled = {s.key: s.format for s in compiled.rule.stored if s.when is None or truth(evaluate(s.when, facts))}
    found: dict[str, Format] = {}
    if store is not None and not p.is_complex():  # states that are no longer in a format get their own type back
        found |= {slot.key: slot.format for slot in prepared.stored if slot.of_elements}
    if not p.is_complex() and not (store == "fp32" and p.dtype is torch.float64):
        slow = slow_averages(compiled.rule) if choice.preset_of(store) is not None else ()
        found |= choice.formats(compiled.name, store, prepared.stored, p.shape, ruled, slow)
    if p.dtype is torch.bfloat16:
        format = ruled.get(KEY) if way is None else WAYS.get(way)
        found |= {} if format is None else {KEY: format}
    return found


# Warnings -----------------------------------------------------------------------------------------------------


def warn(compiled: Compiled, group: Mapping[str, Any], slots: Sequence[Slot], values: Values) -> None:
    """Warn about formats that a parameter group requests by name and that do not suit how the rule uses the states.

    Presets choose suitable formats, and the checker has validated the rule's own formats.
    """
    store = group.get(STORE)
    if not isinstance(store, Mapping):
        return
    behavior = behavior_with(compiled.rule, values)
    for slot in slots:
        if slot.key not in store:
            continue
        format = choice.named(compiled.name, store[slot.key])
        seen = behavior.get(slot.name)
        remark = None if seen is None else seen.remark(slot.key, format)
        if remark is not None:
            asked_for = f"{compiled.name}: store={{{slot.key!r}: {store[slot.key]!r}}}"
            text = f"{remark.message} ({remark.label}); {remark.instead!r} {remark.reason} [{remark.code}]"
            warnings.warn(f"{asked_for}: {text}", UserWarning, stacklevel=callers())


def callers() -> int:
    """Return how many stack frames belong to us and to torch, so that warnings point to the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("optlang", "torch"):
        frame, level = frame.f_back, level + 1
    return level


# Descriptions -------------------------------------------------------------------------------------------------


def described(part: RoutedRule, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> str | None:
    """Return how the states of a parameter group are stored, and their bytes; None if no format was requested.

    Args:
        part: The rule.
        group: The parameter group.
        members: The parameters of the group that the rule updates.
    """
    compiled = part.compiled
    if not members or (asked(group) == (None, None) and not compiled.rule.stored):
        return None
    values, labels, numel, size = part.hyper.read(group), dict[str, str](), 0, 0.0
    for p in sorted(members, key=torch.Tensor.numel):  # the labels of the largest are kept
        prepared = part.kernels.prepared(values, part.hyper.answers(values), facts_of(p))
        formats, type = formats_of(compiled, group, prepared, p), real_name(p.dtype)
        kept = {slot.key: formats.get(slot.key, slot.format) for slot in prepared.stored if slot.of_elements}
        labels |= {key: format.label(type) for key, format in kept.items()}
        size += p.numel() * (1 + p.is_complex()) * sum(format.size(type) for format in kept.values())
        if KEY in formats:
            labels["param"] = formats[KEY].label(type)
            size += p.numel() * (formats[KEY].size(type) - SIZES[type])
        numel += p.numel()
    listed = "; ".join(f"{key} in {label}" for key, label in labels.items())
    return f"{listed or 'none'} ({size / max(1, numel):.2f} bytes per element)"
