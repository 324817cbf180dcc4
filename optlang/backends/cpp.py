"""Generated C++ on the CPU, for kernels that are elementwise or reduce over whole tensors or dimensions."""

from __future__ import annotations

import sys

from optlang.artifact import Kernel
from optlang.backends.loading import library, slow, toolchain
from optlang.backends.loading.signature import LoadedKernel, Signature


def accepts(kernel: Kernel, device: str) -> bool:
    """Return whether a kernel can be generated in C++ and compiled; the compiler options are those used on Linux."""
    return sys.platform == "linux" and device == "cpu" and bool(kernel.text("cpp_source"))


def accepts_codes(kernel: Kernel, signature: Signature) -> bool:
    """Return whether a kernel takes quantized states directly: in blocks, so it must not depend on dimensions."""
    return kernel.layout.flat and signature.coefficient_dtype == "float32"


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a compiled kernel, or None if there is none; a failing compiler causes one warning.

    Args:
        kernel: The kernel.
        signature: The types it will be called with.
    """
    if not set(library.TYPES).issuperset(signature.dtypes):
        return None
    try:
        found = library.load(kernel, signature)
    except Exception:  # e.g. a library that this process cannot load
        found = None
    if found is not None or toolchain.compiler() is None:
        return found
    try:
        return library.build(kernel, signature)
    except Exception as error:
        slow.warn(f"{kernel.name} could not be compiled to C++; TorchInductor is used", error)
        return None
