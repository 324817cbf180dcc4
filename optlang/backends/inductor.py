"""TorchInductor, through ``torch.compile``, for kernels that no other backend compiles."""

from __future__ import annotations

from optlang.artifact import Kernel
from optlang.backends.loading import jit, slow, toolchain
from optlang.backends.loading.signature import LoadedKernel, Signature


def accepts(kernel: Kernel, device: str) -> bool:
    """Return True unless the kernel works on stacks of matrices, which use torch's own operations."""
    return not kernel.matrices


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a compiled kernel, or None if compilation fails, which causes one warning.

    Args:
        kernel: The kernel.
        signature: The types it will be called with.
    """
    if signature.device == "cpu" and toolchain.compiler() is None:
        slow.warn(f"no C++ compiler was found, so rules run uncompiled, which is slower; {toolchain.advice()}")
        return None
    try:
        return jit.load(kernel, signature)
    except Exception as error:
        slow.warn(f"torch.compile failed for {kernel.name}, which runs uncompiled", error)
        return None
