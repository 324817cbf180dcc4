"""The modules of the target ``torchscript`` work on chunks of large tensors and on packs of small ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted import module_of, reloaded
from trajectories import library_class

import optlang
from optlang.api import load
from optlang.compiler import compile_source
from optlang.targets import Order, torchscript
from optlang.targets.torchscript import runtime

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def drawn(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def apart(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest number."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def compared(name: str, begin: list[torch.Tensor], steps: int = 3, **values: Any) -> float:
    """Return how far a module and the class are apart after some steps from the same tensors."""
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    optimizer, module = library_class(name)(theirs, **values), module_of(name, **values)
    for i in range(steps):
        grads = drawn([tuple(p.shape) for p in begin], i, begin[0].dtype)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
        module.step(ours, grads)
    return apart(ours, theirs)


#: Several chunks; rows that are longer than a chunk, and ones that are short; a rest that is no chunk.
LARGE = [(70_001,), (300, 220), (2, 40_000), (40_000, 2), (3, 5, 60, 90)]


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Adafactor", "LAMB", "AdamWClip", "SM3", "Adamax"])
def test_large_tensors_take_the_steps_of_the_class(name: str) -> None:
    shapes = [shape for shape in LARGE if name != "Adafactor" or len(shape) < 4]
    assert compared(name, drawn(shapes, 9)) < 2e-6
    assert compared(name, drawn(shapes, 9, torch.float64), 2) < 1e-13


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_large_tensors_in_sixteen_bits(name: str) -> None:
    assert compared(name, drawn([(70_001,), (300, 220)], 9, torch.bfloat16)) < 1e-6


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_layouts_of_large_tensors(name: str) -> None:
    (x,) = drawn([(300, 220)], 9)
    assert compared(name, [x.t()]) < 2e-6
    assert compared(name, [x[:, 10:200]]) < 2e-6


def test_a_tensor_of_several_pieces() -> None:
    assert compared("AdamW", drawn([(2_200_000,), (1500, 800)], 9)) < 2e-6


#: What is in the way of putting results where they are stored, or in memory that is free again.
CORNERS = """optimizer Corners
hyper lr = 0.1, cut = 0.5
state m
state s
state a = 1
u = f32(m*g)
w = m*m + g
x = g if first else u*w + 1/w
old = m
m = s
s = 0.9*old + g
a = x if t > 2 else 0.5*a - x
v = max(w, u, 0.25) if g > cut else 2/(1 + w^2)
y = -(g - p)*2 - exp(-abs(x))/sqrt(1 + norm(g)^2)
p -= lr*(v + bf16(w)*u + 0.01*y*sign(w) + 3 - w**3/7 + abs(w)**0.5 + mean(v)*max(abs(x)))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_corners_of_expressions(dtype: torch.dtype) -> None:
    begin = [p.abs() for p in drawn([(5,), (70_000,), (300, 200)], 8, dtype)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    optimizer, module = optlang.compile(CORNERS, backend="eager")(theirs), module_of(CORNERS)
    for i in range(4):
        grads = [0.1 * g.abs() for g in drawn([tuple(p.shape) for p in begin], i, dtype)]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
        module.step(ours, grads)
    for state in ("m", "s", "a"):
        found = [module.state(state, j) for j in range(3)]
        assert apart(found, [optimizer.state[p][state] for p in theirs]) < (1e-7 if dtype is torch.float32 else 3e-15)
    assert apart(ours, theirs) < (1e-7 if dtype is torch.float32 else 3e-15)


SMALL = [*[(5,), (), (3, 4), (7, 2, 2)] * 5, (9000,), *[(4000,)] * 40]


def stepped(module: Any, ours: list[torch.Tensor], optimizer: Any, theirs: list[torch.Tensor], i: int) -> None:
    """Make a step of both, in which another parameter has no gradient every second time."""
    grads = drawn([tuple(p.shape) for p in ours], i, ours[0].dtype)
    if i % 4 > 1:
        grads[i % 3] = torch.empty(0)
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g if g.numel() else None
    optimizer.step()
    module.step(ours, grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Lion", "NAdam"])
def test_packs_take_the_steps_of_the_class(name: str, dtype: torch.dtype) -> None:
    begin = drawn(SMALL, 8, dtype)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    optimizer, module = library_class(name)(theirs), module_of(name)
    for i in range(8):
        if i == 5:
            module = reloaded(module)
        stepped(module, ours, optimizer, theirs, i)
    assert apart(ours, theirs) < (1e-14 if dtype is torch.float64 else 1e-6)
    for j in (0, 1, 2, 3, 20, 40):
        assert module.state("step", j).item() == {0: 6, 1: 7, 2: 7}.get(j, 8)
        found = module.state("exp_avg", j)
        assert found.shape == ours[j].shape
        assert apart([found], [optimizer.state[theirs[j]]["exp_avg"]]) < 1e-6


def test_groups_are_packed_apart_and_may_differ_at_any_time() -> None:
    begin = drawn(SMALL, 8)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    halves = {"params": theirs[:30], "lr": 0.1}, {"params": theirs[30:], "weight_decay": 0.5}
    optimizer, module = library_class("AdamW")(halves), module_of("AdamW")
    module.set_groups([30, len(SMALL) - 30])
    module.set_hyper("lr", 0.1, 0)
    module.set_hyper("weight_decay", 0.5, 1)
    for i in range(4):
        if i == 2:
            optimizer.param_groups[1]["lr"] = 0.3
            module.set_hyper("lr", 0.3, 1)
        stepped(module, ours, optimizer, theirs, i)
    assert apart(ours, theirs) < 1e-6


def test_states_of_other_formulas_stay_out_of_packs() -> None:
    """The momentum that some parameters have from before is kept, and found again."""
    begin = drawn([(10,)] * 6, 8)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    optimizer, module = library_class("SGD")(theirs, lr=0.1), module_of("SGD", lr=0.1)
    for i, momentum in enumerate((0.9, 0.9, 0.0, 0.9, 0.9)):
        optimizer.param_groups[0]["momentum"] = momentum
        module.set_hyper("momentum", momentum)
        grads = drawn([(10,)] * 6, i)
        grads[0] = grads[0] if i > 1 else torch.empty(0)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g if g.numel() else None
        optimizer.step()
        module.step(ours, grads)
    assert apart(ours, theirs) == 0


def test_a_parameter_may_get_another_layout() -> None:
    begin = drawn([(30, 20)] * 6, 8)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begin] for _ in range(2))
    optimizer, module = library_class("AdamW")(theirs), module_of("AdamW")
    for i in range(5):
        if i in (2, 4):
            ours[1].data = ours[1].data.t().contiguous().t() if i == 2 else ours[1].data.contiguous()
        grads = drawn([(30, 20)] * 6, i)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
        module.step(ours, grads)
        assert ours[1].is_contiguous() == (i not in (2, 3))
    assert apart(ours, theirs) < 1e-6


def test_a_copy_goes_on_by_itself() -> None:
    module, ours = module_of("AdamW"), drawn(SMALL, 8)
    module.step(ours, drawn(SMALL, 1))
    other, theirs = copy.deepcopy(module), [p.clone() for p in ours]
    module.step(ours, drawn(SMALL, 2))
    other.step(theirs, drawn(SMALL, 2))
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(module.state("exp_avg", 4), other.state("exp_avg", 4))
    module.step(ours, drawn(SMALL, 3))
    assert not torch.equal(module.state("exp_avg", 4), other.state("exp_avg", 4))


def test_autograd_is_as_it_was_after_a_step() -> None:
    """A method that waits for its tasks goes on in another thread: what it sets for its own thread would stay set."""
    module = module_of("AdamW")
    params = [torch.nn.Parameter(p) for p in drawn([(5,), (6,), (40_000,), (2_000_000,)], 8)]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for _ in range(3):
                grads = [g.requires_grad_() for g in drawn([tuple(p.shape) for p in params], 1)]
                module.step(params, grads)
                assert torch.is_grad_enabled() is enabled
    assert all(p.is_leaf and p.grad_fn is None and p.requires_grad for p in params)


def test_nothing_of_parameters_is_kept_between_steps() -> None:
    module, ours = module_of("AdamW"), drawn([(1000,)] * 8, 8)
    module.step(ours, drawn([(1000,)] * 8, 1))
    assert sum(t.numel() for held in module.views for t in held) == 0
    assert sum(t.numel() for held in module.flats for t in held) == 2 * 8 * 1000


def test_what_is_around_the_formulas_runs_as_python_and_as_torchscript() -> None:
    shapes = [(3,), (2, 2), (100_000,), (4, 30_000), ()]
    for module in (runtime.ScriptedRule(), torch.jit.script(runtime.ScriptedRule())):
        module.set_groups([2, 3])
        module.set_hyper("lr", 0.5, 1)
        params, grads = drawn(shapes, 1), drawn(shapes, 2)
        expected = [p - (0.1 if i < 2 else 0.5) * g for i, (p, g) in enumerate(zip(params, grads, strict=True))]
        module.step(params, grads)
        torch.testing.assert_close(params, expected)
        assert module.state("step", 0).item() == 1 and module.groups() == [2, 3]


def test_results_are_put_where_they_are_stored() -> None:
    """A step of AdamW makes no tensor of elements: its operations write to three chunks of memory and to the states."""
    text = torchscript.text(Order(compile_source(load("adamw")), {}))
    body = text.partition("def _update_0")[2].partition("\n\n\n")[0].partition("    for _i")[2]
    operations = re.findall(r"^ +torch\.\w+\(.*$", body, re.MULTILINE)
    assert len(operations) == 14 and all("out=" in line for line in operations)
    assert "_b[2]" in body and "_b[3]" not in body
    assert [re.search(rf"out={name}_mem\)", body) is not None for name in "pmvg"] == [True, True, True, False]
