"""The backend that compiles nothing: the generated source runs operation by operation."""

from __future__ import annotations

from optlang.artifact import Kernel
from optlang.backends.loading import plain
from optlang.backends.loading.signature import LoadedKernel, Signature


def accepts(kernel: Kernel, device: str) -> bool:
    """Return True: this backend takes any kernel, on any device."""
    return True


def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Return the ``update`` function of a kernel.

    Args:
        kernel: The kernel.
        signature: The types it will be called with; they choose between its two sources.
    """
    return plain.load(kernel, signature)
