"""Random rules of whole models, matrices and time: the compiler against the interpreter, and the formatter."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from rule_strategies_staged import MODES, OPTIONS, seeded, staged_rules
from stepping import Twins
from test_random_rules import checked, outline

import optlang
from optlang.classes import class_of
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def twins(text: str, mode: str, options: dict[str, Any], backend: str, dtype: torch.dtype) -> Twins:
    """Return an optimizer of two param groups beside its interpreter."""
    shapes = MODES[mode][1]
    groups = [{"shapes": shapes[:2]}, {"shapes": shapes[2:], **options}]
    return Twins(text, groups, cls=class_of(Source(text), None, backend), dtype=dtype)


def missing(seed: int, step: int) -> Callable[[int, int], bool]:
    """Return which gradients are missing: some, or those of a whole group, in every other step or so."""
    choose = random.Random(100 * seed + step)
    share = choose.choice([0, 0, 0.4])
    absent = {(i, k) for i in range(2) for k in range(3) if choose.random() < share}
    group = choose.choice([None, None, None, 0, 1])
    return lambda i, k: (i, k) in absent or i == group


def agree(both: Twins, seed: int, steps: int, rtol: float, atol: float) -> None:
    """Make steps with both, and compare them after each."""
    for step in range(steps):
        both.step(step, missing(seed, step))
        both.agree(rtol, atol)
    assert all(np.isfinite(x).all() for arrays in both.arrays for x in arrays), "a random rule must stay finite"


@EXAMPLES
@given(staged_rules(), st.sampled_from(OPTIONS), st.integers(0, 1000))
def test_eager_agrees_with_the_interpreter(rule: tuple[str, str], options: dict[str, Any], seed: int) -> None:
    mode, text = rule
    note(text)
    checked(text)
    agree(twins(text, mode, options, "eager", torch.float64), seed, 5, 1e-9, 1e-10)


@EXAMPLES
@given(staged_rules())
def test_formatting_keeps_the_tree_and_settles(rule: tuple[str, str]) -> None:
    tree = parse(Source(rule[1]))
    formatted = format_tree(tree)
    note(formatted)
    assert outline(parse(Source(formatted))) == outline(tree)
    assert format_tree(parse(Source(formatted))) == formatted


@pytest.mark.parametrize("stage", ["rule", "program", "source"])
@pytest.mark.parametrize("seed", range(4))
def test_every_stage_can_be_shown(seed: int, stage: str) -> None:
    assert optlang.emit(seeded(seed)[1], stage, ndim=2)


@pytest.mark.compiler
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.thorough), 1, 2, 3])
def test_compiled_agrees_with_the_interpreter(seed: int) -> None:
    mode, text = seeded(seed)
    agree(twins(text, mode, OPTIONS[seed % len(OPTIONS)], "auto", torch.float32), seed, 3, 1e-4, 1e-5)
