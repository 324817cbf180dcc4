"""How states are kept and parameters rounded: what a param group asks for, and what its rule says."""

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

#: Key of a param group that says how states are kept.
STORE = "store"
#: Key of one that says how rounding errors of its parameters are kept.
ROUNDING = "rounding"


def asked(group: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a param group asks for: how its states are kept, and how its parameters are rounded."""
    return group.get(STORE), group.get(ROUNDING)


def storage_asked(compiled: Compiled, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> str:
    """Return what a parameter group, or its rule, asks for that only steps of the usual kind can do; maybe nothing.

    Args:
        compiled: The rule.
        group: The param group.
        members: The parameters of the group that go to the rule.
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
    """Return how states of a parameter are kept that are not kept in their own types, and the parameter, by key."""
    store, way = asked(group)
    if store is way is None and not compiled.rule.stored:
        return {}
    facts = facts_of(p).named()
    ruled = {s.key: s.format for s in compiled.rule.stored if s.when is None or truth(evaluate(s.when, facts))}
    found: dict[str, Format] = {}
    if store is not None and not p.is_complex():  # what was in a format before, and is in none now, gets its own type
        found |= {slot.key: slot.format for slot in prepared.stored if slot.of_elements}
    if not p.is_complex() and not (store == "fp32" and p.dtype is torch.float64):
        slow = slow_averages(compiled.rule) if choice.preset_of(store) is not None else ()
        found |= choice.formats(compiled.name, store, prepared.stored, p.shape, ruled, slow)
    if p.dtype is torch.bfloat16:
        format = ruled.get(KEY) if way is None else WAYS.get(way)
        found |= {} if format is None else {KEY: format}
    return found


# What is to be said -------------------------------------------------------------------------------------------


def warn(compiled: Compiled, group: Mapping[str, Any], slots: Sequence[Slot], values: Values) -> None:
    """Warn of formats that a param group asks for by name and that do not suit what its rule does with the states.

    Presets choose what suits, and what the rule says has been looked at by the checker.
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
    """Return how many of the calls that lead here are ours and torch's, for warnings to name the line before them."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("optlang", "torch"):
        frame, level = frame.f_back, level + 1
    return level


# For people ---------------------------------------------------------------------------------------------------


def described(part: RoutedRule, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> str | None:
    """Return how the states of a param group are kept, and their bytes; None if nobody has asked for any format.

    Args:
        part: The rule.
        group: The param group.
        members: The parameters of the group that go to the rule.
    """
    compiled = part.compiled
    if not members or (asked(group) == (None, None) and not compiled.rule.stored):
        return None
    values, labels, numel, size = part.hyper.read(group), dict[str, str](), 0, 0.0
    for p in sorted(members, key=torch.Tensor.numel):  # of the largest, labels are kept
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
