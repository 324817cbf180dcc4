"""Rehearsals: steps of size 0 with zero gradients, made only to initialize the states.

``torch.distributed.checkpoint`` makes such a step if there is no state, before it saves and before it loads. It must
not be counted, and must not divide by a norm of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optlang.runtime.tensors import is_fake, local
from optlang.runtime.values import plain

#: An entry of ``optimizer.state``: the dict it is in, key, value, and the version of a tensor.
Content = tuple[Any, Any, Any, int]


def is_possible(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a step is a rehearsal if all gradients are 0: there is no state yet, and the step size is 0."""
    return not state and all(plain(group.get("lr")) == 0 for group in groups)


def is_without_gradients(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all gradients are 0."""
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return not any(bool(g.any()) for g in map(local, gradients) if not (is_fake(g) or g.is_meta))


def contents(state: Mapping[Any, Any]) -> list[Content]:
    """Return the entries of ``optimizer.state``, with the versions of its tensors."""
    found: list[Content] = []
    for held in state.values():
        for key, value in held.items() if isinstance(held, dict) else ():
            is_versioned = isinstance(value, torch.Tensor) and not value.is_inference()
            found.append((held, key, value, value._version if is_versioned else 0))
    return found


def are_alike(some: Sequence[Content], others: Sequence[Content]) -> bool:
    """Return whether the entries of ``optimizer.state`` are the same objects, unmodified since."""
    return len(some) == len(others) and all(
        a[0] is b[0] and a[1] == b[1] and a[2] is b[2] and a[3] == b[3] for a, b in zip(some, others, strict=True)
    )
