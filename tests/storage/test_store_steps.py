"""States in fewer bits in other kinds of steps: on a device alone, of rows, of events; and where there are none."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import optlang
from optlang.runtime.rng import mixed, mixed_on_device
from optlang.storage.blocks import SCALE
from optlang.storage.coded import WHOLE, ElementIndices
from optlang.storage.parameters import KEY, WAYS

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch's own remarks on sparse tensors


@functools.cache
def compiled(rule: str, backend: str) -> Any:
    return optlang.compile(optlang.rules.path(rule), backend=backend)


def values(shape: Sequence[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(torch.randn(shape, generator=generator))


def made(rule: str, backend: str, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    params = [torch.nn.Parameter(values(s, i).to(dtype)) for i, s in enumerate(((100, 300), (64, 64), (3, 4), (5000,)))]
    return compiled(rule, backend)(params, lr=0.01, **options), params


def step(optimizer: Any, params: Sequence[torch.Tensor], numbers: Sequence[int]) -> None:
    for number in numbers:
        for i, p in enumerate(params):
            p.grad = values(p.shape, 100 * number + i).to(p.dtype)
        optimizer.step()


def as_bytes(t: torch.Tensor) -> torch.Tensor:
    return t.detach().contiguous().view(torch.uint8) if t.dim() else t


# Captured steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**64 - 1])
def test_draws_of_a_count_on_a_device(seed: int) -> None:
    for t in (1, 2, 1000, 2**31, 2**53 - 1):
        found = int(mixed_on_device(seed, torch.tensor(float(t), dtype=torch.float64))) % 2**64
        assert found == mixed(seed, t)


@pytest.mark.parametrize("options", [{"store": "8bit"}, {"rounding": "stochastic"}, {"rounding": "bf16+8"}], ids=str)
@pytest.mark.parametrize("rule", ["Lion", "AdamW", "RMSprop"])
def test_what_can_be_captured_keeps_the_same_codes(rule: str, options: dict[str, Any]) -> None:
    usual, params = made(rule, "eager", **options)
    captured, others = made(rule, "eager", capturable=True, **options)
    for numbers in (range(3), range(3, 5)):
        step(usual, params, numbers)
        step(captured, others, numbers)
        for p, q in zip(params, others, strict=True):
            assert usual.state[p].keys() == captured.state[q].keys()
            for key, value in usual.state[p].items():  # numbers of the host may differ in the last bit
                other = captured.state[q][key]
                assert value.dtype is other.dtype or key == "step"
                apart = (as_bytes(value) != as_bytes(other)).float().mean() if value.dim() else 0.0
                assert float(apart) < (0.5 if value.dtype is torch.float32 else 1e-3), key
            assert float((p != q).float().mean()) < (0.5 if p.dtype is torch.float32 else 1e-3)
            assert torch.allclose(p, q, rtol=2.0**-7, atol=1e-6)
        usual.load_state_dict(usual.state_dict())
        captured.load_state_dict(captured.state_dict())


def test_each_captured_step_draws_anew() -> None:
    p = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = compiled("RMSprop", "eager")([p], lr=0.01, store="8bit", capturable=True)
    seen = []
    for _ in range(3):
        p.grad = values(p.shape, 0)
        optimizer.step()
        seen.append(optimizer.state[p]["square_avg"].clone())
        optimizer.state[p]["square_avg"].fill_(100)  # the same state before each step
    assert float(optimizer.state[p]["step"]) == 3 and not torch.equal(seen[1], seen[2])


# Rows ---------------------------------------------------------------------------------------------------------

ROWS = [3, 7, 8, 40, 99]


def sparse(g: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([list(rows)]), g[list(rows)], g.shape)


@pytest.mark.parametrize("shape", [(100, 300), (100, 8, 40)], ids=str)
@pytest.mark.parametrize("options", [{"store": "8bit"}, *({"rounding": way} for way in WAYS)], ids=str)
@pytest.mark.parametrize(("rule", "backend"), [("AdamW", "eager"), ("AdamW", "cpp"), ("Lion", "eager")])
def test_rows_are_kept_as_a_whole_step_keeps_them(
    rule: str, backend: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    p, q = (torch.nn.Parameter(values(shape, 1).to(dtype)) for _ in range(2))
    ours = compiled(rule, backend)([p], lr=0.01, sparse="lazy", **options)
    theirs = compiled(rule, backend)([q], lr=0.01, **options)
    for number in range(4):
        g = values(shape, number).to(dtype)
        p.grad, q.grad = sparse(g, ROWS), g
        before = copy.deepcopy(dict(ours.state[p]))
        ours.step()
        theirs.step()
        there, away = torch.tensor(ROWS), torch.tensor([i for i in range(shape[0]) if i not in ROWS])
        for key, value in ours.state[p].items():
            if value.dim():
                assert torch.equal(as_bytes(value[there]), as_bytes(theirs.state[q][key][there])), (number, key)
            if value.dim() and number:
                assert torch.equal(as_bytes(value[away]), as_bytes(before[key][away])), (number, key)
        assert torch.equal(p[there], q[there])
        assert torch.equal(p[away], values(shape, 1).to(dtype)[away])


def test_dense_gradients_beside_sparse_ones() -> None:
    optimizer, params = made("AdamW", "eager", store="8bit", sparse="lazy")
    usual, others = made("AdamW", "eager", store="8bit")
    for number in range(3):
        for i, (p, q) in enumerate(zip(params, others, strict=True)):
            q.grad = values(p.shape, 100 * number + i)
            p.grad = sparse(q.grad, range(len(p))) if (number + i) % 2 else q.grad
        optimizer.step()
        usual.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(as_bytes(value), as_bytes(usual.state[q][key])), key


def test_vectors_in_codes_have_no_rows() -> None:
    p = torch.nn.Parameter(torch.zeros(2**20))
    with pytest.raises(ValueError, match=r"store cannot be given for parameter 0 .*: it is a vector, whose elements"):
        compiled("AdamW", "eager")([p], store="8bit", sparse="lazy")


@pytest.mark.parametrize("shape", [(5,), (4, 6), (4, 3, 2), (2, 3, 4, 5)], ids=str)
def test_places_are_those_in_the_whole(shape: tuple[int, ...]) -> None:
    everywhere = WHOLE.of(shape, torch.device("cpu")).view(shape)
    assert everywhere.flatten().tolist() == list(range(math.prod(shape)))
    start = tuple(n // 2 for n in shape)
    part = everywhere[tuple(slice(first, None) for first in start)]
    assert torch.equal(ElementIndices(start, shape).of(part.shape, part.device).view(part.shape), part)
    rows = torch.tensor([2, 0, 1]) if shape[0] > 2 else torch.tensor([1])
    assert torch.equal(ElementIndices(rows=rows).of((len(rows), *shape[1:]), rows.device), everywhere[rows].flatten())


# Events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["bf16", {"z": "fp8"}, {"z": "int8", "exp_avg_sq": "log8"}], ids=str)
def test_events_read_codes(store: Any) -> None:
    optimizer, params = made("ScheduleFreeAdamW", "eager", store=store)
    step(optimizer, params, range(3))
    before = [p.detach().clone() for p in params]
    held = [copy.deepcopy(optimizer.state[p]) for p in params]
    optimizer.eval()
    full = optimizer.state_dict(full=True)["state"]
    for i, (p, old) in enumerate(zip(params, before, strict=True)):  # x is between y and z: y = (1 - beta) z + beta x
        expected = old + (1 - 1 / 0.9) * (full[i]["z"].float() - old)
        assert torch.allclose(p, expected, rtol=1e-5, atol=1e-5)
    optimizer.train()
    for p, old, states in zip(params, before, held, strict=True):
        assert torch.allclose(p, old, rtol=1e-5, atol=1e-5)
        for key, value in states.items():
            assert torch.equal(as_bytes(value), as_bytes(optimizer.state[p][key])), key
    assert (params[0] in optimizer.state) and (("z" + SCALE in held[0]) == (store != "bf16"))


def test_events_keep_corrections() -> None:
    optimizer, params = made("ScheduleFreeAdamW", "eager", store="fp32", rounding="bf16+16")
    step(optimizer, params, range(3))

    def exact() -> list[torch.Tensor]:
        return [WAYS["bf16+16"].decode(p.detach(), optimizer.state[p][KEY]) for p in params]

    before = exact()
    optimizer.eval()
    middle = exact()
    optimizer.train()
    for old, between, new in zip(before, middle, exact(), strict=True):
        assert torch.allclose(old, new, rtol=1e-5, atol=1e-5) and not torch.equal(old, between)
        assert not torch.equal(new.bfloat16().float(), new)


# What there is not --------------------------------------------------------------------------------------------


def test_what_cannot_be_kept_in_codes_is_said_with_the_reason() -> None:
    p = torch.nn.Parameter(torch.zeros(100, 100))
    said = "AdamW: store cannot be given together with differentiable=True: values rounded to fewer bits have no grad"
    with pytest.raises(ValueError, match=said):
        compiled("AdamW", "eager")([p], store="8bit", differentiable=True)
    said = "LBFGS: store cannot be given to a rule that works on one vector of all parameters: the vector is a copy"
    with pytest.raises(ValueError, match=said):
        compiled("LBFGS", "eager")([p], store="8bit")
