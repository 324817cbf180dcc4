"""Rules made of pieces: what they are written out to, what they cost, and that they are ordinary rules after that."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import difference, model, train

import optlang
from optlang import transforms
from optlang.checker.check import check_text
from optlang.runtime.kernels import compiled_count
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

HEAD = "optimizer T\nhyper lr = 0.1 >= 0\n"
LOOKAHEAD = (
    "optimizer Lookahead\nhyper k = 2 >= 1, alpha = 0.5\ninner B = SGD(lr = 0.1)\nstate slow = p\n"
    "B(p, g)\nevery k:\n    slow = lerp(slow, p, alpha)\n    p = slow\n"
)
#: Pairs of a rule made of pieces and the same written by hand.
SAME = {
    "two uses": (
        HEAD + "p -= lr*(g |> momentum(0.9) |> momentum(0.5))\n",
        HEAD + "state a, b\na = 0.9*a + g\nb = 0.5*b + a\np -= lr*b\n",
    ),
    "names that are taken": (
        "optimizer T\nhyper lr = 0.1, momentum = 0.9\nstate b\nmomentum_b = 2\nb = 0.5*b + g\n"
        "p -= lr*(b |> momentum(momentum))/momentum_b\n",
        "optimizer T\nhyper lr = 0.1, momentum = 0.9\nstate b, c\nb = 0.5*b + g\nc = momentum*c + b\np -= lr*c/2\n",
    ),
    "an expression as argument": (
        HEAD + "p -= lr*(g |> momentum(1 - lr))\n",
        HEAD + "state b\nb = (1 - lr)*b + g\np -= lr*b\n",
    ),
    "under a condition": (
        HEAD + "if t % 2 == 0: u = g |> momentum(0.9)\nelse: u = g\np -= lr*u\n",
        HEAD + "state b\nif t % 2 == 0:\n    b = 0.9*b + g\n    u = b\nelse: u = g\np -= lr*u\n",
    ),
    "every other step": (
        HEAD + "u = g\nevery 2: u = g |> momentum(0.9)\np -= lr*u\n",
        HEAD + "state b\nu = g\nevery 2:\n    b = 0.9*b + g\n    u = b\np -= lr*u\n",
    ),
    "several times a step": (
        HEAD + "u = g\nrepeat 3: u = u |> momentum(0.9)\np -= lr*u\n",
        HEAD + "state b\nu = g\nrepeat 3:\n    b = 0.9*b + u\n    u = b\np -= lr*u\n",
    ),
    "for each part of a tuple": (
        HEAD + "hyper betas = (b1 = 0.9, b2 = 0.8)\nu = g\nfor b in betas: u = u |> momentum(b)\np -= lr*u\n",
        HEAD + "state b\nb = 0.9*b + g\nb = 0.8*b + b\np -= lr*b\n",
    ),
    "transforms in transforms": (
        HEAD
        + "transform f(u, k = 2):\n    state s\n    s = s + (u |> momentum(0.9))\n    return s/k\n"
        + "p -= lr*(g |> f |> f(3))\n",
        HEAD + "state a, b, c, d\na = 0.9*a + g\nb = b + a\nc = 0.9*c + b/2\nd = d + c\np -= lr*d/3\n",
    ),
    "a transform in an argument": (
        HEAD + "p -= lr*momentum(g |> ema(0.5), beta = 1/(1 + norm(g |> sign)))\n",
        HEAD + "state m, b\nm = 0.5*m + 0.5*g\nb = b/(1 + norm(sign(g))) + debias(m, 0.5)\np -= lr*b\n",
    ),
    "no declarations": (
        "v = 0.9*v + g\np -= 0.1*(v |> ema(0.5))\n",
        "v = 0.9*v + g\nm = 0.5*m + 0.5*v\np -= 0.1*debias(m, 0.5)\n",
    ),
    "an option that is passed on": (
        "optimizer T\nhyper lr = 0.1, look = true\np -= lr*(g |> momentum(0.9, nesterov = look))\n",
        HEAD + "state b\nb = 0.9*b + g\np -= lr*(g + 0.9*b)\n",
    ),
    "none": (
        HEAD + "transform f(u, c = none):\n    return u * (c ?? 3)\np -= lr*(g |> f |> f(2))\n",
        HEAD + "p -= lr*6*g\n",
    ),
    "group and shared states": (
        HEAD
        + "transform f(u):\n    group state n = 0\n    shared state d = 1\n    n += 1\n    d = 0.5*d + total(u^2)\n"
        "    return u/(n + d)\np -= lr*(g |> f)\n",
        HEAD + "group state n = 0\nshared state d = 1\nn += 1\nd = 0.5*d + total(g^2)\np -= lr*g/(n + d)\n",
    ),
    "use": (
        "use SGD(lr = 0.2, momentum = 0.5)\np *= 1 - 0.1*lr\n",
        HEAD + "state b\nb = 0.5*b + g\np -= 0.2*b\np *= 0.98\n",
    ),
    "use with hyperparameters of its own": (
        "use SGD\nhyper lr = 0.2, weight_decay = 0.1\n",
        HEAD + "p -= 0.2*(g + 0.1*p)\n",
    ),
    "inner": (
        LOOKAHEAD,
        HEAD + "state slow = p\np -= lr*g\nevery 2:\n    slow = lerp(slow, p, 0.5)\n    p = slow\n",
    ),
    "the direction of an inner rule": (
        "optimizer T\ninner B = SGD(lr = 1, momentum = 0.9)\np += 0.1*(g |> clip_by_norm(1) |> B.direction)\n",
        HEAD + "state b\nu = clip_by_norm(g)\nb = 0.9*b + u\np -= lr*b\n",
    ),
    "an inner rule of a state": (
        "optimizer T\ninner A = SGD(lr = 0.1, momentum = 0.9)\ninner B = SGD(lr = 0.2)\nstate q = p\n"
        "A(p, g)\nB(q, g)\np = lerp(p, q, 0.25)\n",
        HEAD + "state b\nstate q = p\nb = 0.9*b + g\np -= 0.1*b\nq -= 0.2*g\np = lerp(p, q, 0.25)\n",
    ),
}


def compiled(rule: str, **kwargs: Any) -> Any:
    return optlang.compile(rule, **{"backend": "eager", **kwargs})


def trained(cls: Any, steps: int = 5, **hypers: Any) -> list[torch.nn.Parameter]:
    net = model()
    train(net, cls(net.parameters(), **hypers), steps)
    return list(net.parameters())


@pytest.mark.parametrize("name", SAME)
def test_is_the_rule_written_by_hand(name: str) -> None:
    composed, plain = SAME[name]
    assert difference(trained(compiled(composed)), trained(compiled(plain))) < 1e-14


@pytest.mark.parametrize("name", SAME)
def test_the_formatter_leaves_its_own_output_alone(name: str) -> None:
    once = format_tree(parse(Source(SAME[name][0])))
    assert format_tree(parse(Source(once))) == once
    assert optlang.emit(once, stage="plain") == optlang.emit(SAME[name][0], stage="plain")


@pytest.mark.compiler
def test_a_chain_of_five_is_one_pass_over_memory() -> None:
    links = (
        transforms.clip_by_value(0.5),
        transforms.scale_by_adam(),
        transforms.momentum(0.9),
        transforms.ema(0.9),
        transforms.add_decayed_weights(0.01),
    )
    cls = optlang.chain(*links)
    trained(cls, 3)
    assert compiled_count(cls) == 1
    source = optlang.emit(Source(cls._compiled.rule.tree.source.text))  # type: ignore[attr-defined]
    assert source.count("def update(") == 1 and ".sum(" not in source


def test_a_pipeline_reads_and_writes_what_its_formulas_do() -> None:
    rest = "max_norm = 1 > 0, beta = 0.9 in [0, 1)\n"
    composed = optlang.emit(
        "optimizer T\nhyper lr = 0.1, " + rest + "p -= lr*(g |> clip_by_norm(max_norm) |> momentum(beta))\n", "program"
    )
    plain = optlang.emit(
        "optimizer T\nhyper lr = 0.1, "
        + rest
        + "state b\nb = beta*b + g*min(1, max_norm/(norm(g) + 1e-6))\np -= lr*b\n",
        "program",
    )
    assert composed.splitlines()[0] == plain.splitlines()[0]


def test_rules_in_files_may_be_made_of_pieces(tmp_path: Path) -> None:
    (tmp_path / "base.opt").write_text("optimizer Base\nhyper lr = 0.1, k = 0.5\np -= lr*(g |> momentum(k))\n")
    used = 'use "base.opt"\np -= 0.1*(g |> momentum(0.3))\n'
    around = 'optimizer T\nhyper k = 2\ninner A = "base.opt"\ninner B = "base.opt"(k = 0.2)\n'
    around += "A(p, g |> momentum(1/k))\nB(p, g)\n"
    by_hand = {
        used: HEAD + "state a, b\na = 0.5*a + g\np -= lr*a\nb = 0.3*b + g\np -= 0.1*b\n",
        around: HEAD + "state a, b, c\nc = 0.5*c + g\na = 0.5*a + c\np -= lr*a\nb = 0.2*b + g\np -= lr*b\n",
    }
    keys = {used: {"momentum.b", "momentum_2.b"}, around: {"a.momentum.b", "b.momentum.b", "momentum.b"}}
    for rule, plain in by_hand.items():
        (tmp_path / "rule.opt").write_text(rule)
        cls = compiled(tmp_path / "rule.opt")
        assert {state.key for state in cls._compiled.rule.states} == keys[rule]
        assert difference(trained(cls), trained(compiled(plain))) < 1e-14


def test_rules_that_hold_themselves_end(tmp_path: Path) -> None:
    (tmp_path / "ring.opt").write_text('optimizer Ring\ninner B = "ring.opt"\nB(p, g)\n')
    source = Source((tmp_path / "ring.opt").read_text(), str(tmp_path / "ring.opt"))
    assert [d.code for d in check_text(source)[1]] == ["E501"]


def test_an_inner_rule_may_work_on_another_shape() -> None:
    rule = (
        "optimizer T\nhyper lr = 0.1\nrequire ndim == 2\nstate P = zeros(cols, 1)\n"
        "inner A = SGD(lr = 1, momentum = 0.9) like zeros(rows, 1)\nif first: P = 0*P + 1\n"
        "p += lr*(A.direction(g @ P) @ P.T)\n"
    )
    p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = compiled(rule)([p])
    wanted, b = p.detach().clone(), torch.zeros(3, 1, dtype=torch.float64)
    for i in range(4):
        p.grad = torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + i
        b = 0.9 * b + p.grad.sum(1, keepdim=True)
        wanted -= 0.1 * b
        optimizer.step()
    assert difference([p], [wanted]) < 1e-12
    assert optimizer.state[p]["a.momentum_buffer"].shape == (3, 1)


@pytest.mark.compiler
def test_events_of_inner_rules_are_those_of_the_rule() -> None:
    cls = compiled("optimizer T\ninner B = ScheduleFreeSGD(lr = 0.1)\nB(p, g)\n")
    ours, theirs = model(), model()
    a, b = cls(ours.parameters()), optlang.rules.ScheduleFreeSGD(theirs.parameters(), lr=0.1)
    for net, optimizer in ((ours, a), (theirs, b)):
        train(net, optimizer, 4)
        optimizer.eval()
    assert difference(list(ours.parameters()), list(theirs.parameters())) < 1e-12


# Mistakes -----------------------------------------------------------------------------------------------------


def found(rule: str) -> list[tuple[str, str]]:
    """Return the codes of what is found in a rule, and the text that each points at."""
    source = Source(rule)
    return [(d.code, source.excerpt(d.span) if d.span else "") for d in check_text(source)[1]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("transform f(u):\n    state s\n    s = s + uu\n    return s\np -= lr*(g |> f)\n", ("E201", "uu")),
        ("transform f(u):\n    state s, q\n    s = s + u\n    return s\np -= lr*(g |> f)\n", ("W605", "q")),
        ("p -= lr*(g |> momentum(bta = 0.9))\n", ("E208", "bta = 0.9")),
        ("p -= lr*(g |> momentum(1.5))\n", ("E404", "1.5")),
        ('p -= lr*(g |> orthogonalize(adjust = "rns"))\n', ("E404", '"rns"')),
        ("p -= lr*(g |> momentm)\n", ("E202", "momentm")),
        ("p -= lr*(C.direction(g))\n", ("E201", "C")),
        ("transform f(u):\n    return f(u)\np -= lr*(g |> f)\n", ("E212", "f(u)")),
        ("p -= lr*((g |> momentum(0.9)) if lr > 0 else g)\n", ("E216", "(g |> momentum(0.9))")),
    ],
)
def test_points_at_what_the_author_wrote(rule: str, expected: tuple[str, str]) -> None:
    assert expected in found(HEAD + rule)


@pytest.mark.parametrize("name", ["momentm", "halve_it"])
def test_a_name_that_is_nearly_one_is_suggested(name: str) -> None:
    rule = HEAD + f"transform halve(u):\n    return u/2\np -= lr*(g |> halve |> {name})\n"
    (diagnostic,) = check_text(Source(rule))[1]
    assert diagnostic.code == "E202"
    assert diagnostic.help == f"did you mean `{'halve' if name == 'halve_it' else 'momentum'}`?"


def test_sizes_are_limited() -> None:
    assert found(HEAD + "p -= lr*(g" + " |> momentum(0.9)" * 500 + ")\n")[0][0] == "E501"
    doubling = "".join(f"transform h{i}(u):\n    return h{i + 1}(u) + h{i + 1}(u)\n" for i in range(11))
    doubling += "transform h11(u):\n    state s\n    s = s + u\n    return s\n"
    assert [code for code, _ in found(HEAD + doubling + "p -= lr*h0(g)\n")] == ["E501"]
    deep = "".join(f"transform h{i}(u):\n    return h{i + 1}(u)\n" for i in range(50))
    assert [code for code, _ in found(HEAD + deep + "transform h50(u):\n    return u\np -= lr*h0(g)\n")] == ["E501"]


# Classes ------------------------------------------------------------------------------------------------------


def test_states_have_the_names_of_their_transforms() -> None:
    cls = compiled(HEAD + "p -= lr*(g |> momentum(0.9) |> momentum(0.5) |> scale_by_adam)\n")
    net = model()
    optimizer = cls(net.parameters())
    train(net, optimizer, 1)
    keys = set(optimizer.state_dict()["state"][0]) - {"step"}
    assert keys == {"momentum.b", "momentum_2.b", "scale_by_adam.exp_avg", "scale_by_adam.exp_avg_sq"}


def test_a_chain_goes_on_from_a_checkpoint_and_from_a_pickle() -> None:
    cls = optlang.chain(transforms.scale_by_adam(), transforms.momentum(0.5), backend="eager")
    net, other = model(), model()
    optimizer, again = cls(net.parameters(), lr=0.05), cls(other.parameters())
    train(net, optimizer, 3)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    copied = pickle.loads(pickle.dumps(optimizer))
    assert type(copied) is cls
    train(net, optimizer, 3, seed=1)
    train(other, again, 3, seed=1)
    assert difference(list(net.parameters()), list(other.parameters())) == 0
    assert copied.state_dict()["param_groups"] == again.state_dict()["param_groups"]


def test_a_chain_has_the_arguments_as_keys_of_its_groups() -> None:
    t = transforms
    cls = optlang.chain(t.momentum(0.8), t.momentum(0.7, nesterov=True), t.nesterov(), name="Twice", backend="eager")
    group = cls([torch.nn.Parameter(torch.zeros(2))]).param_groups[0]
    assert cls.__name__ == "Twice"
    assert (group["lr"], group["beta"], group["momentum_2_beta"], group["nesterov_beta"]) == (1e-3, 0.8, 0.7, 0.9)
    assert (group["nesterov"], group["momentum_2_nesterov"]) == (False, True)
    with pytest.raises(ValueError, match=r"momentum_2_beta must be in \[0, 1\)"):
        cls([torch.nn.Parameter(torch.zeros(2))], momentum_2_beta=1.5)
    wanted = trained(compiled(HEAD + "p -= lr*(g |> momentum(0.6) |> nesterov(0.7) |> nesterov(0.9))\n"), lr=0.02)
    assert difference(trained(cls, lr=0.02, beta=0.6), wanted) == 0


def test_a_chain_may_hold_a_transform_of_ones_own(tmp_path: Path) -> None:
    text = '"""Halves."""\ndef h(x) = x/2\ntransform halve(u, times = 1 > 0):\n    return h(u)*times\n'
    (tmp_path / "halve.opt").write_text(text)
    wanted = trained(compiled(HEAD + "p -= lr*g/2\n"), lr=0.1)
    for halve in (transforms.load(text), transforms.load(tmp_path / "halve.opt")):
        cls = optlang.chain(halve(), halve(times=1), lr=0.2, backend="eager")
        assert difference(trained(cls), wanted) < 1e-15
    other = transforms.load("transform halve(u):\n    return u/2\n")
    with pytest.raises(ValueError, match="two transforms are called 'halve'"):
        optlang.chain(halve(), other())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: transforms.momentum(bta=1), TypeError, "did you mean 'beta'"),
        (lambda: transforms.momentum(0.1, 2, True, 4), TypeError, "too many positional arguments"),
        (lambda: transforms.momentum("a"), TypeError, "beta must be a number, got 'a'"),
        (lambda: transforms.momentum(nesterov=1), TypeError, "nesterov must be True or False"),
        (lambda: transforms.momentum(1.5), ValueError, r"beta must be in \[0, 1\), got 1.5"),
        (lambda: transforms.momentum(float("nan")), ValueError, "beta must not be NaN"),
        (lambda: transforms.orthogonalize(adjust="x"), ValueError, "adjust must be in"),
        (lambda: transforms.scale(), TypeError, "missing a required argument: 'factor'"),
        (lambda: transforms.momentm, AttributeError, "did you mean momentum"),
        (lambda: transforms.path("momentm"), KeyError, "did you mean momentum"),
        (lambda: transforms.load("p -= g"), ValueError, "does not hold one transform"),
        (lambda: optlang.chain(), ValueError, "at least one"),
        (lambda: optlang.chain(transforms.momentum), TypeError, r"momentum\(\), not momentum"),
        (lambda: optlang.chain(3), TypeError, "not 3"),
        (lambda: optlang.chain(transforms.centralize(), lr=-1), ValueError, "lr must be a number >= 0"),
        (lambda: optlang.chain(transforms.centralize(), name="a b"), ValueError, "cannot be the name"),
        (lambda: optlang.compile("adamw", inner="sgd"), ValueError, "this one has none"),
        (lambda: optlang.compile(LOOKAHEAD, inner={"C": "sgd"}), ValueError, "no inner rule 'C'"),
        (lambda: optlang.compile(LOOKAHEAD, inner="adamm"), ValueError, "did you mean 'Adam"),
    ],
)
def test_refuses_with_a_reason(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_link_shows_how_it_was_made() -> None:
    link = transforms.orthogonalize(4, adjust="rms")
    assert repr(link) == "orthogonalize(steps=4, adjust='rms', half=True)"
    assert eval(repr(link), {"orthogonalize": transforms.orthogonalize}) == link
    assert transforms["momentum"] is transforms.momentum and "momentum" in transforms
    assert "Sutskever" in transforms.momentum.__doc__ and "beta=0.9" in transforms.momentum.__doc__


def test_inner_rules_are_exchanged(tmp_path: Path) -> None:
    (tmp_path / "slower.opt").write_text("optimizer Slower\nhyper lr = 0.05\np -= lr*g\n")
    wanted = trained(compiled(LOOKAHEAD.replace("SGD(lr = 0.1)", "Adam")))
    assert difference(trained(compiled(LOOKAHEAD, inner="adam")), wanted) == 0
    assert difference(trained(compiled(LOOKAHEAD, inner={"B": "Adam"})), wanted) == 0
    wanted = trained(compiled(LOOKAHEAD.replace("0.1", "0.05")))
    assert difference(trained(compiled(LOOKAHEAD, inner=tmp_path / "slower.opt")), wanted) == 0


def test_a_transform_may_be_used_for_its_state_alone() -> None:
    rule = "hyper lr = 0.1\np -= lr*g\naverage_of(p, 0.5)\n"
    assert optlang.check(rule) == []
    assert optlang.emit(rule, "plain").splitlines()[-1] == "average_of_average = lerp(p, average_of_average, 0.5)"


def test_functions_of_a_used_rule_are_not_taken_for_transforms(tmp_path: Path) -> None:
    file = tmp_path / "halved.opt"
    file.write_text("hyper lr = 0.1\ndef normalize(x) = x/2\np -= lr*normalize(g)\n")
    outer = tmp_path / "outer.opt"
    outer.write_text('use "halved.opt"\n')
    assert "p -= lr * normalize(g)" in optlang.emit(outer, "plain")


def test_an_inner_rule_with_evaluation_moves_the_parameter_only() -> None:
    found = optlang.check("hyper lr = 0.1\nstate z = p\ninner a = ScheduleFreeSGD\na(z, g)\np -= lr*g\n")
    assert [d.code for d in found] == ["E217"]
