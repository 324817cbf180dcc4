"""Kernels that are the generated source itself, run operation by operation."""

from __future__ import annotations

from typing import Any

from optlang.backends.loading.modules import load_module, source_for
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant


def load(variant: Variant, signature: Signature) -> Kernel:
    """Return the ``update`` of a variant as a kernel."""
    update = load_module(source_for(variant, signature), variant.name)["update"]

    def run(tensors: list[Any]) -> None:
        update(*tensors)

    return Kernel(run, "eager")
