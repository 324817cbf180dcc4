"""Several names that get a value each: all right sides are read before any name is written."""

from __future__ import annotations

import types
import warnings

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

SWAPS = """optimizer Swaps
hyper lr = 0.1, beta = 0.5, alternate = true
state m, v
state w = p
def mixed(x, y):
    x, y = y, 2*x
    return x + y
rank, k = 3, 2
a_new = 7*g
if alternate and t > 1: m, v = v, beta*m + g
else:
    m, v, w = m + g, m - g, p
repeat k: m, v = v, m + v
a, b = m, v
a, b = b + w, a
p -= lr*(a + 2*b + k*mixed(a, g) + rank*g) + 0*a_new
"""


def expected(p: float, gradients: list[float]) -> float:
    """Return what the rule makes of one number, in Python, which has the same statement."""
    m, v, w = 0.0, 0.0, p
    for t, g in enumerate(gradients, 1):
        if t > 1:
            m, v = v, 0.5 * m + g
        else:
            m, v, w = m + g, m - g, p
        for _ in range(2):
            m, v = v, m + v
        a, b = m, v
        a, b = b + w, a
        p -= 0.1 * (a + 2 * b + 2 * (g + 2 * a) + 3 * g)
    return p


def test_values() -> None:
    gradients = [1.0, -0.5, 2.0]
    p, q = (torch.nn.Parameter(torch.full((2,), 0.3, dtype=torch.float64)) for _ in range(2))
    optimizer = optlang.compile(SWAPS, backend="eager")([p])
    module = types.ModuleType("swaps")
    exec(str(optlang.export(SWAPS, "module")), module.__dict__)
    other = module.Swaps([q])
    rule, _ = check_text(Source(SWAPS))
    assert rule is not None
    interpreter, array = Interpreter(rule), np.full(2, 0.3)
    for g in gradients:
        p.grad, q.grad = torch.full_like(p, g), torch.full_like(q, g)
        optimizer.step()
        other.step()
        interpreter.step([array], [np.full(2, g)])
    for found in (p.detach().numpy(), q.detach().numpy(), array):
        np.testing.assert_allclose(found, expected(0.3, gradients), rtol=1e-14)


def test_roles_are_inferred() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule = optlang.compile("m, v = beta*m + g, beta*v + m; p -= lr*v\n", backend="eager")
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = rule([p], lr=1.0, beta=0.5)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.item() == -1.0  # v is 0, then the m of the step before
    assert set(optimizer.state[p]) >= {"m", "v"}


def test_is_printed_as_written() -> None:
    tree = parse(Source(SWAPS))
    text = format_tree(tree)
    assert "m, v, w = m + g, m - g, p\n" in text and format_tree(parse(Source(text))) == text
    assert r"a,\; b \leftarrow b + w,\; a" in rule_latex(tree)


def test_in_pieces() -> None:
    """Transforms on the right, and a rule with such a statement inside of another."""
    text = (
        "optimizer A\nhyper lr = 1\ninner B = SGD(lr = 1)\na, b = g |> ema(0.5), 2*g\nB(p, a)\na, b = b, a\np -= lr*a\n"
    )
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optlang.compile(text, backend="eager")([p]).step()
    assert p.item() == -3.0


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("a, b = g, p, g", "E214", "3 values cannot be assigned to 2 names"),
        ("a, b, c = g, p", "E214", "2 values cannot be assigned to 3 names"),
        ("a = g, p", "E112", "an assignment takes one value"),
        ("a, b += g, p", "E115", "`+=` changes one name at a time"),
        ("a, b = g", "E214", "one value cannot be assigned to 2 names"),
        ("a, b = svd(g), p", "E214", "`svd` returns 3 values"),
    ],
)
def test_mistakes(line: str, code: str, message: str) -> None:
    try:
        findings = check_text(Source(f"optimizer A\nhyper lr = 0.1\n{line}\np -= lr*g\n"))[1]
    except OptlangError as error:
        findings = list(error.diagnostics)
    assert [(f.code, f.message) for f in findings if f.code == code and message in f.message], findings
