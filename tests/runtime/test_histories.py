"""Histories, loops through them, rules that see one vector, and searches along a line."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from history_rules import RULES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trajectories import checked, difference, gradients, run, run_interpreter, start, tensors

import optlang
from optlang.checker.check import check_text
from optlang.runtime import searches
from optlang.source import Source

both_backends = pytest.mark.parametrize("backend", ["eager", pytest.param("auto", marks=pytest.mark.compiler)])
Parameters = list[torch.nn.Parameter]


def rosenbrock(params: Parameters) -> torch.Tensor:
    x = torch.cat([p.reshape(-1) for p in params])
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def logistic(params: Parameters) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    labels = (x @ torch.randn(5, 3, generator=generator, dtype=torch.float64) + noise).argmax(1)
    return torch.nn.functional.cross_entropy(x @ params[0] + params[1], labels) + 1e-3 * params[0].square().sum()


PROBLEMS: dict[str, tuple[Callable[[Parameters], torch.Tensor], list[Any]]] = {
    "rosenbrock": (rosenbrock, [[-1.2, 1.0], [[0.3, -0.5]], 0.7]),
    "logistic": (logistic, [np.zeros((5, 3)), np.zeros(3)]),
}


def closure(optimizer: Any, params: Parameters, loss_of: Callable[[Parameters], torch.Tensor]) -> Any:
    def run_closure() -> torch.Tensor:
        run_closure.calls += 1  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    run_closure.calls = 0  # type: ignore[attr-defined]
    return run_closure


def state_of(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict()["state"])


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(
        a[i].keys() == b[i].keys() and all(torch.equal(a[i][k], b[i][k]) for k in a[i]) for i in a
    )


# L-BFGS -------------------------------------------------------------------------------------------------------


LIMITS: list[dict[str, Any]] = [
    {"max_iter": 1},  # which leaves a search one evaluation
    {"max_iter": 4},
    {"max_iter": 25, "max_eval": 7},
    {"max_iter": 20, "max_eval": 21, "history_size": 100},
    {"tolerance_grad": 1e-1},
    {"tolerance_change": 1e-2},
    {"max_iter": 25, "max_eval": 1000, "history_size": 3},
]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_iterates_as_torch_does(problem: str, search: str | None, limits: dict[str, Any]) -> None:
    goes_where_torch_goes(problem, search, limits, "eager")


@pytest.mark.compiler
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_compiled_iterations(search: str | None) -> None:
    goes_where_torch_goes("rosenbrock", search, {"history_size": 3}, "auto")


def goes_where_torch_goes(problem: str, search: str | None, limits: dict[str, Any], backend: str) -> None:
    """Make steps of both: to the same places, with as many calls of the closure, and the first loss of each."""
    loss_of, begin = PROBLEMS[problem]
    ours, theirs = (tensors([np.asarray(x) for x in begin], torch.float64) for _ in range(2))
    lr = 1.0 if search else {"rosenbrock": 0.01, "logistic": 0.5}[problem]
    options = {"lr": lr, "history_size": 5, "line_search_fn": search, **limits}
    optimizer, reference = (
        optlang.compile("LBFGS", backend=backend)(ours, **options),
        torch.optim.LBFGS(theirs, **options),
    )
    calls = closure(optimizer, ours, loss_of), closure(reference, theirs, loss_of)
    for step in range(4):
        a, b = optimizer.step(calls[0]), reference.step(calls[1])
        assert calls[0].calls == calls[1].calls, step
        assert float(a) == pytest.approx(float(b), rel=1e-9), step
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_arguments_of_lbfgs_stand_where_torch_has_them() -> None:
    def arguments(cls: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(cls).parameters.values()
        return [(p.name, p.default) for p in parameters if p.name not in ("params", "maximize")]

    ours, theirs = arguments(optlang.rules.LBFGS), arguments(torch.optim.LBFGS)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert dict(ours) == dict(theirs)


def test_lbfgs_goes_up_when_told_to() -> None:
    places = []
    for sign in (1, -1):
        params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
        optimizer = optlang.compile("LBFGS", backend="eager")(params, maximize=sign < 0, line_search_fn="strong_wolfe")
        run_closure = closure(optimizer, params, lambda ps, sign=sign: sign * rosenbrock(ps))  # type: ignore[misc]
        optimizer.step(run_closure)
        places.append((run_closure.calls, [p.detach() for p in params]))
    assert places[0][0] == places[1][0] > 10
    assert all(torch.equal(p, q) for p, q in zip(places[0][1], places[1][1], strict=True))


def test_lbfgs_of_torch_remembers_nothing_from_before_ours() -> None:
    params = [torch.nn.Parameter(torch.tensor([-1.2, 1.0, 0.5, -0.3], dtype=torch.float64))]
    begin, middle, end = (
        cls(params, lr=0.01, max_iter=4, history_size=5)
        for cls in (torch.optim.LBFGS, optlang.compile("LBFGS", backend="eager"), torch.optim.LBFGS)
    )

    for _ in range(3):
        begin.step(closure(begin, params, rosenbrock))
    middle.load_state_dict(begin.state_dict())
    for _ in range(5):
        middle.step(closure(middle, params, rosenbrock))
    end.load_state_dict(middle.state_dict())
    twin = [torch.nn.Parameter(params[0].detach().clone())]
    anew = torch.optim.LBFGS(twin, lr=0.01, max_iter=4, history_size=5)
    for _ in range(2):
        end.step(closure(end, params, rosenbrock))
        anew.step(closure(anew, twin, rosenbrock))
    assert torch.equal(params[0], twin[0])


def test_lbfgs_of_torch_goes_on_from_ours_and_ours_from_torch() -> None:
    """The history is not carried over; everything else is, so that what follows still goes down."""
    classes = optlang.compile("LBFGS", backend="eager"), torch.optim.LBFGS
    for one, other in (classes, classes[::-1]):
        params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
        first = one(params, max_iter=4, history_size=10, line_search_fn="strong_wolfe")
        first.step(closure(first, params, rosenbrock))
        second = other(params)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.param_groups[0]["max_iter"] == 4 and second.param_groups[0]["max_eval"] == 5
        losses = [float(second.step(closure(second, params, rosenbrock))) for _ in range(10)]
        assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


def test_iterations_end_before_a_step_that_is_not_to_be_made() -> None:
    text = (
        "optimizer Down\nhyper lr = 0.1, most = 5\nstate n: scalar\n"
        "iterate most until total(g^2) < 1e-3 or evaluations() > 4\nn += iteration()\np -= lr*g\n"
    )
    cls = optlang.compile(text, backend="eager")
    for most, start_at, steps, calls in (
        (0, 1.0, 0, 1),
        (3, 1.0, 3, 3),
        (9, 1.0, 4, 5),
        (9, 0.02, 2, 3),
        (9, 0.001, 0, 1),
    ):
        (p,) = tensors([np.array([start_at])], torch.float64)
        optimizer = cls([p], most=most)
        run_closure = closure(optimizer, [p], lambda ps: ps[0].square().sum())
        loss = optimizer.step(run_closure)
        assert float(loss) == start_at**2 and run_closure.calls == calls, (most, start_at)
        assert float(p) == pytest.approx(start_at * 0.8**steps)
        assert bool(optimizer.state) == (steps > 0)
        assert steps == 0 or float(optimizer.state[p]["n"]) == sum(range(1, steps + 1))


def test_what_iterate_cannot_be() -> None:
    declared = "optimizer Example\nhyper lr = 0.1\n"
    for line, code in (("iterate 2\niterate 3\n", "E316"), ("iterate 2 until g > 0\n", "E301")):
        _, findings = check_text(Source(f"{declared}{line}p -= lr*g\n", "x.opt"))
        assert [finding.code for finding in findings] == [code]
    with pytest.raises(optlang.OptlangError, match="LBFGS makes several steps in one"):
        optlang.compile("optimizer Both\nroute LBFGS when ndim == 2\nroute AdamW otherwise\n", backend="eager")
    params = tensors([np.ones(3)], torch.float64)
    params[0].grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="needs a closure"):
        optlang.compile(f"{declared}iterate 3\np -= lr*g\n", backend="eager")(params).step()


@both_backends
@pytest.mark.parametrize("search", [None, "strong_wolfe", "backtracking"])
def test_goes_on_from_a_checkpoint_bit_for_bit(search: str | None, backend: str) -> None:
    cls = optlang.compile("LBFGS", backend=backend)
    params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
    optimizer = cls(params, lr=0.2, history_size=3, line_search_fn=search)
    for _ in range(6):
        optimizer.step(closure(optimizer, params, rosenbrock))
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = cls(again, history_size=3)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(5):
        optimizer.step(closure(optimizer, params, rosenbrock))
        other.step(closure(other, again, rosenbrock))
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
    assert same(state_of(optimizer), state_of(other))
    twin = copy.deepcopy(other)
    twin.step(lambda: rosenbrock(params).detach() if twin.zero_grad() is None else 0.0)


def test_a_checkpoint_of_another_history_is_refused() -> None:
    cls = optlang.compile("LBFGS", backend="eager")
    params = tensors([np.zeros(3)], torch.float64)
    optimizer = cls(params, history_size=3)
    optimizer.step(closure(optimizer, params, rosenbrock))
    saved = optimizer.state_dict()
    saved["state"][0]["s"] = torch.zeros(5, 3)
    before = state_of(optimizer)
    with pytest.raises(ValueError, match=r"'s' of shape \(5, 3\)"):
        optimizer.load_state_dict(saved)
    assert same(before, state_of(optimizer))


@both_backends
@pytest.mark.parametrize("search", ["strong_wolfe", "backtracking"])
def test_a_closure_that_fails_on_the_line_leaves_everything_as_it_was(search: str, backend: str) -> None:
    params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
    optimizer = optlang.compile("LBFGS", backend=backend)(params, max_iter=1, max_eval=26, line_search_fn=search)
    for _ in range(3):
        optimizer.step(closure(optimizer, params, rosenbrock))
    where, kept, run_closure = (
        [p.detach().clone() for p in params],
        state_of(optimizer),
        closure(optimizer, params, rosenbrock),
    )

    def failing() -> torch.Tensor:
        if run_closure.calls:
            raise RuntimeError("out of memory")
        return run_closure()  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    assert all(torch.equal(p, q) for p, q in zip(params, where, strict=True))
    assert same(kept, state_of(optimizer))
    twin = copy.deepcopy(optimizer)
    del twin
    optimizer.step(closure(optimizer, params, rosenbrock))
    assert float(rosenbrock(params)) < float(rosenbrock([torch.nn.Parameter(x) for x in where]))


def test_a_search_needs_a_closure_that_returns_the_loss() -> None:
    cls, params = optlang.compile("LBFGS", backend="eager"), tensors([np.ones(3)], torch.float64)
    optimizer = cls(params, line_search_fn="strong_wolfe")
    params[0].grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"LBFGS.step\(\) needs a closure: the rule evaluates the loss in a line"):
        optimizer.step()
    with pytest.raises(TypeError, match="the closure must return the loss"):
        optimizer.step(lambda: None)
    assert torch.equal(params[0], torch.ones(3, dtype=torch.float64)) and not optimizer.state


# One vector ---------------------------------------------------------------------------------------------------

FLAT = "optimizer Whole\nhyper lr = 0.1\nflat\nstate m\nm = 0.9*m + g\np -= lr*m/(1 + norm(m))\n"


@both_backends
def test_a_flat_rule_sees_one_vector(backend: str) -> None:
    begin, history = start(), gradients(missing=True)
    ours = run(optlang.compile(FLAT, backend=backend), begin, history, torch.float64)
    assert difference(ours, run_interpreter(checked(FLAT), begin, history, {}), moved_from=begin) < 1e-12


@both_backends
def test_a_flat_rule_takes_parameters_however_they_lie(backend: str) -> None:
    values = [np.asarray(x) for x in (np.arange(24.0).reshape(2, 3, 2, 2), np.arange(6.0).reshape(2, 3))]
    grads = [np.cos(value) for value in values]
    plain, odd = tensors(values, torch.float64), tensors(values, torch.float64)
    odd[0].data = odd[0].data.contiguous(memory_format=torch.channels_last)
    odd[1].data = odd[1].data.t().contiguous().t()
    for params in (plain, odd):
        optimizer = optlang.compile(FLAT, backend=backend)(params)
        for _ in range(3):
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(plain, odd, strict=True))


def test_a_flat_rule_follows_its_parameters() -> None:
    params = tensors([np.ones(3), np.ones((2, 2))], torch.float32)
    optimizer = optlang.compile(FLAT, backend="eager")(params)

    def step() -> None:
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()

    step()
    params[0].data = torch.zeros(3)
    step()
    assert params[0].abs().max() < 0.1 < params[1].min()
    for p in params:
        p.data, p.grad = p.data.double(), None
    optimizer.state.clear()
    step()
    assert params[0].dtype == torch.float64 and optimizer.state[params[0]]["m"].shape == (7,)
    for p in params:
        p.grad = None
    before = [p.detach().clone() for p in params]
    optimizer.step()  # nothing to do
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_groups_of_a_flat_rule_are_vectors_of_their_own() -> None:
    cls, grads = optlang.compile(FLAT, backend="eager"), gradients([(3,), (2, 2)], steps=4)
    both, alone = (tensors(start([(3,), (2, 2)]), torch.float64) for _ in range(2))
    optimizers = [cls([{"params": [p], "lr": lr} for p, lr in zip(both, (0.1, 0.3), strict=True)])]
    optimizers += [cls([p], lr=lr) for p, lr in zip(alone, (0.1, 0.3), strict=True)]
    for step in grads:
        for params in (both, alone):
            for p, g in zip(params, step, strict=True):
                p.grad = torch.tensor(g)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(both, alone, strict=True))


def test_what_does_not_go_into_one_vector() -> None:
    cls = optlang.compile("LBFGS", backend="eager")
    single, double = tensors([np.ones(2)], torch.float32) + tensors([np.ones(2)], torch.float64)
    with pytest.raises(ValueError, match=r"parameter 1 .* has type torch.float64 on cpu, but the first one has type "):
        cls([single, double])
    with pytest.raises(ValueError, match=r"parameter 0 .* is complex"):
        cls([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="takes one parameter group"):
        cls([{"params": [single]}, {"params": tensors([np.ones(2)], torch.float32)}])
    with pytest.raises(ValueError, match="capturable is not supported"):
        cls([single], capturable=True)


# Histories ----------------------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1, 4])
def test_histories_do_what_the_interpreter_does(name: str, size: int, backend: str) -> None:
    if backend == "auto" and size == 1:
        pytest.skip("the same code with another number")
    text = f"hyper lr = 0.05, n = {size}\n{RULES[name]}"
    begin, history = start(), gradients(steps=9, missing=True)
    ours = run(optlang.compile(text, backend=backend), begin, history, torch.float64)
    assert difference(ours, run_interpreter(checked(text), begin, history, {}), moved_from=begin) < 1e-10


def test_histories_are_saved_as_they_are() -> None:
    cls = optlang.compile("hyper lr = 0.1, n = 3\nhistory h: size n\npush h <- g\np -= lr*h[-1]\n", backend="eager")
    (p,) = tensors([np.zeros(2)], torch.float32)
    optimizer = cls([p])
    for value in (1.0, 2.0):
        p.grad = torch.full((2,), value)
        optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert state["h"].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert float(state["h_count"]) == 2 and float(state["h_start"]) == 2


LOOPS = (
    "optimizer Loops\nhyper lr = 0.1, n = 3\nflat\nhistory h: size n\npush h <- g\nq = 0*g\n"
    "for i in reversed(h):\n    a[i] = dot(h[i], g)\n    q = 0.5*q + h[i]\n"
    "for i in h: q = 0.9*q + h[i]/(1 + abs(a[i]))\np -= lr*q\n"
)


def steps_of(optimizer: Any, p: torch.nn.Parameter, values: Sequence[float]) -> None:
    for value in values:
        p.grad = torch.sin(value * torch.arange(1.0, 1.0 + p.numel(), dtype=p.dtype))
        optimizer.step()


class Large(TorchDispatchMode):
    """Records the operations that allocate a tensor of some size."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.found = numel, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        read = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(results):
            large = isinstance(x, torch.Tensor) and x.numel() >= self.numel
            if large and x.untyped_storage().data_ptr() not in read:
                self.found.append(str(func))
        return results


@pytest.mark.parametrize("text", [LOOPS, "LBFGS"])
def test_a_push_writes_one_row_and_copies_no_history(text: str) -> None:
    (p,) = tensors([np.linspace(-1, 1, 20)], torch.float64)
    lbfgs = text == "LBFGS"
    options = {"history_size": 30, "lr": 0.01, "max_iter": 1} if lbfgs else {"n": 30}
    optimizer = optlang.compile(text, backend="eager")([p], **options)

    def step(value: float) -> None:
        if lbfgs:
            optimizer.step(closure(optimizer, [p], lambda ps: (ps[0] ** 4 + ps[0].sin()).sum()))
        else:
            steps_of(optimizer, p, [value])

    for value in range(40):
        step(value)
    key = "s" if lbfgs else "h"
    state = optimizer.state[p]
    history, before, start = state[key], state[key].clone(), int(state[f"{key}_start"])
    with Large(history.numel()) as large:
        step(40.5)
    assert state[key] is history and large.found == []
    assert (history != before).any(1).nonzero().flatten().tolist() == [start]
    assert int(state[f"{key}_start"]) == (start + 1) % 30


def test_no_direction_is_computed_for_a_step_that_is_not_made() -> None:
    (p,) = tensors([np.linspace(-1, 1, 20)], torch.float64)
    optimizer = optlang.compile("LBFGS", backend="eager")([p], lr=0.1, max_iter=3)
    found = []
    for scale in (1.0, 0.0):
        run_closure = closure(optimizer, [p], lambda ps, scale=scale: scale * (ps[0] ** 4).sum())  # type: ignore[misc]
        for _ in range(2):
            with Large(p.numel()) as large:
                optimizer.step(run_closure)
        found.append(any("addcmul" in name for name in large.found))
    assert found == [True, False] and float(optimizer.state[p]["s_count"]) > 1


@both_backends
def test_a_checkpoint_from_the_middle_of_a_ring_goes_on_bit_for_bit(backend: str) -> None:
    cls = optlang.compile(LOOPS, backend=backend)
    (p,) = tensors([np.zeros(7)], torch.float32)
    optimizer = cls([p])
    steps_of(optimizer, p, (1.0, 2.0, 3.0, 4.0))
    assert float(optimizer.state[p]["h_start"]) == 1 and float(optimizer.state[p]["h_count"]) == 3
    again = torch.nn.Parameter(p.detach().clone())
    other = cls([again])
    other.load_state_dict(optimizer.state_dict())
    for one, q in ((optimizer, p), (other, again), (copy.deepcopy(other), None)):
        steps_of(one, one.param_groups[0]["params"][0] if q is None else q, (5.0, 6.0))
    assert torch.equal(p, again) and same(state_of(optimizer), state_of(other))


@pytest.mark.parametrize("filled", [2, 3])
def test_a_checkpoint_from_before_histories_were_rings_goes_on(filled: int) -> None:
    """There the entries stood in order, the last ones filled, and nothing said where the oldest is."""
    cls = optlang.compile(LOOPS, backend="eager")
    values = [1.0, 2.0, 3.0, 4.0, 5.0][: filled + (filled == 3)]
    (p,) = tensors([np.zeros(7)], torch.float64)
    optimizer = cls([p])
    steps_of(optimizer, p, values)
    saved = copy.deepcopy(optimizer.state_dict())
    state = saved["state"][0]
    state["h"] = state["h"].roll(-int(state.pop("h_start")), 0)
    assert (state["h"][: 3 - filled] == 0).all() and (state["h"][3 - filled :] != 0).any(1).all()
    again = torch.nn.Parameter(p.detach().clone())
    other = cls([again])
    other.load_state_dict(saved)
    for one, q in ((optimizer, p), (other, again)):
        steps_of(one, q, (6.0, 7.0, 8.0, 9.0))
    assert torch.equal(p, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_histories_keep_types(dtype: torch.dtype) -> None:
    params = tensors(start(), dtype)
    optimizer = optlang.compile("AdaShift", backend="eager")(params, keep_num=2, eps=1e-3)
    for step in gradients(steps=5):
        for p, g in zip(params, step, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    kept = torch.float32 if dtype is torch.float16 else dtype
    assert all(torch.isfinite(p).all() and optimizer.state[p]["past"].dtype == kept for p in params)


def test_a_name_may_be_count() -> None:
    for text in ("count = 2*g\np -= lr*count\n", "history count: size n\npush count <- g\np -= lr*count[-1]\n"):
        checked(f"hyper lr = 0.1{', n = 2' if 'size n' in text else ''}\n{text}")


# Searches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: ((t - 3) ** 2, 2 * (t - 3)),
        lambda t: (-np.sin(t), -np.cos(t)),
        lambda t: (np.exp(-t) + 0.1 * t, 0.1 - np.exp(-t)),
        lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2),
    ],
)
@pytest.mark.parametrize("first", [1e-3, 1.0, 30.0])
def test_strong_wolfe_meets_its_conditions(loss: Callable[[float], tuple[float, float]], first: float) -> None:
    begin = searches.SearchPoint(0.0, *loss(0.0))
    found = searches.strong_wolfe(loss, begin, 1.0, first, 1e-4, 0.5, 1e-9, 25)
    value, slope = loss(found)
    assert found > 0
    assert value <= begin.loss + 1e-4 * found * begin.slope and abs(slope) <= 0.5 * abs(begin.slope)


def test_backtracking_stops_where_the_loss_has_fallen() -> None:
    def line(t: float) -> tuple[float, float]:
        return (t - 1) ** 2, 2 * (t - 1)

    assert searches.backtracking(line, searches.SearchPoint(0.0, 1.0, -2.0), 8.0, 1e-4, 0.5, 25) == 1.0
    assert searches.backtracking(line, searches.SearchPoint(0.0, 1.0, -2.0), 8.0, 1e-4, 0.9, 3) == 0.0
    assert searches.strong_wolfe(line, searches.SearchPoint(0.0, 1.0, 0.0), 1.0, 8.0, 1e-4, 0.9, 1e-9, 25) == 0.0


def test_strong_wolfe_comes_back_from_what_is_no_number() -> None:
    def line(t: float) -> tuple[float, float]:
        return ((t - 0.2) ** 2, 2 * (t - 0.2)) if t < 0.5 else (float("nan"), float("nan"))

    found = searches.strong_wolfe(line, searches.SearchPoint(0.0, *line(0.0)), 1.0, 1.0, 1e-4, 0.9, 1e-9, 25)
    assert 0 < found < 0.4


@pytest.mark.parametrize(
    "step", ["backtracking(d, lr/(1 + gnorm(g)))", "backtracking(d, 0.5*backtracking(d, lr) + 0.001)"]
)
def test_the_first_distance_may_depend_on_the_model(step: str) -> None:
    params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
    optimizer = optlang.compile(f"optimizer Far\nhyper lr = 1\nd = -g\np += {step}*d\n", backend="eager")(params)
    losses = [float(optimizer.step(closure(optimizer, params, rosenbrock))) for _ in range(5)]
    assert all(after < before for before, after in pairwise(losses))


def test_a_closure_that_computes_no_gradients_is_an_error() -> None:
    params = tensors([np.ones(3)], torch.float64)
    optimizer = optlang.compile("LBFGS", backend="eager")(params, line_search_fn="strong_wolfe")
    with pytest.raises(RuntimeError, match=r"call loss\.backward"):
        optimizer.step(lambda: rosenbrock(params))


@both_backends
def test_a_search_for_every_tensor_together(backend: str) -> None:
    text = "optimizer Descent\nhyper lr = 1\nd = -g\np += backtracking(d, lr)*d\n"
    params = tensors([np.asarray(x) for x in PROBLEMS["rosenbrock"][1]], torch.float64)
    optimizer = optlang.compile(text, backend=backend)(params)
    losses = [float(optimizer.step(closure(optimizer, params, rosenbrock))) for _ in range(30)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < losses[0] / 10


def test_a_step_that_ends_before_it_begins_leaves_everything_bound() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer: Any = optlang.compile("lbfgs", backend="eager")([p])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert float(p.detach().abs().max()) < 1e-9
    (plan,) = optimizer._plans
    (batch,) = plan.batches
    before = p.detach().clone()
    for _ in range(2):
        optimizer.step(closure)  # the gradient is 0
        assert optimizer._plans == [plan] and plan.batches == [batch]
    assert torch.equal(p, before)
    p.data.fill_(3.0)  # and it goes on from there
    optimizer.step(closure)
    assert float(p.detach().abs().max()) < 1e-6
