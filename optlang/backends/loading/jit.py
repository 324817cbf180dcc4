"""Kernels through ``torch.compile``, for devices and platforms without ahead-of-time kernels."""

from __future__ import annotations

from typing import Any

import torch

from optlang.artifact import Kernel
from optlang.backends.loading import slow, toolchain
from optlang.backends.loading.modules import load_module, source_for
from optlang.backends.loading.signature import LoadedKernel, Signature


def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Return the ``update`` function of a kernel through ``torch.compile``, once for all sizes.

    Dynamo always specializes on sizes of 1, so tensors are distinguished by which sizes are 1; a tensor with a single
    element is not worth a separate graph.
    """
    source = source_for(kernel, signature)
    plain = load_module(source, kernel.name)["update"]
    options: dict[str, Any] = {"emulate_precision_casts": True}  # keep the roundings in the source
    if signature.device == "cpu":
        options |= toolchain.PARALLEL
    compiled: dict[tuple[bool, ...], Any] = {}

    def run(tensors: list[torch.Tensor]) -> None:
        shape = tensors[0].shape
        if len(shape) == 1 and shape[0] < 2:
            plain(*tensors)
            return
        ones = tuple(n == 1 for n in shape)
        update = compiled.get(ones)
        # A view refers to its base, whose shape becomes a guard of the graph; a detached alias has no base.
        tensors = [tensor.data for tensor in tensors]
        if update is not None:
            update(*tensors)
            return
        fresh = load_module(source, f"{kernel.name} {''.join('01'[one] for one in ones)}")["update"]
        made: Any = torch.compile(fresh, dynamic=True, fullgraph=True, options=options)
        _mark(tensors, signature)
        try:
            with toolchain.plain_paths():
                made(*tensors)
        except Exception as error:  # nothing has been computed yet, so the error is the compiler's
            slow.warn(f"torch.compile failed for {kernel.name}, which runs uncompiled", error)
            made = plain
            made(*tensors)
        compiled[ones] = made

    return LoadedKernel(run, "jit")


def _mark(tensors: list[torch.Tensor], signature: Signature) -> None:
    """Mark, on the first call, the sizes that will change as dynamic."""
    for tensor, dims in zip(tensors, signature.dims, strict=False):
        for k, i in enumerate(dims):
            if i is not None and tensor.shape[k] > 1:
                torch._dynamo.mark_dynamic(tensor, k)
