"""8-bit formats: one byte per element, and a scale for each block of neighboring elements.

A row of a tensor is a slice along its first dimension (a vector is one row), and a block never crosses a row: some rows
of a tensor can be stored with exactly their blocks. The last block of a row may be shorter. Codes are stored in a
tensor with the shape of the values, under the state's key; scales in another one, under that key with the suffix
``.scale``.
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

#: The suffix that turns a state's key into the key of its scales.
SCALE = ".scale"

#: The number of elements of a tensor below which its states are stored as without ``store``, by default.
LEAST = 4096
#: The same for vectors: their blocks, unlike those of rows, depend on how many processes share them. Since norms and
#: biases are stored in float32, a checkpoint of a model works with any number of processes.
LEAST_OF_A_VECTOR = 2**20

#: The group functions of :attr:`Blocks.cpp`, if the compiler vectorizes the functions for single numbers.
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
        least: The fewest elements of a tensor that is quantized; smaller tensors are stored as without ``store``. None
            for the default.
        signed: Whether negative numbers can be represented.
        cpp: The functions ``scale_of``, ``decoded`` and ``encoded`` in C++, and ``decode_group`` and ``encode_group``,
            which do the same for as many elements as fill a vector with codes.
    """

    least: int | None = field(default=None, compare=False)
    codes: ClassVar[str] = "uint8"
    second: ClassVar[str] = "float32"
    signed: ClassVar[bool] = True

    def label(self, parameter: str) -> str:
        """Return its name, with the block size."""
        return f"{self.name}, blocks of {self.block}"

    def size(self, parameter: str) -> float:
        """Return the number of bytes per element, including its share of the scale."""
        return SIZES[self.codes] + SIZES[self.second] / self.block

    # One block ----------------------------------------------------------------------------------------------

    @abstractmethod
    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks, given the largest magnitude of each, in float32."""

    @abstractmethod
    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the codes of numbers.

        Args:
            x: The numbers, in float32.
            scale: The scales before they are rounded to their type, in a shape that broadcasts against ``x``.
            random: Integers from 0 to 2**32 - 1 in int64, for a format that draws random numbers.
        """

    @abstractmethod
    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Dequantize codes, to float32."""

    # Tensors ------------------------------------------------------------------------------------------------

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a tensor's scales: rows by blocks per row."""
        rows, columns = rows_of(shape)
        count = -(-columns // self.block)
        return (rows, count) if len(shape) > 1 else (count,)

    def fits(self, codes: torch.Tensor, scales: torch.Tensor) -> bool:
        """Return whether codes and scales can be of this format, by their types and shapes."""
        types = str(codes.dtype)[6:], str(scales.dtype)[6:]
        return types == (self.codes, self.second) and self.scales_shape(tuple(codes.shape)) == tuple(scales.shape)

    def encode(
        self, x: torch.Tensor, key: Key = 0, places: ElementIndices = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes and scales of a tensor.

        Args:
            x: The numbers, contiguous, in float32.
            key: The random-number key, apart from the index of an element.
            places: Which elements of a larger tensor they are.
        """
        import torch

        shape = tuple(x.shape)
        blocks = self._in_blocks(x)
        scale = self.scale_of(blocks.abs().amax(1))
        sound = scale.isfinite()
        # If an element is NaN or infinite, its whole block becomes NaN. Conversions may set any bits, so NaN is created
        # in the final type.
        undefined = torch.full((), torch.nan, dtype=getattr(torch, self.second), device=x.device)
        kept = torch.where(sound, scale.to(undefined.dtype), undefined)
        random = None
        if self.draws:
            random = self._in_blocks(drawn(places.of(shape, x.device), key).view(shape))
        codes = self.encoded(torch.where(sound[:, None], blocks, 0.0), torch.where(sound, scale, 1.0)[:, None], random)
        return self._in_rows(codes, shape), kept.view(self.scales_shape(shape))

    def zeros(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes and scales of zeros, with the shape and the device of another tensor."""
        import torch

        codes = torch.zeros(like.shape, dtype=torch.uint8, device=like.device).view(getattr(torch, self.codes))
        largest = torch.zeros(self.scales_shape(like.shape), device=like.device)
        return codes, self.scale_of(largest).to(getattr(torch, self.second))

    def decode(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Dequantize a stored tensor, to float32."""
        shape = tuple(codes.shape)
        numbers = self.decoded(self._in_blocks(codes), scales.float().reshape(-1, 1))
        return self._in_rows(numbers, shape)

    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write the codes and scales of a tensor in place."""
        new_codes, new_scales = self.encode(x, key, places)
        codes.copy_(new_codes)
        scales.copy_(new_scales)

    def _in_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor as blocks, padding the last block of each row with zeros."""
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
        """Return blocks as a tensor of some shape, without the padding."""
        rows, columns = rows_of(shape)
        filled = -(-columns // self.block) * self.block
        return blocks.reshape(rows, filled)[:, :columns].reshape(tuple(shape)).contiguous()


def largest_block(formats: Iterable[Coded]) -> int:
    """Return the size of the largest block of some formats, a multiple of all others; 0 if no format has blocks."""
    return max((each.block for each in formats if isinstance(each, Blocks)), default=0)


def divided(x: torch.Tensor, number: float) -> torch.Tensor:
    """Divide by a number exactly; on a GPU, torch multiplies by the reciprocal of a Python number instead."""
    import torch

    return x / torch.full((), number, dtype=x.dtype, device=x.device)


def root(x: torch.Tensor) -> torch.Tensor:
    """Return float32 square roots, rounded as IEEE 754 requires; torch's own may be off by one ulp."""
    return x.double().sqrt().float()


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return the number of rows of a tensor, and the number of elements in each."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def is_large(shape: Sequence[int], least: int | None = None) -> bool:
    """Return whether a tensor has enough elements to be quantized; vectors need more, unless ``least`` is given."""
    if least is None:
        least = LEAST if len(shape) > 1 else LEAST_OF_A_VECTOR
    return math.prod(shape) >= least
