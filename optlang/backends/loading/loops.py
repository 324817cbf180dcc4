"""C++ versions of loops over histories (see :mod:`optlang.codegen.cpp_loops`), replacing generated functions."""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Callable, MutableMapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from optlang.artifact import Kernel
from optlang.backends.loading import library

#: The supported types.
DTYPES = (torch.float32, torch.float64)
#: The number of dimensions of arguments, by letter; the first one is the stack's, which holds a single tensor.
DIMENSIONS = {"x": 2, "V": 2, "O": 2, "a": 2, "A": 2, "n": 1, "N": 1, "b": 1}


_is_contiguous, _data_ptr = torch.Tensor.is_contiguous, torch.Tensor.data_ptr
_is_cpu, _dtype, _shape = attrgetter("is_cpu"), attrgetter("dtype"), attrgetter("shape")


def text(kernel: Kernel, device: str) -> str:
    """Return the C++ source of the loops of a stage over matrices; empty if there are none."""
    return kernel.text("cpp_loops") if sys.platform == "linux" and device == "cpu" else ""


def quicken(names: MutableMapping[str, Any], kernel: Kernel, device: str, dtype: torch.dtype) -> None:
    """Replace the loops of a generated module by C++, for tensors of one type."""
    source = text(kernel, device)
    opened = _library(kernel.name, source, dtype) if source and dtype in DTYPES else None
    if opened is None:
        return
    for name in list(names):
        try:
            takes = ctypes.c_char_p.in_dll(opened, f"{name}_takes").value
        except ValueError:
            continue
        assert takes is not None
        usual = getattr(names[name], "usual", names[name])
        functions = {**getattr(names[name], "functions", {}), dtype: _function(opened, name)}
        names[name] = _quick(usual, takes.decode(), functions)


def _function(opened: ctypes.CDLL, name: str) -> Any:
    """Return a function of a library."""
    function = getattr(opened, name)
    function.argtypes = [*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 3, ctypes.c_int]
    function.restype = None
    return function


def _quick(usual: Callable[..., Any], takes: str, functions: dict[torch.dtype, Any]) -> Callable[..., Any]:
    """Return a loop in C++ that falls back to Python for unsupported arguments.

    Args:
        usual: The loop in Python.
        takes: The kinds of its arguments, one letter each.
        functions: The loops in C++, by the type of the tensors.
    """
    carried = sum(letter.isupper() for letter in takes)
    vector = next(i for i, letter in enumerate(takes) if letter in "xVO")
    suited: list[Any] = []  # the properties of the last supported arguments

    def loop(count: Any, size: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        room, function = int(size), functions.get(arguments[vector].dtype)
        found = None if function is None else _likeness(takes, arguments, room)
        if found is None or (found != suited and not _suit(takes, arguments, vector, room)):
            return usual(count, size, *arguments)  # type: ignore[no-any-return]
        suited[:] = found
        first = room - int(count)
        if first >= room:
            return arguments[:carried]
        results = tuple(map(_memory, takes, arguments[:carried]))
        at = array("q", (0 if letter == "f" else x.data_ptr() for letter, x in zip(takes, arguments, strict=True)))
        for i, x in enumerate(results):
            at.append(x.data_ptr())
            if takes[i] in "AN":
                at[i] = at[-1]
        sizes = array("q", [room]) * len(takes)
        numbers = array("d", (x if letter == "f" else 0.0 for letter, x in zip(takes, arguments, strict=True)))
        where = (each.buffer_info()[0] for each in (at, sizes, numbers))
        assert function is not None
        function(arguments[vector].shape[1], first, room, *where, torch.get_num_threads())
        return results

    loop.usual, loop.functions = usual, functions  # type: ignore[attr-defined]
    return loop


def _likeness(takes: str, arguments: tuple[Any, ...], room: int) -> list[Any] | None:
    """Return the properties that decide whether a loop supports its arguments; None if it does not.

    This runs in every iteration of a step, so it uses loops that run in C.
    """
    tensors = [x for letter, x in zip(takes, arguments, strict=True) if letter != "f"] if "f" in takes else arguments
    try:
        if not all(map(_is_contiguous, tensors)) or not all(map(_is_cpu, tensors)) or not all(map(_data_ptr, tensors)):
            return None
    except RuntimeError:  # not strided, or a wrapper around another tensor
        return None
    return [room, *map(type, tensors), *map(_dtype, tensors), *map(_shape, tensors)]


def _suit(takes: str, arguments: tuple[Any, ...], vector: int, room: int) -> bool:
    """Return whether a loop in C++ supports tensors that have addresses, by their types and shapes.

    A class may have parameters of several types and on several devices, which share the module that contains the loop.
    """
    dtype, length = arguments[vector].dtype, arguments[vector].shape[-1]
    for letter, x in zip(takes, arguments, strict=True):
        if letter == "f":
            continue
        shape = x.shape
        if type(x) is not torch.Tensor or x.dtype is not (torch.bool if letter == "b" else dtype):
            return False
        if shape[0] != 1 or len(shape) != DIMENSIONS.get(letter, len(shape)):
            return False
        if letter in "haA" and shape[1] != room:
            return False
        if (letter in "xVO" and shape[1] != length) or (letter == "h" and len(shape) > 2 and shape[2:] != (length,)):
            return False
    return True


def _memory(letter: str, x: torch.Tensor) -> torch.Tensor:
    """Allocate the memory for the values that a loop passes on."""
    return x if letter == "O" else torch.empty_like(x) if letter == "V" else x.clone()


@functools.cache
def _library(name: str, loops: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library of some loops, built or from the cache; None if it is not available."""
    source = _source(loops, dtype)
    return library.helper(
        f"{name}-loops", source, library.flags(), ("-lm",), ctypes.CDLL, "torch's operations on histories are used"
    )


def _source(loops: str, dtype: torch.dtype) -> str:
    """Return the C++ source of some loops."""
    folder = Path(__file__).parents[2] / "codegen"
    names = ("cpp_kernels.h", "cpp_vectors.h", "cpp_history.h")
    numbers, *vectors = [(folder / name).read_text(encoding="utf-8") for name in names]
    head = f"using real = {library.TYPES[str(dtype)[6:]]};"
    return "\n".join([head, numbers, "}  // namespace", *vectors, loops, ""])
