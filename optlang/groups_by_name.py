"""Parameter groups from patterns over the names of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from optlang.syntax.suggest import nearest

if TYPE_CHECKING:
    import torch

#: How many names an error lists.
SHOWN = 12


def matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern: globs, separated by ``|``.

    Args:
        name: The name of a parameter, such as ``"layers.0.norm.weight"``.
        pattern: ``*`` matches any characters, dots included, ``?`` one character, ``[abc]`` one of several.
    """
    return any(fnmatchcase(name, part.strip()) for part in pattern.split("|"))


def groups(
    model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]],
    patterns: Mapping[str, Mapping[str, Any]],
    **rest: Any,
) -> list[dict[str, Any]]:
    """Return parameter groups for any optimizer, by patterns over the names of parameters.

    Each parameter goes to the first pattern that its name matches; those that match none are the last group. Groups
    keep the names, so messages and checkpoints can use them.

    Example::

        groups = optlang.groups(model, {"*.bias | *norm*": {"weight_decay": 0}, "embed.*": {"lr": 1e-4}})
        optimizer = optlang.rules.AdamW(groups, lr=3e-4, weight_decay=0.1)

    Args:
        model: A module, or pairs of names and parameters (``model.named_parameters()``).
        patterns: Options of a group by pattern: globs such as ``"*.bias"``, several of them separated by ``|``.
        **rest: Options of the parameters that match no pattern.

    Returns:
        A list of parameter groups, in the order of the patterns. A group without parameters is left out.

    Raises:
        ValueError: If a pattern matches no name; the message lists the names. A pattern whose parameters were all
            taken by earlier patterns is an error, too.
        TypeError: If the pairs are not pairs, or the options of a pattern are not a mapping.
    """
    named = _named(model)
    taken: dict[str, list[tuple[str, Any]]] = {pattern: [] for pattern in patterns}
    others: list[tuple[str, Any]] = []
    for name, parameter in named:
        pattern = next((p for p in patterns if matches(name, p)), None)
        (others if pattern is None else taken[pattern]).append((name, parameter))
    found: list[dict[str, Any]] = []
    for pattern, options in patterns.items():
        if not isinstance(options, Mapping):
            raise TypeError(f"the options of {pattern!r} must be a dict, such as {{'lr': 1e-3}}, got {options!r}")
        if not taken[pattern]:
            raise ValueError(_nothing_matches(pattern, [name for name, _ in named]))
        found.append({"params": taken[pattern], **options})
    return [*found, {"params": others, **rest}] if others else found


def _named(model: Any) -> list[tuple[str, Any]]:
    """Return the names and parameters of a model."""
    pairs = list(model.named_parameters() if hasattr(model, "named_parameters") else model)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "groups() needs names: pass the model, or model.named_parameters(), not model.parameters(); "
                f"got {type(pair).__name__}"
            )
    return pairs


def _nothing_matches(pattern: str, names: list[str]) -> str:
    """Return the error of a pattern that no parameter is left for."""
    taken = [name for name in names if matches(name, pattern)]
    if taken:
        return (
            f"every parameter that matches {pattern!r} is taken by an earlier pattern ({_listed(taken)}); "
            "put the more specific pattern first"
        )
    near = nearest(pattern.strip("*. "), [part for name in names for part in (name, *name.split("."))])
    hint = f" Did you mean {near!r}?" if near else ""
    return f"no parameter matches {pattern!r}.{hint} The names are: {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
