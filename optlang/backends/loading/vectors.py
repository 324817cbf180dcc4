"""What stages over matrices do with whole vectors, as C++: in place of helpers of :mod:`optlang.codegen.helpers`."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optlang.backends.loading import library

#: The backends that have it, by the names that are given.
BACKENDS = ("auto", "cpp")
#: The helper that there is in C++: a function of the generated module, which says what it does.
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
#: Elements from which on a vector is worth it.
LEAST = 4096


def quicken(names: MutableMapping[str, Any], device: str) -> None:
    """Put C++ in the place of the helpers of a generated module that there is C++ for."""
    if device != "cpu" or NAME not in names or sys.platform != "linux" or hasattr(names[NAME], "usual"):
        return
    functions = _functions()
    if functions is not None:
        names[NAME] = _quick(names[NAME], functions)


def _quick(usual: Callable[..., Any], functions: dict[torch.dtype, Any]) -> Callable[..., Any]:
    """Return the helper, which goes the usual way where there is no quicker one."""

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
    """Whether tensors are one vector each, of a type that there are functions for, in memory of the CPU.

    A class may have parameters on several devices, and they share the module that the helper is in.
    """
    shape, dtype = x.shape, x.dtype  # asked for one by one, as this costs time in every turn of a loop
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
    """Whether values lie at a distance from where they begin, up to how a sum of two numbers may be rounded.

    Args:
        values: Tensors that lie at addresses.
        begins: Where they begin.
        directions: Where each goes from there; nowhere without one.
        distance: How far.

    Returns:
        Whether they do; None if there is no C++ that could tell.
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
    """Return the functions by type, built or from the cache; None if there is no way to have them."""
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
