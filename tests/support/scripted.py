"""Runs of the modules that the target ``torchscript`` writes, next to the compiled classes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from trajectories import Array, Gradients, library_compiled, tensors

import optlang.rules
from optlang.compiler import compile_source
from optlang.rule import Rule, Value
from optlang.runtime.values import python_key
from optlang.source import Source
from optlang.targets import Order, torchscript


def by_formula(rule: Rule, arguments: Mapping[str, Any]) -> dict[str, Value]:
    """Return arguments of a class by the names that the formulas use."""
    found: dict[str, Value] = {}
    for key, hypers in rule.keys.items():
        if python_key(key) in arguments:
            value = arguments[python_key(key)]
            parts = value if hypers[0].part is not None else (value,)
            for hyper, part in zip(hypers, parts, strict=True):
                found[hyper.name] = part if isinstance(part, bool | str) or part is None else float(part)
    return found


def module_of(name: str, **arguments: Any) -> Any:
    """Return the module of a rule of the library, or of a rule's text, as it comes from its file."""
    return reloaded(_emitted(name, tuple(arguments.items())))


@cache
def _emitted(name: str, arguments: tuple[tuple[str, Any], ...]) -> bytes:
    compiled = library_compiled(name) if name in optlang.rules.names() else compile_source(Source(name))
    return torchscript.emit(Order(compiled, by_formula(compiled.rule, dict(arguments))))


def reloaded(content: bytes | Any) -> Any:
    """Return a module that has been to a file and back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(io.BytesIO(content if isinstance(content, bytes) else torchscript.saved(content)))


def step(module: Any, params: Sequence[torch.Tensor], gradients: Gradients) -> None:
    """Make a step; no gradient is an empty tensor."""
    grads = [
        p.new_zeros(0) if g is None else torch.tensor(g, dtype=p.dtype) for p, g in zip(params, gradients, strict=True)
    ]
    module.step(list(params), grads)


def run_module(
    module: Any, begin: Sequence[Array], history: Sequence[Gradients], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return where a module takes the starting values."""
    params = tensors(begin, dtype)
    for gradients in history:
        step(module, params, gradients)
    return [p.detach() for p in params]
