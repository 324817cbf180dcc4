"""Stepping: gradients of every kind, states, counts, variants, types and memory layouts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, against, difference, model, optimizer_class, parameter, train, twins

from optlang.runtime.kernels import compiled_count
from optlang.runtime.tensors import overlapping

AdamW = optimizer_class(ADAMW)
SGD = optimizer_class("sgd")
Mixed = optimizer_class(MIXED)


def test_it_computes_what_torch_does() -> None:
    assert against(AdamW, torch.optim.AdamW) < 1e-15
    for options in ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {}):
        assert against(lambda p: SGD(p, lr=0.1, **options), lambda p: torch.optim.SGD(p, lr=0.1, **options)) < 1e-14  # noqa: B023


def test_the_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    p = parameter(3)
    optimizer = AdamW([p])

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.requires_grad
    assert optimizer.step(lambda: 7) == 7
    assert optimizer.step() is None


def test_hooks_see_the_step() -> None:
    optimizer, seen = AdamW([parameter(2)]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]


def test_parameters_without_gradients_are_skipped_and_counted_apart() -> None:
    (p, q), (a, b) = twins(parameter(3), parameter(4, seed=1))
    ours, theirs = AdamW([p, q]), torch.optim.AdamW([a, b])
    generator = torch.Generator().manual_seed(3)
    for step in range(12):
        for x, y, wanted in ((p, a, step % 3 != 1), (q, b, step > 4 and step % 2)):
            g = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x.grad, y.grad = (g, g.clone()) if wanted else (None, None)
        ours.step()
        theirs.step()
    assert difference([p, q], [a, b]) < 1e-15
    assert float(ours.state[p]["step"]) == 8
    assert float(ours.state[q]["step"]) == 4


def test_nothing_happens_without_any_gradient() -> None:
    p = parameter(2)
    p.grad = None
    optimizer = Mixed([p])
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["seen"] == 0.0


def test_gradients_are_neither_changed_nor_kept_alive() -> None:
    import weakref

    p = parameter(5)
    optimizer = AdamW([p], weight_decay=0.1)
    for _ in range(2):
        p.grad = torch.randn(5, dtype=p.dtype)
        before, alive = p.grad.clone(), weakref.ref(p.grad)
        optimizer.step()
        assert torch.equal(p.grad, before)
        p.grad = None
        assert alive() is None


def test_a_step_that_raises_has_changed_nothing() -> None:
    good, bad = parameter(3), torch.nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
    optimizer = Mixed([{"params": [good]}, {"params": bad}], momentum=0.5)
    bad.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=torch.float64), (4, 2))
    before = good.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 0 \(of shape \(4, 2\)\) has a sparse gradient"):
            optimizer.step()
    assert torch.equal(good, before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["seen"] == 0.0
    bad.grad = bad.grad.to_dense()
    optimizer.step()
    reference = parameter(3)
    Mixed([reference], momentum=0.5).step()
    assert torch.equal(good, reference)  # as on a first step


def test_errors_name_parameters() -> None:
    p = torch.nn.Parameter(torch.zeros(4, 2))
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2))
    with pytest.raises(ValueError, match="AdamW: parameter 'embedding' has a sparse gradient"):
        AdamW([("embedding", p)]).step()
    rows = optimizer_class("p -= lr*mean(g, dim=-2)")
    with pytest.raises(ValueError, match=r"parameter 'bias' has 1 dimensions?, but Rule needs at least 2"):
        rows([("bias", parameter(3))], lr=0.1).step()


def test_states_on_the_host_are_shown_as_tensors_and_group_states_in_the_group() -> None:
    p, q = parameter(3), parameter(2, seed=1)
    optimizer = Mixed([p, q])
    expected = p.detach().clone()
    prod = 1.0
    for t in range(1, 5):
        prod *= 1 - 0.5 / (t + 1)
        expected -= 0.1 * prod * p.grad / t
        optimizer.step()
    assert torch.allclose(p, expected, rtol=1e-14)
    for x in (p, q):
        shown = optimizer.state[x]
        assert shown["step"].dtype is torch.float64
        assert shown["step"].dim() == 0
        assert shown["step"] == 4
        assert math.isclose(shown["prod"], prod)
    assert optimizer.param_groups[0]["seen"] == 4.0


def test_what_the_user_writes_to_the_state_counts() -> None:
    (p,), (a,) = twins(parameter(3))
    ours, theirs = AdamW([p]), torch.optim.AdamW([a])
    for optimizer, x in ((ours, p), (theirs, a)):
        optimizer.step()
        optimizer.state[x]["step"].fill_(7)
        optimizer.step()
        optimizer.state[x]["step"] = torch.tensor(11.0)
        optimizer.state[x]["exp_avg"] = torch.ones_like(x)
        optimizer.step()
        optimizer.step()
    assert difference([p], [a]) < 1e-15
    assert ours.state[p]["step"] == 13
    for optimizer in (ours, theirs):
        optimizer.state.clear()
        optimizer.step()
    assert difference([p], [a]) < 1e-15
    assert ours.state[p]["step"] == 1


def test_state_follows_static_answers() -> None:
    (p,), (a,) = twins(parameter(3))
    ours, theirs = SGD([p], lr=0.1), torch.optim.SGD([a], lr=0.1)
    for momentum in (0.0, 0.9, 0.8, 0.0, 0.0, 0.5):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["momentum"] = momentum
            optimizer.step()
        assert ("momentum_buffer" in ours.state[p]) == ("momentum_buffer" in theirs.state[a])
    assert difference([p], [a]) < 1e-15


def test_groups_with_options_of_their_own() -> None:
    shapes = [parameter(3), parameter(4, seed=1)]
    (p, q), (a, b) = twins(*shapes)
    ours = AdamW([{"params": [p], "amsgrad": True}, {"params": [q], "lr": 0.5}])
    theirs = torch.optim.AdamW([{"params": [a], "amsgrad": True}, {"params": [b], "lr": 0.5}])
    for _ in range(3):
        ours.step()
        theirs.step()
    assert difference([p, q], [a, b]) < 1e-15
    assert "max_exp_avg_sq" in ours.state[p]
    assert "max_exp_avg_sq" not in ours.state[q]
    extra, twin = twins(parameter(2, seed=2))
    ours.add_param_group({"params": extra})
    theirs.add_param_group({"params": twin})
    ours.step()
    theirs.step()
    assert difference([p, q, *extra], [a, b, *twin]) < 1e-15


@pytest.mark.parametrize("scheduler", ["lambda", "onecycle", "exponential"])
def test_schedulers(scheduler: str) -> None:
    nets = model(), model()
    optimizers = AdamW(nets[0].parameters(), lr=0.1), torch.optim.AdamW(nets[1].parameters(), lr=0.1)
    for net, optimizer in zip(nets, optimizers, strict=True):
        schedule: Any = {
            "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.9**i),
            "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=20),
            "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        }[scheduler](optimizer)
        for step in range(8):
            train(net, optimizer, 1, seed=step)
            schedule.step()
    assert difference(list(nets[0].parameters()), list(nets[1].parameters())) < 1e-13


LAYOUTS = {
    "0-d": lambda: torch.randn((), dtype=torch.float64),
    "one element": lambda: torch.randn(1, 1, dtype=torch.float64),
    "empty": lambda: torch.empty(0, 3, dtype=torch.float64),
    "channels last": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(3, 4, dtype=torch.float64).t(),
    "strided": lambda: torch.randn(4, 6, dtype=torch.float64)[:, ::2],
    "expanded offset": lambda: torch.randn(40, dtype=torch.float64)[3:33].view(5, 6),
    "complex": lambda: torch.randn(3, 2, dtype=torch.complex128),
    "complex transposed": lambda: torch.randn(3, 2, dtype=torch.complex128).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient", ["same", "contiguous", "reversed"])
def test_memory_layouts(layout: str, gradient: str) -> None:
    torch.manual_seed(0)
    start = LAYOUTS[layout]()
    p, a = torch.nn.Parameter(start), torch.nn.Parameter(start.detach().clone())
    ours, theirs = AdamW([p], lr=0.1), torch.optim.AdamW([a], lr=0.1)
    for _ in range(3):
        g = torch.randn_like(a)
        p.grad = g.clone()
        if gradient == "same":
            p.grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(g)
        elif gradient == "reversed" and p.dim() > 1:
            p.grad = g.mT.contiguous().mT
        a.grad = g
        ours.step()
        theirs.step()
    assert difference([p], [a]) < 1e-14
    if p.numel():
        assert p.data_ptr() == start.data_ptr()
    assert ours.state[p]["exp_avg"].shape == p.shape
    assert ours.state[p]["step"] == 3


@pytest.mark.parametrize("layout", ["channels last", "transposed", "strided", "expanded offset"])
def test_memory_layouts_of_rules_that_look_at_dimensions(layout: str) -> None:
    torch.manual_seed(0)
    start = LAYOUTS[layout]()
    p, a = torch.nn.Parameter(start), torch.nn.Parameter(start.detach().clone(memory_format=torch.contiguous_format))
    ours, theirs = optimizer_class("adafactor")([p]), torch.optim.Adafactor([a])
    for _ in range(3):
        a.grad = torch.randn_like(a)
        p.grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(a.grad)
        ours.step()
        theirs.step()
    assert difference([p], [a]) < 1e-13


def test_a_complex_gradient_that_is_only_marked_as_conjugate() -> None:
    (p,), (a,) = twins(parameter(3, dtype=torch.complex128))
    p.grad = p.grad.conj().clone().conj()
    assert p.grad.is_conj()
    for optimizer in (SGD([p], lr=0.1), torch.optim.SGD([a], lr=0.1)):
        optimizer.step()
    assert difference([p], [a]) < 1e-15


def test_complex_parameters_are_pairs_of_reals() -> None:
    p = parameter(3, dtype=torch.complex64)
    q = torch.nn.Parameter(torch.view_as_real(p.detach()).clone())
    q.grad = torch.view_as_real(p.grad).clone()
    for rule in ("p -= lr*sign(g)", "m = 0.5*m + g\np -= lr*m/norm(m)"):
        for x in (p, q):
            optimizer_class(rule)([x], lr=0.1).step()
    assert torch.allclose(torch.view_as_real(p), q)
    rows = optimizer_class("p -= lr*mean(g, dim=-1)")
    with pytest.raises(ValueError, match="is complex, but Rule reduces over dimensions"):
        rows([p], lr=0.1).step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_types_compute_in_float32(dtype: torch.dtype) -> None:
    p = parameter(64, dtype=torch.float32)
    p, g = p.detach().to(dtype), p.grad.to(dtype)
    x = torch.nn.Parameter(p.clone())
    x.grad = g
    AdamW([x], lr=0.1).step()
    kept = torch.float32 if dtype is torch.float16 else dtype
    m, v = (0.1 * g.float()).to(kept).float(), (0.001 * g.float().square()).to(kept).float()
    exact = p.float() * (1 - 0.1 * 0.01) - 0.1 / 0.1 * m / (v.sqrt() / math.sqrt(0.001) + 1e-8)
    assert x.dtype is dtype
    assert torch.allclose(x.detach().float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_types_mixed_in_one_model_and_gradients_of_another_type() -> None:
    kinds = torch.float32, torch.float64, torch.bfloat16, torch.complex64
    parameters = [parameter(5, seed=i, dtype=dtype) for i, dtype in enumerate(kinds)]
    together, alone = twins(*parameters)
    AdamW(together, lr=0.1).step()
    for p in alone:
        AdamW([p], lr=0.1).step()
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    low = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    low.grad_dtype = None
    low.grad = torch.full((4,), 0.3)
    SGD([low], lr=1.0).step()
    assert torch.equal(low.detach(), torch.full((4,), 0.7, dtype=torch.bfloat16))


def test_parameters_that_change_under_the_optimizer() -> None:
    (p,), (a,) = twins(parameter(3, 2, dtype=torch.float32))
    ours, theirs = AdamW([p], lr=0.1), torch.optim.AdamW([a], lr=0.1)
    for optimizer in (ours, theirs):
        optimizer.step()
    for x in (p, a):
        x.data = x.data.clone() + 1  # other memory
    for optimizer in (ours, theirs):
        optimizer.step()
    assert difference([p], [a]) < 1e-6
    p.data = p.data.double()
    p.grad = torch.ones(3, 2, dtype=torch.float64)
    before = p.detach().clone()
    ours.step()
    assert p.dtype is torch.float64
    assert (p.detach() != before).all()
    assert ours.state[p]["exp_avg"].dtype is torch.float32
    assert ours.state[p]["step"] == 3
    p.data = torch.zeros(5, dtype=torch.float64)
    p.grad = torch.ones(5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"state 'exp_avg' has shape \(3, 2\), but its parameter has shape \(5,\)"):
        ours.step()


def test_a_param_group_that_is_edited() -> None:
    p, q = parameter(2), parameter(3, seed=1)
    optimizer = AdamW([p], lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(q)
    optimizer.step()
    assert optimizer.state[q]["step"] == 1
    assert optimizer.state[p]["step"] == 2


def test_overlaps_are_seen() -> None:
    x = torch.zeros(10)
    assert overlapping([x[:5], x[4:]])
    assert overlapping([x, x[3:4]])
    assert not overlapping([x[:5], x[5:], torch.zeros(3)])
    assert not overlapping([])


def test_tied_parameters_move_once() -> None:
    p, q = parameter(3), parameter(3)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = SGD([p, p], lr=0.1)
    optimizer.step()
    SGD([q], lr=0.1).step()
    assert torch.equal(p, q)


def test_autograd_notices_that_a_parameter_changed() -> None:
    p = parameter(3)
    loss = (p * p).sum()
    AdamW([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_initial_states_see_the_raw_gradient_of_the_first_step() -> None:
    rule = optimizer_class("optimizer I\nhyper lr = 0.1\nstate z = p, m = g\ng = 2*g\nm = m + g\np -= lr*m + 0*z")
    p = parameter(3)
    start, g = p.detach().clone(), p.grad.clone()
    optimizer = rule([p])
    optimizer.step()
    assert torch.equal(optimizer.state[p]["z"], start)
    assert torch.allclose(optimizer.state[p]["m"], 3 * g)


def test_host_arithmetic_out_of_range_is_ieee() -> None:
    rule = optimizer_class("optimizer O\nhyper lr = 1, k = 0 >= 0\np -= lr*g/k")
    p = parameter(3)
    sign = p.grad.sign()
    rule([p]).step()
    assert torch.equal(p.detach(), -sign * math.inf)
    rule = optimizer_class("optimizer O\nhyper lr = 1, k = 0 >= 0\np -= lr*sqrt(k - 1)*g")
    p = parameter(3)
    rule([p]).step()
    assert torch.isnan(p).all()
    rule = optimizer_class("optimizer O\nhyper lr = 1, k = 0 >= 0\np -= lr*g*(t % k)")
    p = parameter(3)
    rule([p]).step()
    assert torch.isnan(p).all()


def test_parameters_of_all_sizes_share_kernels() -> None:
    from optlang.runtime.kernels import compiled_count

    fresh = optimizer_class(ADAMW, name="Fresh")
    shapes = [(3,), (4, 5), (), (2, 3, 4, 5), (1, 1), (0,), (7, 1)]
    optimizer = fresh([parameter(*shape, dtype=torch.float32) for shape in shapes])
    for lr in (0.1, 0.0, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[0]["betas"] = (lr / 2, 0.9)
        optimizer.step()
    optimizer.add_param_group({"params": [parameter(9, dtype=torch.float32)]})
    optimizer.step()
    assert compiled_count(fresh) == 1


def test_gradients_that_have_a_graph() -> None:
    p = parameter(3)
    (g,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    p.grad = g
    optimizer = AdamW([p])
    optimizer.step()
    assert p.is_leaf
    assert p.requires_grad
    assert not optimizer.state[p]["exp_avg"].requires_grad


def test_cpu_default_device_is_not_assumed() -> None:
    p, q = parameter(3), parameter(3)
    with torch.device("meta"):
        AdamW([p]).step()
    AdamW([q]).step()
    assert torch.equal(p, q)


def test_a_group_counts_its_steps_whichever_tensors_read_them() -> None:
    rule = optimizer_class(
        "optimizer G\nhyper lr = 1\nif ndim > 1:\n    p -= lr*group.t*g\nelse:\n    p -= lr*g", name="G"
    )
    vector, matrix = parameter(2), parameter(2, 2)
    before = matrix.detach().clone()
    optimizer = rule([vector, matrix])
    matrix.grad = None
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    matrix.grad = torch.ones(2, 2, dtype=torch.float64)
    optimizer.step()
    assert torch.allclose(before - matrix.detach(), torch.full_like(before, 2.0))


@pytest.mark.parametrize("gradients", [True, False])
def test_warming_up_compiles_and_changes_nothing(gradients: bool) -> None:
    cls = optimizer_class(MIXED, name=f"Warm{gradients}")
    net = model()
    if gradients:
        net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    optimizer = cls(net.parameters(), lr=0.1, momentum=0.9)
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    optimizer.warmup()
    assert compiled_count(cls) == 1
    assert not optimizer.state
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == groups
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    other = copy.deepcopy(net)
    train(net, optimizer, 3)
    train(other, cls(other.parameters(), lr=0.1, momentum=0.9), 3)
    assert difference(list(net.parameters()), list(other.parameters())) == 0
    assert compiled_count(cls) == 1


def test_warming_up_refuses_what_a_step_would() -> None:
    optimizer = optimizer_class(ADAMW)([parameter(3)])
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.warmup()
