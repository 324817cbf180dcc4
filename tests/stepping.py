"""Whole optimizers beside the interpreter: several param groups, missing gradients, shared numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from interpreter import Interpreter, step_all
from optimizing import optimizer_class

from optlang.compiled import Draw
from optlang.runtime.chance import Seed

#: Shapes that differ in everything: matrices (wide, tall), vectors, a number, one without elements, a filter.
SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (4,), (), (0, 3), (5, 2), (2, 3, 2), (3, 4))


@cache
def eager(rule: str) -> Any:
    """Return the uncompiled class of a rule."""
    return optimizer_class(rule)


class Twins:
    """An optimizer and interpreters of the same rule, on equal parameters.

    Args:
        rule: The rule's name or text.
        groups: Param groups: ``shapes``, and options.
        cls: The optimizer class; the uncompiled one by default.
        dtype: Type of the optimizer's parameters.
        arrange: Returns a parameter laid out otherwise.
        options: Arguments of the optimizer.
    """

    def __init__(
        self,
        rule: str,
        groups: Sequence[Mapping[str, Any]] = ({"shapes": SHAPES},),
        *,
        cls: Any = None,
        dtype: torch.dtype = torch.float64,
        arrange: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
        **options: Any,
    ) -> None:
        self.cls = cls or eager(rule)
        self.arrange, self.dtype = arrange, dtype
        self.parameters: list[list[torch.nn.Parameter]] = []
        self.arrays: list[list[np.ndarray[Any, Any]]] = []
        given: list[dict[str, Any]] = []
        for i, group in enumerate(groups):
            self.parameters.append([])
            for k, shape in enumerate(group["shapes"]):
                self.parameters[i].append(torch.nn.Parameter(arrange(values(shape, dtype, 100 * i + k))))
            given.append({"params": self.parameters[i], **{k: v for k, v in group.items() if k != "shapes"}})
            self.arrays.append([p.detach().double().numpy().copy() for p in self.parameters[i]])
        self.optimizer = self.cls(given, **options)
        compiled = self.cls._compiled
        self.interpreters = []
        first = 0
        for i, group in enumerate(given):
            names = {h.key for h in compiled.rule.hypers}
            hypers = {k: v for k, v in {**options, **group}.items() if k in names}
            own = {k: v for k, v in group.items() if k not in names and k != "params"}
            draw = drawn(self.optimizer.param_groups[0].get("seed", 0), first, dtype)
            self.interpreters.append(Interpreter(compiled.rule, hypers, own, draw=draw))
            first += len(self.parameters[i])

    def step(self, seed: int, missing: Callable[[int, int], bool] = lambda i, k: False) -> None:
        """Make a step with gradients that depend on the seed, for parameters that do not miss theirs."""
        gradients: list[list[Any]] = []
        for i, members in enumerate(self.parameters):
            gradients.append([])
            for k, p in enumerate(members):
                p.grad = None
                if not missing(i, k):
                    g = values(tuple(p.shape), self.dtype, 7919 * (seed + 1) + 100 * i + k)
                    p.grad = self.arrange(g)
                gradients[i].append(None if p.grad is None else p.grad.double().numpy())
        self.optimizer.step()
        step_all(self.interpreters, self.arrays, gradients)

    def agree(self, rtol: float = 1e-10, atol: float = 1e-12) -> None:
        """Check that parameters, states and numbers in common are the same."""
        for i, (members, arrays, interpreter) in enumerate(
            zip(self.parameters, self.arrays, self.interpreters, strict=True)
        ):
            group = self.optimizer.param_groups[i]
            for name, value in {**interpreter.group_state, **interpreter.shared_state}.items():
                key = next(s.key for s in interpreter.rule.states if s.name == name)
                np.testing.assert_allclose(group[key], value, rtol, atol, err_msg=f"{name} in group {i}")
            for k, (p, array) in enumerate(zip(members, arrays, strict=True)):
                where = f"parameter {k} of group {i}, of shape {tuple(p.shape)}"
                np.testing.assert_allclose(p.detach().double().numpy(), array, rtol, atol, err_msg=where)
                held = self.optimizer.state.get(p, {})
                for name, value in (interpreter.state[k] if interpreter.state else {}).items():
                    key = next(s.key for s in interpreter.rule.states if s.name == name)
                    found = torch.as_tensor(held[key]).double().numpy()
                    expected = np.asarray(value, dtype=np.float64)
                    np.testing.assert_allclose(
                        found.reshape(expected.shape), expected, rtol, atol, err_msg=f"{name} of {where}"
                    )


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(seed: int, first: int, dtype: torch.dtype) -> Any:
    """Return what draws the random numbers of parameters that are at ``first`` and after it in the optimizer."""
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32

    def draw(kind: str, shape: tuple[int, ...], site: int, index: int, t: int) -> Any:
        places = [torch.empty(0) for _ in range(first + index + 1)]
        memory = torch.empty(shape, dtype=arithmetic)
        Seed([{"params": places, "seed": seed}]).fill(memory, Draw("noise", kind, site), places[-1], t)
        return memory.double().numpy()

    return draw
