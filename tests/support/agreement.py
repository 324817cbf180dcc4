"""A rule's generated source beside the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from interpreter import Interpreter
from trajectories import feed, gradients, start, tensors

from optlang.checker.check import check_text
from optlang.classes import class_of
from optlang.diagnostics import render_all
from optlang.source import Source

HEAD = "optimizer X\nhyper lr = 0.1, b = 0.9\n"
SHAPES = ((3, 4), (2, 1, 3))


def agree(
    text: str,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    steps: int = 4,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    history: Any = None,
) -> None:
    """Compare a rule's generated source with the interpreter, hyperparameters changing as ``changes`` says."""
    rule, findings = check_text(Source(text))
    assert rule is not None, render_all(findings)
    params, interpreter = start(shapes), Interpreter(rule)
    compiled = tensors(params, torch.float64)
    optimizer = class_of(Source(text), None, "eager")(compiled)
    for number, step in enumerate(history or gradients(shapes, steps)):
        interpreter.set(**(changes or {}).get(number, {}))
        optimizer.param_groups[0].update((changes or {}).get(number, {}))
        interpreter.step(params, step)
        feed(optimizer, compiled, [step])
    for expected, p in zip(params, compiled, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-11, err_msg=text)
