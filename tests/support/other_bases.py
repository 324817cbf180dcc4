"""Decompositions that choose another of the right answers than LAPACK does.

Eigenvectors and singular vectors have no sign of their own, and those of equal values can be any basis of the space
that they span. Which one LAPACK returns differs between processors, and between a stack of matrices and a single one.
Under :func:`other_bases` it is another one in every test, drawn from the matrix itself, so that equal matrices still
have equal bases. A comparison that holds only for LAPACK's choice then fails here and not first on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import torch

Tensor = torch.Tensor


@contextmanager
def other_bases() -> Iterator[None]:
    """Let ``torch.linalg.eigh`` and ``svd`` return other bases."""
    with patch.multiple(torch.linalg, eigh=_eigh(torch.linalg.eigh), svd=_svd(torch.linalg.svd)):
        yield


@contextmanager
def one_basis() -> Iterator[None]:
    """Let ``svd`` of torch and of NumPy give singular vectors the same signs: the largest part of each is positive.

    For rules that carry moments from one basis into the next, whose results depend on the signs.
    """
    of_torch, of_numpy = torch.linalg.svd, np.linalg.svd

    def svd(matrix: Tensor, *arguments: Any, **keywords: Any) -> Any:
        left, values, right = of_torch(matrix, *arguments, **keywords)
        if left.numel() == 0:
            return torch.return_types.linalg_svd((left, values, right))
        signs = left.gather(-2, left.abs().argmax(dim=-2, keepdim=True)).sign()
        return torch.return_types.linalg_svd((left * signs, values, right * signs.mT))

    def svd_of_array(matrix: Any, *arguments: Any, **keywords: Any) -> Any:
        left, values, right = of_numpy(matrix, *arguments, **keywords)
        if left.size == 0:
            return left, values, right
        signs = np.sign(np.take_along_axis(left, np.abs(left).argmax(axis=-2, keepdims=True), axis=-2))
        return left * signs, values, right * np.swapaxes(signs, -1, -2)

    with patch.object(torch.linalg, "svd", svd), patch.object(np.linalg, "svd", svd_of_array):
        yield


def _eigh(original: Callable[..., Any]) -> Callable[..., Any]:
    def eigh(matrix: Tensor, *arguments: Any, **keywords: Any) -> Any:
        values, vectors = original(matrix, *arguments, **keywords)
        if _is_plain(vectors):
            vectors = vectors @ _turns(matrix, values)
        return torch.return_types.linalg_eigh((values, vectors))

    return eigh


def _svd(original: Callable[..., Any]) -> Callable[..., Any]:
    def svd(matrix: Tensor, full_matrices: bool = True, **keywords: Any) -> Any:
        left, values, right = original(matrix, full_matrices, **keywords)
        if _is_plain(left) and not full_matrices:
            turns = _turns(matrix, values)
            left, right = left @ turns, turns.mT @ right
        return torch.return_types.linalg_svd((left, values, right))

    return svd


def _is_plain(vectors: Tensor) -> bool:
    """Return whether the vectors are numbers that can be turned, and not what a compiler traces."""
    return type(vectors) is Tensor and not vectors.is_complex() and not vectors.requires_grad and vectors.numel() > 0


def _turns(matrices: Tensor, values: Tensor) -> Tensor:
    """Return a rotation for each matrix of a stack, that mixes vectors of equal values only."""
    size = values.shape[-1]
    result = torch.zeros(values.numel() // size, size, size, dtype=values.dtype)
    flat = matrices.detach().reshape(-1, *matrices.shape[-2:])
    for matrix, of_one, turn in zip(flat, values.detach().reshape(-1, size), result, strict=True):
        generator = torch.Generator().manual_seed(crc32(matrix.contiguous().numpy().tobytes()))
        for begin, end in _equal(of_one):
            drawn = torch.randn(end - begin, end - begin, generator=generator, dtype=values.dtype)
            turn[begin:end, begin:end] = (
                torch.linalg.matrix_exp(drawn - drawn.T) * torch.randn((), generator=generator).sign()
            )
    return result.reshape(*values.shape, size)


def _equal(values: Tensor) -> Iterator[tuple[int, int]]:
    """Return the ranges of sorted values that rounding cannot tell apart."""
    near = 4 * len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    if not torch.isfinite(near):
        return
    ends = [*((values.diff().abs() > near).nonzero().flatten() + 1).tolist(), len(values)]
    yield from zip([0, *ends[:-1]], ends, strict=True)
