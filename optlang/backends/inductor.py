"""TorchInductor, through ``torch.compile``; on CUDA, Triton kernels of our own where there are any.

These are for variants that are elementwise or reduce over whole tensors, in few launches for all parameters.
"""

from __future__ import annotations

from optlang.backends.loading import jit, launch, plain, slow, toolchain
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature) -> Kernel:
    """Return a compiled ``update``.

    Whatever fails is said once, as a warning, and the next best way is taken: Triton on CUDA, ``torch.compile``, eager.

    Args:
        variant: The variant.
        signature: The types it will be called with.
    """
    if signature.device == "cpu" and toolchain.compiler() is None:
        slow.warn(f"no C++ compiler was found, so rules run uncompiled, which is slower; {toolchain.advice()}")
        return plain.load(variant, signature)
    if launch.is_available(variant, signature):
        try:
            return launch.load(variant, signature)
        except Exception as error:
            slow.warn(f"Triton could not compile {variant.name}; torch.compile is used", error)
    try:
        return jit.load(variant, signature)
    except Exception as error:
        slow.warn(f"torch.compile failed for {variant.name}, which runs uncompiled", error)
        return plain.load(variant, signature)
