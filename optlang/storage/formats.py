"""How the numbers of a state are kept: the type they have in memory and in checkpoints.

Arithmetic is done in float64 for parameters in float64, and in float32 for all others; what is kept in fewer bits is
widened when it is read and rounded when it is stored. A format says in which type that is, by the parameter's. Types go
by torch's names (``bfloat16``), as signatures of kernels have them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

#: Types that arithmetic is not done in.
NARROW = ("bfloat16", "float16")
#: Bytes of a number, by its type.
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1, "float8_e4m3fn": 1}


class Format(ABC):
    """How the numbers of a state are kept."""

    @property
    def vanishes(self) -> str:
        """Which numbers that are not 0 become 0, in words; empty if none to speak of do."""
        return ""

    @property
    def half_code(self) -> float:
        """What is lost of a number at most, in parts of it, by rounding to the nearest; 0 where that is at random."""
        return 0.0

    @abstractmethod
    def dtype(self, parameter: str) -> str:
        """Return the type in memory and in checkpoints, for a parameter of some type."""

    def label(self, parameter: str) -> str:
        """Return what people call it, for a parameter of some type."""
        return self.dtype(parameter)

    def size(self, parameter: str) -> float:
        """Return how many bytes a number takes, for a parameter of some type."""
        return SIZES[self.dtype(parameter)]

    @abstractmethod
    def text(self, own: str, wide: str) -> str:
        """Return the type as generated Python has it.

        Args:
            own: The type of :class:`Own` there.
            wide: The type of the arithmetic there.
        """


@dataclass(frozen=True)
class Own(Format):
    """The parameter's type; float32 for float16, whose least number is too large for squares of gradients."""

    def dtype(self, parameter: str) -> str:
        """Return the parameter's type, or float32."""
        return "float32" if parameter == "float16" else parameter

    def text(self, own: str, wide: str) -> str:
        """Return the parameter's type, or float32, as Python."""
        return own


@dataclass(frozen=True)
class Wide(Format):
    """The type of the arithmetic, for states that many elements have in common: they are few.

    A count in bfloat16 stops at 256, and a mean over many steps stops as soon as what is added is less than its last
    digit.
    """

    def dtype(self, parameter: str) -> str:
        """Return the type of the arithmetic."""
        return "float32" if parameter in NARROW else parameter

    def text(self, own: str, wide: str) -> str:
        """Return the type of the arithmetic as Python."""
        return wide


@dataclass(frozen=True)
class Fixed(Format):
    """A type that the rule asks for, by ``f32`` or ``bf16`` around the initial value.

    Attributes:
        name: The type.
    """

    name: str

    @property
    def vanishes(self) -> str:
        """Which numbers become 0."""
        return "numbers below 3e-8" if self.name == "float16" else ""

    @property
    def half_code(self) -> float:
        """What is lost of a number at most, in parts of it."""
        return {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(self.name, 0.0)

    def dtype(self, parameter: str) -> str:
        """Return the type, whatever the parameter's is."""
        return self.name

    def text(self, own: str, wide: str) -> str:
        """Return the type as Python."""
        return f"torch.{self.name}"


@dataclass(frozen=True)
class HostNumber(Format):
    """A float of Python's, shown as a tensor in float64."""

    def dtype(self, parameter: str) -> str:
        """Return float64."""
        return "float64"

    def text(self, own: str, wide: str) -> str:
        """Return float64 as Python."""
        return "torch.float64"


#: How numbers on the host are kept.
ON_HOST = HostNumber()
