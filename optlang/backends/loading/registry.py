"""The backends there are, and which are asked in turn.

A backend is a file of :mod:`optlang.backends` with two functions. ``accepts(kernel, device)`` says whether it can do
what a kernel computes on a type of device. ``load(kernel, signature)`` returns the kernel for some types, or None if it
has none after all; then the next backend is asked, and what is slower has been said.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

from optlang.artifact import Kernel
from optlang.backends import files
from optlang.backends.loading.signature import LoadedKernel, Signature

#: The backends that are asked in turn before eager, which takes everything, by the name that is given. Any other name
#: stands for the backend of that name.
CHAINS = {
    "auto": ("cpp", "triton", "inductor"),
    "cpp": ("cpp", "inductor"),
    "triton": ("triton", "inductor"),
    "eager": (),
}


class Backend(Protocol):
    """What a backend defines."""

    def accepts(self, kernel: Kernel, device: str) -> bool:
        """Return whether it can do what a kernel computes."""

    def load(self, kernel: Kernel, signature: Signature) -> LoadedKernel | None:
        """Return a kernel for some types, None if there is none."""


def names() -> list[str]:
    """Return the names that may be given, found by the files of the backends, without importing them."""
    return sorted({*CHAINS, *files()})


def find(name: str) -> list[Backend]:
    """Return the backends that a name stands for, in the order in which they are asked.

    Raises:
        ValueError: If there is no such backend.
    """
    known = names()
    if name not in known:
        raise ValueError(f"there is no backend {name!r}; there are: {', '.join(known)}")
    chain = (*CHAINS.get(name, (name,)), "eager")
    found: list[Backend] = [importlib.import_module(f"optlang.backends.{each}") for each in chain]
    return found


def coded(backends: list[Backend], kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a kernel that takes states in codes as they are, by the first backend that has one; None if none has.

    Such a backend defines ``accepts_codes(kernel, signature)``, besides what every backend does.
    """
    for backend in backends:
        accepts = getattr(backend, "accepts_codes", None)
        if accepts is not None and backend.accepts(kernel, signature.device) and accepts(kernel, signature):
            found = backend.load(kernel, signature)
            if found is not None:
                return found
    return None


def loader(backends: list[Backend]) -> Callable[[Kernel, Signature], LoadedKernel]:
    """Return a function that loads kernels, by the first of some backends that has one."""

    def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
        for backend in backends:
            found = backend.load(kernel, signature) if backend.accepts(kernel, signature.device) else None
            if found is not None:
                return found
        raise AssertionError("the last backend takes everything")

    return load
