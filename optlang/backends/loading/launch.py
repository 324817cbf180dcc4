"""Triton kernels that update the tensors of many parameters in few launches, through tables of addresses.

The tables are stored on the device and stay valid while the tensors do. Gradients may have new addresses in every step,
so they have a separate table, and only this one is rewritten.

Verified without a GPU: in Triton's interpreter, every rule of the library that uses this backend takes the same steps
as the eager backend, except MADGRAD and Adai, because the interpreter lacks ``libdevice.pow``. All of them compile for
an H100 with vectorized accesses and, except for some in float64, spill at most a few bytes. On an H100 with torch 2.11,
the rules of the library take the same steps as on the CPU, and replaying a CUDA graph works. Several devices have not
been tested.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from optlang.artifact import Kernel, Storage
from optlang.backends.loading.modules import load_module
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.storage.blocks import Blocks, largest_block, rows_of

#: Elements that one program instance updates per iteration, and in total.
BLOCK, CHUNK = 1024, 8192

#: Bytes that a vectorized access moves: addresses must be divisible by it.
ALIGNMENT = 16

#: The maximum number of tables per kernel, one for each set of tensors (a large model has many chunks in every step).
KEPT = 2048

#: Compiler options. Products and sums are not fused, so that a step gives the same result as on other backends.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


def interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def queued(held: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device; a copy to a GPU is queued, so no step waits for earlier ones."""
    return (held.pin_memory() if device.type == "cuda" else held).to(device, non_blocking=True)


def load(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Return a kernel for many parameters, compiled for the current device.

    Raises:
        Exception: Any error of Triton's, if it cannot compile the kernels.
    """
    text = kernel.text("triton_source", *([signature.coded] if signature.coded else []))
    names = load_module(text, f"{kernel.name} for Triton")
    storage = kernel.storage
    scalars = [i for i, name in enumerate(kernel.tensors) if storage.get(name) is Storage.SCALAR]
    launch = Launch(names, signature, scalars)
    if not interpreted():
        launch.compile()
    return LoadedKernel(launch.run, "triton", many=True, coded=bool(signature.coded))


class Launch:
    """Kernels with the tables of the tensors they have been run on.

    Args:
        names: The globals of the generated module.
        signature: The types it is for.
        scalars: Indices of the single-number tensors, which are never accessed as vectors.
    """

    def __init__(self, names: dict[str, Any], signature: Signature, scalars: Sequence[int] = ()) -> None:
        self.launches, self.sums, self.signature = names["LAUNCHES"], names["SUMS"], signature
        own = len(signature.dtypes)
        self.count = own + len(signature.coded)
        self.wide = [i - (i > 1) for i in range(own) if i != 1 and i not in scalars]  # the gradient is separate
        paired = (i for i, (_, each) in enumerate(signature.coded) if each.pairs and not each.alone)
        self.wide += [own - 1 + i for i in paired]
        formats = dict(signature.coded)
        types = {f"type_{i}": formats[i].held[0] if i in formats else d for i, d in enumerate(signature.dtypes)}
        types |= {f"more_{i}": each.held[1] for i, (_, each) in enumerate(signature.coded) if not each.alone}
        self.options = {name: getattr(names["tl"], d) for name, d in types.items()} | OPTIONS
        self.options |= {"chunk": CHUNK, "block": BLOCK}
        self.unit, self.draws = largest_block(formats.values()), any(each.draws for each in formats.values())
        self.shaped = next((i for i, each in formats.items() if isinstance(each, Blocks)), 0)
        self.tables: dict[tuple[Any, ...], AddressTable] = {}
        self.captured: list[AddressTable] = []  # CUDA graphs read them in every replay

    def compile(self) -> None:
        """Compile the kernels without running them."""
        device, real = torch.device(self.signature.device), getattr(torch, self.signature.coefficient_dtype)
        dtypes = [torch.int32, torch.int64, torch.int64, real, *([torch.float64, real] if self.sums else [])]
        dtypes += [torch.int64] if self.draws else []
        tensors = [torch.empty(1, dtype=dtype, device=device) for dtype in dtypes]
        for _, kernel in self.launches:
            kernel.warmup(*tensors, grid=(1,), **self.options)

    def run(self, given: Sequence[Any]) -> None:
        """Update parameters.

        Args:
            given: The tensors of each parameter in turn, with the companions of its quantized tensors after them; then
                the coefficients. If a format draws random numbers, then their keys: integers for each parameter, and
                what differs from step to step, as a number or a 0-d tensor.
        """
        *tensors, numbers, keys, draw = given if self.draws else (*given, (), 0)
        with torch.cuda.device_of(tensors[0]):
            table = self.table(tensors, keys)
            arguments = [table.places, table.rows, table.gradients, numbers]
            if self.sums:  # partial reductions by chunk, and the reductions by tensor
                arguments.append(numbers.new_empty(table.chunks * self.sums, dtype=torch.float64))
                arguments.append(numbers.new_empty(table.count * self.sums))
            if self.draws:
                on_device = isinstance(draw, torch.Tensor)
                arguments.append(draw if on_device else queued(torch.tensor([draw], device="cpu"), table.device))
            for each, kernel in self.launches:
                kernel[(table.chunks if each == "chunks" else table.count,)](*arguments, **self.options)

    def table(self, tensors: Sequence[torch.Tensor], keys: Sequence[Sequence[int]] = ()) -> AddressTable:
        """Return the table of these tensors, created or updated on the current stream."""
        device, count = tensors[0].device, self.count
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        gradients = addresses[1::count]
        sizes = list(map(torch.Tensor.numel, tensors[::count]))
        del addresses[1::count]
        columns = [rows_of(t.shape)[1] for t in tensors[self.shaped :: count]] if self.unit else []
        on_gpu = device.type == "cuda"
        if on_gpu and torch.cuda.is_current_stream_capturing():
            self.captured.append(AddressTable(addresses, sizes, gradients, device, self.wide, columns, self.unit, keys))
            return self.captured[-1]
        # Another stream does not wait for a table that this one is still writing.
        stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
        key = (device, stream, *sizes, *addresses, *columns, *(number for row in keys for number in row))
        found = self.tables.pop(key, None)
        if found is None:
            while len(self.tables) >= KEPT:
                del self.tables[next(iter(self.tables))]
            found = AddressTable(addresses, sizes, gradients, device, self.wide, columns, self.unit, keys)
        elif found.pointers != gradients:
            found.point(gradients)
        self.tables[key] = found  # evicted last
        return found


class AddressTable:
    """The addresses of some parameters' tensors, on the device.

    Args:
        addresses: The addresses of each parameter's tensors, without the gradient.
        sizes: The number of elements of each parameter.
        gradients: The addresses of the gradients.
        device: The device.
        wide: Indices, among a parameter's addresses, of those that may be accessed as vectors.
        columns: The number of elements in a row of each tensor, if some are quantized in blocks; empty otherwise.
        unit: The size of the largest block.
        keys: The random-number keys of each parameter; empty if none are drawn.

    Attributes:
        places: Two int32 for each chunk: the index of its parameter, and its index within that parameter.
        rows: For each parameter: its size, the number of chunks before its own, the addresses of its tensors except the
            gradient, with blocks its columns and its size with all rows padded to whole blocks, and its random-number
            keys.
        gradients: For each parameter: the number of elements in whole blocks that may be accessed as vectors, and the
            gradient.
        pointers: The addresses of the gradients.
        chunks: The number of chunks.
        count: The number of parameters.
    """

    def __init__(
        self,
        addresses: Sequence[int],
        sizes: Sequence[int],
        gradients: list[int],
        device: torch.device,
        wide: Sequence[int],
        columns: Sequence[int] = (),
        unit: int = 0,
        keys: Sequence[Sequence[int]] = (),
    ) -> None:
        self.count = count = len(sizes)
        size = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        held = torch.tensor(addresses, dtype=torch.int64, device="cpu").view(count, -1)
        self.device = device
        self._sources: list[torch.Tensor] = []  # a CUDA graph copies from them in every replay
        sound, extent, lengths = (held[:, wide] % ALIGNMENT == 0).all(dim=1), size, []
        if columns:
            column = torch.tensor(columns, dtype=torch.int64, device="cpu")
            extent = size // column * ((column + unit - 1) // unit * unit)
            sound &= (column % unit == 0) | (column == size)  # so that rows begin at block boundaries
            lengths = [column[:, None], extent[:, None]]
        if keys:
            lengths.append(torch.tensor([list(row) for row in keys], dtype=torch.int64, device="cpu"))
        self._whole = torch.where(sound, size // BLOCK * BLOCK, 0)
        chunks = (extent + CHUNK - 1) // CHUNK
        self.chunks = int(chunks.sum())
        parameter = torch.arange(count, device="cpu").repeat_interleave(chunks)
        before = chunks.cumsum(0) - chunks
        chunk = torch.arange(self.chunks, device="cpu") - before[parameter]
        self.places = self._upload(torch.stack([parameter, chunk], dim=1).to(torch.int32))
        self.rows = self._upload(torch.cat([size[:, None], before[:, None], held, *lengths], dim=1))
        self.gradients = torch.empty((count, 2), dtype=torch.int64, device=device)
        self.point(gradients)

    def point(self, gradients: list[int]) -> None:
        """Write the addresses of the gradients."""
        self.pointers = gradients
        pointers = torch.tensor(gradients, dtype=torch.int64, device="cpu")
        whole = torch.where(pointers % ALIGNMENT == 0, self._whole, 0)
        del self._sources[2:]
        self.gradients.copy_(self._staged(torch.stack([whole, pointers], dim=1)), non_blocking=True)

    def _upload(self, table: torch.Tensor) -> torch.Tensor:
        return self._staged(table).to(self.device, non_blocking=True, copy=True)

    def _staged(self, table: torch.Tensor) -> torch.Tensor:
        """Return a table in memory for an asynchronous copy; torch reuses the memory only when the copy is done."""
        self._sources.append(table.pin_memory() if self.device.type == "cuda" else table)
        return self._sources[-1]
