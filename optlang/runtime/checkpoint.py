"""Saving and loading: nothing is cast, and nothing is shared with the caller."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from itertools import chain
from typing import Any

import torch

from optlang.artifact import Storage
from optlang.rule import HyperType
from optlang.runtime.events import TRAINING
from optlang.runtime.flat import seen
from optlang.runtime.parameter_names import describe, named
from optlang.runtime.records import STEP
from optlang.runtime.rng import SEED, checked
from optlang.runtime.routing import Parts, RoutedRule
from optlang.runtime.sparse import LazyPlan
from optlang.runtime.stored import ROUNDING, STORE
from optlang.runtime.tensors import facts_of, is_shared, local, real_name
from optlang.storage import Own, choice
from optlang.storage.blocks import SCALE
from optlang.storage.parameters import KEY
from optlang.syntax.tree import StateScope

#: Hyperparameters that may be None.
NULLABLE = (HyperType.OPTIONAL, HyperType.OPTIONAL_TEXT)


def detached(state: Mapping[str, Any], lent: Lent | None = None) -> dict[str, Any]:
    """Return a parameter's state with copies of its numbers; the other tensors are lent where possible.

    Most numbers are views into memory that many parameters share, and saving one view would save all of it. Tensors
    shared with other processes stay shared.
    """
    found = {key: value.clone() if _is_number(value) else value for key, value in state.items()}
    if lent is not None:
        own = {key: value for key, value in found.items() if isinstance(value, torch.Tensor) and value is state[key]}
        found |= {key: lent.lend(value) for key, value in own.items()}
    return found


def packed(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], lent: Lent) -> dict[str, Any]:
    """Return the current parameter groups and state, with indices in place of parameters."""
    places: dict[int, int] = {}
    for place, p in enumerate(chain.from_iterable(group["params"] for group in groups)):
        places.setdefault(id(p), place)
    return {
        "state": {
            places[id(key)] if isinstance(key, torch.Tensor) else key: (
                detached(value, lent) if isinstance(value, dict) else value
            )
            for key, value in state.items()
        },
        "param_groups": [
            {key: _of_now(value) for key, value in group.items() if key != "params"}
            | {"params": [places[id(p)] for p in group["params"]]}
            for group in groups
        ],
    }


def _of_now(value: Any) -> Any:
    """Return a parameter-group value that later writes to the group do not change; it may be a tensor learning rate."""
    if isinstance(value, torch.Tensor):
        return value if is_shared(value) else value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(map(_of_now, value))
    if type(value) is dict:
        return {key: _of_now(item) for key, item in value.items()}
    return value


class Lent:
    """The tensors of state dicts that share memory with the optimizer's state.

    A state dict is a snapshot, yet nothing is copied for one that is saved and then dropped. Tensors that are still
    referenced when the states are about to change get their own memory at that point.
    """

    def __init__(self) -> None:
        self._held: list[weakref.ref[torch.Tensor]] = []

    def lend(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that shares a state's memory, or a copy if that memory cannot be swapped."""
        if tensor.requires_grad:  # part of a graph, and not written in place
            return tensor
        shown = tensor.detach()
        if hasattr(shown, "to_local"):
            from optlang.runtime.sharded_codes import sendable

            shown = sendable(shown)
        with torch.no_grad():
            if type(local(shown)) is not torch.Tensor or shown.is_inference():
                return tensor.clone()
        self._held.append(weakref.ref(shown))
        return shown

    def __bool__(self) -> bool:
        return bool(self._held)

    def part(self) -> None:
        """Give tensors that are still referenced their own memory, before the states are written."""
        if not self._held:
            return
        with torch.no_grad():
            for shown in self._wanted():
                own = local(shown)
                own.set_(own.clone())  # type: ignore[call-overload]
        self._held = []

    def forget(self) -> None:
        """Drop tensors that are no longer referenced."""
        self._held = [weakref.ref(shown) for shown in self._wanted()]

    def _wanted(self) -> list[torch.Tensor]:
        return [shown for reference in self._held if (shown := reference()) is not None]


def without_codes(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with float32 for all quantized or narrow states, as if ``store`` had not been given."""
    groups = saved["param_groups"]
    asked = {i for group in groups if group.get(STORE) not in (None, choice.OFF) for i in group["params"]}
    state = {
        key: _without_corrections(numbers_of(held), key in asked) if isinstance(held, Mapping) else held
        for key, held in saved["state"].items()
    }
    plain = [{key: value for key, value in group.items() if key not in (STORE, ROUNDING)} for group in groups]
    return {**saved, "state": state, "param_groups": plain}


def _without_corrections(held: Mapping[str, Any], widened: bool) -> dict[str, Any]:
    """Return states without the parameters' rounding errors; with ``widened``, 16-bit states become float32."""
    kept = {key: value for key, value in held.items() if key != KEY}
    return {key: value.float() if widened and _is_narrow(value) else value for key, value in kept.items()}


def numbers_of(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's states, dequantized."""
    scales = {key + SCALE for key in held}
    return {
        key: _numbers(value, held[key + SCALE]) if key + SCALE in held else value
        for key, value in held.items()
        if key not in scales
    }


def _numbers(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return dequantized values; codes of an unknown format are returned unchanged."""
    if hasattr(codes, "to_local"):
        from optlang.runtime.sharded_codes import decoded  # only users of distributed tensors pay for this import

        found: torch.Tensor = decoded(codes, scales)
        return found
    format = choice.found(codes, scales)
    return codes if format is None else format.decode(codes, scales)


def left_behind(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Return an error message for states of tensors that are in no parameter group; empty if there are none."""
    known = {id(p) for group in groups for p in group["params"]}
    lost = [key for key in state if isinstance(key, torch.Tensor) and id(key) not in known]
    if not lost:
        return ""
    shapes = ", ".join(str(tuple(p.shape)) for p in lost[:3]) + (" and others" if len(lost) > 3 else "")
    plural = ("tensors", "are") if len(lost) > 1 else ("a tensor", "is")
    return (
        f"optimizer.state has entries for {plural[0]} of shape {shapes}, which {plural[1]} in no parameter group. If "
        f"another parameter replaced it, move them: `optimizer.state[new] = optimizer.state.pop(old)`, "
        "or delete them"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0 and not is_shared(value)


def matched(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a checkpoint's parameter groups in our order, with the parameters of each in our order.

    Names decide if parameters are named on both sides; otherwise positions do.

    Raises:
        ValueError: If the names or their groups do not match.
    """
    ours, theirs = [_names(group) for group in groups], [_names(group) for group in saved]
    if None in ours or None in theirs:
        return list(saved)
    here, there = ([frozenset(names or ()) for names in side] for side in (ours, theirs))
    if Counter(here) != Counter(there):
        raise ValueError(_mismatch(here, there))
    # Groups with the same names (those of two models, say) are distinguished by their order.
    waiting: dict[Set[str], list[Mapping[str, Any]]] = {}
    for names, group in zip(there, saved, strict=True):
        waiting.setdefault(names, []).append(group)
    found: list[Mapping[str, Any]] = []
    for group, names in zip(groups, here, strict=True):
        match = waiting[names].pop(0)
        ids = dict(zip(match["param_names"], match["params"], strict=True))
        found.append({**match, "params": [ids[n] for n in group["param_names"]], "param_names": group["param_names"]})
    return found


def _names(group: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a group's parameters if each has a distinct name.

    Parameters that are strings come from ``torch.distributed.checkpoint``, which sorts them into our order by its own
    names but does not sort ``param_names``.
    """
    names, ids = group.get("param_names"), group["params"]
    if names is None or any(isinstance(key, str) for key in ids):
        return None
    return list(names) if len(names) == len(ids) == len(set(names)) else None


def _mismatch(ours: Sequence[Set[str]], theirs: Sequence[Set[str]]) -> str:
    """Return the error message for parameters whose names are not in the same groups."""
    here, there = set[str]().union(*ours), set[str]().union(*theirs)
    parts = []
    if here - there:
        parts.append(f"it has no state for {_listed(here - there)}")
    if there - here:
        parts.append(f"it has {_listed(there - here)}, which this optimizer does not have")
    if not parts:
        moved = {name for names in ours if names not in theirs for name in names} or here
        parts.append(f"{_listed(moved)} are in different parameter groups: {len(theirs)} there, {len(ours)} here")
    return (
        f"loaded state dict does not match by parameter names: {'; '.join(parts)}; nothing was loaded. "
        "Rename its 'param_names', or delete them to have parameters matched by their order"
    )


def _listed(names: Set[str], most: int = 5) -> str:
    """Return a few of the names and the number of the others."""
    shown = ", ".join(map(repr, sorted(names)[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def check_groups(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a checkpoint's parameter groups do not match ours."""
    if len(groups) != len(saved):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(saved)} instead of {len(groups)}"
        )
    for i, (ours, theirs) in enumerate(zip(groups, saved, strict=True)):
        if len(ours["params"]) != len(theirs["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
                f"group {i} has {len(theirs['params'])} parameters instead of {len(ours['params'])}"
            )


def loaded_groups(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], parts: Parts
) -> list[dict[str, Any]]:
    """Return a checkpoint's parameter groups with our parameters; missing keys get their defaults.

    So do keys that torch.optim leaves at None if the rule does not allow None. A checkpoint without a seed leaves ours
    unchanged; a checkpoint that does not mention evaluation was saved in training mode.

    Raises:
        ValueError: If its seed is invalid.
    """
    loaded = []
    for ours, theirs in zip(groups, saved, strict=True):
        group = parts.tidied({key: deepcopy(value) for key, value in theirs.items() if key != "params"})
        for key, hypers in parts.keys.items():
            lacks = key not in group or (group[key] is None and hypers[0].type not in NULLABLE)
            if lacks and (key in parts.defaults or key in ours):
                group[key] = deepcopy(parts.defaults.get(key, ours.get(key)))
        parts.derive(group, {})
        if SEED in ours and SEED not in parts.keys:
            group[SEED] = checked("loaded state dict", group.get(SEED, ours[SEED]))
        if LazyPlan.switch in ours:  # torch.optim has no such key
            group.setdefault(LazyPlan.switch, ours[LazyPlan.switch])
        if TRAINING in ours:
            group.setdefault(TRAINING, True)
        for key in (STORE, ROUNDING):  # the current run decides on storage
            group.pop(key, None)
            if key in ours:
                group[key] = ours[key]
        group["params"] = ours["params"]
        if "param_names" in ours:
            group["param_names"] = ours["param_names"]
        loaded.append(group)
    return loaded


def loaded_state(
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    state: Mapping[Any, Any],
    unknown: Set[str] = frozenset(),
) -> dict[Any, Any]:
    """Return a checkpoint's state by our parameters, as copies on their devices that keep their types.

    ``unknown`` keys are dropped.
    """
    ids = chain.from_iterable(group["params"] for group in saved)
    ours = dict(zip(ids, chain.from_iterable(group["params"] for group in groups), strict=True))
    # States that `store` kept in 16 bits, and no longer does, get the type they have without `store`.
    pairs = zip(groups, saved, strict=True)
    widened = {i for group, theirs in pairs if STORE in theirs and STORE not in group for i in theirs["params"]}
    loaded: dict[Any, Any] = {}
    for key, value in state.items():
        if key in ours:
            if unknown and isinstance(value, dict):
                value = {name: held for name, held in value.items() if name not in unknown}
            p = ours[key]
            loaded[p] = _placed(value, p)
            if key in widened and isinstance(value, dict):
                scales = {k + SCALE for k in value}
                own = getattr(torch, Own().dtype(real_name(p.dtype)))
                loaded[p] = {k: v.to(own) if _is_narrow(v) and k not in scales else v for k, v in loaded[p].items()}
        else:
            loaded[key] = deepcopy(value)
    return loaded


def _is_narrow(value: Any) -> bool:
    """Return whether a tensor has a 16-bit type."""
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _placed(value: Any, p: torch.Tensor, key: str | None = None) -> Any:
    """Return a copy of a state with its tensors on the parameter's device (a step count stays on the host)."""
    if isinstance(value, torch.Tensor):
        device = torch.device("cpu") if key == STEP else p.device
        copy = torch.empty_like(value, device=device, requires_grad=False)
        return copy.copy_(value.detach())
    if isinstance(value, dict):
        scales = {k + SCALE for k in value}
        return {k: _placed(_part_of(v, p, k in scales), p, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(v, p) for v in value)
    return deepcopy(value)


def _part_of(value: Any, p: torch.Tensor, scales: bool) -> Any:
    """Return a state or its scales distributed like its parameter, given the whole tensor."""
    if not hasattr(p, "to_local") or not isinstance(value, torch.Tensor) or hasattr(value, "to_local"):
        return value
    if not value.dim() or not (scales or value.shape == p.shape):
        return value
    from optlang.runtime.sharded_codes import part_of  # only users of distributed tensors pay for this import

    return part_of(value, p)


def check_state(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], parts: Parts) -> None:
    """Raise ValueError if hyperparameters are out of range or a state does not fit its parameter."""
    keys = [{s.key for s in part.compiled.rule.states if s.scope is StateScope.TENSOR} for part in parts.parts]
    for group in groups:
        for i, (part, members) in enumerate(zip(parts.parts, parts.split(group), strict=True)):
            _check_part(part, group, members, state, set[str]().union(*keys[:i], *keys[i + 1 :]))


def _check_part(
    part: RoutedRule,
    group: Mapping[str, Any],
    members: Sequence[torch.Tensor],
    state: Mapping[Any, Any],
    left: Set[str],
) -> None:
    """Check the parameters of a group that one rule updates; ``left`` is state that other rules may have left there."""
    values = part.hyper.read(group)
    part.hyper.check(values)
    answers = part.hyper.answers(values)
    for p, unit in seen(part, members):
        held = state.get(p)
        reason = part.compiled.unfit(values, facts_of(unit)) if part.kernels.by_shape else None
        if reason is not None:
            raise ValueError(f"loaded state dict does not suit {named(group, p)}: {reason}")
        if held:
            prepared = part.kernels.prepared(values, answers, facts_of(unit))
            variant = prepared.variant
            declared = {slot.key for slot in variant.slots}
            foreign = sorted(set(map(str, held)) - {STEP} - left)
            if declared and foreign and declared.isdisjoint(held):
                raise ValueError(
                    f"loaded state dict has {', '.join(foreign)} for {describe(group, p)}, but the rule keeps "
                    f"{', '.join(sorted(declared))}; was it saved by another optimizer?"
                )
            kept = {STEP: Storage.HOST} | {slot.key: slot.storage for slot in variant.slots}
            shapes = prepared.shapes(unit, values)
            for key, storage in kept.items():
                fits = _shape(held[key]) == shapes[key] if key in shapes and key in held else None
                if not (_fits(storage, held.get(key), unit) if fits is None else fits):
                    raise ValueError(
                        f"loaded state dict has {key!r} of shape {_shape(held[key])} for {describe(group, p)}, "
                        f"which has shape {tuple(p.shape)}; was it saved from another model?"
                    )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _fits(storage: Storage, value: Any, p: torch.Tensor) -> bool:
    """Return whether a state's shape is valid for its placement."""
    shape = _shape(value)
    if value is None:
        return True
    if storage is Storage.ELEMENT:
        return shape == tuple(p.shape)
    if storage is Storage.REDUCED:
        return len(shape) == p.dim() and all(n in (1, m) for n, m in zip(shape, p.shape, strict=True))
    return all(n == 1 for n in shape)
