"""The default: what is fastest on a device. C++ of our own on the CPU, Triton on CUDA, TorchInductor for the rest."""

from __future__ import annotations

from optlang.backends import cpp, inductor
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature, *, ahead_of_time: bool | None = None) -> Kernel:
    """Return a compiled ``update``.

    Args:
        variant: The variant.
        signature: The types it will be called with.
        ahead_of_time: What TorchInductor is to do, which is asked for by this; None leaves the choice to the device.
    """
    if signature.device == "cpu" and ahead_of_time is None:
        return cpp.load(variant, signature)
    return inductor.load(variant, signature, ahead_of_time=ahead_of_time)
