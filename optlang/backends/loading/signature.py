"""The types that a kernel is built for, and the loaded kernel.

Sizes are not part of a signature: a kernel takes tensors of any size, so one kernel serves all parameters with the same
dtypes, device type and number of viewed dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optlang.storage import NARROW
from optlang.storage.coded import Coded

#: The dimensions of a viewed tensor: the index of the dimension of ``p`` with the same size, or None for a size of 1.
Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """The types that a kernel is built for, without the sizes.

    Attributes:
        dtypes: Names of the element types (``float32``), in the order of ``Kernel.tensors``.
        dims: The viewed dimensions, in the same order.
        device: Device type, ``cpu`` or ``cuda``.
        coefficients: The number of packed coefficients (at least 1: an empty list is padded).
        coded: Indices of the quantized tensors, whose ``dtypes`` are those of the dequantized values. The kernel takes
            the scales of each after all tensors of a parameter.
    """

    dtypes: tuple[str, ...]
    dims: tuple[Dims, ...]
    device: str
    coefficients: int
    coded: tuple[tuple[int, Coded], ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether some tensor has 16 bits, so that the kernel's ``narrow_source`` is used."""
        return any(dtype in NARROW for dtype in self.dtypes)

    @property
    def coefficient_dtype(self) -> str:
        """The type of the packed coefficients, in which the rule computes."""
        return "float64" if "float64" in self.dtypes else "float32"

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(self.dtypes))
        return f"{' and '.join(kinds)} on {self.device}"


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel as a function that the runtime calls.

    Attributes:
        run: Takes a list: the tensors of ``Kernel.tensors``, viewed, then the packed coefficients. It checks nothing.
        origin: How it was obtained: ``eager``, ``built``, ``cached``, ``jit`` or ``triton``.
        many: Whether the list may hold the tensors of several parameters, one parameter after another, before the
            coefficients. Gradients may then have other shapes, because only their addresses are read.
        at: The same by addresses: takes the number of parameters, the address of their sizes (int64), of the addresses
            of their tensors (int64, one parameter after another) and of the coefficients, the maximum number of
            threads, and the random-number keys if states are quantized. It is not Python code, so nothing can interrupt
            it. None if there is only ``run``.
        coded: Whether it takes quantized states directly, through ``at``, or through ``run`` if there is no ``at``. The
            companions of quantized tensors follow the tensors of each parameter. If a format draws random numbers, two
            more arguments hold the keys: for each parameter the index of its first element in the whole tensor and a
            key for each such format, and what differs from step to step, as a number or a 0-d tensor.
    """

    run: Callable[[list[Any]], Any]
    origin: str
    many: bool = False
    at: Callable[[int, int, int, int, int, int], None] | None = None
    coded: bool = False

    def __call__(self, tensors: list[Any]) -> None:
        """Run the kernel."""
        self.run(tensors)
