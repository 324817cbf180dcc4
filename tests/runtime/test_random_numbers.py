"""Random numbers: the same for a seed wherever and whenever they are drawn, and different in every other respect."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from optimizing import difference, optimizer_class, parameter
from stepping import SHAPES, Twins, eager, values

from optlang import rules
from optlang.artifact import Draw
from optlang.functions.table import RANDOMS
from optlang.identity import Site
from optlang.inputs import Random
from optlang.runtime.rng import Seed, mixed
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NOISE = "optimizer Noise; hyper lr = 1\np -= lr*g + {}"
#: Every kind of draw, and rules that need several passes besides.
RULES = {
    "randn": "p -= lr*(g + randn())",
    "rand": "p -= lr*(g + rand())",
    "rademacher": "p -= lr*(g + rademacher())",
    "bernoulli": "p -= lr*(g + bernoulli(0.3))",
    "several": "m = 0.9*m + randn()*g; p -= lr*(m + randn() - rand()*rademacher())",
    "sums of noise": "p -= lr*(g + randn())/(1 + gnorm(rand()*g))",
    "noise and matrices": """optimizer S
hyper lr = 0.1
u = g + randn()
if ndim >= 2: u = newton_schulz(matrix(u))
p -= lr*u""",
    "in loops and functions": """optimizer S
hyper lr = 0.1
def shaken(x) = x + randn()
u = shaken(g) - shaken(g)
repeat 3: u = shaken(u)
p -= lr*u""",
}


def change(rule: str, ps: list[Any], steps: int = 1, skipped: tuple[int, ...] = (), **given: Any) -> list[torch.Tensor]:
    """Return what steps with gradients of 0 add to parameters."""
    before = [p.detach().clone() for p in ps]
    optimizer = eager(rule)(ps, **given)
    for _ in range(steps):
        for i, p in enumerate(ps):
            p.grad = None if i in skipped else torch.zeros_like(p)
        optimizer.step()
    return [p.detach() - b for p, b in zip(ps, before, strict=True)]


def zeros(*sizes: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


@pytest.mark.parametrize("name", [n for n in RULES if n != "in loops and functions"])
def test_formulas_see_the_numbers_that_are_drawn(name: str) -> None:
    rule = RULES[name]
    given = {} if rule.startswith("optimizer") else {"lr": 0.1}
    twins = Twins(rule, [{"shapes": SHAPES[:3]}, {"shapes": SHAPES[3:]}], seed=7, **given)
    for step in range(4):
        twins.step(step, lambda i, k, step=step: step == 1 and k == 0)
        twins.agree(1e-9, 1e-10)


def test_the_library_sees_them_too() -> None:
    twins = Twins("sgld", [{"shapes": SHAPES[:3]}, {"shapes": SHAPES[3:], "lr": 0.1}], seed=7, weight_decay=0.1)
    for step in range(4):
        twins.step(step, lambda i, k, step=step: step == 1 and k == 0)
        twins.agree()


@pytest.mark.parametrize(
    ("call", "mean", "spread", "low", "high"),
    [
        ("randn()", 0.0, 1.0, -7, 7),
        ("rand()", 0.5, 12**-0.5, 0, 1),
        ("rademacher()", 0.0, 1.0, -1, 1),
        ("bernoulli(0.3)", 0.3, 0.21**0.5, 0, 1),
        ("bernoulli(0)", 0.0, 0.0, 0, 0),
        ("bernoulli(1)", 1.0, 0.0, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(call: str, mean: float, spread: float, low: float, high: float, dtype: torch.dtype) -> None:
    (drawn,) = (-d.double() for d in change(NOISE.format(call), zeros(40_000, dtype=dtype), seed=1))
    assert abs(float(drawn.mean()) - mean) < 0.02
    assert abs(float(drawn.std()) - spread) < 0.02
    assert low <= float(drawn.min()) and float(drawn.max()) <= high
    if call in ("rademacher()", "bernoulli(0.3)"):
        assert sorted(drawn.unique().tolist()) == [low, high]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(np.corrcoef(a.flatten().double().numpy(), b.flatten().double().numpy())[0, 1]))


def test_every_tensor_step_and_call_draws_its_own() -> None:
    rule = NOISE.format("randn()")
    a, b = change(rule, zeros(5000, 5000), seed=1)
    assert correlation(a, b) < 0.05
    optimizer = eager(rule)(ps := zeros(5000), seed=1)
    seen = [ps[0].detach().clone()]
    for _ in range(3):
        ps[0].grad = torch.zeros_like(ps[0])
        optimizer.step()
        seen.append(ps[0].detach().clone())
    steps = [b - a for a, b in pairwise(seen)]
    assert all(correlation(steps[i], steps[j]) < 0.05 for i in range(3) for j in range(i))
    for calls in ("(randn() - randn())", "(rand() - rand())", "(randn() + 0*rand() - randn())"):
        (drawn,) = change(NOISE.format(calls), zeros(5000), seed=1)
        assert float(drawn.abs().max()) > 0.5
    (drawn,) = change(RULES["in loops and functions"], zeros(5000), seed=1)
    assert float(drawn.var()) / 0.01 == pytest.approx(5, abs=0.3)  # two in the first line, three in the loop


TWICE = {
    "a transform": """optimizer S
hyper lr = 1
transform noisy(u):
    return u + randn()
p -= lr*(g |> noisy |> noisy)""",
    "a function": "optimizer S\nhyper lr = 1\ndef f(x) = x + randn()\np -= lr*f(f(g))",
    "a function of a function": "optimizer S\ndef f() = randn()\ndef h(x) = x + f()\np -= h(g) + h(0*g)",
    "an inner rule": "optimizer S\ninner B = SGLD(lr = 0.5, temperature = 1)\nB(p, g)\nB(p, g)",
    "a loop": "optimizer S\nrepeat 2: p -= g + randn()",
    "a loop over a tuple": "optimizer S\nhyper b = (b1 = 1, b2 = 1)\nfor k in b: p -= k*(g + randn())",
}


@pytest.mark.parametrize("name", TWICE)
def test_what_is_written_out_twice_draws_twice(name: str) -> None:
    (drawn,) = change(TWICE[name], zeros(5000), seed=1)
    assert float(drawn.var()) == pytest.approx(2, abs=0.2)  # that of one draw, twice, would be 4


def library() -> dict[str, str]:
    """Return the rules of the library that draw random numbers."""
    texts = {name: rules.path(name).read_text() for name in rules.names()}
    return {name: text for name, text in texts.items() if any(f"{call}(" in text for call in RANDOMS)}


def commented(text: str) -> str:
    """Return the text of a rule with comments at its beginning and behind each line that is no docstring's."""
    lines, inside = ["# A comment."], False
    for line in text.splitlines():
        inside ^= line.count('"""') == 1
        lines.append(line if inside or '"""' in line or not line.strip() else f"{line}  # and a comment")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", [*library(), *(n for n in RULES if "\n" in RULES[n]), *TWICE])
def test_the_look_of_the_text_does_not_matter(name: str) -> None:
    text = {**library(), **RULES, **TWICE}[name]
    changed = commented(text), format_tree(parse(Source(commented(text)))), f"# one\n\n# two\n{text}"
    assert len({text, *changed}) > 2

    def moved(rule: str) -> list[torch.Tensor]:
        params = [parameter(3, 4), parameter(5)]
        optimizer = eager(rule)(params, seed=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = sum((p**4).sum() for p in params)
            if "hvp(" not in text:
                loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return [p.detach() for p in params]

    expected = moved(text)
    for rule in changed:
        assert all(map(torch.equal, moved(rule), expected)), rule


def test_other_calls_do_not_matter_either() -> None:
    rule = "optimizer S\nhyper lr = 1{}\n{}p -= lr*(g + randn())"
    (alone,) = change(rule.format("", ""), zeros(50), seed=1)
    for added in ("u = gnorm(g)\n", "repeat 2: g *= 1\n", "u = eye(3)[0, 0]\n"):
        (drawn,) = change(rule.format("", added), zeros(50), seed=1)
        assert torch.equal(drawn, alone), added


def test_a_seed_says_it_all() -> None:
    rule = RULES["several"]
    runs = [change(rule, zeros(50, 7), 3, lr=0.1, seed=seed) for seed in (3, 3, 4, 2**64 - 1, 0)]
    assert difference(runs[0], runs[1]) == 0
    for i, run in enumerate(runs[1:]):
        assert all(difference(run, other) > 0.1 for other in runs[i + 2 :])
    torch.manual_seed(5)
    one = eager("sgld")(zeros(3))
    torch.manual_seed(5)
    two, three = eager("sgld")(zeros(3), seed=None), eager("sgld")(zeros(3))
    assert one.param_groups[0]["seed"] == two.param_groups[0]["seed"] != three.param_groups[0]["seed"]
    before = torch.get_rng_state()
    change(rule, zeros(3), 2, lr=0.1, seed=1)
    assert torch.equal(before, torch.get_rng_state())  # torch's own generator is left alone


def test_what_others_do_changes_nothing() -> None:
    rule = NOISE.format("randn()")
    sizes = (5, 3, 40)
    all_of_them = change(rule, zeros(*sizes), 3, seed=1)
    without = change(rule, zeros(*sizes), 3, (0,), seed=1)
    assert difference(all_of_them[1:], without[1:]) == 0
    ps = zeros(*sizes)
    optimizer = eager(rule)([{"params": ps[:1]}, {"params": ps[1:], "lr": 2.0}], seed=1)
    for _ in range(3):
        for p in ps:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert difference(ps, all_of_them) == 0
    optimizer.add_param_group({"params": zeros(4)})
    assert optimizer.param_groups[2]["seed"] == 1
    # One that missed a step draws in its second update what others draw in theirs.
    late = zeros(*sizes)
    optimizer = eager(rule)(late, seed=1)
    for step in range(4):
        for i, p in enumerate(late):
            p.grad = None if i == 1 and step == 1 else torch.zeros_like(p)
        optimizer.step()
    assert difference(late[1:2], all_of_them[1:2]) == 0


def test_sizes_and_layouts() -> None:
    rule = NOISE.format("randn()")
    start = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    ways = [
        start.clone(),
        start.contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 10, dtype=torch.float64)[..., ::2],
    ]
    drawn = [change(rule, [torch.nn.Parameter(t)], seed=1)[0] for t in ways]
    assert difference(drawn[:1] * 2, drawn[1:]) == 0
    empty, number = change(rule, [parameter(0, 3), parameter()], seed=1)
    assert empty.shape == (0, 3) and float(number) != 0
    complex_one = torch.nn.Parameter(torch.zeros(4000, dtype=torch.complex128))
    (z,) = change(rule, [complex_one], seed=1)
    assert float(z.real.std()) == pytest.approx(1, abs=0.05) and correlation(z.real, z.imag) < 0.05
    (narrow,) = change(rule, zeros(4000, dtype=torch.bfloat16), seed=1)
    assert narrow.dtype is torch.bfloat16 and float(narrow.float().std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "3", math.nan, math.inf, [1]])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"SGLD: seed must be an integer from 0 to 2\*\*64 - 1, got "):
        eager("sgld")(zeros(3), seed=seed)
    (p,) = zeros(3)
    optimizer = eager("sgld")([p], seed=np.int64(4))
    assert optimizer.param_groups[0]["seed"] == 4
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy((p.detach(), optimizer.state_dict()["state"]))
    optimizer.param_groups[0]["seed"] = seed
    with pytest.raises(ValueError, match="seed must be an integer"):
        optimizer.step()
    assert str(before) == str((p.detach(), optimizer.state_dict()["state"]))
    optimizer.param_groups[0]["seed"] = 4
    optimizer.step()


def test_seeds_are_for_rules_that_draw() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'seed'"):
        eager("adamw")(zeros(3), seed=1)
    assert "seed" not in eager("adamw")(zeros(3)).param_groups[0]
    assert "seed" in str(eager("sgld").__signature__) and "seed (int, optional)" in (eager("sgld").__doc__ or "")


def test_bits_are_mixed_well() -> None:
    found = {mixed(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(found) == 8000 and all(0 <= x < 2**64 for x in found)
    bits = np.array([[x >> i & 1 for i in range(64)] for x in found])
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.03)
    memory = torch.empty(3)
    seed = Seed([{"params": [memory], "seed": 5}])
    seed.fill(memory, Draw(Random(Site((0,))), "randn"), memory, 1)
    first = memory.tolist()
    seed.fill(memory, Draw(Random(Site((1,))), "randn"), memory, 1)
    assert memory.tolist() != first
    seed.fill(memory, Draw(Random(Site((0,))), "randn"), memory, 1)
    assert memory.tolist() == first


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["randn", "several"])
def test_backends_draw_the_same(name: str) -> None:
    ps, qs = ([torch.nn.Parameter(values(s, torch.float32, i)) for i, s in enumerate(SHAPES)] for _ in range(2))
    ours = optimizer_class(RULES[name], backend="auto")(ps, lr=0.1, seed=3)
    plain = eager(RULES[name])(qs, lr=0.1, seed=3)
    for step in range(3):
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad = q.grad = None if step == i == 1 else values(SHAPES[i], torch.float32, 10 * step + i)
        ours.step()
        plain.step()
    assert difference(ps, qs) < 1e-6
