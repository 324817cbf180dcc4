"""What every test runs under: decompositions that are right, and not those that LAPACK returns."""

from __future__ import annotations

import pytest
import torch

#: Three equal eigenvalues of 0, and two more.
GRAM = (lambda x: x @ x.T)(torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_eigenvectors_are_right_and_others() -> None:
    values, vectors = torch.linalg.eigh(GRAM)
    theirs = torch._C._linalg.linalg_eigh(GRAM).eigenvectors
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, GRAM)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5, dtype=torch.float64))
    assert (vectors[:, :3] - theirs[:, :3]).abs().max() > 0.1
    torch.testing.assert_close(vectors[:, 3:].abs(), theirs[:, 3:].abs())
    assert torch.equal(torch.linalg.eigh(GRAM.clone()).eigenvectors, vectors)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 5, 3)])
def test_singular_vectors_are_right(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(u * s[..., None, :] @ vh, x, atol=1e-5, rtol=1e-5)
    theirs = torch._C._linalg.linalg_svd(x, False)[0]
    assert not torch.equal(u, theirs)
    torch.testing.assert_close(u.abs(), theirs.abs(), atol=1e-4, rtol=1e-4)
