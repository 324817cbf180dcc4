"""Formats of eight bits: codes of one byte, and a scale for each block of neighbours.

Rows of a tensor are what belongs to one index of its first dimension (a vector is one row), and a block never reaches
beyond a row: whoever keeps some rows of a tensor keeps their blocks. The last block of a row may be shorter. Codes lie
in a tensor shaped like the values, under the state's key; scales in another, under that key and ``.scale``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.coded import WHOLE, Coded, ElementIndices, drawn
from optlang.storage.formats import SIZES

if TYPE_CHECKING:
    import torch

    from optlang.storage.coded import Key

#: What the key of a state's scales has behind the state's own.
SCALE = ".scale"

#: Elements of a tensor below which its states are kept as they are without ``store``, if nothing else is asked for.
LEAST = 4096
#: The same for vectors: what blocks they have, unlike rows, depends on how many processes share them. As norms and
#: biases are kept in float32, a checkpoint of a model is for any number of processes.
LEAST_OF_A_VECTOR = 2**20

#: The part of :attr:`Blocks.cpp` about groups, where the compiler makes vectors of the functions for one number.
BY_ELEMENT = """\
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, float scale, float* to) {
    for (int i = 0; i < group; ++i) to[i] = decoded(from[i], scale);
  }
  static void encode_group(const float* from, float scale, float, Random&, code* to) {
    for (int i = 0; i < group; ++i) to[i] = encoded(from[i], scale, 0, 0);
  }
#endif
"""


@dataclass(frozen=True)
class Blocks(Coded):
    """A format of codes with a scale for each block.

    Attributes:
        least: The fewest elements that a tensor kept so has; smaller ones are kept without ``store``. None if nothing
            is asked for.
        signed: Whether there are negative numbers.
        cpp: The functions ``scale_of``, ``decoded`` and ``encoded`` in C++, and ``decode_group`` and ``encode_group``,
            which do the same for as many elements as make a vector of codes.
    """

    least: int | None = field(default=None, compare=False)
    codes: ClassVar[str] = "uint8"
    second: ClassVar[str] = "float32"
    signed: ClassVar[bool] = True

    def label(self, parameter: str) -> str:
        """Return its name, with the size of a block."""
        return f"{self.name}, blocks of {self.block}"

    def size(self, parameter: str) -> float:
        """Return how many bytes a number takes, its share of the scale included."""
        return SIZES[self.codes] + SIZES[self.second] / self.block

    # One block ----------------------------------------------------------------------------------------------

    @abstractmethod
    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks by the largest magnitude of each, in float32."""

    @abstractmethod
    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the codes of numbers.

        Args:
            x: The numbers, in float32.
            scale: The scales before they are rounded to their type, of a shape that goes with them.
            random: Whole numbers from 0 to 2**32 - 1 in int64, of a format that draws.
        """

    @abstractmethod
    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the numbers that codes stand for, in float32."""

    # Tensors ------------------------------------------------------------------------------------------------

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor: one index for each row, and one for each of its blocks."""
        rows, columns = rows_of(shape)
        count = -(-columns // self.block)
        return (rows, count) if len(shape) > 1 else (count,)

    def fits(self, codes: torch.Tensor, scales: torch.Tensor) -> bool:
        """Whether codes and scales may be of this format: their types and shapes are."""
        types = str(codes.dtype)[6:], str(scales.dtype)[6:]
        return types == (self.codes, self.second) and self.scales_shape(tuple(codes.shape)) == tuple(scales.shape)

    def encode(
        self, x: torch.Tensor, key: Key = 0, places: ElementIndices = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and scales of a tensor.

        Args:
            x: The numbers, contiguous, in float32.
            key: What random numbers are drawn by, besides the place of an element.
            places: Which elements of a larger tensor they are.
        """
        import torch

        shape = tuple(x.shape)
        blocks = self._in_blocks(x)
        scale = self.scale_of(blocks.abs().amax(1))
        sound = scale.isfinite()
        # A block with NaN or infinity is NaN as a whole. Conversions may set any bits: NaN is made in its final type.
        undefined = torch.full((), torch.nan, dtype=getattr(torch, self.second), device=x.device)
        kept = torch.where(sound, scale.to(undefined.dtype), undefined)
        random = None
        if self.draws:
            random = self._in_blocks(drawn(places.of(shape, x.device), key).view(shape))
        codes = self.encoded(torch.where(sound[:, None], blocks, 0.0), torch.where(sound, scale, 1.0)[:, None], random)
        return self._in_rows(codes, shape), kept.view(self.scales_shape(shape))

    def zeros(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and scales of zeros, for a tensor of the shape and on the device of another one."""
        import torch

        codes = torch.zeros(like.shape, dtype=torch.uint8, device=like.device).view(getattr(torch, self.codes))
        largest = torch.zeros(self.scales_shape(like.shape), device=like.device)
        return codes, self.scale_of(largest).to(getattr(torch, self.second))

    def decode(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the numbers of a tensor that is kept, in float32."""
        shape = tuple(codes.shape)
        numbers = self.decoded(self._in_blocks(codes), scales.float().reshape(-1, 1))
        return self._in_rows(numbers, shape)

    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write the codes and scales of a tensor where those of another one lie."""
        new_codes, new_scales = self.encode(x, key, places)
        codes.copy_(new_codes)
        scales.copy_(new_scales)

    def _in_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor as blocks, the last one of each row filled up with zeros."""
        import torch

        rows, columns = rows_of(x.shape)
        count = -(-columns // self.block)
        wide = x.reshape(rows, columns)
        if count * self.block != columns:
            filled = torch.zeros(rows, count * self.block, dtype=x.dtype, device=x.device)
            filled[:, :columns] = wide
            wide = filled
        found: torch.Tensor = wide.reshape(rows * count, self.block)
        return found

    def _in_rows(self, blocks: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Return blocks as a tensor of some shape, without what they were filled up with."""
        rows, columns = rows_of(shape)
        filled = -(-columns // self.block) * self.block
        return blocks.reshape(rows, filled)[:, :columns].reshape(tuple(shape)).contiguous()


def largest_block(formats: Iterable[Coded]) -> int:
    """Return the size of the largest block of some formats, a multiple of all others; 0 if none has blocks."""
    return max((each.block for each in formats if isinstance(each, Blocks)), default=0)


def divided(x: torch.Tensor, number: float) -> torch.Tensor:
    """Return numbers divided by one; on a GPU torch multiplies them by one over a number of Python's instead."""
    import torch

    return x / torch.full((), number, dtype=x.dtype, device=x.device)


def root(x: torch.Tensor) -> torch.Tensor:
    """Return square roots in float32, rounded as IEEE 754 says; torch's own can be one unit in the last place off."""
    return x.double().sqrt().float()


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return how many rows a tensor has, and how many numbers each of them has."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def is_large(shape: Sequence[int], least: int | None = None) -> bool:
    """Whether a tensor has so many elements that it is kept in codes; a vector more, unless ``least`` is asked for."""
    if least is None:
        least = LEAST if len(shape) > 1 else LEAST_OF_A_VECTOR
    return math.prod(shape) >= least
