"""Parameters in 16 bits: what is counted goes on, and what is small does not become a division by zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stepping import values
from trajectories import library_class

import optlang
from optlang.core.needs import needs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TYPES = (torch.bfloat16, torch.float16)
COUNTING = """
optimizer Counting
hyper lr = 1e-4 >= 0
state m, row = 0*mean(g, dim=-1)
state used: scalar = 0, seen: scalar = 0
history norms: scalar size 3000

if norm(g) < 100:
    used += 1
    push norms <- norm(g)
seen = 0.999*seen + 0.001
row = 0.999*row + 0.001
m = 0.9*m + 0.1*g
p -= lr*m/(1 + row + seen + count(norms))
"""
LONG = ("used", "seen", "norms_count", "row")


def started(dtype: torch.dtype, rule: str = COUNTING) -> tuple[torch.nn.Parameter, Any]:
    """Return a parameter and an optimizer that has made a step."""
    p = torch.nn.Parameter(values((3, 4), dtype, 1))
    p.grad = values((3, 4), dtype, 2)
    optimizer = optlang.compile(rule, backend="eager")([p])
    optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("dtype", TYPES)
def test_what_many_elements_share_goes_on(dtype: torch.dtype) -> None:
    p, optimizer = started(dtype)
    state = optimizer.state[p]
    for key in LONG:
        state[key].fill_(2500 if key in ("used", "norms_count") else 0.7)
    optimizer.step()
    assert state["used"] == state["norms_count"] == 2501  # 256 would stay in bfloat16, 2048 in float16
    assert state["seen"].item() == pytest.approx(0.7003, abs=1e-6)  # 0.7 would stay in both
    assert torch.allclose(state["row"], torch.tensor(0.7003))
    assert all(state[key].dtype.itemsize >= 4 for key in LONG)
    assert state["m"].dtype is (torch.float32 if dtype is torch.float16 else dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_checkpoints_with_fewer_bits_load(dtype: torch.dtype) -> None:
    p, optimizer = started(dtype)
    saved = optimizer.state_dict()
    cut = copy.deepcopy(saved)
    held = cut["state"][0]
    cut["state"][0] = {k: v.to(dtype) if k in (*LONG, "m", "norms") else v for k, v in held.items()}
    q = torch.nn.Parameter(p.detach().clone())
    q.grad = p.grad
    other = type(optimizer)([q])
    other.load_state_dict(cut)
    other.step()
    optimizer.step()
    for key, state in optimizer.state[p].items():
        found = other.state[q][key]
        assert found.dtype == state.dtype, key
        torch.testing.assert_close(found, state, rtol=0.01, atol=1e-3)


def test_a_mask_may_be_one() -> None:
    rule = "optimizer M\nhyper lr = 0.5\nstate mask = p != 0\nmask *= 0.5\np -= lr*g*mask"
    for mask in (torch.tensor([True, False, True]), torch.tensor([1, 0, 1])):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = optlang.compile(rule, backend="eager")([p])
        optimizer.state[p]["mask"] = mask
        p.grad = torch.ones(3)
        optimizer.step()
        assert optimizer.state[p]["mask"].tolist() == [0.5, 0, 0.5] and p.tolist() == [0.75, 1, 0.75]


@pytest.mark.parametrize("name", optlang.rules.names())
def test_zero_gradients_stay_finite(name: str) -> None:
    cls = library_class(name)
    for dtype in TYPES:
        params = [torch.nn.Parameter(0.3 + values((4, 6), dtype, seed).abs()) for seed in range(2)]
        optimizer = cls(params, **({"sparse": None} if name == "SparseAdam" else {}))

        def closure(params: Any = params, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = sum((0 * p.float()).sum() for p in params)
            if "hvp" not in needs(cls._compiled.rule).calls:
                loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        states = {k: v for p in params for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        for key, tensor in {**states, **dict(enumerate(params))}.items():
            assert torch.isfinite(tensor).all(), f"{key} of {name}, {dtype}"


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "RMSprop", "NAdam", "RAdam", "Adagrad", "AdaBelief", "Yogi", "LAMB", "Adan", "LaProp"]
)
def test_small_gradients_move_by_about_lr_in_float16(name: str) -> None:
    p = torch.nn.Parameter(torch.tensor([0.579, -0.729, 0.5493], dtype=torch.float16))
    before = p.detach().clone()
    p.grad = torch.tensor([-0.0015, 0.0001875, -0.013], dtype=torch.float16)  # the square of the second is 0
    library_class(name)([p], lr=1e-4).step()
    assert (p.detach() - before).abs().max() < 0.01
