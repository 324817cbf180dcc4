"""Alongside the rest of PyTorch: scalers, compiled training steps, threads, devices."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from optimizing import ADAMW, difference, model, optimizer_class, parameter, train

AdamW = optimizer_class(ADAMW)


def test_a_gradient_scaler_unscales_and_skips() -> None:
    net = model(torch.float32)
    twin = copy.deepcopy(net)
    for m, cls in ((net, AdamW), (twin, torch.optim.AdamW)):
        optimizer, scaler = cls(m.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(3):
            optimizer.zero_grad()
            loss = m(torch.ones(2, 5)).square().mean()
            scaler.scale(loss).backward()
            if step == 1:
                next(m.parameters()).grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-6


def test_gradient_clipping_before_the_step() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


def test_keys_that_are_no_parameters_are_left_alone() -> None:
    p = parameter(3)
    optimizer = AdamW([p])
    optimizer.state["note"] = {"kept": 1}
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.state["note"] == {"kept": 1}


def test_a_compiled_training_step_goes_round_it() -> None:
    net = model()
    twin = copy.deepcopy(net)
    x = torch.ones(2, 5, dtype=torch.float64)
    results = []
    for m, wrap in ((net, lambda f: torch.compile(f, backend="eager")), (twin, lambda f: f)):
        optimizer = AdamW(m.parameters(), lr=0.1)

        def step(m: torch.nn.Module = m, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        results.append([run().item() for _ in range(3)])
    assert results[0] == pytest.approx(results[1])
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-12


def test_one_optimizer_a_thread() -> None:
    alone = model()
    train(alone, AdamW(alone.parameters()), 20)
    nets = [model() for _ in range(4)]
    threads = [threading.Thread(target=train, args=(n, AdamW(n.parameters()), 20)) for n in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net in nets:
        assert difference(list(net.parameters()), list(alone.parameters())) == 0.0


def test_one_optimizer_a_parameter_stepped_during_the_backward_pass() -> None:
    net = model()
    optimizers = {p: AdamW([p], lr=0.1) for p in net.parameters()}
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda q: optimizers[q].step())
    net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    assert all(float(optimizers[p].state[p]["step"]) == 1 for p in net.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_on_cuda(backend: str) -> None:
    net = model(torch.float32).cuda()
    twin = copy.deepcopy(net)
    ours = optimizer_class(ADAMW, backend=backend)(net.parameters(), lr=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1)
    x = torch.ones(2, 5, device="cuda")
    for _ in range(4):
        for m, optimizer in ((net, ours), (twin, theirs)):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-5
    state = ours.state[next(net.parameters())]
    assert state["step"].device.type == "cpu"
    assert state["exp_avg"].device.type == "cuda"
    again = copy.deepcopy(ours)
    again.load_state_dict(ours.state_dict())
