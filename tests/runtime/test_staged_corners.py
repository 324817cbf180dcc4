"""Corners of steps in passes, each of which was wrong once: against the interpreter, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import Interpreter

import optlang
from optlang.checker.check import check_text
from optlang.source import Source

HEAD = "optimizer S\nhyper lr = 0.1\nrequire ndim == 2\n"

#: A rule and the shapes of its parameters.
CORNERS: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "a group state in a loop": ("group state c = 1\nrepeat 2:\n    c = c/2\n    p -= 0.1*c*g", [(3,), (2, 3)]),
    "a shared state in a loop": (
        "shared state c = 1\nrepeat 2:\n    c = c/2 + total(p^2)\n    p -= 0.1*c*g/(1 + c)",
        [(3,), (2, 3)],
    ),
    "layouts with one text": (
        "n = gnorm(g)\np -= 0.1*(g - mean(g, dim=0) - mean(g, dim=-1))/(1 + n)",
        [(3, 4), (4,), (2, 3, 4)],
    ),
    "a matrix of one column": ("require ndim >= 1\nX = matrix(g)\np -= 0.1*(g + sum(mean(X, dim=1)))", [(4,)]),
    "a matrix that cancels, in a function": (
        "require ndim >= 1\nG = matrix(g) - matrix(g)\nx = 0.5*G + tanh(exp(-abs(G)))\np -= 0.1*x",
        [(4,), (2, 3), (2, 3, 2)],
    ),
    "a matrix that cancels, in a product": (
        "require ndim >= 1\nG = matrix(g) - matrix(g)\nx = tanh(exp(-abs(G)))\np -= 0.1*(x @ x.T @ matrix(g))",
        [(4,), (2, 3), (2, 3, 2)],
    ),
    "elements that cancel, as a matrix": (
        "require ndim >= 1\ny = exp(-abs(g - g))\np -= 0.1*(matrix(y) @ matrix(y).T @ matrix(g))",
        [(4,), (2, 3), (2, 3, 2)],
    ),
    "a product with what sizes make": (
        f"{HEAD}state C = zeros(rows, rows)\nC = 0.9*C + 0.1*(ones(rows, cols) @ g.T)\np -= lr*C @ g",
        [(3, 4), (3, 4)],
    ),
    "p's shape from what sizes make": ("p -= 0.1*(g + ones(rows(matrix(p)), cols(matrix(p))))", [(2, 3, 2), (2, 3, 2)]),
    "a choice around a function": (
        f"{HEAD}state Q = eye(rows)\nQ = inv_root(eye(rows) + g @ g.T, 2) if t % 2 == 0 else Q\np -= lr*Q @ g",
        [(3, 4)],
    ),
    "returns around matrices": (
        f"{HEAD}def f(x, n):\n    if n % 2 == 0: return inv_root(eye(rows) + x @ x.T, 2)\n    y = x @ x.T\n"
        "    if n % 3 == 0: y = y @ y\n    else:\n        z = 2*y\n        y = z\n    return y/(1 + norm(y))\n"
        "p -= lr*f(g, t) @ g",
        [(3, 4)],
    ),
    "a condition of the tensor, handed on": (
        f"{HEAD}state L = eye(rows)\nbig = norm(g) > 2\nif big: L = inv(L + eye(rows))\np -= lr*L @ g",
        [(3, 4), (3, 4)],
    ),
    "a condition of the host in one of the tensor": (
        f"{HEAD}state L = eye(rows)\nif not (t > 2 and trace(L) > 1): L = inv(L + eye(rows))\np -= lr*tanh(L @ g)",
        [(3, 4)],
    ),
    "a condition as a factor": (f"{HEAD}state L = eye(rows)\nL = L + 0.1*(L > 0) @ L\np -= lr*tanh(L @ g)", [(3, 4)]),
    "a sum of the tensors' numbers": (
        "optimizer S\nhyper lr = 0.1\nstate s: scalar = 1\nx = total(s)/total(isfinite(g))\ns = s*0.9\np -= lr*g*s*x",
        [(3, 4), (2,)],
    ),
    "numbers chosen by a matrix": (
        f"{HEAD}state W = ones(cols, cols)\nstate h: scalar = 1\n"
        "W = 0.7*W + 0.3*tanh(where(W > 1.6, W - W, h))\np -= lr*g @ W",
        [(3, 4)],
    ),
    "a matrix that is one number": (
        f"{HEAD}shared state w = 0.5\nstate L = 0.1*eye(cols)\ny = max(1, L)\nz = tanh(y - (y if w > 0.4 else y))\n"
        "L = 0.1*L @ z + L\nw = 0.2*gnorm(g[:2, :])\np -= lr*g @ L",
        [(3, 4)],
    ),
    "more questions than paths": (
        f"{HEAD}L = eye(rows)\n"
        + "".join(f"if t % {k} == 0: L = L + 0.1*inv(L + {k}*eye(rows))\n" for k in range(2, 9))
        + "p -= lr*L @ g",
        [(3, 4)],
    ),
    "a sum of numbers": ("p -= 0.1*g/total(0*p + 1)", [(3, 4), (4,), ()]),
    "sizes in a formula": ("p -= 0.1*g*numel/(1 + gnorm(g))", [(3, 4), (4,), (2, 3)]),
    "a matrix behind a sum": (
        "optimizer S\nhyper lr = 0.1\nstate m\nm = 0.9*m + g\nif ndim >= 2: u = newton_schulz(matrix(m))\nelse: u = m\n"
        "p -= lr*u/(1 + gnorm(u))",
        [(2, 3, 4), (3, 2, 2, 2), (4,)],
    ),
    "five dimensions": (
        "optimizer S\nhyper lr = 0.1\nrequire ndim == 5\nx = g[0, 0][:, 0]\nz = zeros(cols(x), rows(x))\n"
        "p -= lr*g*sum(x @ z + 1)",
        [(2, 3, 2, 2, 3)],
    ),
    "a matrix and its condition as a factor": (
        f"{HEAD}state L = eye(rows)\nL = 0.1*(L + (L > 0) @ L)\np -= lr*L @ g",
        [(3, 4)],
    ),
    "a group state where the group is not due": (
        "optimizer S\nstate m\ngroup state e = 1\nevery 2:\n    e = 0.9*e + 1\n    m = m + g/(1 + e)\np -= 0.1*m",
        [(3, 4), (4,)],
    ),
    "a group state on either side": (
        "optimizer S\nstate m\ngroup state e = 1\nif t % 2 == 0: e = e/2\nelse:\n    e = 0.9*e + 1\n"
        "    m = m + g/(1 + e)\np -= 0.1*m*e",
        [(3, 4), (4,)],
    ),
}


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corners(name: str) -> None:
    text, shapes = CORNERS[name]
    rule, _ = check_text(Source(text))
    assert rule is not None
    interpreter, generator = Interpreter(rule, {}), torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    params, arrays = [torch.nn.Parameter(p.clone()) for p in start], [p.numpy().copy() for p in start]
    optimizer = optlang.compile(text, backend="eager")(params)
    for step in range(5):
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        late = name.startswith("a group state") and step == 1  # the second tensor falls a step behind its group
        present = [g if i != 1 or not late else None for i, g in enumerate(gradients)]
        for p, g in zip(params, present, strict=True):
            p.grad = g
        optimizer.step()
        interpreter.step(arrays, [None if g is None else g.numpy() for g in present])
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), array, rtol=1e-11, atol=1e-12)


def test_a_size_that_a_param_group_gives_can_be_read_in_a_step() -> None:
    """The size of a state is made of what its start has read, a key of the group as well as a fact or a number."""
    rule = f"{HEAD}state Q = zeros(cols(p), SIZE)\nQ = 0.9*Q + rows(Q.T)\np -= lr*(g @ Q @ Q.T)\n"
    found = []
    for size, keys in (("2", {}), ("group.k", {"k": 2})):
        p = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        optimizer = optlang.compile(rule.replace("SIZE", size), backend="eager")([{"params": [p], **keys}])
        for _ in range(2):
            p.grad = torch.full_like(p, 0.5)
            optimizer.step()
        found.append(p.detach())
    assert not torch.equal(found[0], torch.ones_like(found[0]))
    assert torch.equal(*found)
