"""The types a kernel is built for, and the kernel.

Sizes are no part of a signature: a kernel takes tensors of any size, so one serves every parameter that agrees in
dtypes, device type and number of viewed dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optlang.storage import NARROW
from optlang.storage.coded import Coded

#: The dimensions of a viewed tensor: the index of the dimension of ``p`` that it shares, or None for a size of 1.
Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """What a kernel is built for, without the sizes.

    Attributes:
        dtypes: Names of the element types (``float32``), in the order of ``Kernel.tensors``.
        dims: The viewed dimensions, in the same order.
        device: Device type, ``cpu`` or ``cuda``.
        coefficients: How many packed coefficients there are (at least 1: an empty list is padded).
        coded: The tensors that are kept in codes, by their places: their types are those of the numbers. A kernel takes
            the scales of each after all tensors of a parameter.
    """

    dtypes: tuple[str, ...]
    dims: tuple[Dims, ...]
    device: str
    coefficients: int
    coded: tuple[tuple[int, Coded], ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether some tensor has 16 bits, so that the kernel's ``narrow_source`` is meant."""
        return any(dtype in NARROW for dtype in self.dtypes)

    @property
    def coefficient_dtype(self) -> str:
        """Type of the packed coefficients: that of the arithmetic."""
        return "float64" if "float64" in self.dtypes else "float32"

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(self.dtypes))
        return f"{' and '.join(kinds)} on {self.device}"


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel as a function that the runtime calls.

    Attributes:
        run: Takes a list: the tensors of ``Kernel.tensors``, viewed, then the packed coefficients. It checks nothing.
        origin: How it came to be: ``eager``, ``built``, ``cached``, ``jit`` or ``triton``.
        many: Whether the list may hold the tensors of several parameters, one's behind the other's, before the
            coefficients, and gradients may have shapes of their own, as only their addresses are read.
        at: The same by addresses: takes how many parameters there are, the addresses of their sizes (int64), of the
            addresses of their tensors (int64, one parameter's behind the other's) and of the coefficients, how many
            threads may be used, and what random numbers are drawn by where states are in codes. It is no Python code,
            which could be interrupted. None where there is only ``run``.
        coded: Whether it takes states in codes as they are, by ``at``, or by ``run`` where there is no ``at``. What
            belongs to codes follows the tensors of each parameter. If a format draws, two more things say by what:
            for each parameter the place of its first element in the whole tensor and a key for each such format, and
            what differs from step to step, a number or a tensor that holds it.
    """

    run: Callable[[list[Any]], Any]
    origin: str
    many: bool = False
    at: Callable[[int, int, int, int, int, int], None] | None = None
    coded: bool = False

    def __call__(self, tensors: list[Any]) -> None:
        """Run the kernel."""
        self.run(tensors)
