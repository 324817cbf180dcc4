"""The backend that compiles nothing: the generated source runs as it is, operation by operation."""

from __future__ import annotations

from optlang.backends.loading import plain
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature) -> Kernel:
    """Return the ``update`` of a variant as a kernel.

    Args:
        variant: The variant.
        signature: The types it will be called with; they choose between its two sources.
    """
    return plain.load(variant, signature)
