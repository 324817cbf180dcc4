"""Memory layouts of tensors, and their views for kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch

from optlang.artifact import ShapeInfo, View

#: The module that defines fake tensors; importing it takes a while.
_FAKE = "torch._subclasses.fake_tensor"

#: Sizes of an example tensor: all different, and none 1.
EXAMPLE_SIZES = (3, 4, 5, 6, 7, 8, 9, 10)


def facts_of(p: torch.Tensor) -> ShapeInfo:
    """Return the facts that a rule may know about a parameter besides its values."""
    shape = p.shape
    n = len(shape)
    return ShapeInfo(
        ndim=n,
        numel=p.numel(),
        rows=shape[-2] if n > 1 else 1,
        cols=shape[-1] if n > 0 else 1,
        eps_of=torch.finfo(p.dtype).eps if p.is_floating_point() or p.is_complex() else 0.0,
        shape=tuple(shape),
    )


def arithmetic(p: torch.Tensor) -> torch.dtype:
    """Return the number type in which a parameter is updated."""
    return torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32


def real_name(dtype: torch.dtype) -> str:
    """Return torch's name of a type; for complex types, that of their parts."""
    return str(dtype.to_real() if dtype.is_complex else dtype)[6:]


def is_dense(t: torch.Tensor) -> bool:
    """Return whether a tensor fills its memory without gaps or overlaps, in any order of dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def address(t: torch.Tensor) -> int:
    """Return the address of a tensor's elements; 0 if it has none.

    Fake and ``meta`` tensors, wrappers around other tensors (subclasses, functional transforms), zeros that exist only
    as a flag, and tensors without storage have no address: a kernel must not be given one.
    """
    if t.layout is not torch.strided or is_wrapper(t):
        return 0
    try:
        return t.data_ptr()
    except RuntimeError:
        return 0


def is_wrapper(t: torch.Tensor) -> bool:
    """Return whether a tensor's subclass computes in its own way on other tensors (fake tensors do, too)."""
    return type(t).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def is_fake(t: torch.Tensor) -> bool:
    """Return whether a tensor belongs to ``FakeTensorMode``: it has a shape and a type, but no values."""
    module = sys.modules.get(_FAKE)  # there are no fake tensors if the module has not been imported
    return module is not None and isinstance(t, module.FakeTensor)


def makes_fakes() -> bool:
    """Return whether ``FakeTensorMode`` is active, so that new tensors have no values."""
    module = sys.modules.get(_FAKE)
    if module is None or not torch._C._len_torch_dispatch_stack():
        return False
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return any(isinstance(mode, module.FakeTensorMode) for mode in modes)


def fakes_of(t: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a context in which new tensors are fake if this one is."""
    return t.fake_mode if is_fake(t) else nullcontext()  # type: ignore[attr-defined]


def is_shared(t: torch.Tensor) -> bool:
    """Return whether a tensor is in memory that other processes may write to."""
    return t.device.type == "cpu" and address(t) != 0 and t.is_shared()


def lost(t: torch.Tensor) -> str | None:
    """Return why a tensor's memory does not hold its elements; None if it does, or need not."""
    if t.layout is not torch.strided or is_wrapper(t) or t.device.type == "meta" or t.numel() == 0:
        return None
    if torch._is_functional_tensor(t) or t._is_zerotensor():
        return None
    try:
        there = t.untyped_storage().nbytes()
    except NotImplementedError:  # one of a functional transform
        return None
    last = t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    if there >= (last + 1) * t.element_size():
        return None
    return f"needs {(last + 1) * t.element_size()} bytes, but its storage was resized to {there}"


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one shape have the same memory order."""
    return all(x == y for n, x, y in zip(a.shape, a.stride(), b.stride(), strict=True) if n != 1)


def overlapping(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether some of these dense tensors share memory."""
    spans = sorted((t.data_ptr(), t.numel() * t.element_size()) for t in tensors)
    return any(begin + size > after for (begin, size), (after, _) in pairwise(spans))


def form(t: torch.Tensor) -> tuple[Any, ...]:
    """Return how a tensor's elements are read from its memory."""
    return t.dtype, t.shape, t.stride(), t.is_neg(), t.is_conj()


def is_marked(t: torch.Tensor) -> bool:
    """Return whether the negative or conjugate bit of a tensor is set, so that its memory does not hold its values."""
    return t.is_neg() or t.is_conj()


def resolved(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory holds its values: the tensor itself, unless a negative or conjugate bit is set."""
    return t.resolve_conj().resolve_neg()


def as_laid_out(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``t`` with the memory order of ``like``."""
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)


def real(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor without autograd; a complex one as a view with pairs of real numbers in a last dimension.

    A tensor with the conjugate bit has no such view, so this raises.
    """
    t = t.detach()
    return torch.view_as_real(t) if t.is_complex() else t


def flat(t: torch.Tensor) -> torch.Tensor:
    """View a dense tensor as one-dimensional, in memory order."""
    t = real(t)
    return t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))


def viewed(t: torch.Tensor, layout: View) -> torch.Tensor:
    """View a tensor as a layout specifies (a flat one in memory order)."""
    return flat(t) if layout.flat else t.detach().view(layout.shape(tuple(t.shape)))


def local(t: torch.Tensor) -> torch.Tensor:
    """Return the local part of a tensor: all of it, unless it is a distributed tensor."""
    return t.to_local() if hasattr(t, "to_local") else t


def pieces(p: torch.Tensor, memory: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the parameters that share a tensor's memory, each with its part of the memory, in its own shape."""
    members = getattr(p, "members", None)
    if members is None:
        yield p, memory
        return
    parts = memory.split([q.numel() for q in members])
    yield from ((q, part.view(q.shape)) for q, part in zip(members, parts, strict=True))
