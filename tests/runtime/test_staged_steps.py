"""Steps in passes against the interpreter: sums over the whole model, shared numbers, `every`, matrices, layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import parameter
from other_bases import one_basis
from stepping import SHAPES, Twins, eager, values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # rules that begin oddly

#: Rules of their own kinds: what is summed, when, and what happens to it afterwards.
RULES = {
    "a norm": "p -= lr*g/(1 + gnorm(g))",
    "a norm of a state": "m = 0.9*m + g; p -= lr*m/(1 + gnorm(m))",
    "one sum after another": "x = total(g^2); m = 0.9*m + g/(1 + sqrt(x)); p -= lr*m*total(m*g)",
    "a sum of what was updated": "m = 0.9*m + g; p -= lr*m; p *= 1/(1 + gnorm(p))",
    "first without states": "p -= lr*g*(2 if first else 1)/(1 + gnorm(g))",
    "a sum of numbers": "p -= lr*g/total(0*p + 1)",
    "facts": "p -= lr*g*numel*rows/(cols + 1)/(1 + gnorm(g))",
    "facts in states on the host": """optimizer S
hyper lr = 0.1
state c: scalar = cols
c = c/numel + rows
p -= lr*g*c/(1 + gnorm(g))""",
    "facts in periods": "optimizer S; hyper lr = 0.1\nevery rows + 1 or first: p -= lr*g*numel\np -= lr*g",
    "a shared state": "optimizer S; hyper lr = 0.1; shared state s = 0; s += total(g^2); p -= lr*g/(1 + s)",
    "a shared state and its past": """optimizer S
hyper lr = 0.1
shared state s = 0
shared state r = 1
state c: scalar = 0
old = s
s = 0.5*s + total(g^2)
r = r*2 if s > 3 else r/2
c += r
p -= lr*g/(1 + s + old) + c*0.01""",
    "a shared state of its time": """optimizer S
hyper lr = 0.1
shared state s = 0
group state q = 0
q += lr
s += t*total(g^2)
p -= lr*g/(1 + s)*q""",
    "sums in some variants only": """optimizer S
hyper lr = 0.1
if ndim == 2: u = g/(1 + gnorm(g))
else: u = g/(2 + gnorm(p))
p -= lr*u""",
    "a sum behind one that some variants lack": """optimizer S
hyper lr = 0.1
a = 0
if ndim == 2: a = gnorm(g)
p -= lr*g/(1 + gnorm(p) + a)""",
    "a sum beside one that some variants lack": """optimizer S
hyper lr = 0.1
a = (gnorm(g) if ndim == 2 else 0) + gnorm(p)
p -= lr*g/(1 + a)""",
    "sums in a function and a loop": """optimizer S
hyper lr = 0.1
def scaled(x, k) = x/(k + gnorm(x))
u = g
repeat 3: u = scaled(u, 0.5) + scaled(g, 2)
for k in betas: u = scaled(u, k)
p -= lr*u
hyper betas = (a = 0.5, b = 2)""",
    "every": """optimizer S
hyper lr = 0.1, k = 3
state slow = p
p -= lr*g
every k:
    p = lerp(slow, p, 0.5)
    slow = p""",
    "every from and or first": """optimizer S
hyper lr = 0.1, k = 2
state n: scalar = 0
state m
m = 0.9*m + g
every k from 3:
    n += 1
    m = 0
every 3 or first: m *= 2
p -= lr*m*n + lr*g""",
    "sums that are not always due": """optimizer S
hyper lr = 0.1
state m
shared state s = 1
m = 0.9*m + g
every 2: m = m/(1 + gnorm(m))
every 3 or first: s = s + total(g^2)
p -= lr*m/s""",
    "rows before a sum": """optimizer S
hyper lr = 0.1
x = mean(g^2, dim=-1) if ndim >= 1 else g^2
p -= lr*g/(1 + sqrt(x) + gnorm(g))""",
    "a norm handed on": "n = norm(g); u = g/(1 + n); p -= lr*u/(1 + n + gnorm(u))",
    "matrices before a sum": """optimizer S
hyper lr = 0.1
state m
m = 0.9*m + g
if ndim >= 2: u = newton_schulz(matrix(m))
else: u = m
p -= lr*u/(1 + gnorm(u))""",
    "elements around matrices": """optimizer S
hyper lr = 0.1
state m
m = 0.9*m + g
u = m/(1 + abs(m))
if ndim >= 2: u = u + matrix(u) @ matrix(u).T @ matrix(u)
w = u*p
p -= lr*(w + m)/(1 + norm(w))""",
    "matrices that are not always due": """optimizer S
hyper lr = 0.1
state L = zeros(rows(matrix(p)), rows(matrix(p))) when ndim >= 2
u = g
if ndim >= 2:
    every 2 or first: L = 0.5*L + matrix(g) @ matrix(g).T
    u = L @ matrix(g)
p -= lr*u/(1 + gnorm(u))""",
}
LIBRARY: dict[str, dict[str, Any]] = {
    "prodigy": {},
    "dog": {},
    "ldog": {},
    "avagrad": {},
    "dadaptadam": {},
    "dadaptsgd": {},
    "dadaptlion": {},
    "adamwclip": {},
    "lookaheadadamw": {"k": 3},
    "lookaheadsgd": {"k": 2, "momentum": 0.9, "pullback_momentum": "pullback"},
    "shampoo": {"preconditioning_compute_steps": 2, "matrix_eps": 0.1},
    "galoreadamw": {"rank": 2, "update_proj_gap": 3},
}


def sometimes(step: int) -> Callable[[int, int], bool]:
    """Return which parameters have no gradient in a step: now and then every other one, or a whole group."""
    if step % 4 == 1:
        return lambda i, k: (i + k) % 2 == 0
    return (lambda i, k: i == 1) if step % 4 == 2 else lambda i, k: False


@pytest.mark.parametrize("name", [*RULES, *LIBRARY])
def test_steps_are_those_of_the_interpreter(name: str) -> None:
    rule, given = RULES.get(name, name), LIBRARY.get(name, {})
    if name in RULES and not rule.startswith("optimizer"):
        given = {"lr": 0.1}
    twins = Twins(rule, [{"shapes": SHAPES[:4]}, {"shapes": SHAPES[4:], "lr": 0.05}], **given)
    with one_basis():
        for step in range(9):
            twins.step(step, sometimes(step))
            twins.agree(1e-9, 1e-10)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("adamwclip", [{"maximize": True}, {"amsgrad": True}]),
        ("prodigy", [{"safeguard_warmup": True}, {"bias_correction": True, "maximize": True}]),
        ("prodigy", [{"growth_rate": 1.02, "beta3": 0.9}, {"fixed_decay": True, "weight_decay": 0.1}]),
        ("dog", [{"weight_decay": 0.1}, {"maximize": True, "lr": 0.5}]),
        ("avagrad", [{"weight_decay": 0.1, "weight_decouple": False}, {"weight_decay": 0.1}]),
        ("lookaheadsgd", [{"momentum": 0.9, "pullback_momentum": "reset", "k": 2}, {"k": 3}]),
        ("galoreadamw", [{"rank": 2, "update_proj_gap": 2, "projection_type": "full"}, {}]),
        ("shampoo", [{"momentum": 0.5, "matrix_eps": 0.1}, {"matrix_eps": 0.2, "weight_decay": 0.1}]),
    ],
)
def test_groups_may_have_other_flags(name: str, given: list[dict[str, Any]]) -> None:
    twins = Twins(name, [{"shapes": SHAPES[:4], **given[0]}, {"shapes": SHAPES[4:], **given[1]}])
    with one_basis():
        for step in range(7):
            twins.step(step, sometimes(step))
            twins.agree(1e-9, 1e-10)


@pytest.mark.parametrize("name", ["prodigy", "dog", "avagrad", "dadaptadam", RULES["a shared state of its time"]])
@pytest.mark.parametrize("without", [(0,), (0, 1, 2), (2, 3), tuple(range(8))])
def test_the_first_group_may_have_no_gradients(name: str, without: tuple[int, ...]) -> None:
    twins = Twins(name, [{"shapes": SHAPES[:4], "lr": 0.5}, {"shapes": SHAPES[4:]}])
    for step in range(8):
        twins.step(step, lambda i, k, step=step: i == 0 and step in without)
        twins.agree(1e-9, 1e-10)


def test_turns_of_a_basis_are_those_of_the_interpreter() -> None:
    groups = [{"shapes": [(3, 4), (4,), ()]}, {"shapes": [(3, 2), (2, 3, 1), (3, 4)], "lr": 0.05}]
    twins = Twins("soap", groups, precondition_frequency=2)
    for step in range(9):
        twins.step(step, sometimes(step))
        twins.agree(1e-8, 1e-9, states=False)  # vectors of a basis have signs of their own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["a norm of a state", "every", "matrices before a sum", "rows before a sum"])
def test_other_number_types_come_close(name: str, dtype: torch.dtype) -> None:
    twins = Twins(RULES[name], [{"shapes": SHAPES[:4]}, {"shapes": SHAPES[4:]}], dtype=dtype, lr=0.1)
    close = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    for step in range(3):
        twins.step(step, sometimes(step))
    for members, arrays in zip(twins.parameters, twins.arrays, strict=True):
        for p, array in zip(members, arrays, strict=True):
            torch.testing.assert_close(p.detach().double(), torch.from_numpy(array), rtol=close, atol=close)
    assert all(p.dtype is dtype for members in twins.parameters for p in members)


def test_number_types_meet_in_one_sum() -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float64]
    ps = [torch.nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in dtypes]
    for p in ps:
        p.grad = torch.full_like(p, 2.0)
    eager("p -= g/gnorm(g)")(ps).step()
    for p in ps:
        torch.testing.assert_close(p.detach().double(), torch.full((3,), -(12**-0.5)).double(), rtol=1e-2, atol=0)
    assert ps[0][0].item() == pytest.approx(-(12**-0.5), rel=1e-15)


def test_complex_parameters_are_pairs_of_reals() -> None:
    a = parameter(4, dtype=torch.complex128)
    b = torch.nn.Parameter(torch.view_as_real(a.detach()).clone())
    c, d = parameter(3), parameter(3)
    rule = eager("m = 0.9*m + g; every 2: m *= 2\np -= lr*m/(1 + gnorm(m + g))")
    ours, pairs = rule([a, c], lr=0.1), rule([b, d], lr=0.1)
    for step in range(4):
        g = values((4, 2), torch.float64, step)
        a.grad, b.grad = torch.view_as_complex(g), g
        ours.step()
        pairs.step()
        torch.testing.assert_close(torch.view_as_real(a.detach()), b.detach(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(c, d, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match=r"parameter 0 .* is complex, but SOAP "):
        matrix = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        matrix.grad = torch.ones_like(matrix)
        eager("soap")([matrix]).step()


@pytest.mark.parametrize("rule", ["prodigy", "dog", "avagrad", "adamwclip", "dadaptsgd"])
def test_sums_do_not_depend_on_batches(rule: str) -> None:
    shapes = [*SHAPES, (300,), (7, 50)]
    start = [values(shape, torch.float64, i) for i, shape in enumerate(shapes)]
    ways: list[Callable[[list[Any]], Any]] = [
        lambda ps: ps,
        lambda ps: [{"params": [p]} for p in ps],
        lambda ps: ps[::-1],
        lambda ps: [{"params": ps[::2]}, {"params": ps[1::2]}],
    ]
    runs = []
    for way in ways:
        ps = [torch.nn.Parameter(t.clone()) for t in start]
        optimizer = eager(rule)(way(ps))
        for step in range(6):
            for i, p in enumerate(ps):
                p.grad = values(shapes[i], torch.float64, 100 * step + i)
            optimizer.step()
        runs.append(ps)
    for other in runs[1:]:
        for p, q in zip(runs[0], other, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-15, atol=1e-300)
