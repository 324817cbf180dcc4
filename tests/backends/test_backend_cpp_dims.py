"""C++ kernels that reduce along dimensions: every way of cutting tensors and of laying vectors along them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizing import difference, optimizer_class, parameter, same_with_any_threads, twins

from optlang.backends.loading import library, toolchain
from optlang.backends.loading.signature import Signature
from optlang.compiler import example_variant

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler"),
]

#: Rows and columns, filters, short and long dimensions before and after, and what is cut into chunks.
SHAPES = [
    *((5,), (4, 6), (64, 33), (1, 9), (9, 1), (300, 700), (7, 20000)),
    *((3, 4, 5), (2, 300, 150), (1, 1, 1), (900, 100, 1), (70, 60, 4)),
    *((3, 2, 1, 4), (7, 5, 3, 3), (130, 40, 1, 1), (90, 90, 3, 3), (1, 40, 50, 40), (5, 40, 3, 2, 3)),
]

#: Everything that can be computed between a reduction and the elements again.
RULES = {
    # A mean of means, a number, a number of what is reduced, and both kinds of elements in between.
    "factored": """
        optimizer Factored
        hyper lr = 0.1
        state R = 0*mean(g, dim=-1)
        state C = 0*mean(g, dim=-2)
        state m

        R = 0.5*R + 0.5*mean(g^2, dim=-1)
        C = 0.5*C + 0.5*mean(g^2 + p, dim=-2)
        u = g/sqrt(abs(R*C)/(mean(R, dim=-2) + 0.1) + 0.1)
        m = 0.9*m + u/max(1, rms(u))
        p -= lr*m*(1 + max(abs(C)))
    """,
    # Reductions one after the other along the same dimension, as in projections.
    "centred": """
        optimizer Centred
        hyper lr = 0.1
        state count: scalar = 0
        state v = 1 + 0*mean(g, dim=-1)

        x = p - lr*g
        x = x - mean(x, dim=-1)
        n = sqrt(sum(x^2, dim=-1))
        v = 0.5*v + n
        big = n > 0.5
        count += 1 if max(n) > 1 else 0
        p = x/(n + 0.1) if big else x*count + v
    """,
    # Reductions along each of four dimensions.
    "four": """
        optimizer Four
        hyper lr = 0.1
        state a = 1 + 0*max(g, dim=(1, 2, 3))
        state b = 1 + 0*max(g, dim=(0, 2, 3))
        state c = 1 + 0*sum(g, dim=(0, 1, 3))
        state d = 1 + 0*max(g, dim=(0, 1, 2))

        v = min(a, b, c, d) + g^2
        a = max(v, dim=(1, 2, 3))
        b = max(v, dim=(0, 2, 3))
        c = 0.5*c + mean(v, dim=(0, 1, 3))
        d = max(v, dim=(0, 1, 2))
        p -= lr*g/sqrt(v + max(v, dim=(1, 2)))
    """,
    # The first dimension; the largest and the smallest.
    "first": """
        optimizer First
        hyper lr = 0.1
        state a = 0*max(g, dim=0)
        state b = 0*max(g, dim=0)

        old = a
        a = max(abs(g), dim=0) + b
        b = min(p, dim=0) - 0.5*old
        p -= lr*g/(1 + a^2 + b^2)
    """,
}


def text(name: str) -> str:
    """Return a rule without the indentation that it has here."""
    return "\n".join(line.strip() for line in RULES[name].strip().splitlines())


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters with gradients."""
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, dtype=torch.float64).to(dtype)
    return made


def stepped(rule: str, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64, steps: int = 3) -> Any:
    """Return parameters and optimizers after some steps, of C++ kernels and of torch's operations."""
    ours, theirs = twins(*parameters(shapes, dtype))
    optimizer, reference = optimizer_class(rule, backend="cpp")(ours), optimizer_class(rule)(theirs)
    for _ in range(steps):
        optimizer.step()
        reference.step()
    assert all(kernel.at for kernel in type(optimizer)._parts.parts[0].kernels.loaded.values())  # type: ignore[attr-defined]
    return ours, theirs, optimizer, reference


def fitting(rule: str) -> list[tuple[int, ...]]:
    """Return the shapes that a rule is about."""
    least = 4 if "3)" in rule else 2 if "dim=-2" in rule else 1
    return [shape for shape in SHAPES if len(shape) >= least]


@pytest.mark.parametrize("name", RULES)
def test_every_cut_and_every_lane(name: str) -> None:
    ours, theirs, optimizer, reference = stepped(text(name), fitting(text(name)))
    assert difference(ours, theirs) < 1e-12
    for p, q in zip(ours, theirs, strict=True):
        for key, value in reference.state[q].items():
            assert torch.allclose(optimizer.state[p][key], value, rtol=1e-12, atol=1e-12), (key, p.shape)


@pytest.mark.parametrize("dim", ["0", "1", "-1", "-2", "(0, 1)", "(-2, -1)", "1:", "(1, 2)"])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_dimensions(dim: str, reduction: str) -> None:
    shapes = [shape for shape in SHAPES if len(shape) > 2]
    rule = f"p -= 0.1*g/(1 + abs({reduction}(g + p, dim={dim})))"
    ours, theirs, *_ = stepped(rule, shapes, steps=2)
    assert difference(ours, theirs) < 1e-13


def test_a_kernel_is_for_one_number_of_dimensions_where_it_keeps_them_all() -> None:
    rule = "p -= 0.1*g*(1 + mean(g^2, dim=-2))*(1 + mean(g^2, dim=1))"  # the same Python for 2 and 3 dimensions
    ours, theirs, *_ = stepped(rule, [(3, 4), (2, 3, 4)], steps=1)
    assert difference(ours, theirs) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    limit = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    ours, theirs, optimizer, reference = stepped(text("factored"), fitting(text("factored")), dtype)
    assert difference(ours, theirs) < limit
    for p, q in zip(ours, theirs, strict=True):
        assert {k: v.dtype for k, v in optimizer.state[p].items()} == {
            k: v.dtype for k, v in reference.state[q].items()
        }


@pytest.mark.parametrize("name", RULES)
def test_sums_do_not_depend_on_the_threads(name: str) -> None:
    assert same_with_any_threads(lambda: stepped(text(name), fitting(text(name)), torch.float32)[0])


def test_what_is_not_a_number_stays_so() -> None:
    (p,) = parameters([(40, 50)], torch.float64)
    assert p.grad is not None
    p.grad[3, 7], p.grad[5, 9] = float("nan"), float("inf")
    for reduction in ("sum", "mean", "max", "min"):
        for dim in (0, 1):
            cls = optimizer_class(f"p -= 0.1*{reduction}(g, dim={dim})", backend="cpp")
            (ours,), (theirs,) = twins(p)
            cls([ours]).step()
            optimizer_class(f"p -= 0.1*{reduction}(g, dim={dim})")([theirs]).step()
            assert torch.equal(ours.isnan(), theirs.isnan()) and int(ours.isnan().sum()) in (40, 50)
            assert torch.allclose(ours, theirs, rtol=1e-12, equal_nan=True)


def test_empty_tensors_are_left_alone_by_the_kernel_itself() -> None:
    compiled = optimizer_class(text("factored"), backend="cpp")._compiled  # type: ignore[attr-defined]
    kernel = example_variant(compiled, ndim=2).kernel
    assert kernel is not None
    shapes = {"p": (1, 3, 4), "g": (1, 3, 4), "R": (1, 3, 1), "C": (1, 1, 4), "m": (1, 3, 4)}
    empty = {name: tuple(0 if n == 3 else n for n in shape) for name, shape in shapes.items()}
    tensors = [torch.zeros(sizes[name], dtype=torch.float64) for sizes in (empty, shapes) for name in kernel.tensors]
    dims = tuple(tuple(range(3)) for _ in kernel.tensors)
    signature = Signature(("float64",) * len(kernel.tensors), dims, "cpu", max(1, len(kernel.coefficients)))
    loaded = library.load(kernel, signature) or library.build(kernel, signature)
    loaded([*tensors, torch.ones(signature.coefficients, dtype=torch.float64)])
    assert all(torch.isfinite(t).all() for t in tensors)


def test_values_kept_by_one_loop_over_rows_are_read_by_another() -> None:
    rule = (
        "hyper lr = 0.1\nstate r = 0*mean(g, dim=-1), k = 0*mean(g, dim=-1), s = g\n"
        "m = mean(g, dim=-1)\nif first: r = m\ns = s + r - g\nk = 0.5*k + mean(s, dim=-1)\np -= lr*s*k*r\n"
    )
    for shape in ((40, 3), (4, 50)):
        (ours,), (theirs,) = twins(parameter(*shape))
        for p, backend in ((ours, "cpp"), (theirs, "eager")):
            optimizer = optimizer_class(rule, backend=backend)([p])
            for _ in range(2):
                optimizer.step()
        assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-15)
