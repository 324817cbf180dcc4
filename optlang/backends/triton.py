"""Generated Triton kernels on CUDA, in few launches for all parameters."""

from __future__ import annotations

import importlib.util

from optlang.artifact import Kernel, Locality
from optlang.backends.loading import launch, slow
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.storage.blocks import largest_block


def accepts(kernel: Kernel, device: str) -> bool:
    """Return whether a kernel is elementwise or reduces over whole tensors, is for a GPU, and Triton is installed."""
    suits = kernel.locality in (Locality.ELEMENTS, Locality.SWEEPS)
    return suits and device == "cuda" and importlib.util.find_spec("triton") is not None


def accepts_codes(kernel: Kernel, signature: Signature) -> bool:
    """Return whether a kernel takes quantized states directly: a program instance needs whole blocks."""
    largest = largest_block(format for _, format in signature.coded)
    return signature.coefficient_dtype == "float32" and largest <= launch.BLOCK


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a compiled kernel, or None if Triton fails, which causes one warning.

    Args:
        kernel: The kernel.
        signature: The types it will be called with.
    """
    try:
        return launch.load(kernel, signature)
    except Exception as error:
        slow.warn(f"Triton could not compile {kernel.name}; torch.compile is used", error)
        return None
