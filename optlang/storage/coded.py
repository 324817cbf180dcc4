"""Tensors whose elements are codes: what a kernel computes with is not what is kept."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.formats import Format

if TYPE_CHECKING:
    import torch

    #: What random numbers are drawn by: a number, or a tensor that holds one.
    Key = int | torch.Tensor

_WORD = 0xFFFFFFFF

#: What kernels handle as bits, and as which type.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8"}

#: C++ types, by torch's names.
_CPP = {
    "uint8": "uint8_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "float32": "float",
    "float16": "_Float16",
    "bfloat16": "bfloat16",
}


@dataclass(frozen=True)
class ElementIndices:
    """Which elements of a tensor some are that are kept together: random numbers are drawn by the places there.

    Attributes:
        start: The index of the first one in each dimension; empty if that is 0 in all.
        whole: The shape of the whole tensor; empty if it is that of these elements.
        rows: Which indices of the first dimension they are, where those are not neighbours.
    """

    start: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    rows: torch.Tensor | None = None

    def of(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return the places of the elements of a tensor of some shape, one behind the other."""
        import torch

        if not self.start and self.rows is None:
            return torch.arange(math.prod(shape), dtype=torch.int64, device=device)
        found, stride = torch.zeros((), dtype=torch.int64, device=device), 1
        starts, sizes = self.start or (0,) * len(shape), self.whole or shape
        for dim in reversed(range(len(shape))):
            here = torch.arange(shape[dim], dtype=torch.int64, device=device)
            index = self.rows if dim == 0 and self.rows is not None else here + starts[dim]
            found = found + (index * stride).view(-1, *(1,) * (len(shape) - 1 - dim))
            stride *= sizes[dim]
        return found.reshape(-1)

    def first(self, shape: Sequence[int]) -> int | None:
        """Return the place of the first element, where the others follow it in order; None where they do not."""
        if self.rows is not None:
            return None
        if not self.start:
            return 0
        inner = tuple(shape[1:])
        follow = not any(self.start[1:]) and self.whole[1:] == inner
        return self.start[0] * math.prod(inner) if follow else None

    def permuted(self, order: Sequence[int]) -> ElementIndices:
        """Return the same with dimensions in another order, which is that of memory."""
        start, whole = (tuple(each[dim] for dim in order) if each else () for each in (self.start, self.whole))
        return ElementIndices(start, whole, self.rows)


#: All elements of a tensor.
WHOLE = ElementIndices()


@dataclass(frozen=True)
class Coded(Format):
    """A format of codes, with a second tensor that belongs to them.

    What a format does is said three times, in torch's operations, in C++ (:attr:`cpp`) and in Triton (:attr:`triton`),
    and the codes are the same to the bit.

    Attributes:
        block: How many neighbours are coded together; parts of a tensor begin at a multiple of it.
        codes: Type of the codes.
        second: Type of the second tensor.
        pairs: Whether the second tensor has an element for each code; otherwise it has one for each block.
        alone: Whether there is no second tensor but an empty one.
        draws: Whether it rounds at random.
        cpp: The functions of the format's struct in C++.
        triton: Functions in Triton whose names begin with that of the format: ``_decoded`` and ``_encoded``, and where
            there is a scale for each block ``_scale``, which computes it from the largest magnitude.
    """

    block: int = 256
    name: ClassVar[str]
    codes: ClassVar[str]
    second: ClassVar[str]
    pairs: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    cpp: ClassVar[str]
    triton: ClassVar[str]

    def dtype(self, parameter: str) -> str:
        """Return the type of the codes."""
        return self.codes

    def text(self, own: str, wide: str) -> str:
        """Return the type of the codes as Python."""
        return f"torch.{self.codes}"

    @property
    def held(self) -> tuple[str, str]:
        """The types of codes and second numbers as kernels handle them: codes of torch's own types as bits."""
        second = _BITS.get(self.second, self.second) if self.pairs else self.second  # scales are numbers
        return _BITS.get(self.codes, self.codes), second

    @property
    def struct(self) -> str:
        """The format as a C++ struct of its name."""
        types = f"  using code = {_CPP[self.held[0]]};\n  using second = {_CPP[self.held[1]]};\n"
        traits = ", ".join(f"{name} = {str(getattr(self, name)).lower()}" for name in ("pairs", "alone", "draws"))
        return f"struct {self.name} {{\n{types}  static constexpr bool {traits};\n{self.cpp}}};\n"

    @abstractmethod
    def decode(self, codes: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the numbers of a tensor that is kept, in float32."""

    @abstractmethod
    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, second: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write codes where those of another tensor lie.

        Args:
            x: The numbers, in float32.
            codes: Takes the codes.
            second: Takes what belongs to them.
            key: What random numbers are drawn by, besides the place of an element.
            places: Which elements of a larger tensor they are.
        """


def drawn(places: torch.Tensor, key: Key) -> torch.Tensor:
    """Return whole numbers from 0 to 2**32 - 1, by the places of elements and a random key; the same in C++.

    Those of neighbours are spread evenly, which rounds a sum of many elements better than independent ones would.
    """
    return (((places ^ key) & _WORD) * 0x9E3779B1) & _WORD
