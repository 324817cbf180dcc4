"""What PyTorch's generic optimizer tests ask of an optimizer, in our words.

Each behaviour is a function of a rule's class, its counterpart in ``torch.optim`` and PyTorch's description of that
(``torch.testing._internal.common_optimizers``): it passes, fails by an exception, or raises :class:`DoesNotApply`.
"""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import optlang
import optlang.rules

INFOS = {info.optim_cls.__name__: info for info in optim_db}
#: One that iterates in a step, and needs a closure: it is compared elsewhere.
OTHERS = ["LBFGS"]
RULES = [name for name in INFOS if name in optlang.rules.names() and name not in OTHERS]
#: Those that refuse dense gradients.
SPARSE = {name for name, info in INFOS.items() if info.only_supports_sparse_grads}
#: Rules that are for matrices only.
MATRICES = {"Muon"}


class DoesNotApply(Exception):
    """The behaviour is none of this optimizer's, in torch.optim either; the reason."""


def ours(name: str, backend: str = "eager") -> Any:
    return optlang.compile(name.lower(), backend=backend)


def options(info: Any) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments that PyTorch tests an optimizer with."""
    for case in info.optim_inputs_func(device="cpu"):
        yield copy.deepcopy({k: v for k, v in case.kwargs.items() if k not in ("foreach", "fused", "capturable")})


def tensors(
    name: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.nn.Parameter]:
    """Return parameters; for a rule that is for matrices, as matrices."""
    generator = torch.Generator().manual_seed(seed)
    fitting = [(s[0] if s else 1, math.prod(s[1:])) if name in MATRICES else s for s in shapes]
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in fitting]


def reference(info: Any, parameters: Any, **kwargs: Any) -> Any:
    """Return torch's optimizer, its for-loop if it has several implementations."""
    loop = {"foreach": False} if "foreach" in info.supported_impls else {}
    return info.optim_cls(parameters, **kwargs, **loop)


def twins(parameters: list[Any]) -> list[Any]:
    return [torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in parameters]


def follow(optimizer: Any, parameters: list[Any], steps: int = 5, seed: int = 100) -> None:
    """Make steps, of which one at least changes something, with gradients that depend on ``seed`` only."""
    before = [p.detach().clone() for p in parameters]
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        make_sparse(optimizer)
        optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True)), "the steps changed nothing"


def make_sparse(optimizer: Any) -> None:
    """Make the gradients of an optimizer sparse that takes no others."""
    if type(optimizer).__name__ in SPARSE:
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            p.grad = p.grad.to_sparse(1)


def near(name: str) -> float:
    """Return how far from torch's a rule may be: Muon computes in bfloat16, where other orders round otherwise."""
    return 1e-3 if name == "Muon" else 1e-6


def close(a: list[Any], b: list[Any], tolerance: float = 1e-6) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), rtol=tolerance, atol=tolerance, check_stride=False)


SHAPES = ((4, 6), (7,), (2, 3, 5))


def same_as_torch(name: str, info: Any, make: Callable[[], list[Any]], **more: Any) -> None:
    for kwargs in options(info):
        a = make()
        b = twins(a)
        follow(ours(name)(a, **kwargs, **more), a)
        follow(reference(info, b, **kwargs), b)
        close(a, b, 1e-4 if a[0].dtype.itemsize == 2 else near(name))


# Behaviours -----------------------------------------------------------------------------------------------------


def forloop(name: str, info: Any) -> None:
    """Equal to the for-loop implementation."""
    same_as_torch(name, info, lambda: tensors(name, *SHAPES))


def foreach(name: str, info: Any) -> None:
    """The keyword `foreach=True`: equal to the for-loop."""
    same_as_torch(name, info, lambda: tensors(name, *SHAPES), foreach=True)


def fused(name: str, info: Any) -> None:
    """The keyword `fused=True`: equal to the for-loop."""
    if "fused" not in info.supported_impls:
        raise DoesNotApply("torch has no fused implementation")
    same_as_torch(name, info, lambda: tensors(name, *SHAPES), fused=True)


def mixed_types(name: str, info: Any) -> None:
    """Parameters of several types in one group."""
    same_as_torch(
        name,
        info,
        lambda: [
            *tensors(name, (3, 4)),
            *tensors(name, (5,), dtype=torch.float32),
            *tensors(name, (2, 2), dtype=torch.float32),
        ],
    )


def right_direction(name: str, info: Any) -> None:
    """Decreases the loss (increases it with `maximize`), also with a closure."""
    for kwargs in options(info):
        (p,) = tensors(name, (10,))
        optimizer = ours(name)([p], **kwargs)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = (p - 3).square().sum()  # noqa: B023
            loss.backward()
            make_sparse(optimizer)  # noqa: B023
            return loss

        first = closure().item()
        for _ in range(20):
            optimizer.step(closure)
        assert closure().item() > first if kwargs.get("maximize") else closure().item() < first


def schedulers(name: str, info: Any) -> None:
    """Works with the schedulers that PyTorch tests it with."""
    for kwargs in options(info):
        for chain in info.scheduler_inputs:
            results = []
            for cls in (ours(name), info.optim_cls):
                p = tensors(name, *SHAPES)
                optimizer = cls(p, **copy.deepcopy(kwargs))  # schedulers write into tensors
                made = [scheduler(optimizer) for scheduler in chain]
                for step in range(4):
                    follow(optimizer, p, 1, seed=step)
                    for scheduler in made:
                        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
                results.append(p)
            close(*results, near(name))


def groups(name: str, info: Any) -> None:
    """Parameter groups with their own `lr` and `weight_decay`."""
    for own in ({"lr": 0.003},) if name in SPARSE else ({"lr": 0.003}, {"weight_decay": 0.2}):
        results = []
        for cls in (ours(name), info.optim_cls):
            p = tensors(name, *SHAPES)
            optimizer = cls([{"params": p[:1], **own}, {"params": p[1:]}], lr=0.01)
            follow(optimizer, p)
            results.append(p)
        close(*results, near(name))
    for kwargs in options(info):  # in the groups, not in the call
        call = {k: kwargs.pop(k) for k in ("initial_accumulator_value",) if k in kwargs}  # torch reads no group's own
        results = []
        for cls in (ours(name), info.optim_cls):
            p = tensors(name, *SHAPES)
            first, second = ({"params": part, **copy.deepcopy(kwargs)} for part in (p[:1], p[1:]))
            follow(cls([first, second | {"weight_decay": 0.0}], **call), p)
            results.append(p)
        close(*results, near(name))


def tensor_lr(name: str, info: Any) -> None:
    """Tensor `lr`, 0-d and with one element."""
    for lr in (torch.tensor(0.01), torch.tensor([0.01])):
        for kwargs in options(info):
            a, b = tensors(name, *SHAPES), tensors(name, *SHAPES)
            rest = {k: v for k, v in kwargs.items() if k != "lr"}
            optimizer = ours(name)(a, lr=lr, **rest)
            follow(optimizer, a)
            follow(reference(info, b, lr=float(lr), **rest), b)
            close(a, b, near(name))
            assert optimizer.param_groups[0]["lr"] is lr  # which schedulers write into


def tensor_betas(name: str, info: Any) -> None:
    """Tensor `betas`."""
    if "betas" not in ours(name)(tensors(name, (1,))).defaults:
        raise DoesNotApply("it has no betas")
    a, b = tensors(name, *SHAPES), tensors(name, *SHAPES)
    follow(ours(name)(a, betas=(torch.tensor(0.8), torch.tensor(0.99))), a)
    follow(reference(info, b, betas=(float(torch.tensor(0.8)), float(torch.tensor(0.99)))), b)
    close(a, b, near(name))


def complex_numbers(name: str, info: Any) -> None:
    """Complex parameters, mixed with real ones, are treated as pairs of reals."""
    if not info.supports_complex:
        raise DoesNotApply("torch refuses complex parameters")
    for kwargs in options(info):
        p, real = *tensors(name, (4, 2), dtype=torch.complex128), *tensors(name, (3,))
        parts = [torch.nn.Parameter(x.clone()) for x in (p.detach().real, p.detach().imag, real.detach())]
        one, other = ours(name)([p, real], **kwargs), info.optim_cls(parts, **kwargs)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            p.grad = torch.randn(4, 2, dtype=torch.complex128, generator=generator)
            real.grad = torch.randn(3, dtype=torch.float64, generator=generator)
            for part, gradient in zip(parts, (p.grad.real, p.grad.imag, real.grad), strict=True):
                part.grad = gradient.clone()
            one.step()
            other.step()
        close([p.detach().real, p.detach().imag, real], parts)


def sparse_gradients(name: str, info: Any) -> None:
    """Sparse gradients: refused, or with `sparse="lazy"` equal to torch's if it supports them."""
    (p,) = tensors(name, (4, 2))
    if name in SPARSE:
        optimizer, p.grad = ours(name)([p]), torch.ones_like(p)
        try:
            optimizer.step()
        except ValueError as error:
            assert "dense gradient" in str(error)
        else:
            raise AssertionError("dense gradients were taken")
        return same_as_torch(name, info, lambda: tensors(name, (4, 2)))
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=torch.float64), (4, 2), check_invariants=True)
    before = p.detach().clone()
    try:
        ours(name)([p]).step()
    except ValueError as error:
        assert "sparse" in str(error) and torch.equal(p, before)
    else:
        raise AssertionError("sparse gradients were taken")
    if not info.supports_sparse:
        return
    (q,) = twins([p])
    one, other = ours(name)([p], sparse="lazy"), reference(info, [q])
    for step in range(5):
        values = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for parameter in (p, q):
            indices = torch.tensor([[step % 4, 2]])
            parameter.grad = torch.sparse_coo_tensor(indices, values, (4, 2), check_invariants=True)
        one.step()
        other.step()
    assert not torch.equal(p, before)
    close([p], [q])


def layouts(name: str, info: Any) -> None:
    """Non-contiguous and channels-last parameters."""
    strided = torch.randn(10, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[..., 0]
    last = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    turned = torch.randn(5, 4, dtype=torch.float64).T
    for start in (strided, turned) if name in MATRICES else (strided, last):
        for kwargs in options(info):
            a, b = (
                torch.nn.Parameter(start.clone(memory_format=torch.preserve_format)),
                torch.nn.Parameter(start.clone()),
            )
            follow(ours(name)([a], **kwargs), [a])
            follow(reference(info, [b], **kwargs), [b])
            close([a], [b], near(name))


def odd_shapes(name: str, info: Any) -> None:
    """Empty and 0-d parameters."""
    if name in ("Adafactor", "Muon"):
        same_as_torch(name, info, lambda: tensors(name, (1, 1), (1,), (3, 1)))
        raise DoesNotApply("torch's own fails for empty tensors")
    pointlike = () if name in SPARSE else ((),)  # a tensor without dimensions has no rows
    same_as_torch(name, info, lambda: tensors(name, *pointlike, (0,), (3, 0), (1,), (1, 1)))


def tied(name: str, info: Any) -> None:
    """Two parameters that share memory."""
    results = []
    for cls in (ours(name), info.optim_cls):
        (p,) = tensors(name, (6,))
        q = torch.nn.Parameter(p.detach())
        assert q.data_ptr() == p.data_ptr()
        follow(cls([p, q]), [p, q], 3)
        results.append([p])
    close(*results, near(name))


def no_gradients(name: str, info: Any) -> None:
    """Parameters without gradients are skipped."""
    a = tensors(name, *SHAPES)
    before = twins(a)
    optimizer = ours(name)(a)
    optimizer.step()
    optimizer.step(lambda: torch.ones(1))
    close(a, before, 0)
    assert not any(torch.is_tensor(v) and v.any() for s in optimizer.state.values() for v in s.values())
    b = tensors(name, *SHAPES)
    for cls, p in ((ours(name), a), (info.optim_cls, b)):
        optimizer = cls(p)
        follow(optimizer, p, 2)
        p[1].grad = None
        make_sparse(optimizer)
        optimizer.step()
        follow(optimizer, p, 2)
    close(a, b, near(name))


def zero_gradients(name: str, info: Any) -> None:
    """Zero gradients without weight decay change nothing."""
    none = {"ASGD": {"weight_decay": 0.0, "lambd": 0.0}, "Rprop": {}, "SparseAdam": {}}.get(name, {"weight_decay": 0.0})
    for kwargs in options(info):
        p = tensors(name, *SHAPES)
        before = twins(p)
        optimizer = ours(name)(p, **(kwargs | none))
        for _ in range(2):
            for q in p:
                q.grad = torch.zeros_like(q)
            make_sparse(optimizer)
            optimizer.step()
        close(p, before, 0)


def hooks_of_steps(name: str, info: Any) -> None:
    """Step hooks of the optimizer and global ones run in order, until removed."""
    seen: list[str] = []
    p = tensors(name, (3,))
    optimizer = ours(name)(p)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global before")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global after")),
    ]
    try:
        follow(optimizer, p, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["global before", "before", "after", "global after"] * 2
    follow(optimizer, p, 1)
    assert len(seen) == 8
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: seen.append("closure")), {}))
    optimizer.step()
    assert seen[8:] == ["closure"]
    shown: list[Any] = []
    for cls in (ours(name), info.optim_cls):
        optimizer = cls(p)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: shown.append((len(args), list(kwargs))))
        optimizer.step(closure=lambda: torch.ones(()))
        optimizer.step(lambda: torch.ones(()))
    assert shown[:2] == shown[2:]


def hooks_of_state_dicts(name: str, info: Any) -> None:
    """Hooks of `state_dict` and `load_state_dict`, prepended ones first."""
    p = tensors(name, (3,))
    optimizer = ours(name)(p)
    follow(optimizer, p, 1)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "mark": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("load"))
    optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("load first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["mark"] == 1
    optimizer.load_state_dict(saved)
    assert seen == ["save", "load first", "load", "loaded"]

    def other_lr(o: Any, d: dict[str, Any]) -> dict[str, Any]:
        return {**d, "param_groups": [{**group, "lr": 0.5} for group in d["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(other_lr)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5 and saved["param_groups"][0]["lr"] != 0.5


def saving(name: str, info: Any) -> None:
    """State dicts are deterministic, can be saved and loaded with `weights_only`, and are not changed by loading."""
    for kwargs in options(info):
        a = tensors(name, *SHAPES)
        one = ours(name)(a, **kwargs)
        follow(one, a)
        b = twins(a)
        other = ours(name)(b, **kwargs)
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        before = copy.deepcopy(loaded)
        other.load_state_dict(loaded)
        follow(one, a, seed=7)
        follow(other, b, seed=7)
        close(a, b, 0)
        assert str(before) == str(loaded) and str(one.state_dict()) == str(other.state_dict())
        other.param_groups.extend(other.param_groups)
        assert str(one.state_dict()["param_groups"][-1]) == str(other.state_dict()["param_groups"][-1])


def checkpoints_of_torch(name: str, info: Any) -> None:
    """Loads checkpoints of torch.optim, and torch.optim loads its checkpoints."""
    for kwargs in options(info):
        a = tensors(name, *SHAPES)
        theirs = info.optim_cls(a, **kwargs)
        follow(theirs, a, 3)
        b = twins(a)
        one = ours(name)(b)
        one.load_state_dict(copy.deepcopy(theirs.state_dict()))
        follow(one, b, 2, seed=9)
        c = twins(b)
        back = info.optim_cls(c)
        back.load_state_dict(copy.deepcopy(one.state_dict()))
        follow(theirs, a, 2, seed=9)
        follow(theirs, a, 2, seed=19)
        follow(back, c, 2, seed=19)
        close(a, c, near(name))


def keys_of_groups(name: str, info: Any) -> None:
    """Parameter groups have torch's keys, with values of the same types."""
    for kwargs in options(info):
        p = tensors(name, (3, 4))
        one, other = ours(name)(p, **kwargs).param_groups[0], info.optim_cls(p, **kwargs).param_groups[0]
        assert set(one) - {"sparse"} == set(other)  # sparse="lazy", which a class for sparse gradients has
        told = {"params", "adjust_lr_fn"}  # None is "original"
        assert all(repr(one[key]) == repr(other[key]) for key in set(other) - told)


def distributed_checkpoints(name: str, info: Any) -> None:
    """Checkpoints of `torch.distributed.checkpoint`, sharded and full, load in both directions."""
    if name in SPARSE:
        raise DoesNotApply("torch's own is refused there: it is initialized with gradients of zero, which are dense")
    for back in (False, True):
        for full in (False, True):
            classes = [ours(name), info.optim_cls]
            source, destination = classes if back else classes[::-1]
            how = StateDictOptions(full_state_dict=full)
            momentum = {"momentum": 0.9} if name == "SGD" else {}  # which has no state without
            a = torch.nn.ParameterList(tensors(name, *SHAPES))
            one = source(list(a), **momentum)
            follow(one, list(a), 2)
            one.zero_grad()
            b = torch.nn.ParameterList(twins(list(a)))
            other = destination(list(b), **momentum)
            saved = get_optimizer_state_dict(a, one, options=how)
            if not full:
                with tempfile.TemporaryDirectory() as folder:
                    dcp.save({"optimizer": saved}, checkpoint_id=folder, no_dist=True)
                    read = {"optimizer": get_optimizer_state_dict(b, other)}
                    dcp.load(read, checkpoint_id=folder, no_dist=True)
                    saved = read["optimizer"]
            set_optimizer_state_dict(b, other, copy.deepcopy(saved), options=how)
            follow(one, list(a), 2, seed=9)
            follow(other, list(b), 2, seed=9)
            close(list(a), list(b), near(name))


def of_one_moment(name: str, info: Any) -> None:
    """A state dict is a snapshot, where torch's changes with the optimizer."""
    for kwargs in options(info):
        p = tensors(name, *SHAPES)
        optimizer = ours(name)(p, **kwargs)
        follow(optimizer, p, 2)
        held = optimizer.state_dict()
        then = copy.deepcopy(held)
        follow(optimizer, p, 2, seed=9)
        assert str(held) == str(then)


def numbers_of_numpy(name: str, info: Any) -> None:
    """NumPy numbers, passed or written by a scheduler, do not get into checkpoints."""
    numpy = pytest.importorskip("numpy")
    p = tensors(name, *SHAPES)
    optimizer = ours(name)(p, lr=numpy.float64(0.01))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: numpy.cos(0.1 * k))
    follow(optimizer, p, 1)
    schedule.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert type(torch.load(file, weights_only=True)["param_groups"][0]["lr"]) is float


def states_in_order(name: str, info: Any) -> None:
    """States are created when torch's are, in the same order."""
    orders = []
    for cls in (ours(name), info.optim_cls):
        p = tensors(name, (3, 2), (4,), (2, 3), (5,), (2, 2))
        optimizer = cls([{"params": p[:3]}, {"params": p[3:]}])
        early = [[i for i, q in enumerate(p) if q is r] for r in optimizer.state]
        follow(optimizer, [p[1], p[4]], 1)
        follow(optimizer, p, 1)
        orders.append((early, [[i for i, q in enumerate(p) if q is r] for r in optimizer.state]))
    assert orders[0] == orders[1]


def frozen_integers(name: str, info: Any) -> None:
    """Integer parameters, which have no gradients, are not changed."""
    frozen = torch.nn.Parameter(torch.ones(4, 2, dtype=torch.uint8), requires_grad=False)
    results = []
    for more in ([], [frozen]):
        p = tensors(name, *SHAPES)
        optimizer = ours(name)([*more, *p])
        follow(optimizer, p, 2)
        optimizer.load_state_dict(optimizer.state_dict())
        follow(optimizer, p, 1)
        results.append(p)
    close(*results, 0)


def older_checkpoints(name: str, info: Any) -> None:
    """Loads checkpoints that lack newer keys, or whose steps are numbers."""
    for kwargs in options(info):
        a = tensors(name, *SHAPES)
        one = info.optim_cls(a, **kwargs)
        follow(one, a, 2)
        saved = copy.deepcopy(one.state_dict())
        for group in saved["param_groups"]:
            for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "amsgrad"):
                if not group.get(key):
                    group.pop(key, None)
        for held in saved["state"].values():
            if "step" in held:
                held["step"] = float(held["step"])
        b = twins(a)
        other = ours(name)(b, **kwargs)
        other.load_state_dict(saved)
        follow(one, a, 2)
        follow(other, b, 2)
        close(a, b, near(name))


def names(name: str, info: Any) -> None:
    """Loads checkpoints with names into optimizers without, and the reverse."""
    for mine, other in ((True, False), (False, True), (True, True)):
        a = tensors(name, *SHAPES)
        one = ours(name)([(f"p{i}", p) for i, p in enumerate(a)] if mine else a)
        follow(one, a, 2)
        b = twins(a)
        two = ours(name)([(f"p{i}", p) for i, p in enumerate(b)] if other else b)
        two.load_state_dict(one.state_dict())
        follow(one, a, 2)
        follow(two, b, 2)
        close(a, b, 0)
        assert two.param_groups[0]["param_names"] == ["p0", "p1", "p2"]


def copies(name: str, info: Any) -> None:
    """`deepcopy` and `pickle` keep public attributes; copies can make steps."""
    a = tensors(name, *SHAPES)
    one = ours(name)(a)
    one.note = "kept"
    follow(one, a, 2)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        b = [p for group in other.param_groups for p in group["params"]]
        assert other.note == "kept"
        c = twins(a)
        again = ours(name)(c)
        again.load_state_dict(one.state_dict())
        follow(other, b, 2, seed=5)
        follow(again, c, 2, seed=5)
        close(b, c, 0)


def setstate(name: str, info: Any) -> None:
    """Default values that `__setstate__` changes."""
    p = tensors(name, *SHAPES)
    optimizer = ours(name)(p)
    follow(optimizer, p, 1)
    state = optimizer.__getstate__()
    state["defaults"] = {**state["defaults"], "foreach": True}
    optimizer.__setstate__(state)
    follow(optimizer, p, 1)
    assert optimizer.defaults["foreach"] is True


def printing(name: str, info: Any) -> None:
    """Can be printed."""
    text = repr(ours(name)(tensors(name, (2,))))
    assert text.startswith(f"{name} (") and "lr: " in text


def profiling(name: str, info: Any) -> None:
    """Profilers see the step under its name."""
    p = tensors(name, (2,))
    optimizer = ours(name)(p)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        follow(optimizer, p, 1)
        optimizer.zero_grad()
    seen = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= seen


def errors(name: str, info: Any) -> None:
    """Refuses all invalid arguments that PyTorch tests; accepts tensors that only its `foreach` refuses."""
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given, kind = case.optimizer_error_input, case.error_type
        kwargs = dict(given.kwargs)
        if "as a Tensor is not supported" in case.error_regex or "both floats or both" in case.error_regex:
            p = tensors(name, (2,))
            follow(ours(name)(p, **kwargs), p, 1)  # a limit of an implementation that is not ours
            continue
        if name in SPARSE and "does not support complex parameters" in case.error_regex:
            p = [torch.nn.Parameter(torch.randn(2, dtype=torch.complex128))]
            follow(ours(name)(p, **kwargs), p, 1)  # another
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                optimizer = ours(name)(tensors(name, (2,)) if given.params is None else given.params, **kwargs)
                if case.error_on is OptimizerErrorEnum.STEP_ERROR:
                    optimizer.step()
        except (kind, ValueError) as error:  # theirs is a RuntimeError here and there
            assert str(error)
        else:
            raise AssertionError(f"{given.desc or kwargs} was taken; torch says: {case.error_regex}")


def memory(name: str, info: Any) -> None:
    """A step leaves no tensors behind except its state."""
    p = tensors(name, *SHAPES)
    optimizer = ours(name)(p)
    follow(optimizer, p, 3)
    counts = []
    gc.freeze()  # what there is already is neither looked through nor counted
    try:
        for step in range(3):
            follow(optimizer, p, 1, seed=step)
            gc.collect()
            counts.append(sum(1 for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)))
    finally:
        gc.unfreeze()
    assert counts[1] == counts[2]


def default_type(name: str, info: Any) -> None:
    """Does not depend on the default dtype."""
    b = tensors(name, *SHAPES)
    follow(reference(info, b), b)
    for dtype in (torch.float16, torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            a = tensors(name, *SHAPES)
            follow(ours(name)(a), a)
        finally:
            torch.set_default_dtype(torch.float32)
        close(a, b, near(name))


def differentiable(name: str, info: Any) -> None:
    """Gradients through steps with `differentiable=True`."""
    if "differentiable" not in info.supported_impls:
        raise DoesNotApply("torch's is not differentiable")
    results = []
    for cls in (ours(name), info.optim_cls):
        (start,) = tensors(name, (5,))
        (gradient,) = tensors(name, (5,), seed=3)
        p = start.clone()
        optimizer = cls([p], differentiable=True, lr=0.01)
        p.grad = gradient  # one step: of some of torch's, autograd cannot undo a second
        optimizer.step()
        results.append(list(torch.autograd.grad(p.square().sum(), [start, gradient])))
    close(*results, 1e-5)


def capturable(name: str, info: Any) -> None:
    """Steps with `capturable=True` equal the usual ones."""
    if not info.has_capturable_arg:
        raise DoesNotApply("torch's has no such argument")
    for kwargs in options(info):
        a, b = tensors(name, *SHAPES), tensors(name, *SHAPES)
        follow(ours(name)(a, capturable=True, **kwargs), a)
        follow(reference(info, b, **kwargs), b)
        close(a, b, near(name))


def state(name: str, info: Any) -> None:
    """States have torch's keys, types and values; scalars on the host, such as `step`, are float64."""
    for kwargs in options(info):
        a, b = tensors(name, *SHAPES, dtype=torch.float32), tensors(name, *SHAPES, dtype=torch.float32)
        one, other = ours(name)(a, **kwargs), reference(info, b, **kwargs)
        follow(one, a, 7)  # RAdam's other branch begins with the sixth
        follow(other, b, 7)
        held, expected = one.state_dict()["state"], other.state_dict()["state"]
        for i, theirs in expected.items():
            assert set(held[i]) == set(theirs)
            for key, value in theirs.items():
                value = torch.as_tensor(value)  # a step count may be an int
                torch.testing.assert_close(
                    torch.as_tensor(held[i][key]), value, rtol=1e-5, atol=1e-6, check_dtype=value.dim() > 0
                )


def closures(name: str, info: Any) -> None:
    """A closure runs with gradients enabled, also under `no_grad`, and its loss is returned."""
    (p,) = tensors(name, (3,))
    optimizer = ours(name)([p])
    before = p.detach().clone()

    def closure() -> torch.Tensor:
        loss = p.square().sum()
        loss.backward()
        make_sparse(optimizer)
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert loss.item() == before.square().sum().item() and not torch.equal(p, before)


def scaled_gradients(name: str, info: Any) -> None:
    """`found_inf` and `grad_scale` of `fused=True`."""
    if "fused" not in info.supported_impls:
        raise DoesNotApply("torch has no fused implementation")
    (p,) = tensors(name, (3,), dtype=torch.float32)
    before = p.detach().clone()
    optimizer = ours(name)([p], fused=True)
    start = str(optimizer.state_dict()["state"])  # Adagrad's are there from the start
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((p * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p, before) and str(optimizer.state_dict()["state"]) == start and scaler.get_scale() == 4.0
    optimizer.zero_grad()
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.tensor(4.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(p, before)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(p, before)


#: Every behaviour by name, and the tests of PyTorch's that it stands for.
BEHAVIOURS: dict[Callable[[str, Any], None], str] = {
    forloop: "forloop_goes_right_direction, foreach_matches_forloop",
    foreach: "foreach_matches_forloop",
    fused: "fused_matches_forloop",
    mixed_types: "(mixed types on one device)",
    right_direction: "forloop_goes_right_direction, param_group_with_lrscheduler_goes_right_direction",
    schedulers: "param_group_with_lrscheduler_goes_right_direction",
    groups: "param_groups_lr, param_groups_weight_decay",
    tensor_lr: "tensor_lr",
    tensor_betas: "tensor_lr (betas)",
    complex_numbers: "complex, complex_2d",
    sparse_gradients: "rosenbrock_sparse",
    layouts: "forloop_goes_right_direction (non-contiguous)",
    odd_shapes: "foreach_matches_forloop (odd shapes)",
    tied: "(shared memory)",
    no_gradients: "step_is_noop_when_params_have_no_grad",
    zero_gradients: "step_is_noop_for_zero_grads",
    hooks_of_steps: "step_pre_hook, step_post_hook, step_all_hooks",
    hooks_of_state_dicts: "state_dict_pre_hook, state_dict_post_hook, load_state_dict_pre_hook_and_prepend, ...",
    saving: "state_dict_deterministic, save_load_equality_with_weights_only",
    checkpoints_of_torch: "(checkpoints both ways)",
    keys_of_groups: "(keys of parameter groups)",
    distributed_checkpoints: "(torch.distributed.checkpoint)",
    of_one_moment: "(snapshots)",
    numbers_of_numpy: "(NumPy numbers)",
    older_checkpoints: "can_load_older_state_dict, load_nontensor_step",
    names: "can_load_from_to_named_state_dict",
    copies: "deepcopy_copies_all_public_attrs, pickling",
    setstate: "(`__setstate__`)",
    printing: "optimizer_can_be_printed",
    profiling: "(profiler)",
    errors: "errors",
    memory: "(leaked tensors)",
    default_type: "set_default_dtype_works_with_foreach",
    differentiable: "differentiable optimizers",
    capturable: "(capturable=True)",
    state: "foreach_matches_forloop, non_empty_state",
    states_in_order: "(order of states)",
    frozen_integers: "(integer parameters)",
    closures: "(closures)",
    scaled_gradients: "fused_does_not_step_if_foundinf, grad_scaling_autocast_fused_optimizers",
}

#: PyTorch's tests that have no case above, and why.
NOT_RUN = {
    "forloop_goes_right_direction_multigpu, mixed_device_dtype": "need two GPUs; mixed types are tested above",
    "foreach_large_tensor, fused_large_tensor": "need at least 64 GB of GPU memory",
    "fused_cpu_matches_cuda, cpu_load_state_dict, state_dict_with_cuda_params": "need a GPU",
    "peak_memory_foreach": "measures CUDA's allocator; `optlang bench` measures the peak memory of the first step",
    "defaults_changed_to_foreach": "tests which function torch calls by default; a rule has one implementation",
    "fused_error_on_params_on_meta": "tests an error of torch's kernel; a rule makes steps on the meta device",
    "optim_infos_do_not_specify_global_cliquey_kwargs": "tests the descriptions, not the optimizers",
    "lbfgs_*": "tests/runtime/test_histories.py compares steps, arguments and checkpoints with torch's LBFGS",
}


def outcome(behaviour: Callable[[str, Any], None], name: str) -> tuple[str, str]:
    """Return ``pass``, ``n/a`` or ``fail``, and the reason."""
    try:
        behaviour(name, INFOS[name])
    except DoesNotApply as reason:
        return "n/a", str(reason)
    except Exception as error:
        return "fail", f"{type(error).__name__}: {error}"
    return "pass", ""
