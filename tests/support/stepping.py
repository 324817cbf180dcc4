"""Whole optimizers beside the interpreter: several param groups, missing gradients, shared numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from interpreter import Interpreter, step_all
from optimizing import optimizer_class

from optlang.artifact import Draw
from optlang.compiler import example_variant
from optlang.inputs import Random
from optlang.runtime.rng import Seed

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
            self.arrays.append([numbers(p).copy() for p in self.parameters[i]])
        self.optimizer = self.cls(given, **options)
        compiled = self.cls._compiled
        self.interpreters = []
        first = 0
        sites = draw_sites(self.cls)
        for i, group in enumerate(given):
            names = {h.key for h in compiled.rule.hypers}
            hypers = {k: v for k, v in {**options, **group}.items() if k in names}
            own = {k: v for k, v in group.items() if k not in names and k != "params"}
            draw = drawn(self.optimizer.param_groups[0].get("seed", 0), sites, first, dtype)
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
                gradients[i].append(None if p.grad is None else numbers(p.grad))
        self.optimizer.step()
        step_all(self.interpreters, self.arrays, gradients)

    def switch(self, event: str) -> None:
        """Run ``eval`` or ``train``."""
        for one in (self.optimizer, *self.interpreters):
            getattr(one, event)()

    def agree(self, rtol: float = 1e-10, atol: float = 1e-12, states: bool = True) -> None:
        """Check that parameters, states and numbers in common are the same.

        Args:
            rtol: How far apart they may be.
            atol: The same.
            states: Whether states of tensors are compared. Those of tensors without elements never are.
        """
        for i, interpreter in enumerate(self.interpreters):
            keys = {s.name: s.key for s in interpreter.rule.states}
            for name, value in {**interpreter.group_state, **interpreter.shared_state}.items():
                found = self.optimizer.param_groups[i][keys[name]]
                np.testing.assert_allclose(found, value, rtol, atol, err_msg=f"{name} in group {i}")
            for k, (p, array) in enumerate(zip(self.parameters[i], self.arrays[i], strict=True)):
                where = f"parameter {k} of group {i}, of shape {tuple(p.shape)}"
                np.testing.assert_allclose(numbers(p), array, rtol, atol, err_msg=where)
                held = self.optimizer.state.get(p, {})
                expected = interpreter.state[k] if states and interpreter.state and p.numel() else {}
                for name, value in expected.items():
                    wanted = np.asarray(value, dtype=np.float64)
                    found = numbers(torch.as_tensor(held[keys[name]]))
                    found = found.reshape(wanted.shape) if found.size == wanted.size else found
                    np.testing.assert_allclose(found, wanted, rtol, atol, err_msg=f"{name} of {where}")


def numbers(t: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as numbers in float64."""
    return t.detach().to(torch.float64).numpy()


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_sites(cls: Any) -> list[Random]:
    """Return the random numbers that the calls of a rule draw, in the order of the text."""
    compiled = cls._compiled
    if compiled.routes or not cls._random:
        return []
    draws = {draw.name for stage in example_variant(compiled).schedule.stages for draw in stage.draws}
    return sorted(draws, key=lambda name: name.site.calls)


def drawn(seed: int, sites: Sequence[Random], first: int, dtype: torch.dtype) -> Any:
    """Return what draws the random numbers of parameters that are at ``first`` and after it in the optimizer."""
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32

    def draw(kind: str, shape: tuple[int, ...], site: int, index: int, t: int) -> Any:
        places = [torch.empty(0) for _ in range(first + index + 1)]
        memory = torch.empty(shape, dtype=arithmetic)
        Seed([{"params": places, "seed": seed}]).fill(memory, Draw(sites[site], kind), places[-1], t)
        return memory.double().numpy()

    return draw
