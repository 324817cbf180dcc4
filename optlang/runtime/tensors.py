"""How tensors lie in memory, and how they are viewed for a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from optlang.compiled import Facts, Layout

#: Sizes of an example tensor, all different and none 1.
EXAMPLE_SIZES = (3, 4, 5, 6, 7, 8, 9, 10)


def facts_of(p: torch.Tensor) -> Facts:
    """Return what a rule may know of a parameter besides its values."""
    shape = p.shape
    n = len(shape)
    return Facts(
        ndim=n,
        numel=p.numel(),
        rows=shape[-2] if n > 1 else 1,
        cols=shape[-1] if n > 0 else 1,
        eps_of=torch.finfo(p.dtype).eps if p.is_floating_point() or p.is_complex() else 0.0,
        shape=tuple(shape),
    )


def is_dense(t: torch.Tensor) -> bool:
    """Whether a tensor fills its memory without gaps or overlaps, in whatever order of dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order in memory."""
    return all(x == y for n, x, y in zip(a.shape, a.stride(), b.stride(), strict=True) if n != 1)


def overlapping(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some of these dense tensors share memory."""
    spans = sorted((t.data_ptr(), t.numel() * t.element_size()) for t in tensors)
    return any(begin + size > after for (begin, size), (after, _) in pairwise(spans))


def as_laid_out(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``t`` whose elements lie in memory as those of ``like`` do."""
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)


def real(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor without autograd; a complex one as pairs of reals in a last dimension."""
    t = t.detach()
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def flat(t: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor as one dimension, in the order of its memory; writes go through."""
    t = real(t)
    return t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))


def viewed(t: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return a tensor as a layout says (for a flat one in the order of its memory); writes go through."""
    return flat(t) if layout.flat else t.detach().view(layout.shape(tuple(t.shape)))


def local(t: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process has: all of it, unless it is a distributed tensor."""
    return t.to_local() if hasattr(t, "to_local") else t


def pieces(p: torch.Tensor, memory: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the parameters that a tensor's memory is about, each with its part of it, in its own shape."""
    members = getattr(p, "members", None)
    if members is None:
        yield p, memory
        return
    parts = memory.split([q.numel() for q in members])
    yield from ((q, part.view(q.shape)) for q, part in zip(members, parts, strict=True))
