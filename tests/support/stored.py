"""What is kept of a state in some format: how far from the state it may be, and steps that are compared with that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from interpreter import Interpreter
from interpreter_formulas import Scope
from interpreter_runs import TensorRun
from interpreter_values import Value
from trajectories import feed, same_svd

from optlang.artifact import Slot
from optlang.rule import Rule, State
from optlang.storage import choice
from optlang.storage.blocks import SCALE, Blocks
from optlang.storage.formats import Fixed, Format
from optlang.storage.fp8 import Fp8
from optlang.storage.int8 import Int8
from optlang.storage.log8 import Log8
from optlang.storage.softsign8 import Softsign8
from optlang.storage.sqrt8 import Sqrt8

Array = np.ndarray
#: The place of a half in the last digit of 16 bits, relative to a number, and the least number that there is.
HALF = {"bfloat16": (2.0**-9, 2.0**-133), "float16": (2.0**-12, 2.0**-25)}


def furthest(format: Format, x: torch.Tensor) -> torch.Tensor:
    """Return how far what is kept of a tensor may be from it, for each element."""
    if isinstance(format, Fixed):
        relative, least = HALF[format.dtype("")]
        return x.abs() * relative + least
    assert isinstance(format, Blocks)
    blocks = format._in_blocks(x.abs())
    largest = blocks.amax(1, keepdim=True)
    half = 2.0**-11  # of a scale in float16
    if isinstance(format, Int8):
        found = (largest / 254).expand_as(blocks)
    elif isinstance(format, Softsign8):  # coarsest at the largest
        found = (largest * (2 / 254 + half)).expand_as(blocks)
    elif isinstance(format, Sqrt8):
        found = 2 * (blocks * largest).sqrt() * (1 / 510 + half) + largest * (1 / 510 + half) ** 2
    else:  # an eighth where numbers are rounded up or down, a sixteenth where to the nearest
        assert isinstance(format, Log8 | Fp8), f"{format.name} has no bound here: how far a number may be from its code"
        least = largest * (2.0**-31 if isinstance(format, Log8) else 2.0**-14)
        found = torch.maximum(blocks / (8 if format.draws else 16), least)
    if format.second == "float16":  # which has no smaller scale, and no larger one
        found = torch.where(format.scale_of(largest) > 65504, torch.inf, found + 2.0**-24)
    return format._in_rows(found, x.shape)


def takes(format: Format, slot: Slot) -> bool:
    """Whether a state can be kept in a format."""
    return slot.of_elements and (not slot.signed or not isinstance(format, Blocks) or format.signed)


class KeepingInterpreter(Interpreter):
    """An interpreter whose states are kept in a format from their start.

    What is assigned to a state in 16 bits is rounded at once. What is kept in codes is for the caller to keep.

    Args:
        format: The format.
        keys: Of the states that are kept so.
    """

    def __init__(self, format: Format, keys: Sequence[str], rule: Rule, hypers: Mapping[str, Any]) -> None:
        super().__init__(rule, hypers)
        self.format, self.keys = format, keys

    def _start(self, state: State, run: TensorRun, scope: Scope) -> Value:
        found = super()._start(state, run, scope)
        kept = state.key in self.keys and np.shape(found) == run.shape
        return rounded(self.format, np.asarray(found)) if kept else found

    def started(self, index: int, run: TensorRun, scope: Scope) -> None:
        """Round what states are assigned."""
        super().started(index, run, scope)
        names = {state.name for state in self.rule.states if state.key in self.keys}
        if isinstance(self.format, Fixed):

            def keeps(name: str, x: Value) -> Value:
                return rounded(self.format, np.asarray(x)) if name in names and np.shape(x) == run.shape else x

            run.keeps = keeps


def rounded(format: Format, x: Array) -> Array:
    """Return what is kept of a tensor."""
    value = torch.tensor(x, dtype=torch.float32)
    if isinstance(format, Blocks):
        return format.decode(*format.encode(value)).double().numpy()
    return value.to(getattr(torch, format.dtype(""))).double().numpy()


def in_every_state(format: Format, keys: list[str]) -> Callable[..., dict[str, Format]]:
    """Return a choice of formats that is the same for every state that can be kept so, however small.

    Args:
        format: The format.
        keys: Gets the keys of those states.
    """

    def chosen(who: str, store: Any, slots: Sequence[Slot], *rest: Any) -> dict[str, Format]:
        found = {slot.key: format for slot in slots if takes(format, slot)}
        keys.extend(found)
        return found

    return chosen


def decoded(state: Mapping[str, Any], key: str) -> torch.Tensor | None:
    """Return a state as numbers, if it is kept in a format."""
    value = state.get(key)
    if not isinstance(value, torch.Tensor):
        return None
    if key + SCALE in state:
        format = choice.found(value, state[key + SCALE])
        assert format is not None
        return format.decode(value, state[key + SCALE])
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else None


def compare(
    optimizer: Any,
    interpreter: Interpreter,
    params: Sequence[torch.Tensor],
    history: Sequence[Sequence[Array | None]],
    format: Format,
    tolerance: float,
) -> int:
    """Step an optimizer and the interpreter; after each step the latter goes on from what the former has kept.

    Args:
        optimizer: Keeps its states in a format.
        interpreter: Runs the same rule in float64.
        params: The parameters, in float64.
        history: Gradients of each step.
        format: The format.
        tolerance: How far a parameter may be from the interpreter's, relative to its size.

    Returns:
        How many states have been compared.
    """
    copies = [p.detach().double().numpy().copy() for p in params]
    compared = 0
    for step in history:
        feed(optimizer, params, [step])
        with patch.object(np.linalg, "svd", same_svd):
            interpreter.step(copies, step)
        for i, (p, copy) in enumerate(zip(params, copies, strict=True)):
            found = p.detach().double().numpy()
            assert np.isfinite(copy).all()
            far, size = (float(np.abs(x).max(initial=0.0)) for x in (found - copy, copy))
            assert far <= tolerance * max(1.0, size), ("p", i, far, size)
            copy[...] = found
            for state in interpreter.rule.states:  # they may not be finite where a format has too small a range
                kept = decoded(optimizer.state.get(p, {}), state.key)
                if kept is None:
                    continue
                exact = torch.tensor(np.asarray(interpreter.state[i][state.name]), dtype=torch.float32)
                slack = max(tolerance, 1e-6) * float(exact.abs().max())  # it is kept as of float32
                far = float(((kept - exact).abs() - furthest(format, exact) * 1.001).max())
                assert far <= slack, (state.name, i, far, slack)
                interpreter.state[i][state.name] = kept.double().numpy()
                compared += 1
    return compared
