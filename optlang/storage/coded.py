"""Quantized tensors: their elements are codes, which kernels convert to the values they compute with."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.formats import Format

if TYPE_CHECKING:
    import torch

    #: A random-number key: a number, or a 0-d tensor.
    Key = int | torch.Tensor

_WORD = 0xFFFFFFFF

#: Types that kernels handle as bits, and the type used for this.
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
    """Which elements of a larger tensor some stored elements are: random numbers depend on the indices there.

    Attributes:
        start: The index of the first element in each dimension; empty if all are 0.
        whole: The shape of the whole tensor; empty if it is that of these elements.
        rows: The indices along the first dimension, if they are not consecutive.
    """

    start: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    rows: torch.Tensor | None = None

    def of(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return the flat indices of the elements of a tensor with some shape."""
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
        """Return the flat index of the first element, if the others are consecutive; otherwise None."""
        if self.rows is not None:
            return None
        if not self.start:
            return 0
        inner = tuple(shape[1:])
        follow = not any(self.start[1:]) and self.whole[1:] == inner
        return self.start[0] * math.prod(inner) if follow else None

    def permuted(self, order: Sequence[int]) -> ElementIndices:
        """Return the same with dimensions in memory order."""
        start, whole = (tuple(each[dim] for dim in order) if each else () for each in (self.start, self.whole))
        return ElementIndices(start, whole, self.rows)


#: All elements of a tensor.
WHOLE = ElementIndices()


@dataclass(frozen=True)
class Coded(Format):
    """A format of codes with a companion tensor.

    Each format is implemented three times, in torch, in C++ (:attr:`cpp`) and in Triton (:attr:`triton`), and the codes
    are bitwise equal.

    Attributes:
        block: The number of neighboring elements that are quantized together; parts of a tensor begin at a multiple of
            it.
        codes: The type of the codes.
        second: The type of the companion tensor.
        pairs: Whether the companion has an element for each code; otherwise it has one for each block.
        alone: Whether the companion is always empty.
        draws: Whether it rounds stochastically.
        cpp: The functions of the format's struct in C++.
        triton: Functions in Triton whose names begin with the format's: ``_decoded``, ``_encoded`` and, for formats
            with block scales, ``_scale``, which computes the scale from the largest magnitude.
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
        """Return the type of the codes as Python source."""
        return f"torch.{self.codes}"

    @property
    def held(self) -> tuple[str, str]:
        """The types of codes and companions in kernels: special types of torch's are handled as bits."""
        second = _BITS.get(self.second, self.second) if self.pairs else self.second  # scales are numbers
        return _BITS.get(self.codes, self.codes), second

    @property
    def struct(self) -> str:
        """The format as a C++ struct with its name."""
        types = f"  using code = {_CPP[self.held[0]]};\n  using second = {_CPP[self.held[1]]};\n"
        traits = ", ".join(f"{name} = {str(getattr(self, name)).lower()}" for name in ("pairs", "alone", "draws"))
        return f"struct {self.name} {{\n{types}  static constexpr bool {traits};\n{self.cpp}}};\n"

    @abstractmethod
    def decode(self, codes: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Dequantize a stored tensor, to float32."""

    @abstractmethod
    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, second: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Quantize values and write the codes in place.

        Args:
            x: The values, in float32.
            codes: Receives the codes.
            second: Receives the companion values.
            key: The random-number key, apart from the index of an element.
            places: Which elements of a larger tensor they are.
        """


def drawn(places: torch.Tensor, key: Key) -> torch.Tensor:
    """Return integers from 0 to 2**32 - 1 that depend on the elements' indices and a random key; the same in C++.

    Those of neighboring elements are spread evenly, which rounds a sum of many elements better than independent ones.
    """
    return (((places ^ key) & _WORD) * 0x9E3779B1) & _WORD
