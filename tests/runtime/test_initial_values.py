"""What states start as: any value is computed as in a step, and kept in the type of the state."""

from __future__ import annotations

import types
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scripted import module_of
from scripted import step as step_script
from stepping import Twins, values

import optlang

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = ((3, 4), (4,), (2, 3, 2))
#: By what the states are declared as: what they start from.
ELEMENTS = (
    "1 if p > 0 else 0",
    "where(p > 0, 1.0, 0)",
    "where(p > 0, 1, 2)*3",
    "1/3 if p > 0 else 0.1",
    "max(where(p > 0, 1, 3), 2)",
    "min(where(p > 0, 1, 3), where(g > 0, 1, 2))",
    "where(p > 0, 2, 3)^0.5",
    "rows if p > 0 else cols",
    "lr if p > 0 else 2*lr",
    "1 if p > 0 else (2 if g > 0 else 3)",
    "p != 0",
    "isfinite(p)",
    "p > mean(p)",
    "not (p > 0)",
    "p > 0 and g > 0",
    "p > 0 or lr > 0.05",
    "0 < p < 1",
    "(p > 0) + (g > 0)",
    "lr > 0.05",
    "not (lr > 0.05)",
    "p if lr > 0.05 else 0",
    "0 if lr > 0.05 else p",
    "(p > 0) if lr > 0.05 else (g > 0)",
    "where(p > 0, lr > 0.05, rows > 2) and g > 0",
    "0*p + max(lr, rows)",
    "0*p + sqrt(lr)",
    "sqrt(lr)*p",
    "min(lr > 0.05, p > 0)",
)
REDUCED = (
    "where(mean(p, dim=-1) > 0, 1, 0)",
    "max(p, dim=-1) > 0",
    "mean(p > 0, dim=-1)",
    "max(where(p > 0, 1, 2), dim=-1)",
    "0*mean(p, dim=-1) + lr",
)
SCALARS = (
    "1 if mean(p) > 0 else 0",
    "mean(p) > 0",
    "norm(p) > 1 and lr > 0.05",
    "rows > cols",
    "not (mean(p) > 0)",
    "rows if mean(p) > 0 else cols",
    "max(where(p > 0, 1, 2))",
    "mean(p) if lr > 0.05 else 0",
    "isfinite(norm(p))",
)
COMMON = ("lr > 0.05", "1 if lr > 0.05 else 2", "not (lr > 0.05)", "lr^2 > 0.001 and isfinite(lr)", "max(lr, 2)")
MATRICES = (
    "argsort(flatten(p))",
    "-argsort(flatten(g))*2",
    "flip(argsort(flatten(g)))[0:3]",
    "sort(flatten(p))[1]",
    "topk(flatten(p), 2)[1]",
    "argsort(flatten(g))^0.5",
    "outer(argsort(flatten(g)), flatten(p) > 0)",
    "cumsum(where(flatten(p) > 0, 1, 0))",
    "matrix(p) > 0",
    "where(matrix(p) > 0, 1, 0) @ ones(cols(matrix(p)), 2)",
    "not (eye(3) > 0)",
    "where(eye(3) > 0, lr > 0.05, rows > 2) and ones(3, 3) > 0",
    "0*eye(3) + lr > 0.05",
    "zeros(2, 3) if lr > 0.05 else 1",
    "norm(argsort(flatten(g)))",
    "mean(argsort(flatten(g))) > 1",
)
DECLARED = {
    "elements": ("state {} = {}", ELEMENTS),
    "reduced": ("state {} = {}", REDUCED),
    "scalars": ("state {}: scalar = {}", SCALARS),
    "group": ("group state {} = {}", COMMON),
    "shared": ("shared state {} = {}", COMMON),
    "matrices": ("state {} = {}", MATRICES),
    "elements beside matrices": ("state {} = {}", (*ELEMENTS[:3], *ELEMENTS[10:14], *REDUCED[:3], *ELEMENTS[-8:])),
}
NUMBER = {"group", "shared", "scalars"}


def rule(kind: str) -> str:
    """Return a rule whose states start from everything of a kind."""
    line, starts = DECLARED[kind]
    names = [f"s{i}" for i in range(len(starts))]
    lines = ["optimizer Starting", "hyper lr = 0.1", *(line.format(n, x) for n, x in zip(names, starts, strict=True))]
    lines += ["z = eye(2)[0, 0]"] if "matrices" in kind else []
    for name, start in zip(names, starts, strict=True):
        one = kind in NUMBER or start.startswith(("norm(", "mean(argsort"))
        lines.append(f"p -= lr*{f'tanh({name})' if one else f'mean(tanh({name}))'}")
        lines.append(f"{name} = 0.5*{name} + 0.25")
    return "\n".join([*lines, *(["p *= z"] if "matrices" in kind else []), ""])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", DECLARED)
def test_eager_agrees_with_the_interpreter(kind: str, dtype: torch.dtype) -> None:
    twins = Twins(rule(kind), ({"shapes": SHAPES},), dtype=dtype)
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    near *= len(DECLARED[kind][1]) if dtype.itemsize == 2 else 1  # p is rounded as often
    for step in range(2):
        twins.step(step)
        twins.agree(near, near)
    for p in twins.parameters[0]:
        for key, state in twins.optimizer.state[p].items():
            assert state.is_floating_point(), key
            if kind == "elements":
                assert state.dtype is (torch.float32 if dtype is torch.float16 else dtype), key


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["elements", "scalars"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_agrees_with_the_interpreter(kind: str, dtype: torch.dtype) -> None:
    cls = optlang.compile(rule(kind), backend="auto")
    twins = Twins(rule(kind), ({"shapes": SHAPES},), dtype=dtype, cls=cls)
    near = 1e-5 if dtype is torch.float32 else 0.02 * len(DECLARED[kind][1])
    for step in range(2):
        twins.step(step)
        twins.agree(near, near)


def moved(kind: str, dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], Any]:
    """Return parameters after a step of the class, and the optimizer."""
    params = given(dtype)
    optimizer = optlang.compile(rule(kind), backend="eager")(params)
    optimizer.step()
    return params, optimizer


def given(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters with gradients."""
    params = [torch.nn.Parameter(values(shape, dtype, i)) for i, shape in enumerate(SHAPES)]
    for i, p in enumerate(params):
        p.grad = values(tuple(p.shape), dtype, 10 + i)
    return params


@cache
def made(kind: str) -> Any:
    """Return the Python file of a rule, executed."""
    module = types.ModuleType("made")
    exec(optlang.export(rule(kind), "module"), module.__dict__)
    return module


#: As bfloat16, but for the digits.
HALF = pytest.param(torch.float16, marks=pytest.mark.thorough)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, HALF])
@pytest.mark.parametrize("kind", ["elements", "reduced", "scalars", "matrices"])
def test_modules_start_alike(kind: str, dtype: torch.dtype) -> None:
    expected, optimizer = moved(kind, dtype)
    params = given(dtype)
    other = made(kind).Starting(params)
    other.step()
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(p, q)
        for key, state in optimizer.state[q].items():
            assert state.dtype == other.state[p][key].dtype, key
            assert torch.equal(state, other.state[p][key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF])
@pytest.mark.parametrize("kind", ["elements", "reduced", "scalars", "matrices"])
def test_scripts_start_alike(kind: str, dtype: torch.dtype) -> None:
    expected, optimizer = moved(kind, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = module_of(rule(kind))
    params = given(dtype)
    step_script(module, params, [p.grad.double().numpy() for p in params])
    for i, (p, q) in enumerate(zip(params, expected, strict=True)):
        np.testing.assert_allclose(p.detach().double(), q.detach().double(), 1e-6, 1e-7)
        for key, state in optimizer.state[q].items():
            found = module.state(key, i)
            assert found.dtype == state.dtype, key
            np.testing.assert_allclose(found.double().flatten(), state.double().flatten(), 1e-6, 1e-7, err_msg=key)


@pytest.mark.parametrize(
    "step",
    [
        "q = argsort(g); p -= lr*g*norm(q)",
        "p -= lr*(argsort(g) @ p.T @ p)",
        "p -= lr*(p @ p.T @ argsort(g))",
        "q = flip(argsort(g)); p -= lr*sqrt(q)*mean(q, dim=-1)",
        "v, q = sort(flatten(g)); p -= lr*outer(q, q)[0:3, 0:4]",
        "o = argsort(norm(matrix(g), dim=-1)[:, 0])[0:2]; p -= lr*sum(p[o, :])*g",
        "p -= lr*where(argsort(g) > 1, argsort(p), 0.5)",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_orders_are_numbers_to_arithmetic(step: str, dtype: torch.dtype) -> None:
    twins = Twins(f"optimizer S\nhyper lr = 0.1\nrequire ndim == 2\n{step}\n", ({"shapes": ((3, 4),)},), dtype=dtype)
    twins.step(1)
    near = 1e-12 if dtype is torch.float64 else 0.03
    twins.agree(near, near)
