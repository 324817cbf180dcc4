"""What is checked in every process; see :mod:`processes`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import optlang

#: Rules that look at elements only, at norms, at rows and columns, and that keep numbers on the host or in the group.
RULES = ("AdamW", "SGD", "NAdam", "LAMB", "Adafactor", "LARS", "NovoGrad", "CautiousAdamW", "RAdam", "CAME")
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.05, "momentum": 0.9}}


def rule(name: str) -> Any:
    return optlang.compile(name.lower(), backend="eager")


def network() -> nn.Module:
    """Return a network with sizes that two processes cannot share evenly, and one parameter smaller than them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))
    return net.double()


def data(step: int, part: int | None = None, parts: int = 1) -> torch.Tensor:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x if part is None else x.chunk(parts)[part]


def train(net: nn.Module, optimizer: Any, steps: range, part: int | None = None, parts: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        net(data(step, part, parts)).square().mean().backward()
        optimizer.step()


def alone(name: str, steps: int) -> tuple[nn.Module, Any]:
    net = network()
    optimizer = rule(name)(net.parameters(), **OPTIONS.get(name, {"lr": 0.02}))
    train(net, optimizer, range(steps))
    return net, optimizer


def whole(t: Any) -> torch.Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t.detach()


def compare(ours: nn.Module, theirs: nn.Module, apart: float = 1e-12) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        difference = (whole(p) - q.detach()).abs().max().item()
        assert difference < apart, f"{name} differs by {difference}"


def sharded(name: str) -> tuple[nn.Module, Any]:
    net = network()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    return net, rule(name)(net.parameters(), **OPTIONS.get(name, {"lr": 0.02}))


def check_ddp(rank: int, world: int, folder: str) -> None:
    for views in (False, True):
        net = DistributedDataParallel(network(), gradient_as_bucket_view=views)
        optimizer = rule("AdamW")(net.parameters(), lr=0.02)
        train(net, optimizer, range(4), rank, world)
        compare(net.module, alone("AdamW", 4)[0])


def check_fully_shard(rank: int, world: int, folder: str) -> None:
    for name in RULES:
        net, optimizer = sharded(name)
        train(net, optimizer, range(4), rank, world)
        expected, other = alone(name, 4)
        try:
            compare(net, expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        for p, q in zip(net.parameters(), expected.parameters(), strict=True):
            assert set(optimizer.state[p]) == set(other.state[q]), name
            for key, value in optimizer.state[p].items():
                expected_value = other.state[q][key]
                assert value.shape == expected_value.shape, (name, key)
                torch.testing.assert_close(whole(value), expected_value, rtol=1e-10, atol=1e-14)
                if value.shape == p.shape and name not in (
                    "Adafactor",
                    "CAME",
                ):  # whose rows and columns are everywhere
                    assert isinstance(value, DTensor) and value.placements == p.placements, (name, key)


def check_missing_gradients(rank: int, world: int, folder: str) -> None:
    for name in ("AdamW", "LAMB"):
        net, optimizer = sharded(name)
        expected, other = network(), None
        other = rule(name)(expected.parameters(), lr=0.02)
        for step in range(4):
            for model, opt, part in ((net, optimizer, rank), (expected, other, None)):
                opt.zero_grad()
                model(data(step, part, world if part is not None else 1)).square().mean().backward()
                if step % 2:
                    next(model.parameters()).grad = None
                opt.step()
        compare(net, expected)


def check_mixed_precision(rank: int, world: int, folder: str) -> None:
    net = network().float()
    fully_shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    optimizer = rule("AdamW")(net.parameters(), lr=0.02)
    before = [whole(p).clone() for p in net.parameters()]
    for step in range(3):
        optimizer.zero_grad()
        net(data(step, rank, world).float()).square().mean().backward()
        optimizer.step()
    for p, q in zip(net.parameters(), before, strict=True):
        assert p.dtype == torch.float32 and torch.isfinite(whole(p)).all() and not torch.equal(whole(p), q)
        assert optimizer.state[p]["exp_avg"].dtype == torch.float32


def check_tensor_parallel(rank: int, world: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for name in ("AdamW", "LAMB", "Adafactor"):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        expected = copy.deepcopy(net)
        parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        placements = {p.placements for p in net.parameters() if isinstance(p, DTensor)}
        assert (Shard(0),) in placements and (Shard(1),) in placements
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        for model in (net, expected):
            optimizer = rule(name)(model.parameters(), lr=0.02)
            for _ in range(4):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        compare(net, expected)


def check_zero_redundancy(rank: int, world: int, folder: str) -> None:
    for views in (False, True):
        net = DistributedDataParallel(network())
        optimizer = ZeroRedundancyOptimizer(
            net.parameters(), optimizer_class=rule("AdamW"), parameters_as_bucket_view=views, lr=0.02
        )
        train(net, optimizer, range(4), rank, world)
        expected, other = alone("AdamW", 4)
        compare(net.module, expected)
        optimizer.consolidate_state_dict()
        if rank == 0:
            saved = optimizer.state_dict()["state"]
            for i, held in enumerate(other.state.values()):
                torch.testing.assert_close(saved[i]["exp_avg"], held["exp_avg"])


def check_state_made_for_checkpoints(rank: int, world: int, folder: str) -> None:
    """Asking for the state of an optimizer that has made no step leaves no trace in what comes after."""
    for name in ("AdamW", "LARS", "NovoGrad", "NAdam"):
        net, optimizer = sharded(name)
        get_optimizer_state_dict(net, optimizer)
        assert all(torch.isfinite(whole(p)).all() for p in net.parameters()), name
        train(net, optimizer, range(3), rank, world)
        compare(net, alone(name, 3)[0])


def check_full_state_dicts(rank: int, world: int, folder: str) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for name in ("AdamW", "Adafactor"):
        net, optimizer = sharded(name)
        train(net, optimizer, range(3), rank, world)
        saved = get_state_dict(net, optimizer, options=options)
        again, other = sharded(name)
        every: list[Any] = [copy.deepcopy(saved)]
        dist.broadcast_object_list(every)  # only the first process has it
        set_state_dict(again, other, model_state_dict=every[0][0], optim_state_dict=every[0][1], options=options)
        train(again, other, range(3, 5), rank, world)
        compare(again, alone(name, 5)[0])


def check_saving(rank: int, world: int, folder: str) -> None:
    for name in ("AdamW", "Adafactor", "LAMB"):
        net, optimizer = sharded(name)
        train(net, optimizer, range(3), rank, world)
        model_state, optimizer_state = get_state_dict(net, optimizer)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=Path(folder, f"{world}-{name}"))


def check_loading(rank: int, world: int, folder: str) -> None:
    """Load what the other number of processes saved, and go on."""
    for name in ("AdamW", "Adafactor", "LAMB"):
        net, optimizer = sharded(name)
        model_state, optimizer_state = get_state_dict(net, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=Path(folder, f"{3 - world}-{name}"))
        set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        train(net, optimizer, range(3, 5), rank, world)
        compare(net, alone(name, 5)[0])


def check_copies(rank: int, world: int, folder: str) -> None:
    net, optimizer = sharded("AdamW")
    train(net, optimizer, range(2), rank, world)
    saved = copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, range(2, 4), rank, world)
    state = optimizer.state_dict()["state"]
    assert float(saved["state"][0]["step"]) == 2 and float(state[0]["step"]) == 4
    optimizer.load_state_dict(saved)
    assert all(float(held["step"]) == 2 for held in optimizer.state.values())
    assert all(isinstance(held["exp_avg"], DTensor) for held in optimizer.state.values())


def check_refusals(rank: int, world: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    optimizer = rule("AdamW")([p], capturable=True)
    with pytest.raises(ValueError, match=r"parameter 0 .* distributed tensor, .* capturable=True"):
        optimizer.step()
    assert not optimizer.state


def check_kernels(rank: int, world: int, folder: str) -> None:
    for name in ("AdamW", "LAMB"):
        net, _ = sharded(name)
        optimizer = optlang.compile(name.lower())(net.parameters(), lr=0.02)
        train(net, optimizer, range(4), rank, world)
        compare(net, alone(name, 4)[0])
