"""Functions of the language beside the same of torch: values of every kind, in float64 and float32."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from interpreter import Interpreter
from scripted import module_of

import optlang
from optlang.checker.check import check_text
from optlang.source import Source

Function = Callable[[torch.Tensor], torch.Tensor]

#: Formulas over g, what torch makes of g, and the shapes that they are tried on.
ANY = ((3, 4), (5,), (2, 3, 2), (1, 1))
MATRIX = ((3, 4), (5, 2), (3, 3))
CASES: tuple[tuple[str, Function, tuple[tuple[int, ...], ...]], ...] = (
    ("pi*g + sin(π/6)", lambda g: math.pi * g + 0.5, ANY),
    ("asinh(g)", torch.asinh, ANY),
    ("erfc(3*g)", lambda g: torch.erfc(3 * g), ANY),
    ("softplus(30*g)", lambda g: torch.nn.functional.softplus(30 * g, threshold=1000), ANY),
    ("softmax(5*g)", lambda g: torch.softmax(5 * g.flatten(), 0).view_as(g), ANY),
    ("softmax(g, dim=-1)", lambda g: torch.softmax(g, -1), MATRIX),
    ("softmax(g, 0)", lambda g: torch.softmax(g, 0), MATRIX),
    ("std(g)", lambda g: torch.std(g, correction=0), ANY),
    ("std(g, correction = 1)", lambda g: torch.std(g), ANY[:3]),
    ("var(g, 1)", lambda g: torch.var(g), ANY[:3]),
    ("std(g, correction = 1, dim=-1)", lambda g: torch.std(g, -1, keepdim=True), MATRIX),
    ("var(g, dim=0, correction = 1)", lambda g: torch.var(g, 0, keepdim=True), MATRIX),
    ("norm(g, 1)", lambda g: torch.linalg.vector_norm(g, 1), ANY),
    ("norm(g, ord = inf)", lambda g: torch.linalg.vector_norm(g, math.inf), ANY),
    ("norm(g, ord = -inf)", lambda g: torch.linalg.vector_norm(g, -math.inf), ANY),
    ("norm(max(g, 0), ord = 0)", lambda g: torch.linalg.vector_norm(g.clamp(min=0), 0), ANY),
    ("norm(g, ord = 3)", lambda g: torch.linalg.vector_norm(g, 3), ANY),
    ("norm(g, 2)", lambda g: torch.linalg.vector_norm(g), ANY),
    ("norm(g, 1, dim=-1)", lambda g: torch.linalg.vector_norm(g, 1, -1, keepdim=True), MATRIX),
    ("norm(g, dim=0, ord = inf)", lambda g: torch.linalg.vector_norm(g, math.inf, 0, keepdim=True), MATRIX),
    ("logsumexp(9*g)", lambda g: torch.logsumexp(9 * g.flatten(), 0), ANY),
    ("logsumexp(g, dim=-1)", lambda g: torch.logsumexp(g, -1, keepdim=True), MATRIX),
    ("logsumexp(g, dim=(0, 1))", lambda g: torch.logsumexp(g, (0, 1), keepdim=True), MATRIX),
    ("logsumexp(g, dim=1:)", lambda g: behind(g, lambda x: torch.logsumexp(x, 1)), ANY),
    ("median(g)", lambda g: torch.median(g), ANY),
    ("median(g, dim=-1)", lambda g: torch.median(g, -1, keepdim=True).values, MATRIX),
    ("median(g, 0)", lambda g: torch.median(g, 0, keepdim=True).values, MATRIX),
    ("norm(g, dim=1:)", lambda g: behind(g, lambda x: torch.linalg.vector_norm(x, dim=1)), ANY),
    ("sum(g > 0, dim=1:)", lambda g: behind(g, lambda x: (x > 0).double().sum(1)), ANY),
    ("max(g, dim=1:) + mean(p + 1, dim=:0)", lambda g: behind(g, lambda x: x.amax(1)) + 1, ANY),
    ("g - mean(g, dim=1:)", lambda g: g - behind(g, lambda x: x.mean(1)), ANY),
    ("mean(g, dim=:-1)", lambda g: g.flatten(0, -2).mean(0).expand_as(g) if g.dim() > 1 else g, ANY),
    ("std(g, correction = 1, dim=1:)", lambda g: behind(g, lambda x: x.std(1)), ((3, 4), (2, 3, 2), (2, 1, 2, 2))),
    ("norm(g, ord = 1, dim=1:) + sum(p^0, dim=2:)", lambda g: behind(g, lambda x: x.abs().sum(1)) + 2, ((2, 3, 2),)),
    ("project_unit_norm(g, dim=1:)", lambda g: g / behind(g, lambda x: torch.linalg.vector_norm(x, dim=1)), ANY),
    ("triu(g)", lambda g: torch.triu(g), MATRIX),
    ("tril(g, -1)", lambda g: torch.tril(g, -1), MATRIX),
    ("triu(g, diagonal = 1)", lambda g: torch.triu(g, 1), MATRIX),
    ("g*size(g, 0) + size(g.T, 0) + size(matrix(p), -1)", lambda g: g * g.shape[0] + 2 * g.shape[1], MATRIX),
    ("g*size(g, 1)", lambda g: g * g.shape[1], ((2, 3, 2), (4, 5))),
)


def behind(g: torch.Tensor, function: Function) -> torch.Tensor:
    """Return what a function makes of each row of g as a matrix, whose first dimension is that of g."""
    return function(g.reshape(g.shape[0], -1)).reshape(-1, *[1] * (g.dim() - 1))


def rule_of(formula: str, ndim: int) -> str:
    """Return a rule whose first step makes a parameter of zeros the value of a formula."""
    return f"optimizer A\nrequire ndim == {ndim}\np += {formula}\n"


def stepped(formula: str, g: torch.Tensor, backend: str = "eager") -> torch.Tensor:
    """Return the value of a formula in the first step of an optimizer."""
    p = torch.nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    optlang.compile(rule_of(formula, g.dim()), backend=backend)([p]).step()
    return p.detach()


@pytest.mark.parametrize(("formula", "torch_has", "shapes"), CASES, ids=[case[0] for case in CASES])
def test_function(formula: str, torch_has: Function, shapes: tuple[tuple[int, ...], ...]) -> None:
    for shape in shapes:
        rule, _ = check_text(Source(rule_of(formula, len(shape))))
        assert rule is not None
        g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))
        expected = torch_has(g).expand(shape).to(torch.float64)
        torch.testing.assert_close(stepped(formula, g), expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(stepped(formula, g.float()), expected.float(), rtol=1e-5, atol=1e-5)
        array = np.zeros(shape)
        Interpreter(rule).step([array], [g.numpy()])
        np.testing.assert_allclose(array, expected.numpy(), rtol=1e-13, atol=1e-13)


#: Functions beside torch's where they are hard to compute: tiny and large values, infinities, NaN.
FAR = (-math.inf, -1e30, -700.0, -27.0, -9.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.5, 2.0, 5.0, 9.0, 20.0, 26.0, 80.0, 1e30)
FAR += (math.inf, math.nan)
ENDS: tuple[tuple[str, Function, Sequence[float]], ...] = (
    ("expm1(g)", torch.expm1, (*FAR, 88.0)),
    *(
        ("logsumexp(g)", lambda g: torch.logsumexp(g, 0), values)
        for values in (
            (-math.inf,),
            (-1e4, -1e4),
            (math.inf, -1.0, 5.0),
            (math.nan, -math.inf, math.inf, 0.0),
            FAR[:-2],
        )
    ),
    ("log1p(g)", torch.log1p, FAR),
    ("erf(g)", torch.erf, FAR),
    ("atan(g)", torch.atan, FAR),
    ("asinh(g)", torch.asinh, FAR),
    ("erfc(g)", torch.special.erfc, FAR),
)


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpp", marks=pytest.mark.compiler)])
@pytest.mark.parametrize(("formula", "torch_has", "values"), ENDS, ids=[f"{case[0]}-{len(case[2])}" for case in ENDS])
def test_far_values(formula: str, torch_has: Function, values: Sequence[float], backend: str) -> None:
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        g = torch.tensor(values, dtype=dtype)
        found = stepped(formula, g, backend)
        torch.testing.assert_close(found, torch_has(g).expand_as(g), rtol=limit, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpp", marks=pytest.mark.compiler)])
@pytest.mark.parametrize("dim", [0, 1])
def test_logsumexp_along_a_dimension(dim: int, backend: str) -> None:
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        g = 300 * torch.randn(6, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
        g[1], g[2, 3], g[3, :20], g[4, 5] = -math.inf, math.inf, -math.inf, math.nan
        g[:, 7] = -math.inf
        expected = torch.logsumexp(g, dim, keepdim=True).expand_as(g)
        found = stepped(f"logsumexp(g, dim={dim})", g, backend)
        torch.testing.assert_close(found, expected, rtol=limit, atol=0, equal_nan=True)


def test_values_at_the_ends() -> None:
    big = torch.tensor([-math.inf, -1e30, -800.0, 0.0, 800.0, 1e30, math.inf, math.nan], dtype=torch.float64)
    softplus = torch.nn.functional.softplus(big, threshold=1e300)
    torch.testing.assert_close(stepped("softplus(g)", big), torch.where(big >= 800, big, softplus), equal_nan=True)
    far = torch.tensor([-math.inf, 1e30, 1e30], dtype=torch.float32)
    assert stepped("softmax(g)", far).tolist() == [0, 0.5, 0.5]
    assert stepped("std(g, 1)", torch.tensor([2.0])).isnan().all()  # as torch has it
    assert stepped("median(g)", torch.tensor([3.0, math.nan, 1.0])).isnan().all()
    assert (stepped("median(g)", torch.tensor([math.inf, math.inf, -math.inf])) == math.inf).all()


def test_an_order_may_be_a_hyperparameter() -> None:
    rule = optlang.compile("optimizer A\nhyper k = 1 > 0\np += norm(g, k) - p*t/t\n", backend="eager")
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = rule([p])
    for order in (1, 2, 3, 2.5):
        optimizer.param_groups[0]["k"] = order
        p.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.linalg.vector_norm(p.grad, order).expand(3))


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("norm(g, ord = t)", "the `ord` of `norm` must be known before the first step"),
        ("norm(g, ord = mean(g))", "the `ord` of `norm` must be known before the first step"),
        ('norm(g, "fro")', "a string is used where a number is expected"),
        ("std(g, unbiased = true)", "`std` has no parameter `unbiased`"),
        ("triu(g, rows)", "the diagonal of `triu` must be an integer literal"),
        ("size(g, 7)", "has no dimension 7"),
        ("size(g)", "`size` takes a value and a dimension"),
        ("size(g, t)", "the dimension of `size` must be an integer literal"),
        ("softmax(2)", "`softmax` takes a tensor: `2` is one number"),
    ],
)
def test_mistakes(formula: str, message: str) -> None:
    findings = check_text(Source(f"optimizer A\np -= 0.1*{formula}*g\n"))[1]
    assert any(message in finding.message for finding in findings), findings


def test_names_of_new_functions_are_free() -> None:
    rule = "optimizer A\nhyper size = 2, softmax = 3\np -= 0.1*size*softmax*g*size(g, 0)\n"
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    optlang.compile(rule, backend="eager")([p]).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), -1.2))


def test_one_random_number_and_the_number_of_parameters() -> None:
    rule = optlang.compile("optimizer A\np += rand(1)[0] + total(0*p + 1)\n", backend="eager")
    ps = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    for p in ps:
        p.grad = torch.ones_like(p)
    rule(ps).step()
    drawn = [p.detach() - 17 for p in ps]
    assert all((d == d.flatten()[0]).all() and 0 < d.flatten()[0] < 1 for d in drawn)
    assert drawn[0][0, 0] != drawn[1][0]


ALL = """optimizer Functions
hyper lr = 0.1, k = 3 > 0
require ndim == 2
state m
m = 0.9*m + g*pi + softplus(g) - softmax(g, dim=-1) + std(g, 1)
m -= norm(g, k)*norm(m, ord = inf, dim=0)*(norm(g, ord = 1) + var(m, dim=0, correction = 1))
p -= lr*(tanh(m) + median(m, dim=1) + tril(m, 1)*size(m, 0)*norm(m, 0.5)/numel^4)
"""


def trained(make: Callable[[torch.nn.Parameter], Callable[[], object]], dtype: torch.dtype) -> torch.Tensor:
    """Return a parameter after three steps."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))
    step = make(p)
    for i in range(3):
        p.grad = torch.cos(3.0 * torch.arange(12, dtype=dtype).reshape(3, 4) + i)
        step()
    return p.detach()


def test_in_every_target() -> None:
    expected = trained(lambda p: optlang.compile(ALL, backend="eager")([p]).step, torch.float64)
    rule, _ = check_text(Source(ALL))
    assert rule is not None
    array = np.linspace(-1, 1, 12).reshape(3, 4)
    interpreter = Interpreter(rule)
    for i in range(3):
        interpreter.step([array], [np.cos(3.0 * np.arange(12).reshape(3, 4) + i)])
    np.testing.assert_allclose(array, expected.numpy(), rtol=1e-12)

    made = {target: types.ModuleType(target) for target in ("module", "plain")}
    for target, module in made.items():
        exec(str(optlang.export(ALL, target)), module.__dict__)
    of_class = trained(lambda p: made["module"].Functions([p]).step, torch.float64)

    def by_function(p: torch.nn.Parameter) -> Callable[[], object]:
        state: dict[str, torch.Tensor] = {}
        return lambda: made["plain"].functions([p], [p.grad], [state])

    def by_script(p: torch.nn.Parameter) -> Callable[[], object]:
        script = module_of(ALL)
        return lambda: script.step([p], [p.grad])

    for found in (of_class, trained(by_function, torch.float64), trained(by_script, torch.float64)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compiler
def test_compiled() -> None:
    expected = trained(lambda p: optlang.compile(ALL, backend="eager")([p]).step, torch.float32)
    found = trained(lambda p: optlang.compile(ALL)([p]).step, torch.float32)
    torch.testing.assert_close(found, expected)
