"""C++ of our own on the CPU, for what is elementwise or reduces over whole tensors; TorchInductor for the rest."""

from __future__ import annotations

from optlang.backends import inductor
from optlang.backends.loading import library, slow, toolchain
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature) -> Kernel:
    """Return a compiled ``update``.

    Whatever fails is said once, as a warning, and TorchInductor is tried, which says what it does.

    Args:
        variant: The variant.
        signature: The types it will be called with.
    """
    if library.accepts(variant, signature):
        try:
            found = library.load(variant, signature)
        except Exception:  # a library that this process cannot load is as good as none
            found = None
        if found is not None:
            return found
        if toolchain.compiler() is not None:
            try:
                return library.build(variant, signature)
            except Exception as error:
                slow.warn(f"{variant.name} could not be compiled to C++; TorchInductor is used", error)
    return inductor.load(variant, signature)
