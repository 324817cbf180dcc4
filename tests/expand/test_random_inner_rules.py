"""Random rules around inner rules: the compiler, which writes them out, against the interpreter, which steps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from interpreter_inner import Composed
from rule_strategies_inner import inner_rules, seeded
from trajectories import feed, gradients, start, tensors

from optlang.classes import class_of
from optlang.source import Source

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

SHAPES = ((3, 4), (2, 1, 3), (5,))
HYPERS: tuple[dict[str, Any], ...] = ({}, {"flag": True, "rate": 0.3}, {"period": 3.0, "turns": 1.0})
EXAMPLES = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def agree(
    files: dict[str, str], folder: Path, backend: str, dtype: torch.dtype, hypers: dict[str, Any], tol: float
) -> None:
    """Write a rule and what it uses into a folder, make steps with both, and compare."""
    for name, text in files.items():
        (folder / name).write_text(text)
    source, steps = Source(files["rule.opt"], str(folder / "rule.opt")), list(gradients(SHAPES, 6, missing=True))
    cls: Any = class_of(source, None, backend)
    params, interpreter = start(SHAPES), Composed(source, hypers, cls._compiled.rule)
    for step in steps:
        interpreter.step(params, step)
    assert all(np.isfinite(p).all() for p in params), "a random rule must stay finite"
    ours = tensors(start(SHAPES), dtype)
    feed(cls(ours, **hypers), ours, steps)
    for p, array in zip(ours, params, strict=True):
        np.testing.assert_allclose(p.detach().double().numpy(), array, rtol=tol, atol=tol / 10, err_msg=str(files))


@EXAMPLES
@given(inner_rules(), st.sampled_from(HYPERS))
def test_eager_agrees_with_the_interpreter(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], hypers: dict[str, Any]
) -> None:
    note("\n".join(f"# {name}\n{text}" for name, text in files.items()))
    agree(files, tmp_path_factory.mktemp("rules"), "eager", torch.float64, hypers, 1e-9)


@pytest.mark.compiler
@pytest.mark.parametrize("seed", [1, pytest.param(8, marks=pytest.mark.thorough)])
def test_compiled_agrees_with_the_interpreter(tmp_path: Path, seed: int) -> None:
    agree(seeded(seed), tmp_path, "auto", torch.float32, HYPERS[seed % 3], 1e-4)
