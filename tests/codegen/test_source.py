"""The generated source: it does what the rule says, whatever the names, numbers and types, and reads well."""

from __future__ import annotations

import pytest
import torch
from agreement import HEAD, agree
from stepping import Twins
from trajectories import feed, gradients, start, tensors
from work import calls

import optlang
from optlang.classes import class_of
from optlang.compiler import compile_source, example_variant
from optlang.source import Source


def source(text: str) -> str:
    return example_variant(compile_source(Source(text))).source


# Names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lambda", "c", "c1", "s1", "x1", "math", "torch", "float", "host_max", "update", "group_t", "p_1", "q_new"]
)
def test_any_name_may_be_a_state_a_hyperparameter_or_a_local(name: str) -> None:
    rest = "p -= lr*b*max(lr, 1/t)*norm(g)*sign(g)*(1 + group.t)"
    agree(f"{HEAD}state m, {name}: scalar = 1\n{name} = lr*{name} + 1\nm = g\n{rest}*{name}*m")
    agree(f"{HEAD}group state {name} = 1\n{name} = lr*{name} + group.t\n{rest}*{name}")
    agree(f"{HEAD}state {name}\np -= g*{name}\n{name} = lr*norm(g)*g\n{rest}")
    agree(f"{HEAD}hyper {name} = 0.7\n{rest}*max({name}, lr*t)")
    agree(f"{HEAD}{name} = g*norm(g)\n{rest}*{name}*norm({name})")


@pytest.mark.parametrize("name", ["c", "c1", "m_1", "x1"])
def test_a_state_that_is_only_written_keeps_its_name_apart(name: str) -> None:
    text = f"{HEAD}state m, {name}\nm = b*m + (1 - b)*g\n{name} = 2*m\np -= lr*m/(1 - b^t)"
    params = tensors(start(), torch.float64)
    optimizer = class_of(Source(text), None, "eager")(params)
    feed(optimizer, params, gradients(steps=2))
    for p in params:
        torch.testing.assert_close(optimizer.state[p][name], 2 * optimizer.state[p]["m"])


# Values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    [
        "0/0 + g",
        "inf - inf + g",
        "0*inf + g",
        "g*(lr - lr)^-1",
        "0^-t + g",
        "bf16(lr)",
        "f32(lr*t)",
    ],
)
def test_numbers_follow_ieee(formula: str) -> None:
    agree(f"{HEAD}x = lr + b\np -= ({formula}) + 0.001*g*x")


def test_a_divisor_that_algebra_finds_to_be_zero_is_no_crash() -> None:
    assert "math.inf" in optlang.emit(f"{HEAD}x = lr + b\np -= g/(x - lr - b)")


@pytest.mark.parametrize("value", ["lr", "2", "norm(g)", "mean(g, dim=-1)", "lr*t", "t > 2"])
@pytest.mark.parametrize("state", ["m", "m = g", "m = 0*mean(g, dim=-1)"])
def test_a_smaller_value_is_spread_over_the_state_that_gets_it(value: str, state: str) -> None:
    agree(f"{HEAD}state {state}\nm = {value}\np -= lr*b*sum(m)*g + mean(sqrt(abs(m)), dim=-1)")
    agree(f"{HEAD}state {state}\nif t > 2: m = {value}\np -= lr*b*sum(m)*g")


def test_a_condition_in_a_local_is_a_number_in_arithmetic() -> None:
    agree(HEAD + "x = true\nif g > 0: x = 3\np -= lr*b*x*g")


def test_states_that_change_places_in_every_type() -> None:
    text = HEAD + "state m = f32(g), n = f32(p)\nx = m\nm = n\nn = x\np -= lr*b*(m - n)"
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    optimizer = class_of(Source(text), None, "eager")([p])
    p.grad = torch.tensor([3.0, 5.0], dtype=torch.bfloat16)
    optimizer.step()
    assert optimizer.state[p]["m"].tolist() == [1.0, 2.0]
    assert optimizer.state[p]["n"].tolist() == [3.0, 5.0]


def test_in_16_bits_every_state_is_rounded_to_its_own_type_before_it_is_read() -> None:
    text = HEAD + "state w = f32(p), n, k\nw -= lr*b*g\nn = w\nk = lr\np = 0*p + w + 1000*(n - w) + 1e5*(k - lr)"
    p = torch.nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.bfloat16))
    optimizer = class_of(Source(text), None, "eager")([p])
    p.grad = torch.tensor([0.7, 0.3], dtype=torch.bfloat16)
    w = p.detach().float() - torch.tensor(0.1 * 0.9) * p.grad.float()
    n, k = w.bfloat16().float(), torch.tensor(0.1).bfloat16().float()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["w"], w, rtol=0, atol=1e-7)
    assert optimizer.state[p]["n"].tolist() == n.tolist()
    expected = (w + 1000 * (n - w) + 1e5 * (k - torch.tensor(0.1))).bfloat16()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-2, atol=0)


def test_types_of_initial_values_also_of_numbers() -> None:
    text = HEAD + "state k = f32(0.5), j = bf16(0)\nk += lr*g\nj += b*k\np -= j"
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = class_of(Source(text), None, "eager")([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["k"].dtype == torch.float32
    assert optimizer.state[p]["j"].dtype == torch.bfloat16
    torch.testing.assert_close(optimizer.state[p]["k"], torch.full((3,), 0.6))


# Time -----------------------------------------------------------------------------------------------------


def test_steps_are_counted_while_the_variant_in_use_does_not_read_them() -> None:
    text = HEAD + "hyper flag = false\nif flag and t > 2: p -= 0.1\nif flag and first: p -= 7\np -= lr*b*g"
    agree(text, steps=5, changes={1: {"flag": True}, 2: {"flag": False}, 3: {"flag": True}})


GROUPS = [
    "q = 0.5*q + lr\nx = q\nq = q*q\np -= b*q*g + x",
    "r = q\nq = r + 1\ns = q\nq = 2*s\np -= lr*b*(r + s*g + q)",
    "if group.t > 2: q = 0.5*q + lr\ny = q\nq = y + b\nif group.t < 2: q = q/2\np -= lr*q*g + 0.01*y",
    "x = q\nif group.t > 2: q = 0.5*q\nelif group.t > 1: q += 1\nelse:\n    r = q\n    q = r^2 + b\np -= lr*q*g + x",
    "if group.t > 1:\n    q = q + lr\n    p -= q\n    q = q*b\np -= lr*g*q",
]


@pytest.mark.parametrize("body", GROUPS)
def test_a_group_state_between_its_assignments(body: str) -> None:
    agree(f"{HEAD}group state q = 0.3\n{body}")


# What it costs, and how it reads --------------------------------------------------------------------------

LONG = {
    "functions inside one another": "m = " + "tanh(" * 45 + "g" + ")" * 45,
    "numbers that grow when factored": "x = lr\n" + "x = (x + 1e-300)^2\n" * 100 + "m = x*g",
    "a chain of squares": "x = g + p\n" + "x = x*x + lr\n" * 300 + "m = x",
    "one state, many times": "\n".join(f"m = b*m + {i}*g" for i in range(250)),
    "powers of powers": "m = " + "(" * 40 + "g" + "+ 1e-300)^64" * 40,
}


@pytest.mark.parametrize("name", LONG)
def test_large_rules_compile_in_seconds(name: str) -> None:
    text = f"{HEAD}state m\n{LONG[name]}\np -= lr*b*m"
    assert calls(lambda: optlang.emit(text, "source")) < 20_000_000
    assert optlang.emit(text, "program")


def test_passes_over_memory_are_marked_where_there_are_several() -> None:
    assert "pass" not in optlang.emit("adamw").replace("pass 1 of 1", "pass")
    lamb = optlang.emit("lamb")
    assert lamb.index("pass 1 of 2") < lamb.index("sum_u =") < lamb.index("pass 2 of 2") < lamb.index("    length =")


def test_versions_of_a_name_are_numbered_without_gaps() -> None:
    text = source(HEAD + "state m, n\nm = b*m + g\nn = m\nm = m + n*g\np -= lr*m")
    assert "m_1 =" in text and "m_2 =" in text and "n_1" not in text


def test_a_state_that_is_set_to_a_number_is_filled() -> None:
    text = source(HEAD + "state m, n\np -= lr*b*g*(m + n)\nm = 2\nn = lr")
    assert "m.fill_(2)" in text and "n.copy_(lr)" in text


@pytest.mark.parametrize(
    "sizes", ["sum(p^0, dim=1)", "sum(0*p + 2, dim=(1, 3))", "sum(0*p + 1, dim=2)/3", "rms(0*p + 1, dim=1)"]
)
def test_sums_of_numbers_over_any_dimension(sizes: str) -> None:
    text = f"{HEAD}if ndim == 4: p -= lr*{sizes}*g\nelse: p -= lr*b*g"
    twins = Twins(text, [{"shapes": ((2, 3, 4, 5), (3, 4), (4,))}])
    twins.step(0)
    twins.agree()
