"""C++ in the place of helpers that go through vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optlang.backends.loading import vectors
from optlang.backends.loading.modules import load_module

SOURCE = """
import torch


def stack_dots(a, b):
    return torch.dot(a[0], b[0]).unsqueeze(0)


def multiply_add_dot(x, c, y, out, z):
    found = torch.addcmul(x, c, y, out=out) if isinstance(c, torch.Tensor) else torch.add(x, y, alpha=c, out=out)
    return found, None if z is None else stack_dots(found, z)
"""


def helpers(device: str = "cpu") -> tuple[Any, Any]:
    """Return the helper as it is, and as it is where there is C++."""
    usual, names = load_module(SOURCE, "vectors"), load_module(SOURCE, "vectors")
    vectors.quicken(names, device)
    return usual[vectors.NAME], names[vectors.NAME]


def some(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(1, count, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("count", [vectors.LEAST, vectors.LEAST + 37, 200_001])
def test_does_what_torch_does(count: int, dtype: torch.dtype, tolerance: float) -> None:
    usual, quick = helpers()
    assert quick.usual.__code__.co_name == "multiply_add_dot"
    x, y, z = some(count, dtype)
    for c in (torch.tensor([0.3], dtype=dtype), -0.7):
        for out in (None, x):
            mine, yours = x.clone(), x.clone()
            found, product = quick(mine, c, y, out if out is None else mine, z)
            wanted, sum_of_products = usual(yours, c, y, out if out is None else yours, z)
            assert (found is mine) == (out is not None) and (out is not None or torch.equal(mine, x))
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
            assert product.shape == sum_of_products.shape and product.dtype == dtype
            size = float((wanted * z).abs().sum())
            assert abs(float(product - sum_of_products)) <= tolerance * size


@pytest.mark.compiler
def test_sums_do_not_depend_on_the_threads() -> None:
    _, quick = helpers()
    x, y, z = some(500_000, torch.float32)
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.append(float(quick(x, 0.1, y, None, z)[1]))
    finally:
        torch.set_num_threads(before)
    assert len(set(sums)) == 1


@pytest.mark.compiler
def test_what_there_is_no_function_for_goes_the_usual_way() -> None:
    usual, quick = helpers()
    x, y, z = some(5000, torch.float32)
    cases = [
        (x.bfloat16(), y.bfloat16(), z.bfloat16()),
        (x[:, :10], y[:, :10], z[:, :10]),
        (x[:, :1], y, z),
        (x.expand(2, -1)[:1].t().contiguous().t()[:, ::1], y[:, ::1], z),
        (x.repeat(1, 2)[:, ::2], y, z),
    ]
    for x, y, z in cases:
        for got, wanted in zip(quick(x, 0.5, y, None, z), usual(x, 0.5, y, None, z), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    assert quick(x, 0.5, y, None, None)[1] is None
    assert not hasattr(helpers("cuda")[1], "usual")


@pytest.mark.compiler
def test_tensors_elsewhere_take_torch() -> None:
    _, quick = helpers()
    x, y, z = (t.to("meta") for t in some(vectors.LEAST, torch.float32))
    found, product = quick(x, 0.5, y, None, z)
    assert found.is_meta and found.shape == x.shape and product.is_meta
