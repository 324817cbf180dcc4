"""The arguments of an optimizer's constructor: their names, their checks, and the defaults of parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optlang.runtime import rng
from optlang.runtime.counterpart import SWITCHES
from optlang.runtime.param_groups import PLANS
from optlang.runtime.routing import Parts
from optlang.runtime.sparse import LAZY, LazyPlan
from optlang.runtime.stored import ROUNDING, STORE
from optlang.storage import choice, parameters
from optlang.syntax.suggest import nearest


def given(parts: Parts, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by parameter-group key; positional arguments follow the rule's order, as in ``torch.optim``.

    Args:
        parts: The rules of the class.
        args: The positional arguments after ``params``.
        kwargs: The keyword arguments.

    Raises:
        TypeError: If the class has no such argument, or an argument is given twice.
        ValueError: If an argument that is not a hyperparameter has an invalid value.
    """
    placed = parts.counterpart.positional
    keys = list(parts.keys if placed is None else placed)
    if len(args) > len(keys):
        raise TypeError(f"{parts.name}() takes {len(keys)} arguments after params, but {len(args)} were given")
    placed_args = dict(zip(keys, args, strict=False))
    twice = next((key for key in kwargs if key in placed_args), None)
    if twice is not None:
        raise TypeError(f"{parts.name}() got multiple values for argument {twice!r}")
    found: dict[str, Any] = {}
    for key, value in {**placed_args, **kwargs}.items():
        found |= _checked(parts, key, value)
    if kwargs.get("foreach") and kwargs.get("fused"):
        raise RuntimeError(f"{parts.name}: foreach and fused cannot be True together (and have no effect here)")
    return parts.tidied(found)


def _checked(parts: Parts, key: str, value: Any) -> dict[str, Any]:
    """Return the parameter-group entries for an argument: its key and value, or nothing."""
    if key in parts.keys or key in parts.counterpart.switches:
        return {key: value}
    if key == STORE:
        return {} if value is None else {key: choice.checked(parts.name, value, parts.state_keys)}
    if key == ROUNDING:
        return {} if value is None else {key: parameters.checked(parts.name, value)}
    if key == rng.SEED and parts.random:
        return {key: rng.checked(parts.name, value)}
    if key == LazyPlan.switch:
        if parts.sparse:
            return {key: value or None}
        return {key: value} if value else {}
    if key in PLANS:
        return {key: True} if value else {}  # when off, it is not a key of the parameter groups
    if key in SWITCHES:
        return {}
    raise TypeError(_unknown(parts, key))


def _unknown(parts: Parts, key: str) -> str:
    """Return the error message for a keyword that the rule does not have."""
    keys, said = parts.keys, f"{parts.name}() got an unexpected keyword argument {key!r};"
    for name, hypers in keys.items():
        if any(h.name == key and h.part is not None for h in hypers):
            return f"{said} it is part of {name}=({', '.join(h.name for h in hypers)})"
    close = nearest(key, keys)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{said} {hint}it takes {', '.join(keys) or 'none'}"


def defaults(parts: Parts, passed: Mapping[str, Any], groups: Sequence[Any]) -> dict[str, Any]:
    """Return the default values of an optimizer's parameter groups.

    Args:
        parts: The rules of the class.
        passed: The result of :func:`given`.
        groups: The ``params`` argument: parameters, or parameter groups, which may set what was not passed.

    Raises:
        TypeError: If a hyperparameter without a default is missing.
    """
    missing = [
        key
        for key in parts.required
        if key not in passed and not all(isinstance(g, Mapping) and key in g for g in groups)
    ]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise TypeError(f"{parts.name}() is missing required argument{plural}: {', '.join(map(repr, missing))}")
    found = {**parts.defaults, **parts.counterpart.keys, **passed}
    if parts.sparse:
        found.setdefault(LazyPlan.switch, LAZY)
    if parts.random and rng.SEED not in found:
        found[rng.SEED] = rng.checked(parts.name, None)
    return found
