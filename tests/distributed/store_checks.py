"""What is checked in every process of states in fewer bits; see :mod:`processes`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import rule
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from optlang.runtime.sharded_codes import part_of, whole
from optlang.storage.blocks import SCALE
from optlang.storage.parameters import KEY, WAYS

#: Rules of elements alone, of norms, of sums over the model, and of matrices.
RULES = ("AdamW", "Lion", "Adan", "LAMB", "AdamWClip", "Muon")
#: Shapes with rows that two processes cannot share evenly, one with a row for one of them, blocks that are cut off at
#: the end of rows, rows that are cut between blocks, small tensors and vectors, and parameters of every process.
SHAPES: list[tuple[tuple[int, ...], Any]] = [
    ((101, 64), Shard(0)),
    ((7, 600), Shard(0)),
    ((1, 5000), Shard(0)),
    ((40, 1024), Shard(1)),
    ((64, 100), Replicate()),
    ((70, 70), None),
    ((5000,), Shard(0)),
    ((3, 5), Shard(0)),
    ((9, 8, 16), Shard(2)),
    ((5, 7), Shard(1)),
]
FORMATS = {"exp_avg": "int8", "exp_avg_sq": "log8(block=64)"}


def values(shape: Sequence[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(torch.randn(shape, generator=generator))


def placed(t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return a tensor distributed as a parameter is."""
    if not isinstance(p, DTensor):
        return t
    return distribute_tensor(t, p.device_mesh, p.placements, src_data_rank=None)


def step(optimizer: Any, params: Sequence[torch.Tensor], numbers: Sequence[int]) -> None:
    """Make steps whose gradients are the same for any number of processes, to the bit."""
    for number in numbers:
        for i, p in enumerate(params):
            p.grad = placed(values(p.shape, 100 * number + i).to(p.dtype), p)
        optimizer.step()


def as_bytes(value: Any) -> torch.Tensor:
    value = whole(value).detach()
    return value.contiguous().view(torch.uint8) if value.dim() else value


def assert_same(ours: Any, ps: Sequence[Any], theirs: Any, qs: Sequence[Any], what: Any) -> None:
    """Assert that parameters and states are the same to the bit, and distributed alike."""
    for p, q in zip(ps, qs, strict=True):
        held, other = ours.state[p], theirs.state[q]
        assert held.keys() == other.keys(), what
        for key, value in held.items():
            assert value.shape == other[key].shape and value.dtype is other[key].dtype, (what, key)
            if value.shape == p.shape or key.endswith(SCALE):
                assert isinstance(value, DTensor) == isinstance(p, DTensor), (what, key)
            assert torch.equal(as_bytes(value), as_bytes(other[key])), (what, key, tuple(p.shape))
        assert torch.equal(whole(p).detach(), q.detach()), (what, tuple(p.shape))


def check_parts(rank: int, world: int, folder: str) -> None:
    """Codes, scales and parameters are those of one process, to the bit."""
    mesh = init_device_mesh("cpu", (world,))
    for name in RULES:
        shapes = [(s, at) for s, at in SHAPES if len(s) == 2 or name != "Muon"]
        starts = [values(s, i) for i, (s, _) in enumerate(shapes)]
        pairs = zip(starts, shapes, strict=True)
        ps = [nn.Parameter(t.clone() if at is None else distribute_tensor(t, mesh, [at])) for t, (_, at) in pairs]
        qs = [nn.Parameter(t.clone()) for t in starts]
        for store in ("8bit", "bf16", *([FORMATS] if name == "AdamW" else [])):
            ours, theirs = (rule(name)(members, lr=0.01, store=store) for members in (ps, qs))
            step(ours, ps, range(3))
            step(theirs, qs, range(3))
            assert_same(ours, ps, theirs, qs, (name, store))


def check_rounding(rank: int, world: int, folder: str) -> None:
    """Parameters in bfloat16 are rounded as in one process, to the bit."""
    mesh = init_device_mesh("cpu", (world,))
    for name in ("AdamW", "LAMB"):
        for rounding in WAYS:
            starts = [values(s, i).bfloat16() for i, (s, _) in enumerate(SHAPES)]
            pairs = zip(starts, SHAPES, strict=True)
            ps = [nn.Parameter(t.clone() if at is None else distribute_tensor(t, mesh, [at])) for t, (_, at) in pairs]
            qs = [nn.Parameter(t.clone()) for t in starts]
            ours, theirs = (rule(name)(m, lr=0.01, rounding=rounding, store="fp32") for m in (ps, qs))
            step(ours, ps, range(3))
            step(theirs, qs, range(3))
            assert_same(ours, ps, theirs, qs, (name, rounding))
            assert all((KEY in ours.state[p]) == (rounding != "stochastic") for p in ps)


# Checkpoints --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model of nothing but parameters."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shapes = [s for s, _ in SHAPES]
        self.members = nn.ParameterList([values(s, i).to(dtype) for i, s in enumerate(shapes)])


def made(name: str, sharded: bool = True, **options: Any) -> tuple[Net, Any, list[Any]]:
    net = Net(torch.bfloat16 if "rounding" in options else torch.float32)
    if sharded:
        fully_shard(net)
    return net, rule(name)(net.parameters(), lr=0.01, **options), list(net.parameters())


KEPT: dict[str, dict[str, Any]] = {
    "AdamW": {"store": "8bit"},
    "LAMB": {"store": {"exp_avg": "int8", "exp_avg_sq": "log8"}},
    "Lion": {"rounding": "bf16+16", "store": "fp32"},
    "Adan": {"rounding": "bf16+8", "store": "8bit"},
}


def check_saving(rank: int, world: int, folder: str) -> None:
    for name, options in KEPT.items():
        net, optimizer, params = made(name, world > 1, **options)
        step(optimizer, params, range(3))
        model_state, optimizer_state = get_state_dict(net, optimizer)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=Path(folder, f"{world}-{name}-8"))


def check_loading(rank: int, world: int, folder: str) -> None:
    """What another number of processes saved is the same here, to the bit, and goes on like it."""
    for name, options in KEPT.items():
        net, optimizer, params = made(name, world > 1, **options)
        model_state, optimizer_state = get_state_dict(net, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=Path(folder, f"{3 - world}-{name}-8"))
        set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        _, expected, others = made(name, False, **options)
        for steps in (range(3), range(3, 5)):
            step(expected, others, steps)
            if steps.start:
                step(optimizer, params, steps)
            assert_same(optimizer, params, expected, others, name)


def check_full_state_dicts(rank: int, world: int, folder: str) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for name, kept in KEPT.items():
        net, optimizer, params = made(name, **kept)
        step(optimizer, params, range(3))
        saved = get_state_dict(net, optimizer, options=options)
        gathered = {(i, k): whole(v) for i, p in enumerate(params) for k, v in optimizer.state[p].items()}
        for (i, key), value in gathered.items() if rank == 0 else ():
            found = saved[1]["state"][f"members.{i}"][key]
            assert type(found) is torch.Tensor and found.dtype is value.dtype and found.shape == value.shape, key
            assert torch.equal(as_bytes(found), as_bytes(value)), (name, key)
        path = Path(folder, "full.pt")
        if rank == 0:  # no other process has it
            torch.save(saved, path)
        dist.barrier()
        model_state, optimizer_state = torch.load(path, weights_only=True)
        again, other, others = made(name, **kept)
        set_model_state_dict(again, model_state, options=options)
        other.load_state_dict(optimizer_state)  # gloo, which torch's own function asks, can send no floats of 8 bits
        for p in others:
            held = other.state[p].values()
            assert all(isinstance(value, DTensor) == bool(value.dim()) for value in held), name
        step(optimizer, params, range(3, 5))
        step(other, others, range(3, 5))
        for p, q in zip(params, others, strict=True):
            assert torch.equal(whole(p), whole(q)), name
            for key, value in optimizer.state[p].items():
                assert torch.equal(as_bytes(value), as_bytes(other.state[q][key])), (name, key)


def check_files(rank: int, world: int, folder: str) -> None:
    """The state dict of a process is written by ``torch.save`` and read with ``weights_only=True``."""
    for name, kept in KEPT.items():
        _, optimizer, params = made(name, **kept)
        step(optimizer, params, range(3))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        _, other, others = made(name, **kept)
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        other.load_state_dict(saved)
        step(optimizer, params, range(3, 5))
        step(other, others, range(3, 5))
        for p, q in zip(params, others, strict=True):
            assert torch.equal(whole(p), whole(q)), name


def check_conversions(rank: int, world: int, folder: str) -> None:
    """A checkpoint of torch.optim goes on in 8 bits, and one in 8 bits in torch.optim, as in one process."""
    results = []
    for sharded in (True, False):
        net, _, params = made("AdamW", sharded)
        theirs = torch.optim.AdamW(net.parameters(), lr=0.01)
        step(theirs, params, range(2))
        path = Path(folder, f"theirs-{world}-{rank}-{sharded}" if not sharded else f"theirs-{world}")
        dcp.save(get_optimizer_state_dict(net, theirs), checkpoint_id=path, no_dist=not sharded)
        optimizer = rule("AdamW")(net.parameters(), lr=0.01)
        state = get_optimizer_state_dict(net, optimizer)
        dcp.load(state, checkpoint_id=path, no_dist=not sharded)
        set_optimizer_state_dict(net, optimizer, state)
        optimizer.param_groups[0]["store"] = "8bit"
        step(optimizer, params, range(2, 4))
        assert optimizer.state[params[0]]["exp_avg"].dtype is torch.float8_e4m3fn
        full = optimizer.state_dict(full=True)
        assert all(held["exp_avg"].dtype is torch.float32 and len(held) == 3 for held in full["state"].values())
        back = torch.optim.AdamW(net.parameters(), lr=0.01)
        back.load_state_dict(full)
        optimizer.param_groups[0]["store"] = "fp32"
        step(optimizer, params, range(4, 5))
        results.append((optimizer, params))
    (one, ps), (other, qs) = results
    assert_same(one, ps, other, qs, "converted")


def check_zero_redundancy(rank: int, world: int, folder: str) -> None:
    for name, apart in (("Lion", 0.0), ("AdamW", 0.0135)):  # numbers are drawn by places in the list of a process
        net = DistributedDataParallel(Net())
        params = list(net.parameters())
        optimizer = ZeroRedundancyOptimizer(params, optimizer_class=rule(name), lr=0.01, store="8bit")
        step(optimizer, params, range(3))
        _, expected, others = made(name, False, store="8bit")
        step(expected, others, range(3))
        for p, q in zip(params, others, strict=True):
            assert float((p - q).detach().abs().max()) <= apart, name
        optimizer.consolidate_state_dict()
        if rank == 0:
            other = rule(name)([p.detach().clone().requires_grad_() for p in params], lr=0.01, store="8bit")
            saved = optimizer.state_dict()
            other.load_state_dict(saved)
            step(other, other.param_groups[0]["params"], range(3, 4))
            assert saved["state"][0]["exp_avg"].dtype is torch.float8_e4m3fn


def check_refusals(rank: int, world: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for shape, at, said in (
        (
            (40, 1000),
            Shard(1),
            r"parameter 0 \(of shape \(40, 1000\)\): it has rows that are split between 2 processes",
        ),
        ((40, 8, 16), Shard(2), "distributed along dimension 2"),
        ((2**20,), Shard(0), "is a vector"),
    ):
        p = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [at]))
        with pytest.raises(ValueError, match="AdamW: store cannot be given for .*" + said):
            rule("AdamW")([p], store="8bit")
        rule("AdamW")([p], store="bf16")


def check_kernels(rank: int, world: int, folder: str) -> None:
    """The same codes come of kernels in C++."""
    import optlang

    for name in ("AdamW", "Lion"):
        results = []
        for backend in ("eager", "cpp"):
            net = Net()
            fully_shard(net)
            params = list(net.parameters())
            optimizer = optlang.compile(name.lower(), backend=backend)(params, lr=0.01, store="8bit")
            step(optimizer, params, range(3))
            results.append((optimizer, params))
        (one, ps), (other, qs) = results
        for p, q in zip(ps, qs, strict=True):
            for key, value in one.state[p].items():
                if value.dtype is not torch.float32:  # the last bit may differ
                    assert torch.equal(as_bytes(value), as_bytes(other.state[q][key])), (name, key)
            assert float((whole(p) - whole(q)).detach().abs().max()) < 1e-6


#: Placements on a mesh of two by two processes, as data parallel over copies, with shards, and with tensor parallel.
ON_A_SQUARE: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [
    ((101, 64), (Replicate(), Shard(0))),
    ((40, 1024), (Shard(0), Shard(1))),
    ((30, 300), (Shard(0), Shard(0))),
    ((101, 64), (Shard(0), Replicate())),
]


def check_squares(rank: int, world: int, folder: str) -> None:
    """Meshes of two dimensions."""
    mesh = init_device_mesh("cpu", (2, world // 2))
    for name in ("AdamW", "LAMB"):
        starts = [values(s, i) for i, (s, _) in enumerate(ON_A_SQUARE)]
        pairs = zip(starts, ON_A_SQUARE, strict=True)
        ps = [nn.Parameter(distribute_tensor(t, mesh, at)) for t, (_, at) in pairs]
        qs = [nn.Parameter(t.clone()) for t in starts]
        ours, theirs = (rule(name)(members, lr=0.01, store="8bit") for members in (ps, qs))
        ours.warmup()
        step(ours, ps, range(3))
        step(theirs, qs, range(3))
        assert_same(ours, ps, theirs, qs, name)
        optimizer = rule(name)([nn.Parameter(p.detach().clone()) for p in ps], lr=0.01, store="8bit")
        optimizer.load_state_dict(ours.state_dict())
        step(ours, ps, range(3, 5))
        members = optimizer.param_groups[0]["params"]
        step(optimizer, members, range(3, 5))
        assert all(torch.equal(whole(p), whole(q)) for p, q in zip(ps, members, strict=True))


def check_shards_within_tensor_parallel(rank: int, world: int, folder: str) -> None:
    """``fully_shard`` over ``parallelize_module``: rows are cut twice."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 1024), nn.Tanh(), nn.Linear(1024, 44))
    others = [nn.Parameter(p.detach().clone()) for p in net.parameters()]
    parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])
    params = list(net.parameters())
    ours, theirs = (rule("AdamW")(members, lr=0.01, store="8bit") for members in (params, others))
    for number in range(3):
        for i, (p, q) in enumerate(zip(params, others, strict=True)):
            q.grad = values(p.shape, 100 * number + i)
            p.grad = part_of(q.grad, p)
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(whole(p), q.detach()), (tuple(p.shape), p.placements)
        for key, value in ours.state[p].items():
            assert torch.equal(as_bytes(value), as_bytes(theirs.state[q][key])), (key, p.placements)
