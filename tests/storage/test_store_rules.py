"""Rules in every format that their states can be kept in, against the interpreter: the library's and random ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_strategies import HYPERS, seeded
from stored import KeepingInterpreter, compare, in_every_state
from trajectories import cases, gradients, library_class, library_rule, shapes, start, tensors

import optlang
from optlang.source import Source
from optlang.storage import choice, named
from optlang.storage.formats import Fixed, Format

pytestmark = pytest.mark.slow

NAMES = optlang.rules.names()
CODES: tuple[Format, ...] = tuple(kind(16) for kind in named.CODES.values())
TYPES = (Fixed("bfloat16"), Fixed("float16"))

#: Rules that read a state after its assignment in a branch or in an earlier stage, where 16 bits are rounded or not.
BRANCHES = {"Adan", "AdaShift", "ADOPT", "Conda", "GaLoreAdamW", "LookaheadSGD", "SOAP"}
#: Rules that read a state that has been kept before a sum over the whole model was known.
AFTER_SUMS = {"Adai"}
#: Rules whose states are too large for scales in float16.
LARGE = {"Prodigy"}


def check(cls: Any, rule: Any, case: dict[str, Any], format: Format, monkeypatch: pytest.MonkeyPatch, **of: Any) -> int:
    """Return how many states have been compared with those of the interpreter."""
    keys: list[str] = []
    monkeypatch.setattr(choice, "formats", in_every_state(format, keys))
    params = tensors(start(of["shapes"]), torch.float64)
    optimizer = cls(params, store="8bit", **case)
    history = gradients(of["shapes"], of.get("steps", 30), missing=of.get("missing", False))
    return compare(optimizer, KeepingInterpreter(format, keys, rule, case), params, history, format, 1e-8)


@pytest.mark.sampled
@pytest.mark.parametrize("format", [*CODES, *TYPES], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_library(name: str, format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = library_rule(name, exact=True)
    if rule.routes or rule.flat or rule.sparse:
        pytest.skip("takes no store, or is made of rules that do")
    if name in (BRANCHES if format in TYPES else AFTER_SUMS):
        pytest.skip("may round before it reads")
    if name in LARGE and getattr(format, "second", None) == "float16":
        pytest.skip("has larger states")
    cls = library_class(name, exact=True)
    if not check(cls, rule, cases(name)[-1], format, monkeypatch, shapes=shapes(name)):
        pytest.skip("has no state that can be kept so")


@pytest.mark.parametrize("format", CODES, ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_random_rules(seed: int, format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    cls: Any = optlang.compile(Source(seeded(seed)), backend="eager")
    sizes = ((3, 40), (2, 1, 30), (1, 1))
    check(cls, cls._compiled.rule, HYPERS[seed % len(HYPERS)], format, monkeypatch, shapes=sizes, steps=5, missing=True)
