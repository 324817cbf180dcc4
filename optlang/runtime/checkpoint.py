"""Saving and loading: nothing is cast, nothing is shared with the caller."""

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
    """Return a parameter's state with its numbers as tensors of their own, and the other tensors lent if they can be.

    Most are views into memory that many parameters share; whoever saves one would save all of it. What other processes
    share stays shared.
    """
    found = {key: value.clone() if _is_number(value) else value for key, value in state.items()}
    if lent is not None:
        own = {key: value for key, value in found.items() if isinstance(value, torch.Tensor) and value is state[key]}
        found |= {key: lent.lend(value) for key, value in own.items()}
    return found


def packed(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], lent: Lent) -> dict[str, Any]:
    """Return param groups and state as they are now, with the places of parameters instead of them."""
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
    """Return a value of a param group that stays when the group's is written to: a learning rate that is a tensor."""
    if isinstance(value, torch.Tensor):
        return value if is_shared(value) else value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(map(_of_now, value))
    if type(value) is dict:
        return {key: _of_now(item) for key, item in value.items()}
    return value


class Lent:
    """The tensors of state dicts that lie in the memory of the optimizer's state.

    A state dict is of the moment it was asked for, and yet nothing is copied for one that is saved and let go: what is
    still held when the states are about to move on is given memory of its own then.
    """

    def __init__(self) -> None:
        self._held: list[weakref.ref[torch.Tensor]] = []

    def lend(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the memory of a state; a copy of one whose memory cannot be exchanged."""
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
        """Give what is still held memory of its own, before the states are written to."""
        if not self._held:
            return
        with torch.no_grad():
            for shown in self._wanted():
                own = local(shown)
                own.set_(own.clone())  # type: ignore[call-overload]
        self._held = []

    def forget(self) -> None:
        """Let go of those that nobody holds any more."""
        self._held = [weakref.ref(shown) for shown in self._wanted()]

    def _wanted(self) -> list[torch.Tensor]:
        return [shown for reference in self._held if (shown := reference()) is not None]


def without_codes(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with float32 for what is kept in fewer bits, as if ``store`` had not been given."""
    groups = saved["param_groups"]
    asked = {i for group in groups if group.get(STORE) not in (None, choice.OFF) for i in group["params"]}
    state = {
        key: _without_corrections(numbers_of(held), key in asked) if isinstance(held, Mapping) else held
        for key, held in saved["state"].items()
    }
    plain = [{key: value for key, value in group.items() if key not in (STORE, ROUNDING)} for group in groups]
    return {**saved, "state": state, "param_groups": plain}


def _without_corrections(held: Mapping[str, Any], widened: bool) -> dict[str, Any]:
    """Return states without what parameters were rounded by; ``widened``: those of 16 bits as float32."""
    kept = {key: value for key, value in held.items() if key != KEY}
    return {key: value.float() if widened and _is_narrow(value) else value for key, value in kept.items()}


def numbers_of(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of a parameter with numbers in place of codes and scales."""
    scales = {key + SCALE for key in held}
    return {
        key: _numbers(value, held[key + SCALE]) if key + SCALE in held else value
        for key, value in held.items()
        if key not in scales
    }


def _numbers(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return what codes stand for; those of no known format as they are."""
    if hasattr(codes, "to_local"):
        from optlang.runtime.sharded_codes import decoded  # those who distribute tensors wait for it

        found: torch.Tensor = decoded(codes, scales)
        return found
    format = choice.found(codes, scales)
    return codes if format is None else format.decode(codes, scales)


def left_behind(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with states of tensors that are in no param group; empty if there are none."""
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
    """Return the param groups of a checkpoint in our order, and the parameters of each in the order of ours.

    Where parameters have names on both sides, names decide; otherwise places do.

    Raises:
        ValueError: If the names are not the same ones, in the same groups.
    """
    ours, theirs = [_names(group) for group in groups], [_names(group) for group in saved]
    if None in ours or None in theirs:
        return list(saved)
    here, there = ([frozenset(names or ()) for names in side] for side in (ours, theirs))
    if Counter(here) != Counter(there):
        raise ValueError(_mismatch(here, there))
    # Groups with the same names (those of two models, say) are told apart by their order.
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
    """Return the names of a group's parameters if each has one of its own.

    Parameters that are themselves strings come from ``torch.distributed.checkpoint``, which has put them in our order
    by names of its own, but not ``param_names``.
    """
    names, ids = group.get("param_names"), group["params"]
    if names is None or any(isinstance(key, str) for key in ids):
        return None
    return list(names) if len(names) == len(ids) == len(set(names)) else None


def _mismatch(ours: Sequence[Set[str]], theirs: Sequence[Set[str]]) -> str:
    """Return the message about parameters that are not in the same groups by name."""
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
    """Return a few names and how many more there are."""
    shown = ", ".join(map(repr, sorted(names)[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def check_groups(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if param groups of a checkpoint do not match ours."""
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
    """Return the param groups of a checkpoint with our parameters; keys it does not have get their defaults.

    So do those that torch.optim leaves at None where a rule has no such value. One without a seed leaves ours; one that
    says nothing of evaluation is from training.

    Raises:
        ValueError: If its seed is none.
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
        for key in (STORE, ROUNDING):  # how numbers are kept is for this run to say
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
    """Return the state of a checkpoint by our parameters, as copies on their devices with their own types.

    What is under ``unknown`` keys is left out.
    """
    ids = chain.from_iterable(group["params"] for group in saved)
    ours = dict(zip(ids, chain.from_iterable(group["params"] for group in groups), strict=True))
    # What `store` had kept in 16 bits, and does no more, gets the type back that it has without `store`.
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
    """Whether a tensor is of a type of 16 bits."""
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _placed(value: Any, p: torch.Tensor, key: str | None = None) -> Any:
    """Return a copy of a state, its tensors on the parameter's device (a step count stays on the host)."""
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
    """Return a state of a distributed parameter as it is distributed, if it is whole: one of elements, or scales."""
    if not hasattr(p, "to_local") or not isinstance(value, torch.Tensor) or hasattr(value, "to_local"):
        return value
    if not value.dim() or not (scales or value.shape == p.shape):
        return value
    from optlang.runtime.sharded_codes import part_of  # those who distribute tensors wait for it

    return part_of(value, p)


def check_state(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], parts: Parts) -> None:
    """Raise ValueError if hyperparameters are out of range or a state does not suit its parameter."""
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
    """Check the parameters of a group that go to one rule; ``left`` is what other rules may have left with them."""
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
    """Whether a state has a shape that its place allows."""
    shape = _shape(value)
    if value is None:
        return True
    if storage is Storage.ELEMENT:
        return shape == tuple(p.shape)
    if storage is Storage.REDUCED:
        return len(shape) == p.dim() and all(n in (1, m) for n, m in zip(shape, p.shape, strict=True))
    return all(n == 1 for n in shape)
