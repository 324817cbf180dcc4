"""Runs of a rule and of what it is compared with, on the same tensors and gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import landscape
import numpy as np
import torch
from interpreter import Interpreter, routed, step_all
from references import make_reference, row

import optlang
import optlang.rules
from optlang.checker.check import check_text
from optlang.compiler import CompiledRule
from optlang.rule import Rule
from optlang.source import Source

SHAPES: tuple[tuple[int, ...], ...] = ((4, 6), (5,), (), (3, 2, 1, 4))
STEPS = 30

Array = np.ndarray
Gradients = Sequence[Array | None]


@cache
def checked(text: str, name: str = "<rule>") -> Rule:
    """Return a rule that must be free of errors and of warnings."""
    rule, findings = check_text(Source(text, name))
    assert rule is not None and not findings, "\n\n".join(map(str, findings))
    return rule


def library_text(name: str, exact: bool = False) -> str:
    """Return the text of a rule of the library; ``exact`` is without its rounding to bfloat16."""
    text = optlang.rules.path(name).read_text(encoding="utf-8")
    return text.replace("bf16(", "(") if exact else text


def library_compiled(name: str, exact: bool = False) -> CompiledRule:
    """Return a rule of the library, ready to be compiled: that of its class, so that all tests share what it knows."""
    compiled: CompiledRule = library_class(name, exact=exact)._compiled
    return compiled


@cache
def library_rule(name: str, exact: bool = False) -> Rule:
    """Return a rule of the library, checked."""
    compiled = library_compiled(name, exact)
    assert not compiled.warnings, "\n\n".join(map(str, compiled.warnings))
    return compiled.rule


@cache
def library_class(name: str, backend: str = "eager", exact: bool = False) -> Any:
    """Return the class of a rule of the library; ``exact`` is without its rounding to bfloat16."""
    file = optlang.rules.path(name).name
    source = Source(library_text(name, exact), file) if exact and library_rounds(name) else name
    return optlang.compile(source, backend=backend)


def library_reference(name: str) -> str | None:
    """Return what a rule of the library names as its reference, by its text."""
    found = re.search(r"^optimizer .*#\s*reference:\s*(\S+)", library_text(name), re.MULTILINE)
    return found[1] if found else None


def library_routes(name: str) -> bool:
    """Return whether a rule of the library sends parameters to other rules, by its text."""
    return re.search(r"^route\b", library_text(name), re.MULTILINE) is not None


def library_evaluates(name: str) -> bool:
    """Return whether a rule of the library has parameters to evaluate with (`on eval`), by its text."""
    return re.search(r"^on eval\b", library_text(name), re.MULTILINE) is not None


def library_rounds(name: str) -> bool:
    """Return whether a rule of the library computes in bfloat16."""
    return "bf16(" in library_text(name)


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


def tensors(values: Sequence[Array], dtype: torch.dtype, device: str = "cpu") -> list[torch.nn.Parameter]:
    """Return parameters with these values."""
    return [torch.nn.Parameter(torch.tensor(value, dtype=dtype, device=device)) for value in values]


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
    """Step an optimizer through a history of gradients; where it asks for a closure, of slopes of a loss."""
    asked = getattr(optimizer, "_asked", frozenset())
    # A module that has loaded a checkpoint of its class has the key, too, and takes dense gradients.
    sparse = hasattr(optimizer, "_compiled") and any(group.get("sparse") for group in optimizer.param_groups)
    for step in history:
        if asked:
            optimizer.step(landscape.closure(params, step, backward="hvp" not in asked))
            continue
        for p, g in zip(params, step, strict=True):
            p.grad = None if g is None else torch.tensor(g, dtype=p.dtype, device=p.device)
            if p.grad is not None and sparse:
                p.grad = p.grad.to_sparse(1)
        optimizer.step()


def shapes(name: str, like_reference: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a rule is tested with, or those on which its reference does the same."""
    chosen = row(name)
    return chosen.compared or chosen.shapes if like_reference else chosen.shapes


def run(
    make: Callable[..., Any], begin: Sequence[Array], history: Sequence[Gradients], dtype: torch.dtype, **hypers: Any
) -> list[Array]:
    """Return where an optimizer takes the starting values ``begin``."""
    params = tensors(begin, dtype)
    with default_dtype(torch.float64 if dtype == torch.float64 else torch.float32):
        optimizer = make(params, **hypers)
        feed(optimizer, params, history)
    return [p.detach().double().numpy() for p in params]


def run_reference(
    name: str, begin: Sequence[Array], history: Sequence[Gradients], dtype: torch.dtype, **hypers: Any
) -> list[Array]:
    """Return where the reference of a rule takes the starting values."""
    reference = library_rule(name).reference
    return run(lambda params, **kw: make_reference(name, reference, params, **kw), begin, history, dtype, **hypers)


def run_interpreter(
    rule: Rule, begin: Sequence[Array], history: Sequence[Gradients], hypers: Mapping[str, Any]
) -> list[Array]:
    """Return where the interpreter takes the starting values."""
    (params,) = run_interpreters(rule, [begin], [history], [hypers])
    return params


def run_interpreters(
    rule: Rule,
    begins: Sequence[Sequence[Array]],
    histories: Sequence[Sequence[Gradients]],
    settings: Sequence[Mapping[str, Any]],
) -> list[list[Array]]:
    """Return where interpreters take the starting values of each param group of one optimizer."""
    params = [[np.array(value) for value in begin] for begin in begins]
    shares = [
        (number, interpreter, indices)
        for number, hypers in enumerate(settings)
        for interpreter, indices in _interpreters(rule, hypers, params[number])
    ]
    # The signs of singular vectors are arbitrary, and some rules keep their moments while the vectors change: so that
    # they change in the same way, they come from the same library.
    with patch.object(np.linalg, "svd", same_svd):
        for step in zip(*histories, strict=True):
            step_all(
                [interpreter for _, interpreter, _ in shares],
                [[params[number][i] for i in indices] for number, _, indices in shares],
                [[step[number][i] for i in indices] for number, _, indices in shares],
            )
    return params


def same_svd(x: Array, full_matrices: bool = True) -> tuple[Array, ...]:
    return tuple(part.numpy() for part in torch.linalg.svd(torch.tensor(x), full_matrices=full_matrices))


def _interpreters(
    rule: Rule, hypers: Mapping[str, Any], params: Sequence[Array]
) -> list[tuple[Interpreter, list[int]]]:
    """Return the interpreters of a param group, each with the tensors that it is for."""
    if not rule.routes:
        return [(Interpreter(rule, hypers), list(range(len(params))))]
    found: list[tuple[Interpreter, list[int]]] = []
    taken: set[str] = set()
    for name in dict.fromkeys(route.rule.name for route in rule.routes):
        inner = library_rule(name)
        keys = {key: f"{name.lower()}_{key}" if key in taken else key for key in inner.keys}
        taken |= set(keys.values())
        own = {key: hypers[outer] for key, outer in keys.items() if outer in hypers}
        found.append((Interpreter(inner, own), [i for i, p in enumerate(params) if routed(rule, p.shape) == name]))
    return [(interpreter, indices) for interpreter, indices in found if indices]


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
