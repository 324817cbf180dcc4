"""C++ of our own on the CPU, for what is elementwise or reduces over whole tensors or dimensions."""

from __future__ import annotations

import sys

from optlang.artifact import Kernel
from optlang.backends.loading import library, slow, toolchain
from optlang.backends.loading.signature import LoadedKernel, Signature


def accepts(kernel: Kernel, device: str) -> bool:
    """Return whether a kernel can be written in C++, and compiled: options are those of compilers on Linux."""
    return sys.platform == "linux" and device == "cpu" and bool(kernel.text("cpp_source"))


def accepts_codes(kernel: Kernel, signature: Signature) -> bool:
    """Return whether a kernel takes states in codes as they are: by blocks, so where nothing is about dimensions."""
    return kernel.layout.flat and signature.coefficient_dtype == "float32"


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a compiled kernel, or None if there is none: a compiler that fails is said once, as a warning.

    Args:
        kernel: The kernel.
        signature: The types it will be called with.
    """
    if not set(library.TYPES).issuperset(signature.dtypes):
        return None
    try:
        found = library.load(kernel, signature)
    except Exception:  # a library that this process cannot load is as good as none
        found = None
    if found is not None or toolchain.compiler() is None:
        return found
    try:
        return library.build(kernel, signature)
    except Exception as error:
        slow.warn(f"{kernel.name} could not be compiled to C++; TorchInductor is used", error)
        return None
