"""What steps in passes compute and keep: only what is due, every kernel once, one number for the whole optimizer."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import difference, optimizer_class, parameter
from stepping import SHAPES, eager, values

import optlang
import optlang.rules
from optlang.runtime import stages
from optlang.runtime.kernels import compiled_count

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHARED = """
optimizer Shared
hyper lr = 0.1
shared state n = 0
shared state s = 1 as total_of_squares

n += 1
s += total(g^2)
p -= lr*g/s
"""
#: Rules with everything that makes stages, and options under which it happens often.
STAGED: dict[str, dict[str, Any]] = {
    "adamwclip": {},
    "prodigy": {},
    "dog": {},
    "avagrad": {},
    "sgld": {"seed": 1},
    "lookaheadadamw": {"k": 3},
    "soap": {"precondition_frequency": 3},
    "shampoo": {"preconditioning_compute_steps": 4},
    "galoreadamw": {"rank": 2, "update_proj_gap": 5},
    "muonwithadamw": {},
}


def parameters(dtype: torch.dtype = torch.float64, arrange: Any = None) -> list[Any]:
    """Return parameters of different shapes, with gradients."""
    shapes = [*(s for s in SHAPES if 0 not in s), (2, 3, 2, 2)]
    return [torch.nn.Parameter((arrange or (lambda t: t))(values(s, dtype, i))) for i, s in enumerate(shapes)]


def give(ps: list[Any], step: int, arrange: Any = None) -> None:
    for i, p in enumerate(ps):
        g = values(tuple(p.shape), p.dtype, 100 * step + i)
        p.grad = arrange(g) if arrange else g


# Only what is due ---------------------------------------------------------------------------------------------


@contextmanager
def counted(*names: str) -> Iterator[Counter[str]]:
    """Count the matrices that functions of ``torch.linalg`` are given."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
            counts[name] += x.shape[:-2].numel()
            return function(x, *rest, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.linalg, name, counting(name, getattr(torch.linalg, name)))
        yield counts


def test_factorizations_run_when_they_are_due() -> None:
    ps = [parameter(4, 3), parameter(4, 3, seed=1), parameter(3)]
    with counted("eigh", "qr") as counts:
        optimizer = eager("soap")(ps, precondition_frequency=4)
        found = []
        for step in range(10):
            give(ps, step)
            optimizer.step()
            found.append((counts["eigh"], counts["qr"]))
    # Two matrices with two sides: their bases on the first step, turned in steps 5 and 9.
    assert found == [(4, 0)] * 4 + [(4, 4)] * 4 + [(4, 8)] * 2


def test_roots_and_singular_vectors_are_taken_when_they_are_due() -> None:
    ps = [parameter(4, 3), parameter(3)]
    shampoo = eager("shampoo")([ps[0]], preconditioning_compute_steps=3)
    galore = eager("galoreadamw")(ps, rank=2, update_proj_gap=4)
    with counted("eigh", "svd") as counts:
        for step in range(9):
            give(ps, step)
            shampoo.step()
            assert counts["eigh"] == (step + 1) // 3 * 2
            galore.step()
            assert counts["svd"] == 1 + (step + 1) // 4  # and on the first step


def test_tensors_come_due_by_their_own_steps() -> None:
    ps = [parameter(4, 3), parameter(4, 3, seed=1)]
    optimizer = eager("shampoo")(ps, preconditioning_compute_steps=3)
    found = []
    with counted("eigh") as counts:
        for step in range(7):
            give(ps, step)
            if step == 1:
                ps[1].grad = None
            optimizer.step()
            found.append(counts["eigh"])
    assert found == [0, 0, 2, 4, 4, 6, 8]


def test_a_period_of_zero_never_comes_due() -> None:
    rule = eager(
        "optimizer S; hyper lr = 0.1, k = 0, j = 0\nn = 0*g\nevery k: n = g\nevery j or first: n = 2*g\np -= n"
    )
    p = parameter(2)
    optimizer, start, g = rule([p]), p.detach().clone(), p.grad.clone()
    optimizer.step()
    assert torch.equal(p, start - 2 * g)
    after = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, after)


# Compiling ----------------------------------------------------------------------------------------------------


def trial(name: str, backend: str, dtype: torch.dtype) -> None:
    """Make steps with new step sizes, missing gradients, a new group; no kernel may be new after the first step."""
    text = Path(optlang.rules.__file__).with_name(f"{name}.opt").read_text(encoding="utf-8")
    cls = optimizer_class(f"{text}\n# a class with no kernels so far\n", backend=backend)
    ps, late = parameters(dtype), parameters(dtype)
    optimizer = cls(ps, **STAGED[name])
    start = [p.detach().clone() for p in ps]
    assert compiled_count(cls) == 0
    for p in ps:
        p.grad = None
    optimizer.warmup()
    count = compiled_count(cls)
    assert count > 0 and not optimizer.state and difference(ps, start) == 0
    for step in range(30):
        give(ps, step)
        ps[step % len(ps)].grad = None
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step)
        if step == 20:
            optimizer.add_param_group({"params": late})
        if step >= 20:
            give(late, step)
        optimizer.step()
        assert compiled_count(cls) == count, f"step {step} compiled a kernel"


@pytest.mark.parametrize("name", STAGED)
def test_the_first_step_compiles_nothing_after_a_warmup_and_later_ones_never(name: str) -> None:
    trial(name, "eager", torch.float64)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", ["prodigy", "soap", "lookaheadadamw", "sgld"])
def test_compiled_steps_compile_nothing_after_a_warmup(name: str) -> None:
    trial(name, "auto", torch.float32)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", ["adamwclip", "sgld", "lookaheadadamw"])
def test_compiled_steps_are_those_of_the_interpreted_module(name: str) -> None:
    ps, qs = parameters(torch.float32), parameters(torch.float32)
    ours, plain = optlang.compile(name)(ps, **STAGED[name]), eager(name)(qs, **STAGED[name])
    for step in range(5):
        for members, optimizer in ((ps, ours), (qs, plain)):
            give(members, step)
            members[2].grad = None if step == 1 else members[2].grad
            optimizer.step()
        assert difference(ps, qs) < 1e-5


# Layouts ------------------------------------------------------------------------------------------------------


def turned(t: torch.Tensor) -> torch.Tensor:
    return (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.mT.contiguous().mT if t.dim() > 1 else t
    )


def gapped(t: torch.Tensor) -> torch.Tensor:
    wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1]) if t.dim() else t
    return wide[..., ::2].copy_(t) if t.dim() else t


@pytest.mark.parametrize("arrange", [turned, gapped])
@pytest.mark.parametrize("name", [*STAGED, "conda", "splus"])
def test_how_parameters_lie_in_memory_changes_nothing(name: str, arrange: Callable[..., Any]) -> None:
    ps, qs = parameters(arrange=arrange), parameters()
    if name in ("conda", "splus"):
        ps, qs = ([p for p in members if p.dim() == 2] for members in (ps, qs))
    assert any(not p.is_contiguous() for p in ps)
    given = STAGED.get(name, {})
    ours, usual = eager(name)(ps, **given), eager(name)(qs, **given)
    for step in range(7):
        give(ps, step, arrange if step % 3 else None)
        give(qs, step)
        ps[1].grad = None if step == 3 else ps[1].grad
        qs[1].grad = None if step == 3 else qs[1].grad
        ours.step()
        usual.step()
        assert difference(ps, qs) < 1e-12


@pytest.mark.parametrize("size", [8, 200])
@pytest.mark.parametrize("name", [*STAGED, "conda", "splus"])
def test_how_tensors_are_cut_into_chunks_changes_nothing(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for chunk, stack in ((stages.CHUNK["cpu"], stages.STACK["cpu"]), (size, size)):
        monkeypatch.setitem(stages.CHUNK, "cpu", chunk)
        monkeypatch.setitem(stages.STACK, "cpu", stack)
        ps = [*parameters(), *parameters(), torch.nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))]
        if name in ("conda", "splus"):
            ps = [p for p in ps if p.dim() == 2 and p.numel()]
        if name == "soap":  # what a gradient leaves open of a basis hangs on the last bit
            ps = [p for p in ps if p.shape in ((3, 4), (4,), ())]
        optimizer = eager(name)(ps, **STAGED.get(name, {}))
        for step in range(6):
            give(ps, step)
            ps[3].grad = None if step == 2 else ps[3].grad
            optimizer.step()
        runs.append(ps)
    assert difference(*runs) < 1e-12


# Shared numbers -----------------------------------------------------------------------------------------------


def test_a_shared_state_is_one_number_for_all_groups() -> None:
    ps = [parameter(2, seed=i) for i in range(5)]
    rule = eager(SHARED)
    optimizer = rule([{"params": ps[:2]}, {"params": ps[2:3]}, {"params": ps[3:4], "lr": 0.5}])
    ps[2].grad = None
    total = 1.0
    for step in range(3):
        optimizer.step()
        total += sum(float(p.grad.square().sum()) for p in ps[:4] if p.grad is not None)
        for group in optimizer.param_groups:
            assert group["n"] == step + 1
            assert group["total_of_squares"] == pytest.approx(total, rel=1e-14)
    optimizer.add_param_group({"params": ps[4:]})
    assert optimizer.param_groups[3]["n"] == 3
    assert optimizer.param_groups[3]["total_of_squares"] == optimizer.param_groups[0]["total_of_squares"]
    for p in ps:
        p.grad = None
    optimizer.step()  # nothing to do, so no step
    assert {group["n"] for group in optimizer.param_groups} == {3}
    ps[4].grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert {group["n"] for group in optimizer.param_groups} == {4}
    assert "total_of_squares" not in repr(optimizer)


def test_shared_states_survive_copies() -> None:
    ps = [parameter(3), parameter(2)]
    optimizer = eager("prodigy")([{"params": [p]} for p in ps])
    for _ in range(3):
        optimizer.step()
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    loaded = [torch.nn.Parameter(p.detach().clone()) for p in ps]
    copies.append(eager("prodigy")([{"params": [p]} for p in loaded]))
    copies[-1].load_state_dict(optimizer.state_dict())
    for other in copies:
        members = [p for group in other.param_groups for p in group["params"]]
        assert [g["d"] for g in other.param_groups] == [g["d"] for g in optimizer.param_groups]
        give(members, 5)
        other.step()
    give(ps, 5)
    optimizer.step()
    for other in copies:
        assert difference([p for group in other.param_groups for p in group["params"]], ps) == 0
        assert other.param_groups[1]["d_numerator"] == optimizer.param_groups[0]["d_numerator"]
