"""C++ of our own on the CPU, for what is elementwise or reduces over whole tensors."""

from __future__ import annotations

from optlang.backends.loading import library, slow, toolchain
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature) -> Kernel | None:
    """Return a compiled ``update``, or None if there is none: a compiler that fails is said once, as a warning.

    Args:
        variant: The variant.
        signature: The types it will be called with.
    """
    if not library.accepts(variant, signature):
        return None
    try:
        found = library.load(variant, signature)
    except Exception:  # a library that this process cannot load is as good as none
        found = None
    if found is not None or toolchain.compiler() is None:
        return found
    try:
        return library.build(variant, signature)
    except Exception as error:
        slow.warn(f"{variant.name} could not be compiled to C++; TorchInductor is used", error)
        return None
