"""One kernel call over the tensors of many parameters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from optlang.artifact import Kernel, Storage, Variant
from optlang.backends.loading.launch import queued
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.runtime.kernels import KernelModule, VariantCache
from optlang.runtime.records import ParameterState
from optlang.runtime.tensors import arithmetic, fakes_of, overlapping, real_name, resolved, viewed
from optlang.storage.blocks import rows_of
from optlang.storage.coded import Coded

if TYPE_CHECKING:
    from optlang.storage.coded import Key

_pointer = torch.Tensor.data_ptr


class Operand:
    """The tensors of one parameter as a kernel takes them.

    Args:
        record: The parameter and its state.
        kernel: The kernel.
        handed: The values that stages pass on for this parameter.

    Attributes:
        views: Views of the tensors in ``Kernel.tensors``; None for the gradient, and for a parameter that is copied.
        coded: For each quantized tensor: its index in ``views``, the format, the scales, and the key of its random
            numbers.
    """

    __slots__ = ("coded", "kernel", "record", "views")

    def __init__(self, record: ParameterState, kernel: Kernel, handed: Mapping[Any, torch.Tensor]) -> None:
        self.record, self.kernel = record, kernel
        self.views: list[Any] = [None if record.copied else self.view(record.parameter), None]
        self.coded: list[tuple[int, Coded, torch.Tensor, int]] = []
        if "p" in record.coded:
            self.coded.append((0, *record.coded["p"], record.drawn_by("p")))
        for place, name in enumerate(kernel.tensors[2:], 2):
            tensor = handed[name] if name in handed else record.tensors[name]
            if name in record.coded and name not in handed:
                self.coded.append((place, *record.coded[name], record.drawn_by(name)))
                self.views.append(tensor.detach())
                continue
            scalar = kernel.storage[name] is Storage.SCALAR
            self.views.append(tensor.detach().view(1) if scalar else self.view(tensor))

    def view(self, t: torch.Tensor) -> torch.Tensor:
        """Return a tensor viewed like the parameter."""
        return t.detach() if self.record.whole else viewed(t, self.kernel.layout)

    @property
    def takes_codes(self) -> bool:
        """Whether a kernel for quantized states takes these tensors: its random numbers need consecutive indices."""
        return not self.record.copied and (not self.record.draws or self.first is not None)

    @property
    def first(self) -> int | None:
        """Index of the first element in the whole tensor, if the others follow it in order."""
        record = self.record
        if record.places.start and not record.parameter.is_contiguous():
            return None
        return record.places.first(record.shape)

    def arguments(self, coded: bool) -> list[Any]:
        """Return the kernel's arguments for a parameter; a kernel for quantized states also takes their companions."""
        return [*self.views, *(second for _, _, second, _ in self.coded)] if coded else self.views

    def keys(self) -> list[int]:
        """Return the random-number key, apart from the step, of each quantized tensor whose format draws."""
        return [key for _, format, _, key in self.coded if format.draws]

    def copied_in(self, g: torch.Tensor, coefficients: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Return a contiguous copy of the parameter, and the kernel's arguments with that copy."""
        p = self.record.parameter.detach()
        copy = (self.record.uncoded("p") if "p" in self.record.coded else resolved(p)).contiguous()
        return copy, [self.view(copy), self.view(g), *self.numbers()[2:], coefficients]

    def numbers(self) -> list[Any]:
        """Return the views, with quantized tensors dequantized."""
        views = list(self.views)
        for place, *_ in self.coded:
            if place or not self.record.copied:
                views[place] = self.view(self.record.uncoded(self.kernel.tensors[place]))
        return views

    def keep(self, numbers: Sequence[torch.Tensor], draw: Key) -> None:
        """Quantize and store the values that a kernel has computed for quantized tensors."""
        for place, *_ in self.coded:
            name = self.kernel.tensors[place]
            if name in self.kernel.written and (place or not self.record.copied):
                self.record.keep(name, self._as_parameter(numbers[place]), draw)

    def _as_parameter(self, view: torch.Tensor) -> torch.Tensor:
        """Return a view of numbers, which are in the parameter's memory order, in the parameter's shape."""
        p = self.record.parameter
        return (
            view.reshape(p.shape) if p.is_contiguous() or self.record.copied else view.as_strided(p.shape, p.stride())
        )

    def copy_out(self, copy: torch.Tensor, draw: Key) -> None:
        """Copy the result back into the parameter."""
        if "p" in self.kernel.written and "p" in self.record.coded:
            self.record.keep("p", copy, draw)
        elif "p" in self.kernel.written:
            self.record.parameter.detach().copy_(copy)

    def signature(self, dims: Sequence[Any], coefficients: int) -> Signature:
        """Return the types of the kernel's arguments."""
        record = self.record
        dtypes = [record.dtype, record.gradient_dtype, *(view.dtype for view in self.views[2:])]
        for place, *_ in self.coded:
            dtypes[place] = arithmetic(record.parameter)
        device = record.parameter.device.type
        return Signature(tuple(map(real_name, dtypes)), tuple(dims), device, max(1, coefficients))

    def in_codes(self, signature: Signature) -> Signature:
        """Return the signature for states that stay quantized."""
        return replace(signature, coded=tuple((place, format) for place, format, *_ in self.coded))


class Addresses:
    """The addresses of some parameters' tensors, for kernels that need nothing else.

    Args:
        operands: The parameters.
    """

    def __init__(self, operands: Sequence[Operand]) -> None:
        self.count = len(operands)
        self.stride = len(operands[0].views) + len(operands[0].coded)
        self.sizes, self.places = array("q"), array("q")
        for operand in operands:
            self.sizes.extend(operand.views[0].shape)
            self.places.extend(0 if view is None else view.data_ptr() for view in operand.views)
            if operand.coded:
                self.sizes.extend((rows_of(operand.record.shape)[1], operand.first or 0))
                self.sizes.extend(key for *_, key in operand.coded)
                self.places.extend(scales.data_ptr() for _, _, scales, _ in operand.coded)
        self.fixed = self.count, self.sizes.buffer_info()[0], self.places.buffer_info()[0]

    def of(self, gradients: Iterable[int]) -> tuple[int, int, int]:
        """Return the number of parameters, and the addresses of the arrays of sizes and addresses."""
        self.places[1 :: self.stride] = array("q", gradients)
        return self.fixed


class KernelCall:
    """A kernel with the tensors of the parameters that it runs on.

    Args:
        prepared: The kernel.
        records: The parameters.
        handed: The tensors that stages pass on, by name: one for each parameter.

    Attributes:
        operands: The tensors of each parameter.
        loaded: The kernel for their types, once it has been requested.
        draw: The random-number key of this step, apart from element indices.
        moved: How many parameters a step has begun to update and not yet counted; those that are copied come first.
        by_rows: Whether the kernel runs on dequantized rows of the tensors.
    """

    __slots__ = (
        "_addresses",
        "_coefficients",
        "_direct",
        "_keys",
        "_packed",
        "by_rows",
        "draw",
        "loaded",
        "moved",
        "operands",
        "prepared",
        "signature",
    )

    def __init__(
        self, prepared: KernelModule, records: Sequence[ParameterState], handed: Mapping[Any, Sequence[torch.Tensor]]
    ) -> None:
        self.prepared = prepared
        own = {name: handed[name] for name in prepared.kernel.tensors if name in handed}
        self.operands = [
            Operand(record, prepared.kernel, {name: tensors[i] for name, tensors in own.items()})
            for i, record in enumerate(records)
        ]
        self.loaded: LoadedKernel | None = None
        self.signature: Signature | None = None
        self.moved, self.by_rows = 0, False
        self.draw: Key = 0
        self._coefficients: tuple[array[float], torch.Tensor] | None = None
        self._direct: list[int] | None = None  # those that are neither empty nor copied
        self._packed: list[Any] | None = None
        self._keys: list[tuple[int, ...]] | None = None  # random-number keys of the operands that the kernel runs on
        self._addresses: Addresses | None = None

    def see_to(
        self, kernels: VariantCache, coefficients: int, owner: Variant, loaded: LoadedKernel | None = None
    ) -> None:
        """Find the kernel for the operands' types, compiling it if necessary; a known kernel may be passed."""
        if self.loaded is None:
            first = self.operands[0]
            dims = self.prepared.dims(first.record.facts.ndim)
            self.signature = first.signature(dims, coefficients)
            ordinary = first.record.ordinary
            kernel = self.prepared.kernel
            if first.coded:  # a known kernel may be for tensors that are not quantized, or vice versa
                suits = ordinary and not self.by_rows and all(operand.takes_codes for operand in self.operands)
                suits = suits and not overlapping([operand.record.parameter for operand in self.operands])
                loaded = kernels.coded(kernel, first.in_codes(self.signature), owner) if suits else None
            self.loaded = loaded or kernels.kernel(kernel, self.signature, owner, ordinary)

    @property
    def _decodes(self) -> bool:
        """Whether states are quantized and the kernel takes dequantized values."""
        return bool(self.operands[0].coded) and self.loaded is not None and not self.loaded.coded

    @property
    def many(self) -> bool:
        """Whether gradients may have other shapes, because only their addresses are read."""
        assert self.loaded is not None
        return self.loaded.many and not self._decodes

    def view(self, gradients: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return gradients as the kernel takes them."""
        if self.many:
            return gradients
        return [operand.view(g) for operand, g in zip(self.operands, gradients, strict=True)]

    def rehearse(self, gradients: Sequence[torch.Tensor], coefficients: torch.Tensor) -> None:
        """Run a kernel that compiles on its first call on copies of one parameter's tensors."""
        (operand,), (g,), loaded = self.operands, gradients, self.loaded
        record = operand.record
        if loaded is not None and loaded.origin == "jit" and record.facts.numel:
            views = operand.numbers() if self._decodes else operand.views
            copies = [None if view is None else view.clone() for view in views]
            copies[0] = operand.view(record.fitting(record.parameter)).clone() if copies[0] is None else copies[0]
            copies[1] = g
            loaded.run([*copies, coefficients])

    def packed(self, coefficients: Sequence[float]) -> torch.Tensor:
        """Return the coefficients as the kernel takes them."""
        signature, first = self.signature, self.operands[0].record
        assert signature is not None
        device = first.parameter.device
        coefficients = coefficients or (0.0,)
        if not first.ordinary:
            with fakes_of(first.parameter):
                dtype = getattr(torch, signature.coefficient_dtype)
                return torch.tensor(coefficients, dtype=dtype, device="cpu").to(device)
        if device.type != "cpu":
            packed = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
            return queued(packed.to(getattr(torch, signature.coefficient_dtype)), device)
        if self._coefficients is None:  # in memory that each step overwrites
            numbers = array("d" if signature.coefficient_dtype == "float64" else "f", coefficients)
            tensor = torch.frombuffer(numbers, dtype=getattr(torch, signature.coefficient_dtype))
            self._coefficients = (numbers, tensor)
        numbers, tensor = self._coefficients
        numbers[:] = array(numbers.typecode, coefficients)
        return tensor

    def run(
        self, gradients: Sequence[torch.Tensor], coefficients: torch.Tensor, addresses: Iterable[int] | None = None
    ) -> None:
        """Run the kernel on every operand.

        Args:
            gradients: The gradients, as the kernel takes them.
            coefficients: The coefficients, packed.
            addresses: The addresses of the gradients, if already known.

        Nothing can interrupt Python between an update of ``moved`` and the call that follows it.
        """
        kernel, operands = self.loaded, self.operands
        assert kernel is not None
        if self._direct is None:
            self._direct = [i for i, o in enumerate(operands) if o.record.facts.numel and not o.record.copied]
            if self.many and not overlapping([operands[i].record.parameter for i in self._direct]):
                self._packed = [each for i in self._direct for each in operands[i].arguments(kernel.coded)]
                self._packed.append(None)
        moved, run = 0, kernel.run
        if len(self._direct) != len(operands):
            for operand, g in zip(operands, gradients, strict=True):
                if operand.record.copied and operand.record.facts.numel:
                    copy, tensors = operand.copied_in(g, coefficients)
                    moved += 1
                    try:
                        self.moved = moved
                        run(tensors)
                        operand.copy_out(copy, self.draw)
                        operand.keep(tensors, self.draw)
                    except KeyboardInterrupt:  # the states may have been written
                        operand.copy_out(copy, self.draw)
                        operand.keep(tensors, self.draw)
                        raise
        if self._packed is None:
            for i in self._direct:
                p, _, *states = operands[i].numbers() if self._decodes else operands[i].views
                tensors = [p, gradients[i], *states, coefficients]
                moved += 1
                try:
                    self.moved = moved
                    run(tensors)
                    if self._decodes:
                        operands[i].keep(tensors, self.draw)
                except KeyboardInterrupt:  # the parameter may have been written
                    if self._decodes:
                        operands[i].keep(tensors, self.draw)
                    raise
        elif self._direct:
            self._run_packed(kernel, gradients, coefficients, addresses)

    def _run_packed(
        self,
        kernel: LoadedKernel,
        gradients: Sequence[torch.Tensor],
        coefficients: torch.Tensor,
        addresses: Iterable[int] | None,
    ) -> None:
        """Run the kernel once, on the tensors of all parameters that can be viewed."""
        packed, direct = self._packed, self._direct
        assert packed is not None and direct is not None
        count = len(self.operands)
        gradients = gradients if len(direct) == count else [gradients[i] for i in direct]
        if kernel.at is not None:
            if self._addresses is None:
                self._addresses = Addresses([self.operands[i] for i in direct])
            known = addresses if addresses is not None and len(direct) == count else map(_pointer, gradients)
            arguments = (*self._addresses.of(known), coefficients.data_ptr(), torch.get_num_threads(), int(self.draw))
            at = kernel.at
            self.moved = count
            at(*arguments)
            return
        first = self.operands[0]
        stride = len(first.arguments(kernel.coded))
        packed[1::stride] = gradients
        packed[-1] = coefficients
        run = kernel.run
        given: list[Any] = packed
        if kernel.coded and first.keys():
            if self._keys is None:
                operands = [self.operands[i] for i in direct]
                self._keys = [(operand.first or 0, *operand.keys()) for operand in operands]
            given = [*packed, self._keys, self.draw]
        try:
            self.moved = count
            run(given)
        finally:
            packed[1::stride] = [None] * len(direct)  # do not keep gradients alive

    def begun(self) -> list[int]:
        """Return the indices of the operands that an interrupted step has updated, or was about to update."""
        records = [operand.record for operand in self.operands]
        order = [i for i, r in enumerate(records) if r.copied and r.facts.numel]
        order += [i for i, r in enumerate(records) if not r.copied and r.facts.numel]
        return list(range(len(records))) if self.moved >= len(order) else order[: self.moved]
