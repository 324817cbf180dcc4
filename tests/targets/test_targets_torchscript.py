"""The target ``torchscript``: its modules take the steps of the compiled classes, and hold what belongs to them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import module_of, reloaded, run_module, step
from targets_made import check_refused_by_line
from trajectories import (
    cases,
    difference,
    feed,
    gradients,
    library_class,
    library_compiled,
    library_rule,
    run,
    shapes,
    start,
    tensors,
)

import optlang.rules
from optlang.api import load
from optlang.cli import app
from optlang.core.needs import needs
from optlang.expand.histories import sizes_of
from optlang.targets import Order, torchscript

NAMES = optlang.rules.names()


def is_carried(name: str) -> bool:
    """Return whether a rule of the library has none of what the target cannot carry."""
    rule = library_rule(name)
    return not (rule.routes or needs(rule).calls or needs(rule).draws or sizes_of(rule.tree))


#: The first and the last settings of each rule; all of them if asked for (nine minutes on one core).
EVERY = bool(os.environ.get("OPTLANG_EVERY_CASE"))
CASES = [(name, index) for name in NAMES for index in (range(len(cases(name))) if EVERY else {0, len(cases(name)) - 1})]


@pytest.fixture(autouse=True)
def _other_bases() -> None:
    """Those of all other tests are functions of Python, which TorchScript would compile."""


def values_of(params: list[torch.nn.Parameter]) -> list[np.ndarray]:
    return [p.detach().double().numpy() for p in params]


def both(name: str, index: int, dtype: torch.dtype, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return where a module and the class take two groups, with missing gradients; the module is saved half-way."""
    case = cases(name)[index]
    second = {**case, "lr": 0.3 * case["lr"]}
    begin = start(shapes(name))
    history = [list(one) * 2 for one in gradients(shapes(name), steps=steps, missing=True)]
    groups = [tensors(begin, dtype) for _ in range(2)]
    optimizer = library_class(name)([{"params": groups[0], **case}, {"params": groups[1], **second}])
    feed(optimizer, groups[0] + groups[1], history)
    module, params = module_of(name, **case), tensors(begin, dtype) + tensors(begin, dtype)
    module.set_groups([len(begin), len(begin)])
    module.set_hyper("lr", second["lr"], 1)
    for i, one in enumerate(history):
        if i == steps // 2:
            module = reloaded(module)
        step(module, params, one)
    return values_of(params), values_of(groups[0] + groups[1])


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), CASES, ids=[f"{name}-{index}" for name, index in CASES])
def test_steps_are_those_of_the_class(name: str, index: int) -> None:
    if not is_carried(name):
        pytest.skip("the rule cannot be carried")
    # Without the optimizer of TorchScript, which takes seconds for the first steps and gains nothing afterwards.
    with torch.jit.optimized_execution(EVERY):
        ours, theirs = both(name, index, torch.float32, 30)
        assert difference(ours, theirs) < 1e-6
        ours, theirs = both(name, index, torch.float64, 8) if index == 0 or EVERY else (ours, ours)
        assert difference(ours, theirs) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Prodigy", "Muon"])
def test_narrow_parameters(name: str) -> None:
    begin, history = start(shapes(name)), gradients(shapes(name), steps=6)
    case = cases(name)[0]
    theirs = tensors(begin, torch.bfloat16)
    feed(library_class(name)(theirs, **case), theirs, history)
    ours = run_module(module_of(name, **case), begin, history, torch.bfloat16)
    assert difference([p.double().numpy() for p in ours], values_of(theirs)) < 1e-6


def test_what_cannot_be_carried_is_refused_by_line() -> None:
    check_refused_by_line([name for name in NAMES if not is_carried(name)], "torchscript", torchscript.emit)


# One module -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> bytes:
    return torchscript.emit(Order(library_compiled("AdamW"), {}))


@pytest.fixture
def adamw(content: bytes) -> Any:
    return reloaded(content)


def pair(size: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, generator=generator) for _ in range(4)]
    return drawn[:2], drawn[2:]


def test_hyperparameters_are_held_by_group(adamw: Any) -> None:
    assert adamw.hyper_names() == ["lr", "beta1", "beta2", "eps", "weight_decay"]
    adamw.set_groups([1, 1])
    adamw.set_hyper("lr", 0.25)
    adamw.set_hyper("lr", 0.5, 1)
    assert (adamw.hyper("lr"), adamw.hyper("lr", 1)) == (0.25, 0.5)
    adamw.set_groups([1, 1, 2])
    assert adamw.hyper("lr", 2) == 1e-3 and adamw.groups() == [1, 1, 2]


def test_states_have_the_names_of_the_rule(adamw: Any) -> None:
    params, grads = pair()
    assert adamw.state_names() == ["exp_avg", "exp_avg_sq", "step"]
    adamw.step(params, [grads[0], torch.empty(0)])
    torch.testing.assert_close(adamw.state("exp_avg", 0), 0.1 * grads[0])
    assert adamw.state("step", 0).item() == 1 and adamw.state("step", 1).item() == 0
    assert adamw.state("exp_avg", 1).numel() == 0


def test_parameters_that_need_gradients_are_updated_in_place(adamw: Any) -> None:
    params = [torch.nn.Parameter(p) for p in pair()[0]]
    before = params[0].detach().clone()
    adamw.step(params, pair()[1])
    assert not torch.equal(params[0], before) and params[0].is_leaf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.set_hyper("lr", -1.0), "lr must be >= 0, got -1"),
        (lambda m: m.set_hyper("beta1", 1.0), "beta1 must be in [0, 1), got 1"),
        (lambda m: m.set_hyper("lr", float("nan")), "lr must not be NaN"),
        (lambda m: m.set_hyper("lrr", 1.0), "no hyperparameter lrr; there are lr, beta1"),
        (lambda m: m.set_hyper("betas", 1.0), "betas is set part by part: beta1, beta2"),
        (lambda m: m.set_hyper("amsgrad", 1.0), "amsgrad is fixed at false in this file; emit the rule anew"),
        (lambda m: m.set_hyper("lr", 1.0, 1), "there is no group 1"),
        (lambda m: m.hyper("lr", 7), "there is no group 7"),
        (lambda m: m.set_groups([]), "groups that have made steps cannot change"),
        (lambda m: m.set_groups([3]), "groups that have made steps cannot change"),
        (lambda m: m.step(*pair(4)), "parameter 0 of shape [4] had the shape [3] before"),
        (lambda m: m.step([p.double() for p in pair()[0]], pair()[1]), "had another number type before"),
        (lambda m: m.step(pair()[0], [g.double() for g in pair()[1]]), "has a gradient of another number type"),
        (lambda m: m.step(pair()[0], pair(4)[1]), "has a gradient of shape [4]"),
        (lambda m: m.step(pair()[0][:1], pair()[1][:1]), "2 parameters have made steps, but 1 were given"),
        (lambda m: m.step(pair()[0], pair()[1][:1]), "2 parameters, but 1 gradients"),
        (lambda m: m.state("exp", 0), "no state exp; there are exp_avg"),
    ],
)
def test_mistakes_are_told_and_change_nothing(adamw: Any, call: Any, words: str) -> None:
    params, grads = pair()
    adamw.step(params, grads)
    held = [adamw.state(name, 0).clone() for name in adamw.state_names()]
    with pytest.raises(torch.jit.Error, match=re.escape(words)):
        call(adamw)
    assert all(torch.equal(a, adamw.state(n, 0)) for a, n in zip(held, adamw.state_names(), strict=True))
    assert adamw.hyper("lr") == 1e-3 and adamw.groups() == [-1]


def test_a_required_hyperparameter_must_be_set() -> None:
    module = module_of("v = beta*v + g; p -= lr*v")
    with pytest.raises(torch.jit.Error, match=r"lr has no value yet|beta has no value yet"):
        module.step(*pair())
    module.set_hyper("lr", 0.1)
    module.set_hyper("beta", 0.9)
    params, grads = pair()
    expected = params[0] - 0.1 * grads[0]
    module.step(params, grads)
    torch.testing.assert_close(params[0], expected)


def test_a_number_that_chooses_between_formulas_may_change() -> None:
    begin, history = start([(3,)]), gradients([(3,)], steps=4)
    theirs = tensors(begin, torch.float32)
    optimizer = library_class("SGD")(theirs, lr=0.1)
    module, ours = module_of("SGD", lr=0.1), tensors(begin, torch.float32)
    for i, one in enumerate(history):
        if i == 2:
            optimizer.param_groups[0]["momentum"] = 0.9
            module.set_hyper("momentum", 0.9)
        feed(optimizer, theirs, [one])
        step(module, ours, one)
    assert difference(values_of(ours), values_of(theirs)) == 0
    assert module.state("momentum_buffer", 0).numel() == 3


def test_functions_of_sizes_choose_between_formulas() -> None:
    text = (
        "optimizer X\nhyper lr = 0.5, most = 3, k = 2\n"
        "if max(rows, cols) <= most and floor(numel/k) > 1: p -= lr*g\nelse: p += lr*g\n"
    )
    module = reloaded(optlang.export(text, "torchscript"))
    params = [torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, 1)]
    module.step(params, [torch.ones_like(p) for p in params])
    assert [float(p[0, 0]) for p in params] == [-0.5, 0.5, 0.5]


def test_shapes_that_do_not_suit_the_rule_are_told() -> None:
    module = module_of("Muon")
    with pytest.raises(torch.jit.Error, match="parameter 0 of shape \\[3\\] does not suit the rule"):
        module.step(*pair())


def test_parameters_to_evaluate_with() -> None:
    begin, history = start([(3, 2)]), gradients([(3, 2)], steps=5)
    theirs, ours = tensors(begin, torch.float32), tensors(begin, torch.float32)
    optimizer, module = library_class("ScheduleFreeAdamW")(theirs), module_of("ScheduleFreeAdamW")
    for one in history:
        feed(optimizer, theirs, [one])
        step(module, ours, one)
        optimizer.eval()
        module.eval_params(list(ours))
        assert difference(values_of(ours), values_of(theirs)) == 0
        with pytest.raises(torch.jit.Error, match="call train_params before step"):
            step(module, ours, one)
        optimizer.train()
        module.train_params(list(ours))
    assert difference(values_of(ours), values_of(theirs)) == 0


def test_greek_letters_and_layouts() -> None:
    module = module_of("optimizer R\nhyper η = 0.1 >= 0\nstate μ\nμ = 0.9*μ + g\np -= η*μ")
    p = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    g = torch.ones_like(p)
    for _ in range(2):
        module.step([p], [g])
    torch.testing.assert_close(p, torch.full_like(p, -0.1 * (1 + 1.9)))


def test_sums_over_the_model_are_over_all_groups() -> None:
    begin, history = start([(3,), (2, 2)]), gradients([(3,), (2, 2)], steps=3)
    expected = run(library_class("AdamWClip"), begin, history, torch.float32, max_norm=0.1)
    module = module_of("AdamWClip", max_norm=0.1)
    module.set_groups([1, 1])
    ours = run_module(module, begin, history, torch.float32)
    assert difference([p.double().numpy() for p in ours], expected) == 0


RULE = """optimizer R
hyper lr = 0.1 >= 0, cap = 1 >= 0
hyper mode = "soft" in {"soft", "hard"}
require cap >= lr or mode == "hard" "cap must be at least lr"
group state x = 2*cap
x = x + 1
p -= min(lr, cap)*group.scale*x*g
"""


def test_keys_states_and_requirements_of_groups() -> None:
    module = module_of(RULE)
    params, grads = [torch.zeros(2), torch.zeros(1, 2, 1, 2, 1)], [torch.ones(2), torch.ones(1, 2, 1, 2, 1)]
    module.set_groups([1, 1])
    module.set_hyper("group.scale", 0.5, 1)
    module.step(params, grads)
    module.step(params, [torch.empty(0), grads[1]])
    torch.testing.assert_close(params[0], torch.full_like(params[0], -0.1 * 3))
    torch.testing.assert_close(params[1], torch.full_like(params[1], -0.1 * 0.5 * (3 + 4)))
    module.set_hyper("lr", 2.0)
    with pytest.raises(torch.jit.Error, match="cap must be at least lr"):
        module.step(params, grads)
    module_of(RULE, mode="hard", lr=2.0).step(params, grads)


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            app.main(("emit", "sgd", "--target", "torchscript", *arguments))
        return int(stop.value.code or 0)

    file = tmp_path / "rule.pt"
    assert run() != 0 and "give its name with -o" in " ".join(capsys.readouterr().err.split())
    assert run("--set", "momentum=0.5", "-o", str(file)) == 0
    assert torch.jit.load(str(file)).hyper("momentum") == 0.5


def test_the_peer_of_benchmarks_is_the_same_rule() -> None:
    from optlang.bench import emitted

    begin, history = start([(3,), (2, 2)]), gradients([(3,), (2, 2)], steps=3)
    peer = emitted.peer("torchscript", load("adamw"))
    theirs = run(library_class("AdamW"), begin, history, torch.float32, betas=(0.8, 0.9))
    ours = run(lambda params, **values: peer.make(params, values), begin, history, torch.float32, betas=(0.8, 0.9))
    assert difference(ours, theirs) == 0
