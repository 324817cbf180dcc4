"""``sparse="lazy"`` for every rule of elements, against the interpreter; and what a step of it touches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import Interpreter
from optimizing import optimizer_class, parameter
from torch.utils._python_dispatch import TorchDispatchMode

import optlang.rules
from optlang.compiler import example_variant

ROWS, WIDTH = 12, 3


def is_elementwise(name: str) -> bool:
    compiled: Any = optimizer_class(name)._compiled
    variant = None if compiled.routes else example_variant(compiled)
    return variant is not None and variant.elementwise


#: A rule whose states begin with what the first gradient says.
READS = "hyper lr = 0.1\nstate m = g/2\nm = 0.9*m + g\np -= lr*m"
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "AdamW": {"amsgrad": True, "maximize": True},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5},
}


def sparse(
    seed: int, shape: Sequence[int] = (ROWS, WIDTH), count: int = 5, sparse_dim: int = 1, dtype: Any = torch.float64
) -> torch.Tensor:
    """Return a gradient with values for some places, a few of them for the same one."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randint(n, (count,), generator=generator) for n in shape[:sparse_dim]])
    places = torch.cat([places, places[:, :2]], dim=1)
    values = torch.randn(places.shape[1], *shape[sparse_dim:], generator=generator, dtype=torch.float64).to(dtype)
    return torch.sparse_coo_tensor(places, values, tuple(shape), check_invariants=True)


def touched(g: torch.Tensor) -> torch.Tensor:
    """Return a mask of the elements that a gradient has values for."""
    g = g.coalesce()
    ones = torch.ones_like(g.values(), dtype=torch.float64)
    return torch.sparse_coo_tensor(g.indices(), ones, g.shape, check_invariants=True).to_dense() != 0


class RowInterpreter(Interpreter):
    """The interpreter of a rule, of whose steps only the rows that a gradient touches are kept."""

    def _begun(self, *arguments: Any) -> dict[str, Any]:
        self.begun = copy.deepcopy(super()._begun(*arguments))
        return copy.deepcopy(self.begun)

    def step_rows(self, p: Any, g: torch.Tensor) -> None:
        untouched, before = ~touched(g).numpy(), p.copy()
        self.step([p], [g.to_dense().numpy()])
        p[untouched] = before[untouched]
        for name, value in self.state[0].items():
            if np.shape(value) == p.shape:
                value[untouched] = self.begun[name][untouched]


@pytest.mark.parametrize("name", [*optlang.rules.names(), READS])
def test_every_rule_does_to_the_rows_what_it_does_to_whole_tensors(name: str) -> None:
    if not is_elementwise(name):
        pytest.skip("a row of the rule's step depends on other rows")
    cls: Any = optimizer_class(name)
    options = {"lr": 0.05, **OPTIONS.get(name, {})}
    p = parameter(ROWS) if name == "GaLoreAdamW" else parameter(ROWS, WIDTH)
    optimizer = cls([p], sparse="lazy", **options)
    interpreter, array = RowInterpreter(cls._compiled.rule, options), p.detach().numpy().copy()
    keys = {state.name: state.key for state in cls._compiled.rule.states}
    for step in range(8):
        p.grad = sparse(step, p.shape, 4)
        if step == 4:
            interpreter.step([array], [p.grad.to_dense().numpy()])
            whole = p.grad.to_dense()  # in between, all rows are touched
            rows = torch.arange(len(whole))[None]
            p.grad = torch.sparse_coo_tensor(rows, whole, whole.shape) if cls._compiled.rule.sparse else whole
        else:
            interpreter.step_rows(array, p.grad)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), array, rtol=1e-10, atol=1e-12)
        for key, value in interpreter.state[0].items():
            found = optimizer.state[p][keys[key]].numpy()
            np.testing.assert_allclose(found.reshape(np.shape(value)), value, rtol=1e-10, atol=1e-12, err_msg=key)


def test_a_step_touches_nothing_of_the_size_of_the_table() -> None:
    used: set[str] = set()

    class Large(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves((args, kwargs, result)):
                if isinstance(t, torch.Tensor) and not t.is_sparse and t.numel() >= 1000:
                    used.add(func.overloadpacket.__name__)
            return result

    p = parameter(1000, 2)
    optimizer = optimizer_class("adamw")([p], sparse="lazy")
    for step in range(2):
        p.grad = sparse(step, p.shape)
        with Large():
            optimizer.step()
        assert step == 0 or used <= {"detach", "view", "index_select", "index_copy_"}, used
        used.clear()
