"""Every rule in every format that its states can be kept in, against the interpreter."""

from __future__ import annotations

import pytest
import torch
from stored import KeepingInterpreter, compare, in_every_state
from trajectories import cases, gradients, library_class, library_rule, row, shapes, start, tensors

import optlang
from optlang.storage import choice
from optlang.storage.formats import Fixed, Format

NAMES = optlang.rules.names()
FORMATS: tuple[Format, ...] = (
    *(kind(16) for kind in choice.CODES.values()),
    Fixed("bfloat16"),
    Fixed("float16"),
)


@pytest.mark.sampled
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_library(name: str, format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    monkeypatch.setattr(choice, "formats", in_every_state(format, keys))
    rule, case = library_rule(name, exact=True), cases(name)[-1]
    if rule.routes or rule.flat or rule.sparse:
        pytest.skip("keeps its states as they are")
    params = tensors(start(shapes(name)), torch.float64)
    optimizer = library_class(name, exact=True)(params, store="8bit", **case)
    interpreter = KeepingInterpreter(format, keys, rule, case)
    if not compare(optimizer, interpreter, params, gradients(shapes(name)), format, 1e-8):
        pytest.skip("has no state that can be kept so")
