"""Functions on tensors that the functions of a rule call in a TorchScript module."""

import torch
from torch import Tensor

from optlang.targets.torchscript.descent import _run


def _arithmetic(p: Tensor) -> torch.dtype:
    """The number type in which a parameter is updated."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _packed(numbers: list[float], p: Tensor) -> Tensor:
    """Numbers as a tensor; `torch.tensor` of a list rounds to 32 bits on the way."""
    if p.dtype == torch.float64:
        return torch.cat([torch.full([1], x, dtype=torch.float64, device=p.device) for x in numbers])
    return torch.tensor(numbers, dtype=torch.float32, device=p.device)


def _eps_of(p: Tensor) -> float:
    """Machine epsilon of the type that a parameter is stored in."""
    if p.dtype == torch.float64:
        return 2.220446049250313e-16
    if p.dtype == torch.bfloat16:
        return 0.0078125
    if p.dtype == torch.float16:
        return 0.0009765625
    return 1.1920928955078125e-07


def _size(p: Tensor, place: int) -> float:
    """Size of a dimension; 1 where there is none."""
    if place < 0:
        place = place + p.dim()
    return float(p.size(place)) if place >= 0 and place < p.dim() else 1.0


def _reduced(p: Tensor, dims: list[int]) -> list[int]:
    """Shape of a tensor with some of its sizes 1."""
    sizes: list[int] = []
    for i in range(p.dim()):
        sizes.append(p.size(i))
    for dim in dims:
        sizes[dim] = 1
    return sizes


def _shaped(x: Tensor, sizes: list[int]) -> Tensor:
    """A result in a shape: of as many numbers, or of one number that is spread."""
    count = 1
    for size in sizes:
        count = count * size
    return x.reshape(sizes) if x.numel() == count else x.expand(sizes)


def _put(target: Tensor, result: Tensor) -> None:
    """Write a result that has one dimension more in front."""
    target.copy_(_shaped(result[0], list(target.shape)))


# Chunks -----------------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> int:
    """How many rows of a tensor are worked on at a time: on a processor, as much as stays in a core's cache.

    So much is also what torch gives to one thread.
    """
    if x.device.type != "cpu":
        return x.size(0)
    return min(x.size(0), max(1, 32768 * x.size(0) // x.numel()))


def _lifted(x: list[Tensor]) -> list[Tensor]:
    """Tensors with a dimension at least, so that there are rows."""
    return x if x[0].dim() > 0 else [t.reshape([1]) for t in x]


def _memory(x: Tensor, rows: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Memory for some chunks of a tensor."""
    sizes = [count, rows]
    sizes.extend(x.shape[1:])
    return list(torch.empty(sizes, dtype=dtype, device=x.device).unbind(0))


def _part(x: Tensor, i: int, n: int) -> Tensor:
    """What belongs to n rows from i of a tensor that may be reduced along them."""
    return x if x.dim() == 0 or x.size(0) == 1 or x.size(0) == n else x.narrow(0, i, n)


def _sum(before: Tensor, part: Tensor, i: int) -> Tensor:
    """What the rows up to some from i give to a sum over a whole tensor."""
    return part if i == 0 else before + part


def _add(whole: Tensor, part: Tensor, i: int) -> None:
    """Add what the rows from i give to sums, or put it where these are of each row."""
    if part.dim() == 0 or whole.size(0) == 1:
        whole.add_(part)
    else:
        whole.narrow(0, i, part.size(0)).copy_(part)


def _extend(whole: Tensor, part: Tensor, i: int, largest: bool) -> None:
    """Do so for the largest or the smallest numbers."""
    if part.dim() == 0 or whole.size(0) == 1:
        whole.copy_(torch.maximum(whole, part) if largest else torch.minimum(whole, part))
    else:
        whole.narrow(0, i, part.size(0)).copy_(part)


def _dense(p: Tensor, s: list[Tensor]) -> bool:
    """Whether all tensors lie in memory in the order of their elements."""
    dense = p.is_contiguous()
    for t in s:
        dense = dense and t.is_contiguous()
    return dense


def _run_pieces(
    level: int, way: int, p: Tensor, g: Tensor, s: list[Tensor], v: list[list[float]], c: list[Tensor]
) -> list[torch.jit.Future[None]]:
    """Run the stages of a level on pieces of a large tensor, each in a task."""
    tasks: list[torch.jit.Future[None]] = []
    piece = 1048576  # 32 chunks: a task takes a small part of their time
    for i in range(0, p.numel(), piece):
        n = min(piece, p.numel() - i)
        pieces = [t if t.numel() == 0 else t.view(-1).narrow(0, i, n) for t in s]
        carry: list[Tensor] = []
        sums: list[float] = []
        part = p.view(-1).narrow(0, i, n)
        tasks.append(torch.jit.fork(_run, level, way, part, g.view(-1).narrow(0, i, n), pieces, carry, sums, v, c))
    return tasks
