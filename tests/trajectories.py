"""Runs of a rule and of what it is compared with, on the same tensors and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from interpreter import Interpreter
from references import make_reference, row

import optlang
import optlang.rules
from optlang.language.check import check_text
from optlang.language.rule import Rule
from optlang.source import Source

SHAPES: tuple[tuple[int, ...], ...] = ((4, 6), (5,), (), (3, 2, 1, 4))
STEPS = 30

Array = np.ndarray
Gradients = Sequence[Array | None]


def checked(text: str, name: str = "<rule>") -> Rule:
    """Return a rule that must be free of errors and of warnings."""
    rule, findings = check_text(Source(text, name))
    assert rule is not None and not findings, "\n\n".join(map(str, findings))
    return rule


@cache
def library_rule(name: str) -> Rule:
    """Return a rule of the library, checked."""
    file = optlang.rules.path(name)
    return checked(file.read_text(encoding="utf-8"), file.name)


@cache
def library_class(name: str, backend: str = "eager") -> Any:
    """Return the class of a rule of the library."""
    return optlang.compile(optlang.rules.path(name), backend=backend)


def start(shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[Array]:
    """Return starting values, about 1 in size."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in shapes]


def gradients(
    shapes: Sequence[tuple[int, ...]] = SHAPES, steps: int = STEPS, seed: int = 1, missing: bool = False
) -> list[list[Array | None]]:
    """Return a gradient for each step and tensor: of changing size, half of it lasting, some absent if ``missing``."""
    rng = np.random.default_rng(seed)
    lasting = [rng.standard_normal(shape) for shape in shapes]
    result: list[list[Array | None]] = []
    for _ in range(steps):
        scale = float(np.exp(rng.normal()))
        one: list[Array | None] = [
            np.asarray(scale * (x + rng.standard_normal(x.shape))) for x in map(np.asarray, lasting)
        ]
        result.append([None if missing and rng.random() < 0.4 else g for g in one])
    return result


def tensors(values: Sequence[Array], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters with these values."""
    return [torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for value in values]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    """Let torch.optim keep its own scalars (steps, momentum products) in ``dtype`` as well."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def feed(optimizer: Any, params: Sequence[Any], history: Sequence[Gradients]) -> None:
    """Step an optimizer through a history of gradients."""
    for step in history:
        for p, g in zip(params, step, strict=True):
            p.grad = None if g is None else torch.tensor(g, dtype=p.dtype)
        optimizer.step()


def run(make: Callable[..., Any], history: Sequence[Gradients], dtype: torch.dtype, **hypers: Any) -> list[Array]:
    """Return where an optimizer takes the starting values."""
    params = tensors(start(), dtype)
    with default_dtype(torch.float64 if dtype == torch.float64 else torch.float32):
        optimizer = make(params, **hypers)
        feed(optimizer, params, history)
    return [p.detach().double().numpy() for p in params]


def run_reference(name: str, history: Sequence[Gradients], dtype: torch.dtype, **hypers: Any) -> list[Array]:
    """Return where the reference of a rule takes the starting values."""
    reference = library_rule(name).reference
    return run(lambda params, **kw: make_reference(name, reference, params, **kw), history, dtype, **hypers)


def run_interpreter(rule: Rule, history: Sequence[Gradients], hypers: Mapping[str, Any]) -> list[Array]:
    """Return where the interpreter takes the starting values."""
    interpreter = Interpreter(rule, hypers)
    params = start()
    for step in history:
        interpreter.step(params, step)
    return params


def difference(a: Sequence[Array], b: Sequence[Array], moved_from: Sequence[Array] | None = None) -> float:
    """Return the largest relative distance of two tensors, relative to ``b`` or to how far ``b`` has moved."""
    worst = 0.0
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        assert np.isfinite(y).all(), "what is compared with must be finite"
        size = np.linalg.norm(y if moved_from is None else y - moved_from[index])
        assert size > 0, "what is compared with must have moved"
        worst = max(worst, float(np.linalg.norm(x - y) / size))
    return worst


def cases(name: str) -> list[dict[str, Any]]:
    """Return the keyword arguments that a rule is compared under."""
    chosen = row(name)
    return [{"lr": chosen.lr, **case} for case in chosen.options]
