"""TorchInductor, through ``torch.compile``: whatever there are no kernels of our own for."""

from __future__ import annotations

from optlang.artifact import Kernel
from optlang.backends.loading import jit, slow, toolchain
from optlang.backends.loading.signature import LoadedKernel, Signature


def accepts(kernel: Kernel, device: str) -> bool:
    """Return True: TorchInductor takes whatever torch does, but for stacks of matrices, which are torch's own calls."""
    return not kernel.matrices


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a compiled kernel, or None where nothing can be compiled, which is said once, as a warning.

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
