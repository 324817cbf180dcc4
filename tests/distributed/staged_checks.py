"""What is checked in every process of rules with sums, matrices, random numbers and events; see :mod:`processes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from checks import OPTIONS, compare, data, network, rule, whole
from checks import train as go_on
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

RULES: dict[str, dict[str, Any]] = {
    "AdamWClip": {},
    "Prodigy": {},
    "DoG": {},
    "Muon": {},
    "MuonWithAdamW": {},
    "SOAP": {"precondition_frequency": 2},
    "Shampoo": {"matrix_eps": 0.1, "preconditioning_compute_steps": 2},
    "GaLoreAdamW": {"rank": 2, "update_proj_gap": 2},
    "SGLD": {"seed": 4},
    "LookaheadAdamW": {"k": 3},
    "ScheduleFreeAdamW": {},
    "AdamWEMA": {"decay": 0.9},
    "SPlus": {},
}
#: Shapes that two processes cannot share evenly, one with less than one element each, and parameters of every process.
SHAPES: list[tuple[tuple[int, ...], Any]] = [
    ((5, 3), Shard(0)),
    ((3, 4), Shard(1)),
    ((3,), Shard(0)),
    ((1, 4), Shard(0)),
    ((4, 2), Replicate()),
    ((), None),
    ((2, 3), None),
]


def values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_parts_and_wholes(rank: int, world: int, folder: str) -> None:
    """Distributed parameters in any placement come out as whole ones do, and so do their states."""
    mesh = init_device_mesh("cpu", (world,))
    for name, options in RULES.items():
        shapes = [(s, at) for s, at in SHAPES if len(s) == 2 or name not in ("Muon", "SPlus")]

        def placed(t: torch.Tensor, at: Any) -> torch.Tensor:
            return t if at is None else distribute_tensor(t, mesh, [at])

        ps = [nn.Parameter(placed(values(s, i), at)) for i, (s, at) in enumerate(shapes)]
        qs = [nn.Parameter(values(s, i)) for i, (s, _) in enumerate(shapes)]
        ours, theirs = (
            rule(name)([{"params": members[:2]}, {"params": members[2:]}], **options) for members in (ps, qs)
        )
        for step in range(6):
            for i, (s, at) in enumerate(shapes):
                g = values(s, 100 * step + i)
                there = (step, i) not in ((2, 1), (3, 2))
                ps[i].grad, qs[i].grad = (placed(g, at), g) if there else (None, None)
            ours.step()
            theirs.step()
            for event in ("eval", "train") if step % 2 else ():
                for optimizer in (ours, theirs):
                    getattr(optimizer, event)()
                differences = [float((whole(p) - q).detach().abs().max()) for p, q in zip(ps, qs, strict=True)]
                assert max(differences) < 1e-10, (name, step, event, differences)
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            assert ours.state.get(p, {}).keys() == theirs.state.get(q, {}).keys(), (name, i)
            for key, value in ours.state.get(p, {}).items():
                torch.testing.assert_close(whole(value), theirs.state[q][key], rtol=1e-8, atol=1e-11)
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            for key in a.keys() - {"params"}:
                close = torch.testing.assert_close if isinstance(a[key], float) else _same
                close(a[key], b[key])


def _same(a: Any, b: Any) -> None:
    assert a == b


def sharded(name: str) -> tuple[nn.Module, Any]:
    net = network()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    return net, rule(name)(net.parameters(), **RULES.get(name, OPTIONS.get(name, {})))


def alone(name: str, steps: int) -> nn.Module:
    net = network()
    optimizer = rule(name)(net.parameters(), **RULES[name])
    go_on(net, optimizer, range(steps))
    if optimizer._events:
        optimizer.eval()
    return net


#: Those that do not magnify what summing gradients in parts rounds otherwise.
TRAINED = ("AdamWClip", "Prodigy", "SGLD", "LookaheadAdamW", "ScheduleFreeAdamW", "AdamWEMA", "MuonWithAdamW")


def check_training(rank: int, world: int, folder: str) -> None:
    for name in TRAINED:
        net, optimizer = sharded(name)
        go_on(net, optimizer, range(4), rank, world)
        optimizer.eval()
        try:
            compare(net, alone(name, 4), 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def check_parts_that_draw(rank: int, world: int, folder: str) -> None:
    """Noise is that of the whole tensor: no two parts of a parameter, and no two parameters, have the same."""
    mesh = init_device_mesh("cpu", (world,))
    ps = [nn.Parameter(distribute_tensor(torch.zeros(8, dtype=torch.float64), mesh, [Shard(0)])) for _ in range(2)]
    optimizer = rule("SGLD")(ps, seed=1)
    for p in ps:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    drawn = torch.cat([whole(p) for p in ps])
    assert len(set(drawn.tolist())) == 16


def check_saving(rank: int, world: int, folder: str) -> None:
    for name in ("Prodigy", "SOAP", "ScheduleFreeAdamW", "SGLD"):
        net, optimizer = sharded(name)
        go_on(net, optimizer, range(3), rank, world)
        model_state, optimizer_state = get_state_dict(net, optimizer)
        path = Path(folder, f"staged-{world}-{name}")
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)
        before = [whole(p).detach().clone() for p in net.parameters()]
        again, other = sharded(name)
        model_state, optimizer_state = get_state_dict(again, other)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=path)
        set_state_dict(again, other, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        for p, q in zip(again.parameters(), before, strict=True):
            assert torch.equal(whole(p), q), name
        for step in range(3, 5):
            for one, stepping in ((net, optimizer), (again, other)):
                stepping.zero_grad()
                one(data(step, rank, world)).square().mean().backward()
                stepping.step()
        for p, q in zip(net.parameters(), again.parameters(), strict=True):
            assert torch.equal(whole(p), whole(q)), name
