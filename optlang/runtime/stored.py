"""How states are kept and parameters rounded: what a param group asks for, and what its rule says."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from optlang.compiled import Compiled, Slot
from optlang.language.checking.samples import habits_with, slow_averages
from optlang.language.evaluate import evaluate, truth
from optlang.language.rule import Values
from optlang.runtime.kernels import Prepared
from optlang.runtime.tensors import facts_of
from optlang.storage import Format, choice
from optlang.storage.parameters import KEY, NEAREST, WAYS

#: Key of a param group that says how states are kept.
STORE = "store"
#: Key of one that says how rounding errors of its parameters are kept.
ROUNDING = "rounding"


def asked(group: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a param group asks for: how its states are kept, and how its parameters are rounded."""
    return group.get(STORE), group.get(ROUNDING)


def needs(compiled: Compiled, group: Mapping[str, Any]) -> str:
    """Return what a param group, or else its rule, asks for that only steps of the usual kind can do; maybe nothing."""
    store, way = asked(group)
    if store is not None and store != choice.OFF:
        return STORE
    if way is not None and way != NEAREST:
        return ROUNDING
    ruled = {each.name == "p" for each in compiled.rule.stored}
    if False in ruled and store is None:
        return f"`store` of the rule (store={choice.OFF!r} leaves it out)"
    return f"`store p` of the rule (rounding={NEAREST!r} leaves it out)" if True in ruled and way is None else ""


def formats_of(compiled: Compiled, group: Mapping[str, Any], prepared: Prepared, p: torch.Tensor) -> dict[str, Format]:
    """Return how states of a parameter are kept that are not kept in their own types, and the parameter, by key."""
    store, way = asked(group)
    facts = facts_of(p).named()
    ruled = {s.key: s.format for s in compiled.rule.stored if s.when is None or truth(evaluate(s.when, facts))}
    found: dict[str, Format] = {}
    if not p.is_complex() and not (store == "fp32" and p.dtype is torch.float64):
        slow = slow_averages(compiled.rule) if choice.preset_of(store) is not None else ()
        found |= choice.formats(compiled.name, store, prepared.stored, p.numel(), ruled, slow)
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
    habits = habits_with(compiled.rule, values)
    for slot in slots:
        if slot.key not in store:
            continue
        format = choice.named(compiled.name, store[slot.key])
        seen = habits.get(slot.name)
        if seen is not None:
            for code, message, label, help in seen.warnings(slot.name, format):
                text = f"{compiled.name}: store={{{slot.key!r}: {store[slot.key]!r}}}: {message} ({label}); {help}"
                warnings.warn(f"{text} [{code}]", UserWarning, stacklevel=callers())


def callers() -> int:
    """Return how many of the calls that lead here are ours and torch's, for warnings to name the line before them."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("optlang", "torch"):
        frame, level = frame.f_back, level + 1
    return level


# For people ---------------------------------------------------------------------------------------------------


def described(slots: Sequence[Slot], formats: Mapping[str, Format], type: str) -> Iterator[tuple[str, str, float]]:
    """Yield how states shaped like their parameter are kept, and the parameter: keys, formats, bytes an element.

    Args:
        slots: The states.
        formats: The formats of those that are not kept in their own types, and of the parameter.
        type: The type of the parameter.
    """
    for slot in slots:
        if slot.of_elements:
            format = formats.get(slot.key, slot.format)
            yield slot.key, format.label(type), format.size(type)
    if KEY in formats:
        yield KEY, formats[KEY].label(type), formats[KEY].size(type) - 2
