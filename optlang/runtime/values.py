"""Converts the hyperparameters of a parameter group to the values that a rule computes with."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

import torch

from optlang.artifact import Compiled
from optlang.core.evaluate import evaluate
from optlang.identity import GivenName, GroupKey
from optlang.inputs import ValueName
from optlang.rule import Hyper, Value, Values


def python_key(key: str) -> str:
    """Return the Python name of a parameter-group key (``lambda_`` for ``lambda``)."""
    return f"{key}_" if keyword.iskeyword(key) else key


class Hyperparameters:
    """Reads the values of one rule from parameter groups.

    Args:
        compiled: The rule.
        renamed: The parameter-group keys that differ from the rule's names, because other rules have the same names.

    Attributes:
        keys: The parameter-group keys in the rule's order, each with its hyperparameters (several for a tuple).
        defaults: The value of each key that has one.
    """

    def __init__(self, compiled: Compiled, renamed: Mapping[str, str] | None = None) -> None:
        self.compiled = compiled
        names = self._renamed = dict(renamed or {})
        keys = ((python_key(k), v) for k, v in compiled.rule.keys.items())
        self.keys: dict[str, tuple[Hyper, ...]] = {names.get(k, k): v for k, v in keys}
        self.defaults: dict[str, Any] = {
            key: hypers[0].as_written if hypers[0].part is None else tuple(h.as_written for h in hypers)
            for key, hypers in self.keys.items()
            if not any(h.required for h in hypers)
        }
        self.derived = {k: v[0].derived for k, v in self.keys.items() if v[0].derived is not None}
        self.defaults |= dict.fromkeys(self.derived)
        self._layout = [(k, tuple(h.name for h in v), v[0].part is not None) for k, v in self.keys.items()]
        self._group_keys = tuple(map(GroupKey, compiled.group_keys))
        self.static = sorted(compiled.static_names, key=str)

    def kept(self, key: str) -> str:
        """Return the parameter-group key for one of the rule's keys."""
        return self._renamed.get(key, key)

    @property
    def required(self) -> list[str]:
        """Keys that the user must give."""
        return [key for key in self.keys if key not in self.defaults]

    def read(self, group: Mapping[str, Any]) -> dict[GivenName, Value]:
        """Return the values in a parameter group by the names that the formulas use, unchecked.

        Raises:
            ValueError: If a key is missing or a tuple has the wrong length.
        """
        values: dict[GivenName, Value] = {}
        for key, names, is_tuple in self._layout:
            if key not in group:
                raise ValueError(f"{self.compiled.name}: a parameter group has no {key!r}")
            raw = group[key]
            if not is_tuple:
                values[names[0]] = raw if type(raw) is float else plain(raw)
                continue
            if isinstance(raw, str) or not isinstance(raw, Sequence) or len(raw) != len(names):
                wanted = ", ".join(names)
                raise ValueError(f"{self.compiled.name}: {key} must be a tuple ({wanted}), got {raw!r}")
            for name, part in zip(names, raw, strict=True):
                values[name] = part if type(part) is float else plain(part)
        for member in self._group_keys:
            key = member.name
            if key not in group:
                raise ValueError(
                    f"{self.compiled.name} reads {member}: give every parameter group a {key!r}, "
                    f"as in {{'params': ..., {key!r}: 1.0}}"
                )
            values[member] = plain(group[key])
        return values

    def derive(self, group: MutableMapping[str, Any]) -> None:
        """Set keys of a parameter group that are None and that the rule derives from other keys."""
        missing = [key for key in self.derived if group.get(key) is None]
        if missing:
            values: Values = {
                names[0]: plain(group[key]) for key, names, is_tuple in self._layout if not is_tuple and key in group
            }
            for key in missing:
                found = evaluate(self.derived[key], values)
                whole = isinstance(found, float) and found.is_integer()
                group[key] = int(found) if whole else found  # type: ignore[arg-type]

    def raw(self, group: Mapping[str, Any]) -> dict[ValueName, Any]:
        """Return the values in a parameter group by the names that the formulas use; tensors stay tensors."""
        found: dict[ValueName, Any] = {}
        for key, names, is_tuple in self._layout:
            found.update(zip(names, group[key], strict=True) if is_tuple else ((names[0], group[key]),))
        found.update((key, group[key.name]) for key in self._group_keys)
        return found

    def tidied(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a parameter group whose normalized form differs from what was passed: counts as int."""
        found = {}
        for key, hypers in self.keys.items():
            raw = group.get(key)
            if not any(hyper.count for hyper in hypers):
                continue
            if hypers[0].part is None:
                found[key] = _counted(hypers[0], raw)
            elif isinstance(raw, (list, tuple)) and len(raw) == len(hypers):
                found[key] = type(raw)(map(_counted, hypers, raw))
        return {key: value for key, value in found.items() if key in group}

    def check(self, values: Values) -> None:
        """Raise ValueError, naming every range that a value violates."""
        found = self.compiled.problems(values)
        if found:
            raise ValueError(f"{self.compiled.name}: {'; '.join(found)}")

    def answers(self, values: Values) -> tuple[Value, ...]:
        """Return the values that static questions read: while they are the same, the variants are."""
        return tuple(values[name] for name in self.static)


def _counted(hyper: Hyper, raw: Any) -> Any:
    """Return a float with an integer value as an int if it is a count, because other code (torch) counts with it."""
    return int(raw) if hyper.count and isinstance(raw, float) and raw.is_integer() else raw


def python_value(raw: Any) -> Any:
    """Return a parameter-group value as a builtin Python type, so that ``torch.load`` accepts it in a checkpoint.

    NumPy numbers become Python numbers, subclasses of list become lists, and subclasses of numbers and str become
    these. Tensors and all other values stay as they are.
    """
    if raw is None or type(raw) in (bool, int, float) or isinstance(raw, (torch.Tensor, bytes)):
        return raw
    if isinstance(raw, str):
        return raw if type(raw) is str else str.__str__(raw)
    if hasattr(raw, "dtype") and hasattr(raw, "item"):
        return raw.item() if getattr(raw, "size", 0) == 1 else raw
    for kind in (int, float):
        if isinstance(raw, kind):
            return kind(raw)
    if isinstance(raw, Sequence):
        items = [python_value(item) for item in raw]
        if type(raw) in (list, tuple) and all(map(is_, items, raw)):
            return raw
        return tuple(items) if isinstance(raw, tuple) else items
    return raw


def plain(raw: Any) -> Value:
    """Return a number as a Python float, including integers, NumPy numbers and tensors with one element.

    A bool stays a bool (it is not a number), and other values are left to the range check, which reports them (arrays
    as str, because their comparisons are not bools).
    """
    if raw is None or type(raw) in (float, bool, str):
        return raw  # type: ignore[no-any-return]
    if type(raw) is int:  # avoids attribute lookups
        pass
    elif isinstance(raw, torch.Tensor):
        raw = raw.item() if raw.numel() == 1 else repr(raw)
    elif hasattr(raw, "dtype") and hasattr(raw, "item"):
        raw = raw.item() if getattr(raw, "size", 0) == 1 else repr(raw)
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, (int, float)):
        try:
            return float(raw)
        except OverflowError:
            return float("inf") if raw > 0 else float("-inf")
    return raw  # type: ignore[no-any-return]
