"""Storage formats of states: their types in memory and in checkpoints.

Arithmetic runs in float64 for float64 parameters, and in float32 for all others; narrower states are widened when they
are read and rounded when they are stored. A format determines the stored type from the parameter's type. Types are
identified by torch's names (``bfloat16``), as in kernel signatures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

#: Types in which no arithmetic is done.
NARROW = ("bfloat16", "float16")
#: Bytes per number, by type.
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1, "float8_e4m3fn": 1}


class Format(ABC):
    """The storage format of a state."""

    @property
    def vanishes(self) -> str:
        """Describes which nonzero numbers become 0; empty if none that matter do."""
        return ""

    @property
    def half_code(self) -> float:
        """The largest relative error of rounding to the nearest; 0 for stochastic rounding."""
        return 0.0

    @abstractmethod
    def dtype(self, parameter: str) -> str:
        """Return the type in memory and in checkpoints, for a parameter type."""

    def label(self, parameter: str) -> str:
        """Return the name shown to users, for a parameter type."""
        return self.dtype(parameter)

    def size(self, parameter: str) -> float:
        """Return the number of bytes per element, for a parameter type."""
        return SIZES[self.dtype(parameter)]

    @abstractmethod
    def text(self, own: str, wide: str) -> str:
        """Return the type as generated Python code.

        Args:
            own: The code for the type of :class:`Own`.
            wide: The code for the type in which the rule computes.
        """


@dataclass(frozen=True)
class Own(Format):
    """The parameter's type; float32 for float16, whose smallest number is too large for squared gradients."""

    def dtype(self, parameter: str) -> str:
        """Return the parameter's type, or float32."""
        return "float32" if parameter == "float16" else parameter

    def text(self, own: str, wide: str) -> str:
        """Return the parameter's type, or float32, as Python code."""
        return own


@dataclass(frozen=True)
class Wide(Format):
    """The type in which the rule computes, for states that many elements share: there are few of them.

    A bfloat16 count stops at 256, and a mean over many steps stops as soon as the increment is below its last digit.
    """

    def dtype(self, parameter: str) -> str:
        """Return the type in which the rule computes."""
        return "float32" if parameter in NARROW else parameter

    def text(self, own: str, wide: str) -> str:
        """Return this type as Python code."""
        return wide


@dataclass(frozen=True)
class Fixed(Format):
    """A type that the rule requests, by ``f32`` or ``bf16`` around the initial value.

    Attributes:
        name: The type.
    """

    name: str

    @property
    def vanishes(self) -> str:
        """Describes which numbers become 0."""
        return "numbers below 3e-8" if self.name == "float16" else ""

    @property
    def half_code(self) -> float:
        """The largest relative rounding error."""
        return {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(self.name, 0.0)

    def dtype(self, parameter: str) -> str:
        """Return the type, regardless of the parameter's."""
        return self.name

    def text(self, own: str, wide: str) -> str:
        """Return the type as Python code."""
        return f"torch.{self.name}"


@dataclass(frozen=True)
class HostNumber(Format):
    """A Python float, shown as a float64 tensor."""

    def dtype(self, parameter: str) -> str:
        """Return float64."""
        return "float64"

    def text(self, own: str, wide: str) -> str:
        """Return float64 as Python code."""
        return "torch.float64"


#: The format of host numbers.
ON_HOST = HostNumber()
