"""Functions that TorchScript needs in other words than those of the other files, and some that it needs besides."""

import math
from typing import List

import torch


def product(a, b):
    if a.size(0) == 1 and b.size(0) == 1:
        return torch.mm(a[0], b[0]).unsqueeze(0)
    return torch.matmul(a, b)


def product_in_16_bits(a, b):
    return torch.matmul(a, b)


def multiply_add_in_16_bits(x, a, b, beta: float = 1.0, alpha: float = 1.0):
    return torch.baddbmm(x, a, b, beta=beta, alpha=alpha)


def stack_sum(x, dim: List[int], keepdim: bool = False):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.sum([dim[-1]], keepdim=True, dtype=wide)
    return rows.sum(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)


def stack_mean(x, dim: List[int], keepdim: bool = False):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.mean([dim[-1]], keepdim=True, dtype=wide)
    return rows.mean(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)


def stack_squares(x, dim: List[int], keepdim: bool = False):
    if x.dtype == torch.bfloat16:
        norms = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim, dtype=torch.float32)
        return norms.square().to(x.dtype)
    rows = torch.linalg.vector_norm(x, dim=[dim[-1]], keepdim=True)
    return rows.double().square().sum(dim, keepdim=keepdim).to(x.dtype)


def ordered(x, order, dim: int):
    shape = [order.size(0)] + [1] * (x.dim() - 1)
    shape[dim] = order.size(1)
    return torch.take_along_dim(x, order.reshape(shape).long(), dim)


def eigh(x):
    if not bool(torch.isfinite(x).all()):
        return torch.full_like(x[..., 0], math.nan), torch.full_like(x, math.nan)
    values, vectors = torch.linalg.eigh(x)
    return values, vectors


def svd(x):
    if not bool(torch.isfinite(x).all()):
        rank = min(x.size(-2), x.size(-1))
        left = torch.full_like(x[..., :, :1], math.nan).expand(x.size(0), x.size(1), rank)
        right = torch.full_like(x[..., :1, :], math.nan).expand(x.size(0), rank, x.size(2))
        return left, left[..., 0, :], right
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    return u, s, v


def in_one_type(x, y):
    narrow = x.dtype == torch.bfloat16 or x.dtype == torch.float16
    return x.to(y.dtype) if narrow or y.dtype == torch.float64 else x


def regular_inv_ex(x):
    result, info = torch.linalg.inv_ex(x)
    return torch.where(info[..., None, None] == 0, result, math.nan)


def regular_cholesky_ex(x):
    result, info = torch.linalg.cholesky_ex(x)
    return torch.where(info[..., None, None] == 0, result, math.nan)


def cumsum(x, dim: int):
    return torch.cumsum(x, dim, dtype=torch.float64).to(x.dtype)


def host_sign(x: float) -> float:
    return x if math.isnan(x) else (1.0 if x > 0.0 else (-1.0 if x < 0.0 else 0.0))


def host_max(x: float, y: float) -> float:
    return x if math.isnan(x) or x > y else y


def host_min(x: float, y: float) -> float:
    return x if math.isnan(x) or x < y else y


def host_nan_to_num(x: float) -> float:
    big = 1.7976931348623157e308
    return 0.0 if math.isnan(x) else max(-big, min(big, x))


def _power(a: float, b: float) -> float:
    """a to the power of b; one over zero is infinite, where TorchScript has an error."""
    return math.inf if a == 0.0 and b < 0.0 else math.pow(a, b)
