"""Short functions of rules as the library has none: they do what the class does."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import optlang

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def function_of(rule: str, ndim: int = 1) -> Callable[..., None]:
    """Return the function of a rule that is called A."""
    text = optlang.export(rule, "plain", ndim=ndim)
    assert isinstance(text, str)
    made = types.ModuleType("plain")
    exec(compile(text, "<plain>", "exec"), made.__dict__)
    found: Callable[..., None] = made.a
    return found


def moved(rule: str, shape: Sequence[int] = (5,), steps: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the class and the function take a parameter."""
    generator = torch.Generator().manual_seed(3)
    begin = torch.randn(shape, dtype=torch.float64, generator=generator)
    p, q = torch.nn.Parameter(begin.clone()), begin.clone()
    made: Any = optlang.compile(rule, backend="eager")
    optimizer, function, states = made([p]), function_of(rule, len(shape)), [dict[str, Any]()]
    for _ in range(steps):
        g = torch.randn(shape, dtype=torch.float64, generator=generator)
        p.grad = g.clone()
        optimizer.step()
        given = g.clone()
        function([q], [given], states)
        assert torch.equal(given, g), "the gradient has been changed"
        given.fill_(1e6)  # as a loop that adds gradients up in place does
    return p.detach(), q


def agree(rule: str, shape: Sequence[int] = (5,), **options: Any) -> None:
    """Assert that the class and the function go the same way."""
    by_class, by_function = moved(rule, shape, **options)
    torch.testing.assert_close(by_function, by_class, rtol=1e-12, atol=1e-12)


HEAD = "optimizer A\nhyper lr = 0.1\n"


@pytest.mark.parametrize(
    "rule",
    [
        HEAD + "state m\nm = 0.9*m + g\nm = 0.9*m + g\np -= lr*m\n",
        HEAD + "hyper n = 2\nrepeat n: p -= lr*g\n",
        HEAD + "u = g\nrepeat 3: u = u^2 + 0.1\np -= lr*u\n",
        HEAD + "state m\nif t > 2:\n    m = 0.9*m + g\n    p -= lr*m\nelse:\n    m = 0.9*m + g\n    p -= 2*lr*m\n",
        "optimizer A\ninner B = AdamW(lr = 0.1)\nB(p, g)\nB(p, g)\n",
        "optimizer A\ninner B = AdamW(lr = 0.1)\nif norm(g) > 2: B(p, g)\nelse: B(p, g/norm(g))\n",
        HEAD + "if t > 2: unused = g\np -= lr*g\n",
        HEAD + "if t > 2: unused = g\nelse: p -= lr*g\n",
    ],
)
def test_a_line_that_is_there_twice_is_done_twice(rule: str) -> None:
    agree(rule)


def test_what_is_known_before_the_step_is_computed_once() -> None:
    text = optlang.export(HEAD + "state m = zeros(k, 2)\nk = min(rows, 3)\np -= lr*k*g\n", "plain", ndim=2)
    assert isinstance(text, str)
    assert text.count("k = min(") == 2  # where the state starts, and in the step


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (HEAD + "state last = p\nd = p - last\nlast = p\np += 0.9*d - lr*g\n", (5,)),
        (HEAD + "state last = p\nhere = p\np = p + 0.9*(p - last) - lr*g\nlast = here\n", (5,)),
        (HEAD + "state last\np -= lr*(g - last)\nlast = g\n", (5,)),
        (HEAD + "state last\np -= lr*(g - last)\nlast = g if t % 2 == 0 else p\n", (5,)),
        (HEAD + "state last = zeros(cols, rows)\np -= lr*(g - last.T)\nlast = g.T\n", (3, 4)),
        (HEAD + "state last = zeros(rows)\np -= lr*(g - last[0])\nlast = g[:, 0]\n", (3, 4)),
        (HEAD + "state last = 0*flatten(p)\np -= lr*(g - last[0])\nlast = flatten(g)\n", (3, 4)),
        (HEAD + "state last: scalar = zeros(2)[0]\np -= lr*(g - last)\nlast = flatten(g)[0]\n", (3, 4)),
        (HEAD + "state last, m\nm = 0.9*m + g\nlast = m\np -= lr*(last + g)\n", (5,)),
    ],
)
def test_states_have_memory_of_their_own(rule: str, shape: tuple[int, ...]) -> None:
    agree(rule, shape)


def test_only_what_could_share_memory_is_copied() -> None:
    text = optlang.export("AdamW", "plain")
    assert isinstance(text, str) and ".clone()" not in text


@pytest.mark.parametrize(
    "rule",
    [
        HEAD + "state m\nm = 0.9*m + g\nmask = m*g > 0\np -= lr*m*mask/(mean(mask) + 1e-3)\n",
        HEAD + "a, b = g > 0, p > 0\np -= lr*(a - b)*g\n",
        HEAD + "for c in (g > 0, p > 0): p -= lr*c*g\n",
        HEAD + "state seen = g > 0\nseen = seen or g > 0\np -= lr*(1 - seen)*g if seen else 0*p\n",
        HEAD + "state big: scalar = 0\nbig = norm(g) > 2\np -= lr*g - 0.1*big\nif big: p -= lr*g\n",
        HEAD + "c = not (g > 0 and p)\np -= lr*(-c)*g + max(c, g) - sum(c)\n",
        HEAD + "late = t > 2\np -= lr*(g - late)*max(late, 0.5)\n",
        HEAD + "both = t > 1 and lr\np -= (g - both)*lr\n",
        HEAD + "p -= lr*(g - first)*isfinite(g)*(g - isfinite(lr))\n",
        HEAD + "u = (g > 0 if t > 2 else p > 0)\np -= lr*(u - 2)\n",
        HEAD + "u = true if g > 0 else 0.5\np -= lr*u\n",
    ],
)
def test_conditions_count_as_numbers(rule: str) -> None:
    agree(rule)


@pytest.mark.parametrize(
    "rule",
    [
        HEAD + "state m: scalar\nevery 2: m = norm(g)\np -= lr*sqrt(m)*g\n",
        HEAD + "state m\nif t < 3: m = t\nelse: m = norm(g)\np -= lr*mean(m)*g\n",
        HEAD + "u = 4\nif t > 2: u = norm(g)\np -= lr*sqrt(u)*g\n",
    ],
)
def test_a_name_is_of_one_kind_in_all_branches(rule: str) -> None:
    agree(rule)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("rule", ["p -= lr*g/(rows + cols)\n", "p -= lr*g/(rows(g) + cols(g))\n"])
def test_a_tensor_without_rows_has_one(rule: str, shape: tuple[int, ...]) -> None:
    agree(HEAD + rule, shape)


def test_one_function_is_for_all_tensors_where_nothing_asks_for_their_dimensions() -> None:
    function = function_of(HEAD + "p -= lr*g/rows\n", 2)
    for shape in ((), (5,), (4, 3)):
        p = torch.zeros(shape)
        function([p], [torch.ones(shape)], [{}])
        assert torch.allclose(p, torch.full(shape, -0.1 / (4 if shape == (4, 3) else 1)))


def test_sums_over_all_dimensions_but_one_are_for_tensors_of_as_many() -> None:
    function = function_of(HEAD + "p -= lr*g/norm(g, dim=1:)\n", 2)
    with pytest.raises(ValueError, match="2 dimensions"):
        function([torch.ones(2, 3, 4)], [torch.ones(2, 3, 4)], [{}])
