"""Inner rules: each call is a step of that rule, and a branch has what is in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreter_inner import Composed
from optimizing import difference
from stepping import values
from trajectories import feed, gradients, start, tensors

import optlang
from optlang.checker.check import check_text
from optlang.classes import class_of
from optlang.source import Source

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: Inner rules, and what each of them is in torch. Rprop has no count, RMSprop has one for its averages only.
PAIRS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD(lr = 0.05, momentum = 0.9, dampening = 0.2)": lambda ps: torch.optim.SGD(ps, 0.05, 0.9, 0.2),
    "AdamW(lr = 0.05)": lambda ps: torch.optim.AdamW(ps, 0.05),
    "Adam(lr = 0.05, amsgrad = true)": lambda ps: torch.optim.Adam(ps, 0.05, amsgrad=True),
    "RAdam(lr = 0.05, betas = (0.8, 0.5))": lambda ps: torch.optim.RAdam(ps, 0.05, (0.8, 0.5)),
    "Adamax(lr = 0.05)": lambda ps: torch.optim.Adamax(ps, 0.05),
    "Rprop(lr = 0.05)": lambda ps: torch.optim.Rprop(ps, 0.05),
}
#: What a rule does with B, and in which steps, with what gradients B is then stepped in torch.
Steps = Callable[[int, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
WAYS: dict[str, tuple[str, Steps]] = {
    "twice": ("B(p, g)\nB(p, g/2)", lambda i, g, total: [g, g / 2]),
    "several times": ("repeat 3: B(p, g)", lambda i, g, total: [g] * 3),
    "for each": ("for b in both: B(p, b*g)", lambda i, g, total: [g * 0.5, g * 2]),
    "directions": ("p += B.direction(g)\np += B.direction(g)", lambda i, g, total: [g, g]),
    "every third step": (
        "acc += g\nevery 3:\n    B(p, acc/3)\n    acc = 0*acc",
        lambda i, g, total: [total / 3] if i % 3 == 0 else [],
    ),
    "late": ("if t > 2: B(p, g)", lambda i, g, total: [g] if i > 2 else []),
    "finite for the tensor": ("if isfinite(norm(g)): B(p, g)", lambda i, g, total: [g] if g.isfinite().all() else []),
    "finite for the model": ("if isfinite(gnorm(g)): B(p, g)", lambda i, g, total: [g] if g.isfinite().all() else []),
}


def compiled(rule: str | Source, **kwargs: Any) -> Any:
    return optlang.compile(rule, **{"backend": "eager", **kwargs})


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(values(shape, dtype, i)) for i, shape in enumerate(shapes)]


#: All ways with two rules, two of them with all rules.
TRIED = [
    (way, inside) for way in WAYS for inside in PAIRS if "SGD" in inside or "W(" in inside or way in ("twice", "late")
]


@pytest.mark.parametrize(("way", "inside"), TRIED)
def test_each_call_is_a_step_of_the_rule(way: str, inside: str) -> None:
    body, steps = WAYS[way]
    rule = (
        f"optimizer A\nhyper both = (low = 0.5, high = 2)\nstate acc\ninner B = {inside}\n{body}\np -= 0*low*high*acc\n"
    )
    (p,), (q,) = parameters((3, 4)), parameters((3, 4))
    ours, theirs = compiled(rule)([p]), PAIRS[inside]([q])
    total = torch.zeros_like(p)
    for i in range(1, 8):
        p.grad = values((3, 4), torch.float64, 10 + i)
        if "finite" in way and i in (1, 4):
            p.grad[0, 0] = float("nan")
        total = total + p.grad
        due = steps(i, p.grad, total)
        ours.step()
        for gradient in due:
            q.grad = gradient.detach().clone()
            theirs.step()
        total = total * 0 if due else total
        assert difference([p], [q]) < 1e-12, f"step {i}"


def test_a_rule_that_is_called_once_keeps_no_count() -> None:
    for around in ("", "if ndim == 2: ", "if rows > cols:\n    p = p\nelse: "):
        rule = f"optimizer A\ninner B = AdamW\n{around}B(p, g)\n"
        plain = optlang.emit(rule, "plain")
        assert "b_step" not in plain and "beta1^t" in plain
        (p,) = parameters((3, 4))
        optimizer = compiled(rule)([p])
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert set(optimizer.state[p]) == {"step", "b.exp_avg", "b.exp_avg_sq"}
    every = "optimizer A\ninner B = SGD(momentum = 0.9)\ninner C = Adagrad(lr_decay = 0)\nB(p, g)\nevery 2: C(p, g)\n"
    assert "b_step" not in optlang.emit(every, "plain")


def test_an_option_that_is_thrown_does_not_count_steps_left_out() -> None:
    (p,), (q,) = parameters((3,)), parameters((3,))
    ours = compiled("optimizer A\nhyper on = true\ninner B = AdamW(lr = 0.1)\nif on: B(p, g)\n")([p])
    theirs = torch.optim.AdamW([q], 0.1)
    for step, on in enumerate((True, False, False, True, True)):
        ours.param_groups[0]["on"] = on
        p.grad = values((3,), torch.float64, step)
        q.grad = p.grad.clone()
        ours.step()
        if on:
            theirs.step()
    assert difference([p], [q]) < 1e-14


def test_initial_values_are_those_of_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "in.opt").write_text("hyper k = 0.1\nstate a = p\nstate b = g\np -= k*(p - a) + k*b\nb = 0.5*b + g\n")
    text = 'optimizer A\ninner B = "in.opt"\np -= 0.1*g\nevery 3: B(p, 2*g)\n'
    source = Source(text, str(tmp_path / "rule.opt"))
    (p,), want, a, b = parameters((4,)), values((4,), torch.float64, 0), None, None
    optimizer = class_of(source, None, "eager")([p])
    for i in range(1, 8):
        p.grad = g = values((4,), torch.float64, 20 + i)
        optimizer.step()
        want = want - 0.1 * g
        if i % 3 == 0:
            a, b = (want, 2 * g) if a is None or b is None else (a, b)
            want = want - 0.1 * (want - a) - 0.1 * b
            b = 0.5 * b + 2 * g
        assert difference([p], [want]) < 1e-14


def test_states_of_another_shape_start_at_zero() -> None:
    rule = "optimizer A\nstate q = p + 1\ninner B = SGD(lr = 0.1, momentum = 0.5) like q\nB(q, g)\np -= 0*q\n"
    (p,), want, b = parameters((3,)), values((3,), torch.float64, 0) + 1, torch.zeros(3, dtype=torch.float64)
    optimizer = compiled(rule)([p])
    for i in range(3):
        p.grad = values((3,), torch.float64, 30 + i)
        optimizer.step()
        b = 0.5 * b + p.grad
        want = want - 0.1 * b
    assert difference([optimizer.state[p]["q"]], [want]) < 1e-14


# Branches -----------------------------------------------------------------------------------------------------

SPLITS = {
    "shapes": ("if ndim == 2: B(p, g)\nelse: C(p, g)\n", [{}, {}], "step"),
    "names of shapes": ("wide = ndim == 2 and cols > 1\nif not wide: C(p, g)\nelse: B(p, g)\n", [{}, {}], "step"),
    "functions": (
        "def of(n, m = 2) = n == m\ndef mat():\n    wide = of(ndim)\n    return wide and cols > 1\n"
        "small = not mat()\nif small: C(p, g)\nelse: B(p, g)\n",
        [{}, {}],
        "step",
    ),
    "keys": ("if group.plain: C(p, g)\nelse: B(p, g)\n", [{"plain": False}, {"plain": True}], "c.step"),
}


@pytest.mark.parametrize("split", SPLITS)
def test_a_branch_has_its_own_requirements_and_states(split: str) -> None:
    body, options, count = SPLITS[split]
    ps, qs = parameters((3, 4), (5,), dtype=torch.float32), parameters((3, 4), (5,), dtype=torch.float32)
    groups = [{"params": [p], **own} for p, own in zip(ps, options, strict=True)]
    ours = compiled(f"optimizer A\ninner B = Muon\ninner C = AdamW\n{body}")(groups)
    theirs = torch.optim.Muon(qs[:1]), torch.optim.AdamW(qs[1:])
    alone = compiled("muon")([r := torch.nn.Parameter(qs[0].detach().clone())])
    for step in range(3):
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad = values(tuple(p.shape), torch.float32, 10 * step + i)
            q.grad = p.grad.clone()
        r.grad = qs[0].grad
        for one in (ours, *theirs, alone):
            one.step()
    assert difference(ps[1:], qs[1:]) < 1e-6
    assert difference(ps[:1], [r]) == 0
    assert difference(ps[:1], qs[:1]) < 1e-3  # both round to bfloat16, in other places
    assert set(ours.state[ps[0]]) - {"step"} == {"b.momentum_buffer"}
    assert set(ours.state[ps[1]]) == {count, "c.exp_avg", "c.exp_avg_sq"}


@pytest.mark.parametrize("inside", ["SOAP", "SM3", "AdamWEMA"])
def test_rules_of_matrices_in_a_branch(inside: str) -> None:
    ps, qs = parameters((3, 4), (5,), (2, 3, 2), ()), parameters((3, 4), (5,), (2, 3, 2), ())
    ours = compiled(f"optimizer A\ninner B = {inside}\ninner C = SGD\nif ndim == 2: B(p, g)\nelse: C(p, g)\n")(ps)
    theirs = compiled(inside)(qs[:1]), compiled("sgd")(qs[1:])
    for step in range(3):
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad = values(tuple(p.shape), torch.float64, 10 * step + i)
            q.grad = p.grad.clone()
        for one in (ours, *theirs):
            one.step()
    if ours._events:
        ours.eval()
        theirs[0].eval()
    assert difference(ps, qs) < 1e-13
    assert not any(set(ours.state.get(p, {})) - {"step"} for p in ps[1:])


def test_a_tensor_that_reaches_a_rule_has_to_suit_it() -> None:
    rule = "optimizer A\ninner B = Muon\nif ndim >= 2: B(p, g)\nelse: p -= 0.1*g\n"
    compiled(rule)(parameters((3, 3), (3,)))
    with pytest.raises(ValueError, match=r"parameter 1 .*Muon is for matrices"):
        compiled(rule)(parameters((3, 3), (2, 2, 2)))
    keys = "optimizer A\ninner B = Muon\ninner C = AdamW\nif group.plain: C(p, g)\nelse: B(p, g)\n"
    with pytest.raises(ValueError, match=r"parameter 0 .*Muon is for matrices"):
        compiled(keys)([{"params": parameters((3,)), "plain": False}])


def test_a_state_of_a_branch_may_say_when_it_exists(tmp_path: Path) -> None:
    (tmp_path / "mine.opt").write_text(
        "hyper lr = 0.1\nrequire ndim == 2\nstate m when ndim == 2\nm = m + g\np -= lr*m\n"
    )
    (tmp_path / "rule.opt").write_text(
        'optimizer A\ninner B = "mine.opt"\ninner C = SGD\nif ndim == 2: B(p, g)\nelse: C(p, g)\n'
    )
    assert not [d for d in optlang.check(tmp_path / "mine.opt") if d.is_error]
    ps = parameters((3, 3), (3,))
    optimizer = compiled(str(tmp_path / "rule.opt"))(ps)
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [list(optimizer.state.get(p, {})) for p in ps] == [["b.m"], []]


def test_counts_go_on_from_a_checkpoint() -> None:
    rule = "optimizer A\ninner B = AdamW(lr = 0.1)\nif norm(g) > 1.5: B(p, g)\nevery 2: B(p, g)\n"
    (p,), (q,) = parameters((3, 4)), parameters((3, 4))
    one, other = compiled(rule)([p]), compiled(rule)([q])
    for step in range(6):
        if step == 3:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            with torch.no_grad():
                q.copy_(p)
        for x in (p, q):
            x.grad = values((3, 4), torch.float64, step) * (0.1 if step % 2 else 1)
        one.step()
        other.step()
    assert difference([p], [q]) == 0 and float(one.state[p]["b.step"]) == 6


# Reading what is inside ---------------------------------------------------------------------------------------


def test_hyperparameters_and_states_are_read_where_they_stand() -> None:
    rule = (
        "optimizer A\nhyper both = (b1 = 0.5, b2 = 0.25)\ninner B = AdamW(lr = 0.5, betas = both)\n"
        "before = B.m\nB(p, g)\np = before + 10*B.exp_avg + 100*B.lr + 1000*B.beta2 + lr\n"
    )
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = compiled(rule)([p])
    for wanted in (0 + 10 * 0.5, 0.5 + 10 * 0.75):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert float(p.detach()) == pytest.approx(wanted + 50 + 250 + 0.5, abs=1e-12)


def test_a_name_is_free_for_the_first_inner_rule_that_has_it() -> None:
    rule = "optimizer A\ninner B = SGD\ninner C = SGD\nB(p, g)\nC(p, g)\np -= 0.1*lr*C.lr*p\n"
    assert list(compiled(rule).__signature__.parameters)[:2] == ["params", "lr"]
    assert "c_lr" in compiled(rule).__signature__.parameters


HEAD = '"""Doc."""\noptimizer A\ninner base = AdamW\nbase(p, g)\n'


@pytest.mark.parametrize(
    ("rest", "code", "place", "help"),
    [
        ("p -= base.lrr*p\n", "E201", "base.lrr", "did you mean `lr`?"),
        ("p -= 0.1*base.exp_av\n", "E201", "base.exp_av", "did you mean `exp_avg`?"),
        ("p -= 0.1*base.zzz\n", "E201", "base.zzz", "`AdamW` has: `lr`, `beta1`"),
        ("p -= 0.1*bse.lr*p\n", "E201", "bse", "did you mean `base`?"),
        ("p -= 0.1*base.direction\n", "E201", "base.direction", "call it: `base.direction(g)`"),
        ("base.m = g\n", "E115", "base.m", "assign"),
        ("p -= 0.1*(p*g).lr\n", "E901", "(p*g).lr", "language guide"),
        ("if p > 0: base(p, g)\n", "E301", "p > 0", "base.direction(g)"),
        ("inner c = AdamW(betas = lr)\nc(p, g)\n", "E208", "lr", "(0.9, 0.999)"),
        ("inner c = Muon\nif ndim == 2: c(p, g)\np -= c.m\n", "E211", "c.m", "ndim == 2"),
        ("inner c = Prodigy\nevery 2: c(p, g)\n", "E217", "inner c = Prodigy", "once per step"),
        ("inner c = DoG\nif ndim == 2: c(p, g)\n", "E217", "inner c = DoG", "route DoG when"),
    ],
)
def test_mistakes_are_shown_where_they_are(rest: str, code: str, place: str, help: str) -> None:
    source = Source(HEAD + rest)
    found = [d for d in check_text(source)[1] if d.is_error]
    assert [(d.code, source.excerpt(d.span)) for d in found if d.span][:1] == [(code, place)]
    assert help in (found[0].help or "")


@pytest.mark.parametrize(
    "text",
    [
        "transform smooth(u):\n    state m\n    m = 0.9*m + u\n    return m\n",
        "def damped(u) = u/2\n",
        "optimizer B\nhyper lr = 0.1\n",
    ],
)
def test_a_file_without_an_update_is_no_inner_rule(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.opt").write_text(text)
    source = Source('optimizer A\ninner B = "other.opt"\nB(p, g)\n', str(tmp_path / "mine.opt"))
    (found,) = check_text(source)[1]
    assert found.span is not None
    assert (found.code, source.excerpt(found.span), found.message) == (
        "E215",
        '"other.opt"',
        "`other.opt` has no update",
    )


def test_dead_branches_of_an_inner_rule_are_no_mistakes() -> None:
    assert not [
        d for d in optlang.check("optimizer A\ninner B = SM3\nif ndim == 2: B(p, g)\nelse: p -= g\n") if d.is_error
    ]


# The interpreter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_interpreter_does_the_same(way: str) -> None:
    text = "optimizer A\nhyper both = (low = 0.5, high = 2)\nstate acc\ninner B = AdamW(lr = 0.1)\n"
    source = Source(f"{text}{WAYS[way][0]}\np -= 0.1*tanh(B.m + low*acc)*B.lr*high\n")
    shapes = ((3, 4), (5,))
    params, interpreter = start(shapes), Composed(source)
    ours = tensors(start(shapes), torch.float64)
    steps = list(gradients(shapes, 5, missing=True))
    for step in steps:
        interpreter.step(params, step)
    feed(class_of(source, None, "eager")(ours), ours, steps)
    for p, array in zip(ours, params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), array, rtol=1e-11, atol=1e-12)
