"""``for`` over values that are written out: coefficients of each iteration."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from interpreter import Interpreter

import optlang
from optlang.checker.check import check_text
from optlang.diagnostics import OptlangError
from optlang.source import Source
from optlang.syntax.latex import rule_latex
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

RULE = """optimizer Rows
hyper lr = 0.1, beta = 0.9
require ndim == 2
def orthogonal(x, eps):
    y = x/(norm(x) + eps)
    for a, b, c in ((3.2, -5.1, 2.9), (2.4, -2.3, 0.9), (1.9, -1.25, 0.375)):
        s = y @ y.T
        y = a*y + (b*s + c*(s @ s)) @ y
    return y
u = orthogonal(g, 1e-7)
for k in (1, beta, 2): u += k*g
for k in reversed((2, 3)): u = k*u + 1
for a, b in ((1, 0.1), (b_of(beta), 0.2)):
    u, v = a*u - b, a + b
    u += v
p -= lr*u
def b_of(x) = x/2
"""


def expected(g: torch.Tensor) -> torch.Tensor:
    """Return what one step takes from p."""
    y = g / (g.norm() + 1e-7)
    for a, b, c in ((3.2, -5.1, 2.9), (2.4, -2.3, 0.9), (1.9, -1.25, 0.375)):
        s = y @ y.T
        y = a * y + (b * s + c * (s @ s)) @ y
    u = y
    for k in (1, 0.9, 2):
        u = u + k * g
    for k in (3, 2):
        u = k * u + 1
    for a, b in ((1, 0.1), (0.45, 0.2)):
        u = a * u - b + (a + b)
    return 0.1 * u


def test_values() -> None:
    g = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = types.ModuleType("rows")
    exec(str(optlang.export(RULE, "module")), module.__dict__)
    for make in (optlang.compile(RULE, backend="eager"), module.Rows):
        p = torch.nn.Parameter(torch.zeros_like(g))
        p.grad = g.clone()
        make([p]).step()
        torch.testing.assert_close(-p.detach(), expected(g), rtol=1e-13, atol=1e-13)
    rule, found = check_text(Source(RULE))
    assert rule is not None and not found
    array = np.zeros((3, 4))
    Interpreter(rule).step([array], [g.numpy()])
    np.testing.assert_allclose(-array, expected(g).numpy(), rtol=1e-13)


def test_each_turn_draws_numbers_of_its_own() -> None:
    p = torch.nn.Parameter(torch.zeros(50))
    p.grad = torch.ones(50)
    optlang.compile("optimizer A\nfor a in (1, -1): p += a*rand() + 0*g\n", backend="eager")([p]).step()
    assert p.detach().std() > 0.1


def test_is_printed_as_written() -> None:
    tree = parse(Source(RULE))
    text = format_tree(tree)
    assert "for a, b in ((1, 0.1), (b_of(beta), 0.2)):\n" in text and "for k in reversed((2, 3)): " in text
    assert format_tree(parse(Source(text))) == text
    assert r"\textbf{for } a,\; b \textbf{ in } ((1, 0.1), " in rule_latex(tree)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("for a, b in ((1, 2), (3, 4, 5)): u = a", "E214", "2 names for 3 values here"),
        ("for a in ((1, 2), (3, 4)): u = a", "E214", "1 name for 2 values here"),
        ("for a, b in (1, 2, 3): u = a", "E214", "2 names for 3 values here"),
        ("for a in (1, nothing): u = a", "E201", "unknown name `nothing`"),
        ("for g in (1, 2): u = 3\np -= u", "E2", ""),
    ],
)
def test_mistakes(line: str, code: str, message: str) -> None:
    try:
        found = check_text(Source(f"optimizer A\nu = 0\n{line}\np -= 0.1*g*u\n"))[1]
    except OptlangError as error:
        found = list(error.diagnostics)
    if message:
        assert [f for f in found if f.code.startswith(code) and message in f.message], found
