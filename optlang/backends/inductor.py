"""The compiling backend: TorchInductor, ahead of time on CPU and through ``torch.compile`` elsewhere.

On CUDA, variants that are elementwise or reduce over whole tensors are compiled by Triton alone, to few launches for
all parameters.
"""

from __future__ import annotations

import torch

from optlang.backends.loading import aot, jit, launch, plain, shell, slow, toolchain
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature, *, ahead_of_time: bool | None = None) -> Kernel:
    """Return a compiled ``update``.

    Whatever fails is said once, as a warning, and the next best way is taken: ahead of time on CPU or Triton on CUDA,
    ``torch.compile``, eager.

    Args:
        variant: The variant.
        signature: The types it will be called with.
        ahead_of_time: Whether to build a library that is kept (on CPU); None decides by device.
    """
    on_cpu = signature.device == "cpu"
    if ahead_of_time and not on_cpu:
        slow.warn(f"kernels for {signature.device} are not built ahead of time; torch.compile is used")
    if on_cpu and ahead_of_time is not False and not shell.is_tried():
        slow.warn(
            f"optlang has not been tried with torch {torch.__version__}, so rules are compiled by torch.compile, "
            f"which has slower steps; tried are {', '.join(shell.TRIED)}"
        )
    elif on_cpu and ahead_of_time is not False:
        kernel = _ahead_of_time(variant, signature)
        if kernel is not None:
            return kernel
    if on_cpu and toolchain.compiler() is None:
        slow.warn(f"no C++ compiler was found, so rules run uncompiled, which is slower; {toolchain.advice()}")
        return plain.load(variant, signature)
    if not on_cpu and launch.is_available(variant, signature):
        try:
            return launch.load(variant, signature)
        except Exception as error:
            slow.warn(f"Triton could not compile {variant.name}; torch.compile is used", error)
    try:
        return jit.load(variant, signature)
    except Exception as error:
        slow.warn(f"torch.compile failed for {variant.name}, which runs uncompiled", error)
        return plain.load(variant, signature)


def _ahead_of_time(variant: Variant, signature: Signature) -> Kernel | None:
    """Return the library's kernel, from the cache or built, or None if neither is to be had."""
    try:
        kernel = aot.load(variant, signature)
    except Exception:  # a library that this process cannot load is as good as none
        kernel = None
    if kernel is not None or toolchain.compiler() is None:
        return kernel
    try:
        return aot.build(variant, signature)
    except Exception as error:
        slow.warn(f"{variant.name} could not be compiled ahead of time; torch.compile is used", error)
        return None
