"""Rules that have the closure called again: what they need, what they leave as it was, and what failures leave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import optlang

AHEAD = "hyper lr = 0.1\nstate m\nm = 0.9*m + grad(p - 0.5*g)\np -= lr*m\n"
CURVED = "hyper lr = 0.1\nstate h\nevery 2: h = hvp(g)\np -= lr*(g + 0.01*h)\n"
both_backends = pytest.mark.parametrize("backend", ["eager", pytest.param("auto", marks=pytest.mark.compiler)])


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


def loss_of(net: torch.nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(10, 3)
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def closure(net: torch.nn.Module, optimizer: Any) -> Any:
    def run() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    return run


@both_backends
def test_the_gradient_ahead_is_that_of_the_moved_model(backend: str) -> None:
    net, twin = network(), network()
    optimizer = optlang.compile(AHEAD, backend=backend)(net.parameters())
    momenta = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(5):
        optimizer.step(closure(net, optimizer))
        own = [p.detach().clone() for p in twin.parameters()]
        here = torch.autograd.grad(loss_of(twin), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), here, strict=True):
                p -= 0.5 * g
        ahead = torch.autograd.grad(loss_of(twin), list(twin.parameters()))
        with torch.no_grad():
            for p, start, m, g in zip(twin.parameters(), own, momenta, ahead, strict=True):
                m.mul_(0.9).add_(g)
                p.copy_(start - 0.1 * m)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-13)


@both_backends
@pytest.mark.parametrize("graph", ["closure", "backward"])
def test_products_with_the_hessian(backend: str, graph: str) -> None:
    net, twin = network(), network()
    optimizer = optlang.compile(CURVED, backend=backend)(net.parameters())
    held = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(1, 6):
        if graph == "closure":
            optimizer.step(lambda: loss_of(net))
        else:
            optimizer.zero_grad()
            loss_of(net).backward(create_graph=True)
            optimizer.step()
        own = list(twin.parameters())
        slopes = torch.autograd.grad(loss_of(twin), own, create_graph=True)
        if step % 2 == 0:
            held = list(torch.autograd.grad(slopes, own, [g.detach() for g in slopes]))
        with torch.no_grad():
            for p, g, h in zip(own, slopes, held, strict=True):
                p -= 0.1 * (g + 0.01 * h)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-13)


def test_the_loss_at_a_point_can_refuse_a_step() -> None:
    rule = "hyper lr = 0.1\nshared state n = 0\ntried = p - lr*g\nif loss(tried) < loss: p = tried\nn = n + 1\n"
    net = network()
    optimizer = optlang.compile(rule, backend="eager")(net.parameters(), lr=1e3)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step(closure(net, optimizer))
    assert all(map(torch.equal, before, net.parameters()))
    optimizer.param_groups[0]["lr"] = 1e-2
    first = float(loss_of(net).detach())
    optimizer.step(closure(net, optimizer))
    assert loss_of(net) < first
    assert optimizer.param_groups[0]["n"] == 2


def test_one_point_is_one_evaluation() -> None:
    net, calls = network(), []
    rule = "hyper lr = 0.1\nq = p - lr*g\nif loss(q) < loss: p -= lr*grad(q)\n"
    optimizer = optlang.compile(rule, backend="eager")(net.parameters())
    run = closure(net, optimizer)

    def counted() -> torch.Tensor:
        calls.append(1)
        return run()

    optimizer.step(counted)
    assert len(calls) == 2


def test_what_is_not_due_is_not_evaluated() -> None:
    net, calls = network(), []
    rule = "hyper lr = 0.1\nevery 3: g = grad(p - lr*g)\np -= lr*g\n"
    optimizer = optlang.compile(rule, backend="eager")(net.parameters())
    run = closure(net, optimizer)

    def counted() -> torch.Tensor:
        calls.append(1)
        return run()

    for _ in range(6):
        optimizer.step(counted)
    assert len(calls) == 6 + 2


def test_gradients_are_what_they_were() -> None:
    net = network()
    optimizer = optlang.compile(AHEAD, backend="eager")(net.parameters())
    seen = {}

    def run() -> torch.Tensor:
        loss = closure(net, optimizer)()
        seen.setdefault("first", [p.grad for p in net.parameters()])
        return loss

    optimizer.step(run)
    assert all(p.grad is g for p, g in zip(net.parameters(), seen["first"], strict=True))


@both_backends
@pytest.mark.parametrize("fresh", [True, False])
def test_a_closure_that_raises_leaves_everything_as_it_was(backend: str, fresh: bool) -> None:
    net, twin = network(), network()
    cls = optlang.compile(AHEAD, backend=backend)
    optimizer, other = cls(net.parameters()), cls(twin.parameters())
    if not fresh:
        optimizer.step(closure(net, optimizer))
        other.step(closure(twin, other))
    before, saved = [p.detach().clone() for p in net.parameters()], copy.deepcopy(optimizer.state_dict())
    calls = []

    def fails() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return closure(net, optimizer)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fails)
    assert len(calls) == 2
    assert all(map(torch.equal, before, net.parameters()))
    after = optimizer.state_dict()
    assert after["param_groups"] == saved["param_groups"] and after["state"].keys() == saved["state"].keys()
    for key, state in saved["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in state.items())
    for _ in range(2):
        optimizer.step(closure(net, optimizer))
        other.step(closure(twin, other))
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize(
    ("rule", "run", "error", "message"),
    [
        (AHEAD, None, TypeError, "needs a closure: the rule evaluates `grad` or `loss` at another point"),
        ("hyper lr = 0.1\np -= lr*loss*g\n", None, TypeError, "needs a closure: the rule evaluates `loss`"),
        ("hyper lr = 0.1\np -= lr*loss*g\n", "none", TypeError, "the closure must return the loss"),
        (CURVED.replace("every 2", "every 1"), None, RuntimeError, r"backward\(create_graph=True\)"),
        (CURVED.replace("every 2", "every 1"), "backward", RuntimeError, "leaves backward"),
    ],
)
def test_what_is_missing_is_said_before_anything_changes(
    rule: str, run: str | None, error: type[Exception], message: str
) -> None:
    net = network()
    optimizer = optlang.compile(rule, name="Mine", backend="eager")(net.parameters())
    usual = closure(net, optimizer)
    usual()
    before = [p.detach().clone() for p in net.parameters()]
    given = {None: None, "none": lambda: usual() and None, "backward": usual}[run]
    with pytest.raises(error, match=message):
        optimizer.step(given)
    assert all(map(torch.equal, before, net.parameters())) and not optimizer.state


def test_shapes_are_checked() -> None:
    found = optlang.check("hyper lr = 0.1\np -= lr*grad(matrix(g))\n") + optlang.check("p -= lr*grad(norm(g)*g, 2)\n")
    assert [d.code for d in found if d.is_error] == ["E301", "E208"]
    assert "grad(p + rho*g)" in found[0].render()


def test_without_closure_and_gradients_nothing_can_be_meant() -> None:
    with pytest.raises(TypeError, match="needs a closure"):
        optlang.compile("sam", backend="eager")(network().parameters()).step()


@pytest.mark.parametrize("order", ["SAM when ndim == 2;SGD otherwise", "SGD when ndim == 1;SAM otherwise"])
def test_what_is_routed_elsewhere_moves_after_the_last_call(order: str) -> None:
    rule = "optimizer Mixed\n" + "".join(f"route {line}\n" for line in order.split(";"))
    net = network()
    optimizer = optlang.compile(rule, backend="eager")(net.parameters(), lr=0.1)
    vectors = [p for p in net.parameters() if p.ndim == 1]
    seen, run = [], closure(net, optimizer)

    def watching() -> torch.Tensor:
        seen.append([p.detach().clone() for p in vectors])
        return run()

    optimizer.step(watching)
    assert len(seen) == 2 and all(map(torch.equal, *seen))
    assert not any(map(torch.equal, seen[0], vectors))


def test_any_rule_can_be_inside() -> None:
    cls = optlang.compile("sam", inner="adamw", backend="eager")
    net = network()
    optimizer = cls(net.parameters(), lr=1e-2, rho=0.0)
    twin = network()
    other = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.step(closure(net, optimizer))
        other.step(closure(twin, other))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_states_are_made_ahead_for_a_checkpoint_without_a_closure() -> None:
    net = network()
    optimizer = optlang.compile(AHEAD, backend="eager")(net.parameters(), lr=0.0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # as torch.distributed.checkpoint does it
    assert len(optimizer.state) == len(list(net.parameters()))


# Several evaluations in one step ------------------------------------------------------------------------------


def at(net: torch.nn.Module, points: Any) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a model whose parameters are somewhere else for a moment."""
    params = list(net.parameters())
    own = [p.detach().clone() for p in params]
    for p, x in zip(params, points, strict=True):
        p.data.copy_(x)
    found = torch.autograd.grad(loss_of(net), params)
    for p, x in zip(params, own, strict=True):
        p.data.copy_(x)
    return found


def stepped(rule: str, run: str = "backward") -> tuple[torch.nn.Module, Any]:
    """Return a network after one step of a rule."""
    net = network()
    optimizer = optlang.compile("hyper lr = 0.1\n" + rule, backend="eager")(net.parameters())

    def graphed() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward(create_graph=True)
        return loss

    optimizer.step({"backward": closure(net, optimizer), "graph": graphed, "loss": lambda: loss_of(net)}[run])
    return net, optimizer


def assert_moved_by(net: torch.nn.Module, steps: Any) -> None:
    for p, start, step in zip(net.parameters(), network().parameters(), steps, strict=True):
        torch.testing.assert_close(p, start - 0.1 * step, rtol=0, atol=1e-13)


def test_points_that_are_equal_for_some_tensors_only_are_two() -> None:
    net, _ = stepped("q = 2*g if ndim == 2 else g\na = grad(p + g)\nb = grad(p + q)\np -= lr*(a + b)\n")
    twin = network()
    params = list(twin.parameters())
    g = torch.autograd.grad(loss_of(twin), params)
    a = at(twin, [p + x for p, x in zip(params, g, strict=True)])
    b = at(twin, [p + (2 * x if p.ndim == 2 else x) for p, x in zip(params, g, strict=True)])
    assert_moved_by(net, [x + y for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("run", ["graph", "loss"])
def test_a_product_with_a_gradient_from_elsewhere(run: str) -> None:
    net, _ = stepped("a = grad(p + 0.1*g)\nh = hvp(2*a)\np -= lr*(a + h)\n", run)
    twin = network()
    params = list(twin.parameters())
    g = torch.autograd.grad(loss_of(twin), params)
    a = at(twin, [p + 0.1 * x for p, x in zip(params, g, strict=True)])
    slopes = torch.autograd.grad(loss_of(twin), params, create_graph=True)
    h = torch.autograd.grad(slopes, params, [2 * x for x in a])
    assert_moved_by(net, [x + y for x, y in zip(a, h, strict=True)])


def test_what_is_evaluated_may_be_the_next_point() -> None:
    net, _ = stepped("a = grad(p + g)\nb = grad(a)\np -= lr*b\n")
    twin = network()
    params = list(twin.parameters())
    g = torch.autograd.grad(loss_of(twin), params)
    a = at(twin, [p + x for p, x in zip(params, g, strict=True)])
    assert_moved_by(net, at(twin, a))
    stepped("a = hvp(g)\nb = hvp(a)\np -= lr*b\n", "graph")


@pytest.mark.parametrize(
    "rule", ["n = loss(p - lr*g)\np -= lr*g\n", "q = p - lr*g\na = grad(q)\nn = loss(q)\np -= lr*g + 0*a\n"]
)
@pytest.mark.parametrize("declared", ["shared state n = 5", "state n: scalar = 5"])
def test_states_that_are_numbers_may_be_losses(rule: str, declared: str) -> None:
    net, optimizer = stepped(f"{declared}\n{rule}")
    kept = optimizer.param_groups[0] if "shared" in declared else optimizer.state[next(net.parameters())]
    assert float(kept["n"]) == pytest.approx(float(loss_of(net).detach()), rel=1e-12)


@pytest.mark.parametrize("declared", ["shared state c = 5", "state c: scalar = 5"])
def test_states_that_are_numbers_need_a_loss_as_well(declared: str) -> None:
    net = network()
    rule = f"hyper lr = 0.1\n{declared}\nc = min(c, loss)\np -= lr*g\n"
    optimizer = optlang.compile(rule, backend="eager")(net.parameters())
    usual = closure(net, optimizer)
    usual()
    before = [p.detach().clone() for p in net.parameters()]
    for given, message in ((None, "needs a closure"), (lambda: usual() and None, "the closure must return the loss")):
        with pytest.raises(TypeError, match=message):
            optimizer.step(given)
        assert all(map(torch.equal, before, net.parameters()))


def test_a_loss_without_curvature() -> None:
    net = torch.nn.Linear(3, 1).double()
    optimizer = optlang.compile("hyper lr = 0.1\nh = hvp(g)\np -= lr*(g + h)\n", backend="eager")(net.parameters())
    before, x = net.weight.detach().clone(), torch.ones(1, 3, dtype=torch.float64)
    optimizer.step(lambda: net(x).mean())
    torch.testing.assert_close(net.weight, before - 0.1 * x)


def test_a_closure_that_leaves_backward_to_the_step() -> None:
    net, twin = network(), network()
    ours, theirs = (optlang.compile("sam", backend="eager")(n.parameters(), lr=0.1) for n in (net, twin))
    loss_of(net).backward()
    ours.step(lambda: loss_of(net))
    theirs.step(closure(twin, theirs))
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


def test_two_rules_that_call_the_closure_are_not_routed_to() -> None:
    with pytest.raises(optlang.OptlangError, match="`SAM` and `ExtraGradient` call the closure"):
        optlang.compile("optimizer Mixed\nroute SAM when ndim == 2\nroute ExtraGradient otherwise\n")
