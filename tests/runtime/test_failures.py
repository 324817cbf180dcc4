"""Whatever fails in a step fails before anything was written, and the next step goes on as if it had not happened."""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, train

from optlang.backends.loading import plain
from optlang.backends.loading.signature import LoadedKernel
from optlang.runtime import host
from optlang.runtime.kernels import LoadedVariant, VariantCache

RULES = {"adamw": ADAMW, "mixed": MIXED, "lamb": "lamb", "adafactor": "adafactor"}


class Fault:
    """Raises an error in the place of a function when it is called for the n-th time."""

    def __init__(self, function: Callable[..., Any], error: BaseException, after: int) -> None:
        self.function, self.error, self.left = function, error, after

    def __get__(self, instance: Any, owner: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.function(*args, **kwargs)


def two_groups(name: str, net: torch.nn.Module) -> torch.optim.Optimizer:
    first, last = net[0].parameters(), net[2].parameters()
    return optimizer_class(RULES[name])([{"params": first}, {"params": last, "lr": 0.02}], lr=0.1)


def everything(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    with torch._tensor_str.printoptions(precision=17):
        return str([list(net.parameters()), optimizer.state_dict()])


FAULTS: dict[str, tuple[Any, str, BaseException, int]] = {
    "interrupted while compiling": (VariantCache, "kernel", KeyboardInterrupt(), 0),
    "interrupted while compiling the second kernel": (VariantCache, "kernel", KeyboardInterrupt(), 1),
    "no memory for the first state": (LoadedVariant, "started", torch.OutOfMemoryError("no memory"), 0),
    "no memory for a later state": (LoadedVariant, "started", torch.OutOfMemoryError("no memory"), 3),
    "an error in host arithmetic": (host, "call", RuntimeError("host"), 0),
    "an error in host arithmetic of the second group": (host, "call", RuntimeError("host"), 1),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_that_fails_has_not_begun(fault: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, error, after = FAULTS[fault]
    net = model()
    optimizer = two_groups(name, net)
    train(net, optimizer, steps)
    twin = copy.deepcopy(net)
    other = two_groups(name, twin)
    other.load_state_dict(optimizer.state_dict())
    if steps:  # bound anew, so that the same may fail again
        optimizer.load_state_dict(optimizer.state_dict())
    before = everything(net, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(place, attribute, Fault(getattr(place, attribute), error, after))
        try:
            train(net, optimizer, 1, seed=5)
        except type(error):
            assert everything(net, optimizer) == before
        else:
            # no state was missing, or all parameters share a kernel
            assert attribute == "started" or (attribute == "kernel" and after)
            train(twin, other, 1, seed=5)
    train(net, optimizer, 2, seed=6)
    train(twin, other, 2, seed=6)
    assert difference(list(net.parameters()), list(twin.parameters())) == 0
    assert everything(net, optimizer) == everything(twin, other)


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "0.1", None, True])
def test_nonsense_in_the_last_group_stops_the_step_before_the_first(key: str, value: Any) -> None:
    net = model()
    optimizer = two_groups("adamw", net)
    train(net, optimizer, 1)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[1][key] = (0.9, value) if key == "betas" else value
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=rf"AdamW: .*({key}|beta2)"):
        optimizer.step()
    assert difference(list(net.parameters()), before) == 0
    assert {float(held["step"]) for held in optimizer.state.values()} == {1.0}


def test_a_checkpoint_is_loaded_whole_or_not_at_all() -> None:
    net = model()
    optimizer = two_groups("adamw", net)
    train(net, optimizer, 2)
    before = everything(net, optimizer)
    good = copy.deepcopy(optimizer.state_dict())

    def spoil(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        bad = copy.deepcopy(good)
        change(bad)
        return bad

    for bad in (
        spoil(lambda d: d["param_groups"][1].update(lr=float("nan"))),
        spoil(lambda d: d["param_groups"].pop()),
        spoil(lambda d: d["param_groups"][1]["params"].pop()),
        spoil(lambda d: d["state"][3].update(exp_avg=torch.ones(9))),
        spoil(lambda d: d["state"][3].update(step=torch.ones(2))),
        spoil(lambda d: d.pop("state")),
    ):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(bad)
        assert everything(net, optimizer) == before


def test_parameters_that_stand_twice() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer_class(ADAMW)([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer_class(ADAMW)([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="non-leaf"):
        optimizer_class(ADAMW)([p * 2])


# Interrupts ---------------------------------------------------------------------------------------------------------

#: What a line reads as at which nothing can interrupt Python, though a trace function can: it is neither the start of a
#: function nor after a call.
UNBROKEN = ("run(given)", "run(tensors)", "count.add_(")


#: The functions that write.
WRITING = {"run", "_move", "_run_packed", "_commit", "reflect", "commit", "hold", "advance", "_run_in_turns", "_write"}
WRITING |= {"copied_in", "copy_out", "_put_back", "_write_all", "draw", "compute"}


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the functions that write which is run."""

    def __init__(self, at: int) -> None:
        self.left, self.hit = at, False

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        here = "/optlang/runtime/" in frame.f_code.co_filename and frame.f_code.co_name in WRITING
        return self.line if here else None

    def line(self, frame: Any, event: str, argument: Any) -> Any:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not self.hit and not text.startswith(UNBROKEN):
            self.left -= 1
            if self.left < 0:
                self.hit = True
                raise KeyboardInterrupt
        return self.line

    def during(self, step: Callable[[], Any]) -> bool:
        """Run a step; return whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return self.hit


def in_one_call(kernel: Any, signature: Any) -> LoadedKernel:
    """Return a kernel that takes many parameters, as compiled ones do."""
    one, count = plain.load(kernel, signature).run, len(signature.dtypes)

    def run(tensors: list[Any]) -> None:
        for i in range(0, len(tensors) - 1, count):
            p, g, *states = tensors[i : i + count]
            one([p, g.view_as(p), *states, tensors[-1]])

    return LoadedKernel(run, "eager", many=True)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("together", [True, False])
def test_an_interrupt_leaves_parameters_moved_and_counted_or_neither(steps: int, together: bool) -> None:
    cls: Any = optimizer_class("adamw", name=f"Interrupted{together}")
    if together:
        cls._parts.parts[0].kernels._load = in_one_call

    def fresh() -> list[torch.Tensor]:
        ps = [torch.nn.Parameter(torch.full((n,), 1.0, dtype=torch.float64)) for n in (2, 3, 4, 5)]
        for p in ps:
            p.grad = torch.full_like(p, 0.5)
        return ps

    def optimizer_of(ps: list[torch.Tensor]) -> Any:
        return cls([{"params": ps[:2]}, {"params": ps[2:3]}, {"params": ps[3:]}], lr=0.1)

    expected = []  # after so many steps
    ps = fresh()
    reference = torch.optim.AdamW(ps, lr=0.1, foreach=False)
    for _ in range(steps + 4):
        expected.append(float(ps[0][0].detach()))
        reference.step()
    at, partly = 0, False
    while True:
        ps = fresh()
        optimizer = optimizer_of(ps)
        for _ in range(steps):
            optimizer.step()
        if not Interrupt(at).during(optimizer.step):
            break
        for more in (0, 1, 2):
            counts = [int(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0 for p in ps]
            for p, count in zip(ps, counts, strict=True):
                assert count in (steps + more, steps + more + 1), (at, counts)
                assert torch.allclose(p.detach(), torch.full_like(p, expected[count]), rtol=1e-9), (at, counts)
            partly |= more == 0 and len(set(counts)) > 1
            optimizer.step()
        at += 2
    assert partly and at > 20


def test_an_interrupt_from_the_kernel_itself_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: Any = optimizer_class("adamw", name="InterruptedInside")
    cls._parts.parts[0].kernels._load = in_one_call
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    p.grad, q.grad = torch.ones(3), torch.ones(2)
    optimizer = cls([{"params": [p]}, {"params": [q]}], lr=0.1)
    optimizer.step()
    (batch,) = optimizer._plans[0].batches
    run = batch.call.loaded.run

    def interrupted(tensors: list[Any]) -> None:
        run(tensors)
        raise KeyboardInterrupt

    version, before = p._version, q.detach().clone()
    batch.call.loaded = LoadedKernel(interrupted, "eager", many=True)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert (float(optimizer.state[p]["step"]), float(optimizer.state[q]["step"])) == (2, 1)
    assert p._version > version and torch.equal(q, before)


def dense(**options: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    ps = [torch.nn.Parameter(torch.linspace(1, 2, 12, dtype=torch.float64).view(3, 4)) for _ in range(2)]
    for p in ps:
        p.grad = torch.full_like(p, 0.5)
    return ps, options


def strided(**options: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    ps, _ = dense()
    for p in ps:
        p.data = p.data.repeat(2, 2)[::2, ::2]
    return ps, options


def sparse(**options: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    ps, _ = dense()
    for p in ps:
        rows = torch.ones(2, 4, dtype=torch.float64)
        p.grad = torch.sparse_coo_tensor(torch.tensor([[2, 0]]), rows, (3, 4), check_invariants=False)
    return ps, options


ALIKE = {
    "sgld": ("sgld", lambda: dense(seed=1)),
    "together": ("sgld", lambda: dense(seed=1)),
    "muon": ("muon", dense),
    "lamb": ("lamb", dense),
    "strided": ("adamw", strided),
    "sparse": ("sparseadam", sparse),
    "capturable": ("adamw", lambda: dense(capturable=True)),
    "numbers": (MIXED, lambda: dense(momentum=0.5)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_after_an_interrupt_parameters_and_states_agree(name: str) -> None:
    rule, made = ALIKE[name]
    cls: Any = optimizer_class(rule, name=f"Interrupted{name}")
    if name in ("together", "muon"):
        cls._parts.parts[0].kernels._load = in_one_call

    def after(steps: int) -> tuple[list[torch.Tensor], Any]:
        ps, options = made()
        optimizer = cls(ps, lr=0.1, **options)
        for _ in range(steps):
            optimizer.step()
        return ps, optimizer

    def looks(ps: list[torch.Tensor], optimizer: Any) -> list[str]:
        return [str((p.detach().tolist(), {k: v.tolist() for k, v in optimizer.state[p].items()})) for p in ps]

    references = [looks(*after(2)), looks(*after(3))]
    at, met = 0, set()
    while True:
        ps, optimizer = after(2)
        if not Interrupt(at).during(optimizer.step):
            break
        for i, look in enumerate(looks(ps, optimizer)):
            assert look in (references[0][i], references[1][i]), at
            met.add(look)
        at += 1
    assert met == {look for looks in references for look in looks} and at > 20


def test_after_an_interrupt_what_the_model_shares_agrees_with_its_parameters() -> None:
    def after(steps: int) -> tuple[list[torch.Tensor], Any]:
        ps, _ = dense()
        optimizer = optimizer_class("prodigy")(ps, bias_correction=True)
        for _ in range(steps):
            optimizer.step()
        return ps, optimizer

    def kept(optimizer: Any) -> dict[str, Any]:
        return {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}

    (before, old), (later, new) = after(2), after(3)
    at, met = 0, set()
    while True:
        ps, optimizer = after(2)
        if not Interrupt(at).during(optimizer.step):
            break
        moved = not torch.equal(ps[0], before[0])
        changed = any(
            not torch.equal(optimizer.state[p][key], old.state[q][key])
            for p, q in zip(ps, before, strict=True)
            for key in ("s", "exp_avg", "exp_avg_sq")
        )
        assert (kept(optimizer)["step"] == 3) == changed, at
        if moved:
            assert torch.equal(ps[0], later[0]) and kept(optimizer) == kept(new), at
        elif not changed:
            assert kept(optimizer) == kept(old), at
        met.add((moved, changed))
        at += 1
    assert met == {(False, False), (False, True), (True, True)}


@pytest.mark.parametrize("name", ["muon", "prodigy", "lbfgs"])
def test_after_an_interrupt_steps_in_passes_go_on(name: str) -> None:
    for at in (0, 3, 10, 30):
        net = model()
        optimizer = optimizer_class(name)([p for p in net.parameters() if name != "muon" or p.dim() == 2])

        def closure(net: Any = net) -> Any:
            net.zero_grad()
            loss = (net(torch.ones(2, net[0].in_features, dtype=net[0].weight.dtype)) ** 2).mean()
            loss.backward()
            return loss

        def step(optimizer: Any = optimizer, closure: Any = closure) -> None:
            if name != "lbfgs":
                closure()
            optimizer.step(closure if name == "lbfgs" else None)

        step()
        Interrupt(at).during(step)
        step()
        assert all(p.isfinite().all() for p in net.parameters())


def test_an_interrupt_before_a_sum_is_there_leaves_what_is_computed_from_it() -> None:
    rule = "hyper lr = 0.1\nstate n: scalar = 0\nn = n + total(1 + 0*sum(g))\np -= lr*t*g\n"

    def after(steps: int) -> tuple[list[torch.Tensor], Any]:
        ps = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((3, 4), (5,))]
        for p in ps:
            p.grad = torch.full_like(p, 0.5)
        optimizer = optimizer_class(rule, name="Waiting")(ps)
        for _ in range(steps):
            optimizer.step()
        return ps, optimizer

    moved = {steps: float(after(steps)[0][0].detach()[0, 0]) for steps in (2, 3)}
    at, met = 0, set()
    while True:
        ps, optimizer = after(2)
        if not Interrupt(at).during(optimizer.step):
            break
        for p in ps:
            steps, n = int(optimizer.state[p]["step"]), float(optimizer.state[p]["n"])
            assert float(p.detach().flatten()[0]) == pytest.approx(moved[steps], rel=1e-12), at
            assert n in (4.0, 6.0) and not (steps == 2 and n == 6.0), at
            met.add((steps, n))
        optimizer.step()  # and it goes on
        at += 1
    assert met == {(2, 4.0), (3, 4.0), (3, 6.0)}
