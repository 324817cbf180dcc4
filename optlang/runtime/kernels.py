"""The variants of a rule and their compiled kernels, shared by all optimizers of a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from optlang.artifact import FACTS, Compiled, Kernel, ShapeInfo, Slot, Storage, Variant, VariantKey
from optlang.backends.loading import loops, plain, registry, vectors
from optlang.backends.loading.modules import load_module
from optlang.backends.loading.signature import Dims, LoadedKernel, Signature
from optlang.cache import folders
from optlang.core.needs import needs
from optlang.identity import DimensionSize
from optlang.inputs import ValueName, as_values
from optlang.rule import Value, Values
from optlang.runtime import host, progress
from optlang.runtime.tensors import EXAMPLE_SIZES, arithmetic, facts_of, real, resolved
from optlang.storage import NARROW

#: The maximum number of cached lookups of variants by answers and facts.
REMEMBERED = 4096


class KernelModule:
    """A kernel with its functions.

    Args:
        kernel: The kernel.
        functions: The globals of its module, if it has been loaded.

    Attributes:
        kernel: The kernel.
        functions: The globals of its module.
        varying: The arguments of ``host`` that differ from step to step: their positions, and ``t``, ``first`` or the
            index of a host state.
    """

    def __init__(self, kernel: Kernel, functions: dict[str, Any] | None = None) -> None:
        self.kernel, self.functions = kernel, functions or load_module(kernel.source, kernel.name)
        hosted = (slot.name for slot in kernel.slots if slot.storage is Storage.HOST)
        varies: dict[ValueName, str | int] = {"t": "t", "first": "first", **{name: i for i, name in enumerate(hosted)}}
        names = enumerate(kernel.host_arguments)
        self.varying = tuple((i, varies[name]) for i, name in names if name in varies)
        self._dims: dict[int, tuple[Dims, ...]] = {}

    def dims(self, ndim: int) -> tuple[Dims, ...]:
        """Return the dimensions of each tensor of ``update``, once viewed, for parameters with ``ndim`` dimensions."""
        if ndim not in self._dims:
            self._dims[ndim] = self._dims_of(ndim)
        return self._dims[ndim]

    def _dims_of(self, ndim: int) -> tuple[Dims, ...]:
        kernel, layout = self.kernel, self.kernel.layout
        example = torch.empty(EXAMPLE_SIZES[:ndim], device="meta")
        shape = (1,) if layout.flat else layout.shape(tuple(example.shape))
        whole: Dims = tuple(range(len(shape)))
        found: list[Dims] = []
        for name in kernel.tensors:
            storage = kernel.storage.get(name)
            if storage is Storage.SCALAR:
                found.append((None,))
            elif storage is Storage.REDUCED:
                gone = {d % ndim for slot in kernel.kept if slot.name == name for d in slot.dims}
                kept = layout.shape(tuple(1 if i in gone else n for i, n in enumerate(example.shape)))
                found.append(tuple(i if n == shape[i] else None for i, n in enumerate(kept)))
            else:
                found.append(whole)
        return tuple(found)


@dataclass
class LoadedVariant:
    """A variant with its functions.

    Attributes:
        variant: The variant.
        plain: The globals of its source.
        narrow: The globals of its source for 16-bit storage.
        hosted: The host states.
        stored: The states that are tensors.
        facts: The names of the facts that its host functions take.
        direct: The kernel, if a step is a single kernel.
    """

    variant: Variant
    plain: dict[str, Any]
    narrow: dict[str, Any]
    hosted: tuple[Slot, ...]
    stored: tuple[Slot, ...]
    facts: tuple[str | DimensionSize, ...]
    direct: KernelModule | None

    @classmethod
    def of(cls, variant: Variant) -> LoadedVariant:
        """Return a variant with its functions loaded."""
        arguments, plain = variant.schedule.arguments(), load_module(variant.source, variant.name)
        return cls(
            variant,
            plain,
            load_module(variant.narrow_source, f"{variant.name} narrow"),
            tuple(s for s in variant.slots if s.storage is Storage.HOST),
            tuple(s for s in variant.slots if s.storage is not Storage.HOST),
            tuple(name for name in FACTS if name in arguments),
            None if variant.kernel is None else KernelModule(variant.kernel, plain),
        )

    @property
    def counts(self) -> bool:
        """Whether the updates of each tensor are counted."""
        return self.variant.counts_steps

    def start(self, p: torch.Tensor, g: torch.Tensor, values: Values) -> dict[str, Any]:
        """Return the initial value of every state by name."""
        if p.dtype is torch.float64:
            g = g.to(p.dtype)
        narrow = any(str(t.dtype)[6:] in NARROW for t in (p, g))
        begin = (self.narrow if narrow else self.plain)["start"]
        given = as_values(values)
        arguments = tuple(given[name] for name in self.variant.start_arguments)
        try:
            return dict(begin(p, g, *arguments))
        except (ArithmeticError, ValueError):
            return dict(host.ieee(begin)(p, g, *arguments))

    def shapes(self, p: torch.Tensor, values: Values) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the states that are not shaped like the parameter, by key."""
        keys = {slot.name: slot.key for slot in self.variant.slots if slot.storage is Storage.MATRIX}
        if not keys:
            return {}
        example = torch.empty(p.shape, dtype=p.dtype, device="meta")
        fresh = self.start(example, example, {**values, **facts_of(p).named()})
        return {key: tuple(fresh[name].shape) for name, key in keys.items()}

    def started(self, p: torch.Tensor, g: torch.Tensor, values: Values) -> dict[str, Any]:
        """Return initial values; those of a complex parameter are computed on pairs of real numbers."""
        if not p.is_complex():
            return self.start(p, g, values)
        fresh = self.start(real(resolved(p)), real(resolved(g)), values)
        for slot in self.variant.slots:
            if slot.storage is Storage.ELEMENT:
                fresh[slot.name] = torch.view_as_complex(fresh[slot.name].contiguous())
        return fresh


class VariantCache:
    """The variants and kernels of one class.

    Attributes:
        loaded: The kernels, by variant and signature.
    """

    def __init__(self, compiled: Compiled, backend: str) -> None:
        self.compiled, self.backend = compiled, backend
        self._backends = registry.find(backend)
        self._load = registry.loader(self._backends)
        self.loaded: dict[tuple[str, Signature], LoadedKernel] = {}
        self._variants: dict[VariantKey, LoadedVariant] = {}
        self._stages: dict[str, KernelModule] = {}
        self._texts: dict[str, dict[tuple[Any, ...], str]] = {}
        self._owned: set[tuple[VariantKey, str, Signature]] = set()
        self._chosen: dict[tuple[Any, ...], LoadedVariant] = {}
        # Facts that the rule does not mention cannot select a variant (the number of dimensions always may).
        needed = needs(compiled.rule)
        self.by_shape = needed.shape
        self._mentioned = ("shape",) if self.by_shape else tuple(sorted(needed.facts - {"ndim"}))
        self.by_size = bool(self._mentioned)  # whether a tensor's sizes may matter

    def prepared(
        self, values: Values, answers: tuple[Value, ...], facts: ShapeInfo, event: str | None = None
    ) -> LoadedVariant:
        """Return the variant that these values select, for a step or ``on EVENT``; generate its source on first use."""
        asked = (answers, event, facts.ndim, *(getattr(facts, name) for name in self._mentioned))
        found = self._chosen.get(asked)
        if found is None:
            key = self.compiled.variant_key(values, facts, event)
            if key not in self._variants:
                self._variants[key] = self._loaded_variant(self.compiled.variant(values, facts, event))
            if len(self._chosen) >= REMEMBERED:
                self._chosen.clear()
            found = self._chosen[asked] = self._variants[key]
        return found

    def _loaded_variant(self, variant: Variant) -> LoadedVariant:
        """Return a variant with its functions; identical kernels share their source."""
        for kernel in variant.schedule.kernels:
            texts = self._texts.setdefault(kernel.digest, kernel.texts)
            texts.update(kernel.texts)
            kernel.texts = texts
        return LoadedVariant.of(variant)

    def quicken(self, prepared: KernelModule, p: torch.Tensor) -> None:
        """Let a stage over matrices call C++ if there is a C++ version of its operations for a parameter like this."""
        if self.backend in vectors.BACKENDS:
            device = p.device.type
            vectors.quicken(prepared.functions, device)
            loops.quicken(prepared.functions, prepared.kernel, device, arithmetic(p))

    def foresee(self, kernel: Kernel, device: str) -> None:
        """Generate the C++ of a stage over matrices, so that it is cached with the variant's other sources."""
        if self.backend in vectors.BACKENDS and kernel.matrices:
            loops.text(kernel, device)

    def stage(self, kernel: Kernel) -> KernelModule:
        """Return the kernel of a stage with its functions; identical stages share it."""
        if kernel.digest not in self._stages:
            self._stages[kernel.digest] = KernelModule(kernel)
        return self._stages[kernel.digest]

    def coded(self, kernel: Kernel, signature: Signature, owner: Variant) -> LoadedKernel | None:
        """Return a kernel that takes quantized states directly; None if no backend of the class has one."""
        key = (kernel.digest, signature)
        if key not in self.loaded:
            with self._announced(kernel, signature):
                found = registry.coded(self._backends, kernel, signature)
            if found is None:
                return None
            self.loaded[key] = found
        self._keep(owner, kernel, signature)
        return self.loaded[key]

    def kernel(self, kernel: Kernel, signature: Signature, owner: Variant, ordinary: bool = True) -> LoadedKernel:
        """Return a kernel for some types, compiled (or found on disk) on first use.

        Args:
            kernel: The kernel.
            signature: The types.
            owner: The variant whose step it is part of.
            ordinary: Whether the tensors have addresses; other tensors use torch's own operations.
        """
        if not ordinary:
            return plain.load(kernel, signature)
        found = self.loaded.get((kernel.digest, signature))
        if found is None:
            with self._announced(kernel, signature):
                found = self._load(kernel, signature)
            if found.origin == "jit":
                found = LoadedKernel(self._announcing(found.run, kernel, signature), "jit")
            self.loaded[kernel.digest, signature] = found
        self._keep(owner, kernel, signature)
        return found

    def _keep(self, owner: Variant, kernel: Kernel, signature: Signature) -> None:
        """Cache a variant on disk with the source of a kernel that has been loaded."""
        owned = (owner.key, kernel.digest, signature)
        if owned not in self._owned:
            self._owned.add(owned)
            # The other files on disk are useful only with the variant.
            if self.loaded[kernel.digest, signature].origin in ("built", "cached", "triton"):
                self.compiled.keep(owner)

    def _announcing(self, run: Callable[[list[Any]], Any], kernel: Kernel, signature: Signature) -> Any:
        """Wrap ``run`` so that its first call, which compiles, is announced."""
        called = False

        def first(tensors: list[Any]) -> None:
            nonlocal called
            if called:
                run(tensors)
                return
            called = True
            with self._announced(kernel, signature):
                run(tensors)

        return first

    def _announced(self, kernel: Kernel, signature: Signature) -> Any:
        return progress.announced(f"{kernel.name} for {signature}", f"once, then kept in {folders.location()}")


def compiled_count(optimizer_class: type[torch.optim.Optimizer]) -> int:
    """Return how many kernels an optimizer class has compiled, or found on disk, in this process."""
    parts = optimizer_class._parts.parts  # type: ignore[attr-defined]
    return sum(len(part.kernels.loaded) for part in parts)
