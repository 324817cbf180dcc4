"""Numbers that may also be none, whatever their default is."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

import optlang
from optlang.checker.check import check_text
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

RULE = """optimizer Warm
hyper lr = 0.5, n = 2 or none >= 1, scale = 2 or none in {1, 2}  "see there"
p -= lr*g*(min(1, t/n) if n != none else 1)*(scale ?? 3)
"""


def moved(make: type, **arguments: float | None) -> float:
    """Return how far a class moves a parameter in one step."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    make([p], **arguments).step()
    return -p.item()


def test_values() -> None:
    module = types.ModuleType("warm")
    exec(str(optlang.export(RULE, "module")), module.__dict__)
    for make in (optlang.compile(RULE, backend="eager"), module.Warm):
        assert moved(make) == 0.5
        assert moved(make, n=None) == 1.0
        assert moved(make, n=1, scale=None) == 1.5
        with pytest.raises(ValueError, match="n"):
            moved(make, n=0)


def test_may_become_none_and_a_number_again() -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optlang.compile(RULE, backend="eager")([p])
    for n, expected in ((2, -0.5), (None, -1.5), (3, -2.5)):
        optimizer.param_groups[0]["n"] = n
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.item() == expected


def test_in_other_rules(tmp_path: Path) -> None:
    """What is used or inner stays a number that may be none, also with another default."""
    (tmp_path / "limited.opt").write_text("optimizer Limited\nhyper lr = 1, limit = none\np -= lr*g*(limit ?? 5)\n")
    for name, text in {
        "used": 'use "limited.opt"(limit = 3)\n',
        "inner": 'optimizer A\ninner B = "limited.opt"(limit = 3)\nB(p, g)\n',
    }.items():
        (tmp_path / f"{name}.opt").write_text(text)
        make = optlang.compile(tmp_path / f"{name}.opt", backend="eager")
        assert (moved(make), moved(make, limit=None), moved(make, limit=2)) == (3, 5, 2)


def test_is_printed_as_written() -> None:
    text = format_tree(parse(Source(RULE)))
    assert "n = 2 or none >= 1" in text and "scale = 2 or none in {1, 2}" in text
    assert format_tree(parse(Source(text))) == text
    rule, _ = check_text(Source(RULE))
    assert rule is not None and [h.type.value for h in rule.hypers] == ["number", "number or none", "number or none"]


@pytest.mark.parametrize(
    ("declared", "formula", "code", "message"),
    [
        ("n = 2 or none", "n*g", "E308", "`n` may be none"),
        ('n = "a" or none', "g", "E403", "only a number may also be none"),
        ("n = true or none", "g", "E403", "only a number may also be none"),
        ("n = 0 or none >= 1", "g*(n ?? 1)", "E404", "the default of `n` is outside its range"),
    ],
)
def test_mistakes(declared: str, formula: str, code: str, message: str) -> None:
    findings = check_text(Source(f"optimizer A\nhyper lr = 0.1, {declared}\np -= lr*{formula}\n"))[1]
    assert [f for f in findings if f.code == code and message in f.message], findings
