"""Whether tensors are as they were, for all of them at once: in C++, built against torch's headers.

Only the time of a step rests on it. Where it cannot be built, Python looks at each tensor.
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

#: How it is compiled: torch's headers need C++20, and its types are those of the library that defines them.
FLAGS = (
    "-O2",
    "-std=c++20",
    "-shared",
    "-fPIC",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    f"-I{_TORCH}/include",
    f"-L{_TORCH}/lib",
)

#: Seconds that are waited for what is in the cache.
PATIENCE = 0.1

#: Words at the start of every Python object: its references, and its type.
_HEAD = 2


class Watch:
    """Tensors that are to stay as they are, parameters that are to have gradients of the kind that they have.

    Args:
        parameters: The parameters; all have gradients.
        states: Other tensors.

    Attributes:
        addresses: Where the gradients lay when somebody last looked.
    """

    def __init__(self, functions: Any, parameters: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> None:
        self._tensors = [*parameters, *states]  # their objects have to stay where they are
        self.addresses = array("q", bytes(8 * len(parameters)))
        objects = [array("q", map(id, tensors)) for tensors in (parameters, states)]
        where = [n for ids in objects for n in (len(ids), ids.buffer_info()[0])]
        self._watch = functions.optlang_watch(_offset(), *where)
        self._look = functions.optlang_look
        if self._watch is not None:
            weakref.finalize(self, functions.optlang_unwatch, self._watch)

    def look(self) -> bool:
        """Return whether everything is as it was; ``addresses`` are those of the gradients then."""
        return self._watch is not None and self._look(self._watch, self.addresses.buffer_info()[0]) == 1


def watch(parameters: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Watch | None:
    """Return a watch of tensors with elements in memory, of no special kind; None where there is none, or none yet."""
    if _LOADER.ident is None:
        _LOADER.start()
        _LOADER.join(PATIENCE)  # for what is in the cache; no step waits for what has to be compiled
    functions = None if _LOADER.is_alive() else ready()
    return None if functions is None or not _offset() else Watch(functions, parameters, states)


@functools.cache
def ready() -> Any:
    """Return the functions, built or from the cache; None if there is no way to have them."""
    if sys.platform != "linux":
        return None
    source = (Path(__file__).parent.parent / "watch.cpp").read_text(encoding="utf-8")
    return library.helper("watch", source, FLAGS, ("-lc10",), _open, "each tensor is looked at from Python")


#: Has the functions ready, beside what else is done; it ends with the process.
_LOADER = threading.Thread(target=ready, name="optlang-watch", daemon=True)


def _open(path: str) -> Any:
    functions = ctypes.PyDLL(path)  # it reads Python's objects, so that no other thread may run
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
    """Return where in a tensor's Python object the address of its C++ object is, in bytes; 0 if that is not clear."""
    tensors = [torch.empty(0), torch.nn.Parameter(torch.empty(2, 3)), torch.empty(1)[0]]
    word = ctypes.sizeof(ctypes.c_void_p)
    words = range(_HEAD, torch.Tensor.__basicsize__ // word)
    places = [{i for i in words if ctypes.c_void_p.from_address(id(t) + i * word).value == t._cdata} for t in tensors]
    found = set.intersection(*places)
    return found.pop() * word if len(found) == 1 else 0
