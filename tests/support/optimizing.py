"""Small rules, models and comparisons for the tests of the runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trajectories import library_compiled

import optlang
from optlang.compiler import example_variant

ADAMW = "adamw"

#: State on the host (`prod`), in the param group (`seen`), per tensor and optional, with several things to check.
MIXED = """
optimizer Mixed
hyper lr = 0.1 >= 0, momentum = 0 in [0, 1), k = 0.5
state b when momentum
state prod: scalar = 1
group state seen = 0

prod *= 1 - k/(t + 1)
seen += 1
u = g
if momentum:
    b = g if first else momentum*b + g
    u = b
p -= lr*prod*u/seen
"""


def optimizer_class(rule: str, **kwargs: Any) -> type[torch.optim.Optimizer]:
    """Return the class of a rule that runs uncompiled, unless asked otherwise."""
    return optlang.compile(rule, **{"backend": "eager", **kwargs})


def staged(name: str) -> bool:
    """Whether a rule of the library makes its steps in several stages, or sends parameters to other rules."""
    compiled = library_compiled(name)
    return bool(compiled.rule.routes) or not example_variant(compiled).schedule.direct


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Parameter:
    """Return a parameter with random values and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
    p.grad = torch.randn(shape, generator=generator, dtype=dtype)
    return p


def twins(*parameters: torch.Tensor) -> tuple[list[Any], list[Any]]:
    """Return two equal copies of some parameters, with their gradients and memory formats."""
    both = []
    for _ in range(2):
        copies = []
        for p in parameters:
            twin = torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format))
            if p.grad is not None:
                twin.grad = p.grad.detach().clone(memory_format=torch.preserve_format)
            copies.append(twin)
        both.append(copies)
    return both[0], both[1]


def model(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Return a small model, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Train on random data that depend on ``seed`` only."""
    dtype = next(net.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64).to(dtype)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def against(
    ours: Callable[[Any], torch.optim.Optimizer],
    theirs: Callable[[Any], torch.optim.Optimizer],
    steps: int = 10,
    dtype: torch.dtype = torch.float64,
) -> float:
    """Return the largest difference between two optimizers after some steps on the same model."""
    a = model(dtype)
    b = copy.deepcopy(a)
    train(a, ours(a.parameters()), steps)
    train(b, theirs(b.parameters()), steps)
    return difference(list(a.parameters()), list(b.parameters()))


def difference(a: list[Any], b: list[Any]) -> float:
    """Return the largest difference between two lists of tensors."""
    with torch.no_grad():
        return max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)


def same_with_any_threads(run: Callable[[], Sequence[torch.Tensor]]) -> bool:
    """Return whether what a run returns is the same to the last bit with one, two and three threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([p.detach().clone() for p in run()])
    finally:
        torch.set_num_threads(before)
    return all(torch.equal(p, q) for other in results[1:] for p, q in zip(results[0], other, strict=True))
