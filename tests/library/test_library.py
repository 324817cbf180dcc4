"""The battery: what every rule of the library must pass. A new ``.opt`` file is tested without an edit here."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import pickle
import re
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from references import make_reference, reference_class, row
from trajectories import (
    cases,
    default_dtype,
    difference,
    feed,
    gradients,
    library_class,
    library_evaluates,
    library_reference,
    library_routes,
    library_rule,
    library_text,
    run,
    run_interpreter,
    run_interpreters,
    run_reference,
    shapes,
    start,
    tensors,
)

import optlang.rules
from optlang.runtime.kernels import compiled_count
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

#: Not in the fast group: every rule of the library, or many rules, run for many steps.
pytestmark = pytest.mark.slow

NAMES = optlang.rules.names()
CASES = [(name, index) for name in NAMES for index in range(len(cases(name)))]
IDS = [f"{name}-{index}" for name, index in CASES]
#: Every case; those between a rule's first and last are left to the build server.
FIRST_AND_LAST = [
    pytest.param(name, index, marks=() if index in (0, len(cases(name)) - 1) else pytest.mark.thorough)
    for name, index in CASES
]
FROM_TORCH = [n for n in NAMES if (library_reference(n) or "").startswith("torch.") and row(n).akin]
TORCH_CASES = [case for case in CASES if case[0] in FROM_TORCH]
TORCH_IDS = [f"{name}-{index}" for name, index in TORCH_CASES]

#: What makes a step more than one pass over the elements, for which one kernel serves tensors of all shapes.
PASSES = re.compile(
    r"matrix\(|total\(|gnorm\(|@|newton_schulz|\bgrad\(|\bhvp\(|\bloss\b|\bevery\b|\broute\b|\bflat\b|\bhistory\b"
)

#: Keywords of torch.optim that choose an implementation, not an algorithm.
SWITCHES = {"foreach", "fused", "capturable", "differentiable"}

every_rule = pytest.mark.parametrize("name", NAMES)
every_case = pytest.mark.parametrize(("name", "index"), CASES, ids=IDS)
every_torch_case = pytest.mark.parametrize(("name", "index"), TORCH_CASES, ids=TORCH_IDS)


@cache
def eager(
    name: str, index: int, dtype: torch.dtype, missing: bool = False, like_reference: bool = False
) -> list[np.ndarray]:
    """Return where a rule takes the starting values, by plain torch operations, in float64 without rounding to less."""
    those, cls = shapes(name, like_reference), library_class(name, exact=dtype == torch.float64)
    return run(cls, start(those), gradients(those, missing=missing), dtype, **cases(name)[index])


# The algorithm ------------------------------------------------------------------------------------------------


@every_case
def test_agrees_with_its_reference(name: str, index: int) -> None:
    those = shapes(name, like_reference=True)
    begin, history, hypers = start(those), gradients(those), cases(name)[index]
    if make_reference(name, library_rule(name).reference, tensors(begin, torch.float32), **hypers) is None:
        pytest.skip("the rule names no reference")
    expected = run_reference(name, begin, history, torch.float64, **hypers)
    result = eager(name, index, torch.float64, like_reference=True)
    assert difference(result, expected, moved_from=begin) < row(name).tolerance


@pytest.mark.parametrize(("name", "index"), FIRST_AND_LAST, ids=IDS)
def test_agrees_with_its_reference_in_float32(name: str, index: int) -> None:
    those = shapes(name, like_reference=True)
    begin, history, hypers = start(those), gradients(those), cases(name)[index]
    if make_reference(name, library_rule(name).reference, tensors(begin, torch.float32), **hypers) is None:
        pytest.skip("the rule names no reference")
    expected = run_reference(name, begin, history, torch.float32, **hypers)
    assert difference(eager(name, index, torch.float32, like_reference=True), expected) < row(name).tolerance32


@pytest.mark.sampled
@every_case
def test_agrees_with_the_interpreter(name: str, index: int) -> None:
    begin = start(shapes(name))
    expected = run_interpreter(library_rule(name, exact=True), begin, gradients(shapes(name)), cases(name)[index])
    assert difference(eager(name, index, torch.float64), expected, moved_from=begin) < row(name).tolerance


@pytest.mark.sampled
@every_rule
def test_absent_gradients(name: str) -> None:
    begin, history, index = start(shapes(name)), gradients(shapes(name), missing=True), len(cases(name)) - 1
    result = eager(name, index, torch.float64, missing=True)
    expected = run_interpreter(library_rule(name, exact=True), begin, history, cases(name)[index])
    assert difference(result, expected, moved_from=begin) < row(name).tolerance
    if name in FROM_TORCH:
        expected = run_reference(name, begin, history, torch.float64, **cases(name)[index])
        assert difference(result, expected, moved_from=begin) < 1e-10


@every_rule
def test_groups_have_their_own_hyperparameters(name: str) -> None:
    if library_rule(name).flat:
        pytest.skip("the rule goes along one line, and takes one group")
    settings = (cases(name)[0], {**cases(name)[-1], "lr": 0.3 * cases(name)[-1]["lr"]})
    begin, history = start(shapes(name)), gradients(shapes(name), steps=5)
    both = [tensors(begin, torch.float64) for _ in settings]
    groups = [{"params": params, **hypers} for params, hypers in zip(both, settings, strict=True)]
    feed(library_class(name, exact=True)(groups), both[0] + both[1], [list(step) * 2 for step in history])
    expected = run_interpreters(library_rule(name, exact=True), [begin] * 2, [history] * 2, settings)
    for params, where in zip(both, expected, strict=True):
        assert difference([p.detach().numpy() for p in params], where, moved_from=begin) < row(name).tolerance


@pytest.mark.sampled
@every_rule
def test_goes_down_the_valley_of_rosenbrock(name: str) -> None:
    torch.manual_seed(0)  # of which the seed of an optimizer that draws is drawn
    p = torch.nn.Parameter(torch.tensor([[-1.0, 1.5]], dtype=torch.float64))
    optimizer = library_class(name)([p], **row(name).rosenbrock)

    def valley() -> float:
        x, y = p.detach()[0].tolist()
        p.grad = p.new_tensor([[-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]])
        return float((1 - x) ** 2 + 100 * (y - x * x) ** 2)

    def curved() -> torch.Tensor:
        x, y = p[0]
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    first = valley()
    closure = curved if "hvp" in library_class(name)._asked else valley
    for _ in range(1000):
        optimizer.step(closure)
    assert valley() < first / 20


def test_proximal_sgd_solves_the_lasso() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 8))
    y = x @ np.array([3.0, -2, 0, 0, 0, 1, 0, 0]) + 0.1 * rng.standard_normal(40)
    expected = linear_model.Lasso(alpha=0.3, fit_intercept=False, tol=1e-12).fit(x, y).coef_
    (p,) = tensors([np.zeros(8)], torch.float64)
    optimizer = library_class("ProximalSGD")([p], lr=0.3, l1=0.3)
    for _ in range(300):
        p.grad = torch.tensor(x.T @ (x @ p.detach().numpy() - y) / len(y))
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), expected, atol=1e-10)
    assert (p == 0).sum() == (expected == 0).sum() > 0


@pytest.mark.parametrize("name", [name for name in NAMES if library_evaluates(name)])
def test_evaluates_what_its_reference_evaluates(name: str) -> None:
    those = shapes(name, like_reference=True)
    history, hypers = gradients(those, steps=24), cases(name)[1]
    with default_dtype(torch.float64):
        ours, theirs = tensors(start(those), torch.float64), tensors(start(those), torch.float64)
        optimizer = library_class(name)(ours, **hypers)
        reference = make_reference(name, library_rule(name).reference, theirs, **hypers)
        for part in range(0, len(history), 8):
            feed(optimizer, ours, history[part : part + 8])
            feed(reference, theirs, history[part : part + 8])
            for mode in ("eval", "train"):
                getattr(optimizer, mode)()
                getattr(reference, mode)()
                results = ([p.detach().numpy().copy() for p in params] for params in (ours, theirs))
                assert difference(*results, moved_from=start(those)) < 1e-9


def test_langevin_dynamics_are_as_noisy_as_they_should_be() -> None:
    torch.manual_seed(0)
    (p,) = tensors([np.zeros(100_000)], torch.float64)
    optimizer = library_class("SGLD")([p], lr=0.02, temperature=0.5)
    for _ in range(4):
        p.grad = torch.ones_like(p)
        optimizer.step()
    noise = p.detach() + 4 * 0.02
    assert abs(noise.mean()) < 5e-3
    assert noise.var() == pytest.approx(4 * 2 * 0.02 * 0.5, rel=0.02)


# The class ----------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keeps_types_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    params = tensors(start(shapes(name)), dtype)
    narrow = row(name).half if dtype.itemsize == 2 else {}
    optimizer = library_class(name)(params, lr=row(name).lr, **narrow)
    feed(optimizer, params, gradients(shapes(name), steps=3))
    kept = torch.float32 if dtype is torch.float16 else dtype
    for p in params:
        assert p.dtype == dtype and torch.isfinite(p).all()
        for key, value in optimizer.state[p].items():
            if value.shape == p.shape and p.ndim:
                reduced = dtype.itemsize == 2 and value.dtype is torch.float32  # along dimensions of size 1
                assert value.dtype == kept or reduced, key
            assert torch.isfinite(value).all(), key


@every_case
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(name: str, index: int) -> None:
    history = gradients(shapes(name), steps=6)
    params = tensors(start(shapes(name)), torch.float64)
    optimizer = library_class(name)(params, **cases(name)[index])
    feed(optimizer, params, history[:3])
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = library_class(name)(again)
    other.load_state_dict(saved)
    feed(optimizer, params, history[3:])
    feed(other, again, history[3:])
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)


@every_torch_case
def test_checkpoints_go_to_torch_and_back(name: str, index: int) -> None:
    begin, history, hypers = start(shapes(name)), gradients(shapes(name), steps=9), cases(name)[index]
    with default_dtype(torch.float64):
        params = tensors(begin, torch.float64)
        theirs = make_reference(name, library_rule(name).reference, params, **hypers)
        feed(theirs, params, history[:3])

        copied = [torch.nn.Parameter(p.detach().clone()) for p in params]
        ours = library_class(name, exact=True)(copied)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        feed(ours, copied, history[3:6])

        returned = [torch.nn.Parameter(p.detach().clone()) for p in copied]
        back = make_reference(name, library_rule(name).reference, returned)
        back.load_state_dict(copy.deepcopy(ours.state_dict()))
        feed(back, returned, history[6:])
        feed(theirs, params, history[3:])
    expected = [p.detach().numpy() for p in params]
    assert difference([p.detach().numpy() for p in returned], expected, moved_from=begin) < 1e-10
    for p, q in zip(params, returned, strict=True):
        assert set(theirs.state[p]) == set(back.state[q])


@pytest.mark.parametrize("name", FROM_TORCH)
def test_takes_the_keywords_of_torch(name: str) -> None:
    def keywords(cls: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(cls).parameters.values()
        return [(p.name, p.default) for p in parameters if p.name not in SWITCHES | {"params"}]

    theirs, ours = keywords(reference_class(library_rule(name).reference)), keywords(library_class(name))
    if name == "Adam":  # torch has `maximize` among the switches before it
        theirs, ours = sorted(theirs, key=str), sorted(ours, key=str)
    assert ours == theirs


def test_muon_grows_its_steps_as_asked(name: str = "Muon") -> None:
    """With `spectral_unclamped` by sqrt(rows/cols), also where that is less than 1."""

    def moved(shape: tuple[int, int], lr: float, how: str | None, cls: Any) -> np.ndarray:
        (p,) = tensors([np.zeros(shape)], torch.float64)
        optimizer = cls([p], lr=lr, weight_decay=0.0, adjust_lr_fn=how)
        p.grad = torch.tensor(np.random.default_rng(0).standard_normal(shape))
        optimizer.step()
        return p.detach().numpy()

    ours, theirs = library_class(name), torch.optim.Muon
    for shape in ((3, 12), (12, 3)):
        factor = math.sqrt(shape[0] / shape[1])
        wanted = moved(shape, 0.1 * factor / max(1.0, factor), None, ours)
        assert np.allclose(moved(shape, 0.1, "spectral_unclamped", ours), wanted, rtol=1e-12)
        assert np.array_equal(moved(shape, 0.1, None, ours), moved(shape, 0.1, "original", ours))
        with contextlib.suppress(ValueError):  # raised by a torch that does not know it
            reference = moved(shape, 0.1, "spectral_unclamped", theirs)
            grown = moved(shape, 0.1, "spectral_unclamped", ours)  # both in bfloat16, to 2.4 % of its length
            assert np.linalg.norm(grown - reference) < 0.1 * np.linalg.norm(reference)


@every_rule
def test_refuses_what_is_out_of_range(name: str) -> None:
    params = tensors(start(shapes(name)), torch.float32)
    with pytest.raises(ValueError, match="lr"):
        library_class(name)(params, lr=-1.0)
    with pytest.raises(TypeError, match="lrr"):
        library_class(name)(params, lrr=1.0)


def test_torch_ranges_are_ours() -> None:
    bad: dict[str, list[dict[str, Any]]] = {
        "SGD": [{"momentum": -1.0}, {"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}],
        "Adam": [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}, {"weight_decay": -1.0}],
        "NAdam": [{"momentum_decay": -1.0}],
        "Adagrad": [{"lr_decay": -1.0}, {"initial_accumulator_value": -1.0}],
        "Adadelta": [{"rho": 1.5}],
        "RMSprop": [{"alpha": -0.5}, {"momentum": -0.5}],
        "Rprop": [{"etas": (0.5, 0.9)}, {"etas": (1.5, 2.0)}, {"etas": (0.0, 1.2)}],
        "Muon": [{"momentum": -0.5}, {"weight_decay": -1.0}, {"adjust_lr_fn": "adam"}],
        "Adafactor": [{"beta2_decay": 0.5}, {"d": 0.5}, {"eps": (-1.0, 1e-3)}, {"eps": (None, -1.0)}],
    }
    for name, rows in bad.items():
        for hypers in rows:
            for cls in (reference_class(library_rule(name).reference), library_class(name)):
                with pytest.raises(ValueError):
                    cls(tensors(start(shapes(name)), torch.float32), **hypers)


# The files ----------------------------------------------------------------------------------------------------


@every_rule
def test_file_is_documented_and_formatted(name: str) -> None:
    rule = library_rule(name)  # free of errors and warnings, or this fails
    # Tests are chosen by what the text says, so that a rule is checked only where it is run.
    assert rule.reference == library_reference(name)
    assert bool(rule.events) == library_evaluates(name) and bool(rule.routes) == library_routes(name)
    assert rule.doc is not None and "https://" in rule.doc, "name the paper"
    assert [h.name for h in rule.hypers if not h.doc] == [], "say what each hyperparameter is"
    file = optlang.rules.path(name)
    assert file.stem == name.lower()
    assert file.read_text(encoding="utf-8") == format_tree(parse(Source(file.read_text(encoding="utf-8"))))


def test_library_is_found_by_any_spelling() -> None:
    rules = optlang.rules
    assert "AdamW" in rules.names() and "AdamW" in dir(rules)
    assert rules["adamw"] is rules.AdamW is rules["AdamW"]
    assert rules.AdamW.__module__ == "optlang.rules" and rules.AdamW.__name__ == "AdamW"
    assert pickle.loads(pickle.dumps(rules.AdamW)) is rules.AdamW
    assert rules.path("SGD").name == "sgd.opt"
    with pytest.raises(KeyError, match="did you mean Adamax"):
        rules["adamx"]
    with pytest.raises(AttributeError, match="did you mean RMSprop"):
        _ = rules.RMSProp
    with pytest.raises(AttributeError, match="there are AcceleratedProximal"):
        _ = rules.nothing_like_it
    assert not hasattr(rules, "__wrapped__")


def test_listing_the_library_needs_no_torch() -> None:
    code = "import sys, optlang.rules; optlang.rules.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Compiled -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.compiler
@pytest.mark.parametrize("compiling", ["auto", pytest.param("inductor", marks=pytest.mark.thorough)])
@every_rule
def test_kernels_do_what_torch_operations_do(name: str, compiling: str) -> None:
    two = ((4, 6), (33, 5))
    history = gradients(two, steps=20)
    results, counts = [], []
    before = compiled_count(library_class(name, compiling))  # by other tests, for other types
    for backend in ("eager", compiling):
        params = tensors(start(two), torch.float32)
        cls = library_class(name, backend)
        optimizer = cls(params, **cases(name)[0])
        for number, step in enumerate(history):
            optimizer.param_groups[0]["lr"] = cases(name)[0]["lr"] * (1 - number / 40)
            feed(optimizer, params, [step])
            counts.append(compiled_count(cls))
        results.append([p.detach().double().numpy() for p in params])
    assert difference(results[1], results[0]) < row(name).tolerance32
    # Compiled kernels, not what is fallen back on; and none for a step size. What is not due in every step has been due
    # by the middle of the run.
    assert all(kernel.origin != "eager" for part in cls._parts.parts for kernel in part.kernels.loaded.values())
    assert counts[-1] == counts[30]
    if not PASSES.search(library_text(name)):
        assert counts[-1] - before <= 1
