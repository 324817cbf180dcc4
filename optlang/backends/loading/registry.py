"""The available backends, and the order in which they are tried.

A backend is a file in :mod:`optlang.backends` with two functions. ``accepts(kernel, device)`` returns whether it can
compute a kernel on a type of device. ``load(kernel, signature)`` returns the kernel for some types, or None if it fails
after all; then the next backend is tried, and a warning has been issued.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

from optlang.artifact import Kernel
from optlang.backends import files
from optlang.backends.loading.signature import LoadedKernel, Signature

#: The backends tried before eager, which accepts everything, by the name that users pass. Any other name means the
#: backend of that name.
CHAINS = {
    "auto": ("cpp", "triton", "inductor"),
    "cpp": ("cpp", "inductor"),
    "triton": ("triton", "inductor"),
    "eager": (),
}


class Backend(Protocol):
    """The interface of a backend."""

    def accepts(self, kernel: Kernel, device: str) -> bool:
        """Return whether the backend can compute a kernel."""

    def load(self, kernel: Kernel, signature: Signature) -> LoadedKernel | None:
        """Return a kernel for some types, or None if it fails."""


def names() -> list[str]:
    """Return the valid names, found from the file names of the backends, without importing them."""
    return sorted({*CHAINS, *files()})


def find(name: str) -> list[Backend]:
    """Return the backends for a name, in the order in which they are tried.

    Raises:
        ValueError: If the backend does not exist.
    """
    known = names()
    if name not in known:
        raise ValueError(f"there is no backend {name!r}; there are: {', '.join(known)}")
    chain = (*CHAINS.get(name, (name,)), "eager")
    found: list[Backend] = [importlib.import_module(f"optlang.backends.{each}") for each in chain]
    return found


def coded(backends: list[Backend], kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a kernel that takes quantized states directly, from the first backend that has one; otherwise None.

    Such a backend defines ``accepts_codes(kernel, signature)`` in addition to the usual interface.
    """
    for backend in backends:
        accepts = getattr(backend, "accepts_codes", None)
        if accepts is not None and backend.accepts(kernel, signature.device) and accepts(kernel, signature):
            found = backend.load(kernel, signature)
            if found is not None:
                return found
    return None


def loader(backends: list[Backend]) -> Callable[[Kernel, Signature], LoadedKernel]:
    """Return a function that loads a kernel from the first of some backends that has it."""

    def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
        for backend in backends:
            found = backend.load(kernel, signature) if backend.accepts(kernel, signature.device) else None
            if found is not None:
                return found
        raise AssertionError("the last backend takes everything")

    return load
