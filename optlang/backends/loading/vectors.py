"""C++ versions of vector helpers of stages over matrices, replacing those of :mod:`optlang.codegen.helpers`."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optlang.backends.loading import library

#: The backends that use it, by the names that users pass.
BACKENDS = ("auto", "cpp")
#: The helper that has a C++ version: a function of the generated module, which documents it.
NAME = "multiply_add_dot"
#: Types of the vectors, with the names of the functions for them.
FUNCTIONS = {torch.float32: "optlang_float32", torch.float64: "optlang_float64"}
#: The function of a type.
ENTRY = """
extern "C" double {name}(int64_t n, {t}* to, const {t}* x, double c, const {t}* y, const {t}* z, int threads) {{
  return multiply_add_dot<{t}>(n, to, x, c, y, z, threads);
}}
extern "C" bool {name}_near(int64_t n, const {t}* value, const {t}* x, double c, const {t}* y) {{
  return near<{t}>(n, value, x, c, y);
}}
"""
#: The number of elements from which on C++ is faster.
LEAST = 4096


def quicken(names: MutableMapping[str, Any], device: str) -> None:
    """Replace those helpers of a generated module that have a C++ version."""
    if device != "cpu" or NAME not in names or sys.platform != "linux" or hasattr(names[NAME], "usual"):
        return
    functions = _functions()
    if functions is not None:
        names[NAME] = _quick(names[NAME], functions)


def _quick(usual: Callable[..., Any], functions: dict[torch.dtype, Any]) -> Callable[..., Any]:
    """Return the helper, with a fallback to Python for unsupported arguments."""

    def multiply_add_dot(x: Any, c: Any, y: Any, out: Any, z: Any) -> Any:
        if z is None or not _suit(x, y, z) or (out is not None and out is not x):
            return usual(x, c, y, out, z)
        to = torch.empty_like(x) if out is None else out
        addresses = to.data_ptr(), x.data_ptr(), float(c), y.data_ptr(), z.data_ptr()
        total = functions[x.dtype](x.numel(), *addresses, torch.get_num_threads())
        return to, x.new_full((1,), total)

    multiply_add_dot.usual = usual  # type: ignore[attr-defined]
    return multiply_add_dot


def _suit(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> bool:
    """Return whether tensors are single vectors of a supported type, in CPU memory.

    A class may have parameters on several devices, which share the module that contains the helper.
    """
    shape, dtype = x.shape, x.dtype  # one at a time, because this costs time in every iteration of a loop
    return (
        dtype in FUNCTIONS
        and len(shape) == 2
        and shape[0] == 1
        and shape[1] >= LEAST
        and y.shape == shape
        and z.shape == shape
        and y.dtype == dtype
        and z.dtype == dtype
        and type(x) is type(y) is type(z) is torch.Tensor
        and x.is_cpu
        and y.is_cpu
        and z.is_cpu
        and x.is_contiguous()
        and y.is_contiguous()
        and z.is_contiguous()
    )


def are_near(
    values: Sequence[torch.Tensor],
    begins: Sequence[torch.Tensor],
    directions: Sequence[torch.Tensor | None],
    distance: float,
) -> bool | None:
    """Return whether values are at a distance from their starts, up to the rounding of one addition.

    Args:
        values: Tensors that have addresses.
        begins: Their starts.
        directions: Their directions; a tensor without one does not move.
        distance: The distance.

    Returns:
        Whether they are; None if there is no C++ to compare them.
    """
    tensors = [*values, *begins, *(d for d in directions if d is not None)]
    dtype = tensors[0].dtype if tensors else None
    if sys.platform != "linux" or dtype not in FUNCTIONS or not all(x.is_cpu and x.dtype is dtype for x in tensors):
        return None
    if not all(map(torch.Tensor.is_contiguous, tensors)) or (functions := _functions()) is None:
        return None
    near = functions[dtype].near
    return all(
        near(value.numel(), value.data_ptr(), begin.data_ptr(), distance, 0 if d is None else d.data_ptr())
        for value, begin, d in zip(values, begins, directions, strict=True)
    )


@functools.cache
def _functions() -> dict[torch.dtype, Any] | None:
    """Return the functions by type, built or from the cache; None if they are not available."""
    source = (Path(__file__).parents[2] / "codegen" / "cpp_vectors.h").read_text(encoding="utf-8")
    source += "".join(ENTRY.format(name=name, t=library.TYPES[str(t)[6:]]) for t, name in FUNCTIONS.items())
    return library.helper("vectors", source, library.flags(), ("-lm",), _open, "torch's operations on vectors are used")


def _open(path: str) -> dict[torch.dtype, Any]:
    """Return the functions of a library."""
    opened, found = ctypes.CDLL(path), {}
    for dtype, name in FUNCTIONS.items():
        function = found[dtype] = getattr(opened, name)
        pointer = ctypes.c_void_p
        function.argtypes = [ctypes.c_int64, pointer, pointer, ctypes.c_double, pointer, pointer, ctypes.c_int]
        function.restype = ctypes.c_double
        near = function.near = getattr(opened, f"{name}_near")
        near.argtypes = [ctypes.c_int64, pointer, pointer, ctypes.c_double, pointer]
        near.restype = ctypes.c_bool
    return found
