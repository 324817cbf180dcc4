"""Kernels that run the generated source directly, operation by operation."""

from __future__ import annotations

from typing import Any

from optlang.artifact import Kernel
from optlang.backends.loading.modules import load_module, source_for
from optlang.backends.loading.signature import LoadedKernel, Signature


def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Return the ``update`` function of a kernel, uncompiled."""
    update = load_module(source_for(kernel, signature), kernel.name)["update"]

    def run(tensors: list[Any]) -> None:
        update(*tensors)

    return LoadedKernel(run, "eager")
