"""``differentiable=True`` and ``capturable=True``: steps that autograd sees, and steps that read nothing back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, parameter, staged, train
from torch.utils._python_dispatch import TorchDispatchMode

import optlang.rules
from optlang.backends.loading.modules import load_module
from optlang.compiler import example_variant
from optlang.runtime import host
from optlang.syntax.tree import StateScope

AdamW = optimizer_class(ADAMW)
every_rule = pytest.mark.parametrize("name", optlang.rules.names(), indirect=True)

#: Rules whose step has jumps (signs, choices by size): a finite difference says nothing about them. LDoG looks at the
#: norm of no distance at all on its first step, and where it does not, at one that has no derivative.
JUMPS = {
    "Lion",
    "SignSGD",
    "Tiger",
    "Rprop",
    "CautiousAdamW",
    "ADOPT",
    "Yogi",
    "MADGRAD",
    "LARS",
    "StableAdamW",
    "LDoG",
}


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A rule whose step is one pass."""
    name: str = request.param
    if staged(name):
        pytest.skip("the rule's step is several passes: see test_staged_failures.py")
    return name


def options(name: str) -> dict[str, Any]:
    cls = optimizer_class(name)
    dense = {"sparse": None} if cls._compiled.rule.sparse else {}
    return {"lr": 0.01, **dense} if "lr" in cls([parameter(1)]).defaults else dense


# Host arithmetic on tensors -----------------------------------------------------------------------------------


@every_rule
def test_numbers_on_tensors_are_those_of_the_host(name: str) -> None:
    compiled = optimizer_class(name)._compiled
    variant = example_variant(compiled)
    facts = {"ndim": 2, "numel": 6.0, "rows": 2.0, "cols": 3.0, "eps_of": 2.0**-23}
    kernel = variant.kernel
    assert kernel is not None
    of_host = load_module(kernel.source, "host")["host"]
    of_tensors = load_module(kernel.text("traced_source"), "numbers")["host"]
    for t, held in product((1, 2, 5, 6, 1000, 10**6), (0.3, 1.0)):
        values: dict[str, Any] = {**compiled.defaults(), **facts, "t": float(t), "first": t == 1}
        arguments = [values.get(argument, held) for argument in kernel.host_arguments]
        expected = host.call(of_host, arguments)
        found = of_tensors(*(torch.tensor(a, dtype=None if isinstance(a, bool) else torch.float64) for a in arguments))
        for numbers, others in zip(expected, found, strict=True):
            torch.testing.assert_close(
                torch.tensor(numbers, dtype=torch.float64),
                torch.tensor([float(x) for x in others], dtype=torch.float64),
                rtol=1e-13,
                atol=0,
                equal_nan=True,
                msg=lambda said, t=t, held=held: f"t = {t}, {held} for what is held: {said}",
            )


# Differentiable -----------------------------------------------------------------------------------------------


def unrolled(name: str, leaves: tuple[torch.Tensor, ...], steps: int = 2, **values: Any) -> tuple[torch.Tensor, ...]:
    """Return parameters and states after some steps from leaves (a parameter, then a gradient for each step)."""
    p = leaves[0].clone()
    optimizer = optimizer_class(name)([p], differentiable=True, **values)
    for g in leaves[1 : steps + 1]:
        p.grad = g
        optimizer.step()
    p.grad = None
    return (p, *(v for v in optimizer.state[p].values() if torch.is_tensor(v) and v.requires_grad))


@every_rule
def test_a_differentiable_step_is_the_usual_one(name: str) -> None:
    start = [parameter(3, 4, seed=seed) for seed in range(2)]
    usual = [copy.deepcopy(p) for p in start]
    theirs = [p.detach().clone() for p in start]
    ours, other = (
        optimizer_class(name)(usual, **options(name)),
        optimizer_class(name)(theirs, differentiable=True, **options(name)),
    )
    for step in range(4):
        for p, q in zip(usual, theirs, strict=True):
            p.grad = parameter(3, 4, seed=10 + step).grad
            q.grad = p.grad.clone()
        ours.step()
        other.step()
    assert difference(usual, theirs) < 1e-14
    for p, q in zip(usual, theirs, strict=True):
        assert set(ours.state[p]) == set(other.state[q])
        for key, value in ours.state[p].items():
            torch.testing.assert_close(torch.as_tensor(value), other.state[q][key], rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@every_rule
def test_gradients_go_through_steps(name: str) -> None:
    leaves = tuple(parameter(2, 3, seed=seed).detach().requires_grad_() for seed in range(3))
    results = unrolled(name, leaves, **options(name))
    assert results[0].requires_grad
    if name not in JUMPS:
        assert torch.autograd.gradcheck(lambda *x: unrolled(name, x, **options(name))[0], leaves, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_hyperparameters_get_gradients(key: str) -> None:
    leaves = tuple(parameter(3, seed=seed).detach() for seed in range(4))

    def loss(value: torch.Tensor) -> torch.Tensor:
        return unrolled("adamw", leaves, 3, **{key: value})[0].square().sum()

    value = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(value), value)
    step = 1e-6
    with torch.no_grad():
        expected = (loss(value + step) - loss(value - step)) / (2 * step)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() != 0


def test_tuples_and_group_states_get_gradients_too() -> None:
    leaves = tuple(parameter(3, seed=seed).detach() for seed in range(4))
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    unrolled("adamw", leaves, 3, betas=(beta, 0.99))[0].sum().backward()
    assert beta.grad is not None and beta.grad != 0
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    unrolled(MIXED, leaves, 3, k=k)[0].sum().backward()
    assert k.grad is not None and k.grad != 0


def test_a_leaf_is_refused_before_anything_is_written() -> None:
    first, leaf = parameter(3).detach(), parameter(3)
    first.grad = torch.ones(3, dtype=torch.float64)
    before = first.clone()
    optimizer = AdamW([first, leaf], differentiable=True)
    with pytest.raises(ValueError, match=r"parameter 1 .* is a leaf .* give the optimizer clones"):
        optimizer.step()
    assert torch.equal(first, before) and not optimizer.state


def test_parameters_within_a_graph_are_taken_only_if_it_is_differentiable() -> None:
    inner = parameter(3) * 2
    AdamW([inner], differentiable=True)
    with pytest.raises(ValueError, match="non-leaf"):
        AdamW([inner])


# Capturable ---------------------------------------------------------------------------------------------------


class Sealed(TorchDispatchMode):
    """Fails when a number is read from a tensor, or a tensor is made from numbers of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.lift_fresh.default,
        ), f"a step read from the device: {func}"
        return func(*args, **(kwargs or {}))


@contextmanager
def sealed() -> Iterator[None]:
    with Sealed():
        yield


def capturable(name: str) -> bool:
    return not any(s.scope is StateScope.GROUP for s in optimizer_class(name)._compiled.rule.states)


@every_rule
def test_a_capturable_step_is_the_usual_one_and_reads_nothing_back(name: str) -> None:
    a = model()
    b = copy.deepcopy(a)
    cls = optimizer_class(name)
    usual, ours = cls(a.parameters(), **options(name)), cls(b.parameters(), capturable=True, **options(name))
    if not capturable(name):
        with pytest.raises(ValueError, match="numbers in the parameter group"):
            train(b, ours, 1)
        return
    train(a, usual, 2)
    train(b, ours, 2)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        q.grad = p.grad.clone()  # type: ignore[union-attr]
    usual.step()
    with sealed():
        ours.step()
    assert difference(list(a.parameters()), list(b.parameters())) < 1e-14
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert set(usual.state[p]) == set(ours.state[q])
        for key, value in usual.state[p].items():
            torch.testing.assert_close(value, ours.state[q][key], rtol=1e-12, atol=1e-14)


def test_a_step_size_on_the_device_is_followed_without_being_read() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    p, q = parameter(4), parameter(4)
    usual, ours = AdamW([p], lr=0.1), AdamW([q], lr=lr, capturable=True)
    for value in (0.1, 0.1, 0.03, 0.01):
        usual.param_groups[0]["lr"] = value
        lr.fill_(value)
        usual.step()
        ours.step()
        assert difference([p], [q]) < 1e-15
    lr.fill_(-1.0)
    with pytest.raises(ValueError, match="lr must be"):
        ours.step()


def test_counts_go_on_when_gradients_are_missing_and_checkpoints_go_both_ways() -> None:
    a, b = model(), model()
    usual, ours = AdamW(a.parameters()), AdamW(b.parameters(), capturable=True)
    for net, optimizer in ((a, usual), (b, ours)):
        train(net, optimizer, 2)
        next(net.parameters()).grad = None
        optimizer.step()
        train(net, optimizer, 2)
    assert difference(list(a.parameters()), list(b.parameters())) < 1e-15
    assert [float(s["step"]) for s in ours.state.values()] == [4, 5, 5, 5]
    there, back = copy.deepcopy(a), copy.deepcopy(b)
    to_capturable, to_usual = AdamW(there.parameters(), capturable=True), AdamW(back.parameters())
    to_capturable.load_state_dict({**usual.state_dict(), "param_groups": to_capturable.state_dict()["param_groups"]})
    to_usual.load_state_dict({**ours.state_dict(), "param_groups": to_usual.state_dict()["param_groups"]})
    for net, optimizer in ((a, usual), (there, to_capturable), (back, to_usual)):
        train(net, optimizer, 2, seed=3)
    assert difference(list(a.parameters()), list(there.parameters())) < 1e-15
    assert difference(list(a.parameters()), list(back.parameters())) < 1e-15


def test_switches_belong_to_groups_and_can_be_thrown_at_any_time() -> None:
    net, other = model(), model()
    optimizer, usual = AdamW(net.parameters()), AdamW(other.parameters())
    assert not optimizer.param_groups[0]["capturable"]
    for capture in (False, True, False, True):
        optimizer.param_groups[0]["capturable"] = capture
        train(net, optimizer, 2)
        train(other, usual, 2)
        assert difference(list(net.parameters()), list(other.parameters())) < 1e-15
    again = copy.deepcopy(optimizer)
    assert again.param_groups[0]["capturable"] is True


@pytest.mark.compiler
def test_a_capturable_step_runs_the_compiled_kernel() -> None:
    cls = optimizer_class(ADAMW, backend="auto")
    a = model(torch.float32)
    b = copy.deepcopy(a)
    train(a, cls(a.parameters()), 5)
    train(b, cls(b.parameters(), capturable=True), 5)
    assert difference(list(a.parameters()), list(b.parameters())) < 1e-6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_that_is_replayed_makes_steps() -> None:
    start = [torch.randn(size, device="cuda") for size in (5, 1000, (33, 7))]
    lr = torch.tensor(0.01, device="cuda")
    sides = []
    for captured in (False, True):
        parameters = [torch.nn.Parameter(p.clone()) for p in start]
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer = optlang.compile("adamw")(parameters, lr=lr if captured else 0.01, capturable=captured)
        optimizer.step()
        optimizer.step()
        sides.append((parameters, optimizer))
    (usual, one), (replayed, other) = sides
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other.step()
    for value in (0.01, 0.01, 0.003):
        one.param_groups[0]["lr"] = value
        lr.fill_(value)
        one.step()
        graph.replay()
    torch.cuda.synchronize()
    assert difference([p.cpu() for p in usual], [p.cpu() for p in replayed]) < 1e-6
    assert float(other.state[replayed[0]]["step"]) == 5


def test_what_a_gradient_scaler_leaves_for_the_step_is_honoured() -> None:
    p, q = parameter(4), parameter(4)
    ours, usual = AdamW([p]), AdamW([q])
    ours.step()
    usual.step()
    p.grad.mul_(8)
    ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    before = p.detach().clone()
    ours.step()
    assert torch.equal(p, before) and float(ours.state[p]["step"]) == 1
    ours.found_inf = torch.tensor(0.0)
    ours.step()
    usual.step()
    assert torch.equal(p, q)
    del ours.grad_scale, ours.found_inf


def test_numbers_on_tensors_of_rules_with_literals() -> None:
    rule = "p -= lr*max(3, 1)*min(0.5, 2)/(1 + exp(0))*(0.3 if t > 2 else 0.1)*warmup(3)*g"
    p, q = parameter(4), parameter(4)
    usual, ours = optimizer_class(rule)([p], lr=0.1), optimizer_class(rule)([q], lr=0.1, capturable=True)
    for _ in range(5):
        usual.step()
        ours.step()
    assert difference([p], [q]) < 1e-15
