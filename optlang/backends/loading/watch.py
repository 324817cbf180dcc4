"""Detects whether tensors have changed, for all of them at once: in C++, built against torch's headers.

It only makes steps faster. If it cannot be built, Python checks each tensor.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from optlang.backends.loading import library

_TORCH = os.path.dirname(torch.__file__)

#: Compiler options: torch's headers need C++20, and the C++ ABI must be that of torch's library.
FLAGS = (
    "-O2",
    "-std=c++20",
    "-shared",
    "-fPIC",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    f"-I{_TORCH}/include",
    f"-L{_TORCH}/lib",
)

#: Seconds to wait for the cached library.
PATIENCE = 0.1

#: Words at the start of every Python object: its reference count, and its type.
_HEAD = 2


class Watch:
    """Tensors that must not change, and parameters whose gradients must stay of the same kind.

    Args:
        parameters: The parameters; all have gradients.
        states: Other tensors.

    Attributes:
        addresses: The addresses of the gradients at the last check.
    """

    def __init__(self, functions: Any, parameters: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> None:
        self._tensors = [*parameters, *states]  # keeps their objects alive at their addresses
        self.addresses = array("q", bytes(8 * len(parameters)))
        objects = [array("q", map(id, tensors)) for tensors in (parameters, states)]
        where = [n for ids in objects for n in (len(ids), ids.buffer_info()[0])]
        self._watch = functions.optlang_watch(_offset(), *where)
        self._look = functions.optlang_look
        if self._watch is not None:
            weakref.finalize(self, functions.optlang_unwatch, self._watch)

    def look(self) -> bool:
        """Return whether nothing has changed; ``addresses`` are then those of the gradients."""
        return self._watch is not None and self._look(self._watch, self.addresses.buffer_info()[0]) == 1


def watch(parameters: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Watch | None:
    """Return a watch of ordinary tensors with memory; None if it is not available, or not yet."""
    if _LOADER.ident is None:
        _LOADER.start()
        _LOADER.join(PATIENCE)  # for a cached library; no step waits for a compile
    functions = None if _LOADER.is_alive() else ready()
    return None if functions is None or not _offset() else Watch(functions, parameters, states)


@functools.cache
def ready() -> Any:
    """Return the functions, built or from the cache; None if they are not available."""
    if sys.platform != "linux":
        return None
    source = (Path(__file__).parent.parent / "watch.cpp").read_text(encoding="utf-8")
    return library.helper("watch", source, FLAGS, ("-lc10",), _open, "each tensor is looked at from Python")


#: Loads the functions in the background; it ends with the process.
_LOADER = threading.Thread(target=ready, name="optlang-watch", daemon=True)


def _open(path: str) -> Any:
    functions = ctypes.PyDLL(path)  # it reads Python objects, so it must hold the GIL
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    functions.optlang_watch.argtypes = [count, count, pointer, count, pointer]
    functions.optlang_watch.restype = pointer
    functions.optlang_unwatch.argtypes = [pointer]
    functions.optlang_unwatch.restype = None
    functions.optlang_look.argtypes = [pointer, pointer]
    functions.optlang_look.restype = ctypes.c_int
    return functions


@functools.cache
def _offset() -> int:
    """Return the offset in bytes, in a tensor's Python object, of the pointer to its C++ object; 0 if unknown."""
    tensors = [torch.empty(0), torch.nn.Parameter(torch.empty(2, 3)), torch.empty(1)[0]]
    word = ctypes.sizeof(ctypes.c_void_p)
    words = range(_HEAD, torch.Tensor.__basicsize__ // word)
    places = [{i for i in words if ctypes.c_void_p.from_address(id(t) + i * word).value == t._cdata} for t in tensors]
    found = set.intersection(*places)
    return found.pop() * word if len(found) == 1 else 0
