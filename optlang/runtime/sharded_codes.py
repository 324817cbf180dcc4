"""Quantized states of distributed parameters: the local elements, the placement of scales, and communication.

Blocks lie within rows, so a process that has whole rows has whole blocks, and any other number of processes finds the
same codes and scales in a checkpoint. Rows that are split stay quantized if they are split between blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from optlang.storage import Format, choice
from optlang.storage.blocks import Blocks
from optlang.storage.coded import WHOLE, ElementIndices

#: Types that process groups cannot send (gloo: 8-bit floats; NCCL: int16), and the types they are sent as.
SENT_AS = {torch.float8_e4m3fn: torch.uint8, torch.int16: torch.float16}


def places_of(p: Any) -> ElementIndices:
    """Return which elements of a distributed parameter are local."""
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    if tuple(shape[1:]) == tuple(p.shape[1:]) and not any(offset):  # the first rows
        return WHOLE
    return ElementIndices(tuple(offset), tuple(p.shape))


def misplaced(p: DTensor, formats: Mapping[str, Format]) -> str:
    """Return why the elements of a distributed parameter cannot be stored in some formats; empty if they can.

    The answer is the same in every process.
    """
    blocks = max((each.block for each in formats.values() if isinstance(each, Blocks)), default=0)
    if not blocks:
        return ""
    if any(each.is_partial() for each in p.placements):
        return "is distributed as partial sums"
    cut = _cut(p)
    if len(p.shape) == 1 and cut:
        return "is a vector, whose blocks would depend on the number of processes"
    if any(dim > 1 for dim in cut):
        return f"is distributed along dimension {max(cut)}, which splits its rows into elements that are not adjacent"
    if 1 in cut:
        processes = cut[1]
        own = math.prod(p.shape[1:]) // processes
        if p.shape[1] % processes or own % blocks:
            return (
                f"has rows that are split between {processes} processes, but not at blocks of {blocks}; distribute it "
                f"along its first dimension, or use smaller blocks"
            )
    return ""


def _cut(p: DTensor) -> dict[int, int]:
    """Return the number of processes that share each sharded dimension."""
    found: dict[int, int] = {}
    for size, placement in zip(p.device_mesh.shape, p.placements, strict=True):
        if hasattr(placement, "dim") and size > 1:
            found[placement.dim] = found.get(placement.dim, 1) * size
    return found


def distributed_like(value: torch.Tensor, p: DTensor, shape: Sequence[int]) -> DTensor:
    """Return a local tensor as one that is distributed like a parameter.

    Args:
        value: The local part.
        p: The parameter.
        shape: The shape of the whole tensor.
    """
    strides = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        value, p.device_mesh, p.placements, run_check=False, shape=torch.Size(shape), stride=strides
    )


def part_of(value: torch.Tensor, p: Any) -> DTensor:
    """Distribute a tensor that is whole in every process like a parameter; nothing is communicated."""
    shape, offset = compute_local_shape_and_global_offset(value.shape, p.device_mesh, p.placements)
    here = tuple(slice(start, start + n) for n, start in zip(shape, offset, strict=True))
    return distributed_like(value.detach()[here].contiguous().to(p.device), p, value.shape)


def whole(t: Any) -> Any:
    """Return the whole tensor, gathering its parts."""
    if not isinstance(t, DTensor):
        return t
    stands_for = SENT_AS.get(t.dtype)
    return t.full_tensor() if stands_for is None else _bits(t, stands_for).full_tensor().view(t.dtype)


def _bits(t: DTensor, dtype: torch.dtype) -> DTensor:
    """Reinterpret the bits of a distributed tensor as another type."""
    return DTensor.from_local(
        t.to_local().view(dtype), t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride()
    )


def decoded(codes: Any, scales: Any) -> Any:
    """Dequantize distributed codes, keeping their placement; codes of an unknown format are returned unchanged."""
    own = codes.to_local(), scales.to_local()
    format = choice.found(*own)
    return codes if format is None else distributed_like(format.decode(*own), codes, codes.shape)


class Sent(DTensor):
    """A distributed tensor whose type process groups cannot send: its bits are sent as another type.

    ``torch.distributed.checkpoint`` sends the contents of state dicts when a full one is requested.
    """

    def redistribute(self, *arguments: Any, **options: Any) -> DTensor:
        """Return the tensor with other placements, as ``DTensor.redistribute`` does."""
        return _bits(_bits(self, SENT_AS[self.dtype]).redistribute(*arguments, **options), self.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return distributed_like(self.to_local(), self, self.shape).__reduce_ex__(protocol)


def sendable(t: Any) -> Any:
    """Return a distributed tensor that can be sent, sharing the same memory."""
    if t.dtype not in SENT_AS:
        return t
    return Sent(t._local_tensor, t._spec, requires_grad=False)  # type: ignore[no-untyped-call]
