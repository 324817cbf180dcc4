"""Random rules: the compiler against the interpreter, and the formatter against itself."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from interpreter import Interpreter
from rule_strategies import HYPERS, rules, seeded
from trajectories import feed, gradients, start, tensors

from optlang.classes import class_of
from optlang.rule import Rule
from optlang.source import Source, Span
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

#: Not in the fast group: every rule of the library, or many rules, run for many steps.
pytestmark = pytest.mark.slow

SHAPES = ((3, 4), (2, 1, 3), (1, 1))
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def checked(text: str) -> Rule:
    """Return a checked rule: that of its class, so that it is checked once."""
    cls: Any = class_of(Source(text), None, "eager")
    rule: Rule = cls._compiled.rule
    return rule


def oracle(rule: Rule, hypers: dict[str, Any], steps: int) -> list[np.ndarray]:
    params, interpreter = start(SHAPES), Interpreter(rule, hypers)
    for step in gradients(SHAPES, steps, missing=True):
        interpreter.step(params, step)
    assert all(np.isfinite(p).all() for p in params), "a random rule must stay finite"
    return params


def compiled(text: str, backend: str, dtype: torch.dtype, hypers: dict[str, Any], steps: int) -> list[np.ndarray]:
    params = tensors(start(SHAPES), dtype)
    optimizer = class_of(Source(text), None, backend)(params, **hypers)
    feed(optimizer, params, gradients(SHAPES, steps, missing=True))
    return [p.detach().double().numpy() for p in params]


def outline(node: Any) -> Any:
    """Return a tree without the places of its nodes."""
    if is_dataclass(node) and not isinstance(node, type):
        if isinstance(node, (Span, Source)):
            return None
        return type(node).__name__, [outline(getattr(node, f.name)) for f in fields(node)]
    return [outline(x) for x in node] if isinstance(node, tuple) else node


@EXAMPLES
@given(rules(), st.sampled_from(HYPERS))
def test_eager_agrees_with_the_interpreter(text: str, hypers: dict[str, Any]) -> None:
    note(text)
    expected = oracle(checked(text), hypers, steps=4)
    for a, b in zip(compiled(text, "eager", torch.float64, hypers, steps=4), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@EXAMPLES
@given(rules())
def test_formatting_keeps_the_tree_and_settles(text: str) -> None:
    tree = parse(Source(text))
    formatted = format_tree(tree)
    note(formatted)
    assert outline(parse(Source(formatted))) == outline(tree)
    assert format_tree(parse(Source(formatted))) == formatted


@pytest.mark.compiler
@pytest.mark.parametrize("seed", [3, 5, 8])
def test_compiled_agrees_with_the_interpreter(seed: int) -> None:
    text = seeded(seed)
    hypers = HYPERS[seed % len(HYPERS)]
    expected = oracle(checked(text), hypers, steps=3)
    for a, b in zip(compiled(text, "auto", torch.float32, hypers, steps=3), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=text)
