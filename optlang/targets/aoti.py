"""The target ``aoti``: a package of two compiled models, for ``aoti_load_package`` and ``AOTIModelPackageLoader``.

``start`` returns the states of a tensor, ``model`` updates the tensor and its states in place. Neither keeps any state:
the inputs of a step are in one vector of numbers, whose names are listed in the package's metadata. The kernels are for
float32, tensors of any size, and a processor like the one that they are compiled on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optlang.artifact import FACTS, Storage, Variant
from optlang.backends.loading.modules import load_module
from optlang.compiler import example_facts
from optlang.core.sizes import Unfit
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.inputs import ValueName, as_values
from optlang.targets import Order, _refusals, refusal
from optlang.targets._variants import chosen

SUFFIX = ".pt2"
NAME = "aoti"


def refused(order: Order) -> list[Diagnostic]:
    """Return the constructs of a rule that the target does not support, as errors."""
    return [*_refusals.outside_python(order, NAME), *_refusals.several_passes(order, NAME)]


def emit(order: Order) -> bytes:
    """Return the content of the file."""
    found = refused(order)
    if found:
        raise OptlangError(found)
    return _packaged(Contract(order))


class Contract:
    """The compiled models' inputs and outputs, as a caller sees them.

    Args:
        order: The input of the target.

    Attributes:
        variant: The variant.
        numbers: Names of the values in the vector, in order.
        states: The states that are tensors.
        hosted: Names of the states that are among the numbers; ``model`` returns their new values.
    """

    def __init__(self, order: Order) -> None:
        self.compiled, self.values = order.compiled, chosen(order)
        self.variant = self._chosen(order)
        variant = self.variant
        assert variant.kernel is not None, "what makes several stages has been refused"
        self.kernel = variant.kernel
        self.hosted = tuple(s.name for s in variant.slots if s.storage is Storage.HOST)
        self.states = tuple(s for s in variant.slots if s.storage is not Storage.HOST)
        hypers = [h.name for h in self.compiled.rule.hypers if h.name in self.kernel.host_arguments]
        others = [name for name in ("t", "first", *FACTS) if name in self.kernel.host_arguments]
        self.numbers = (*hypers, *others, *self.hosted)
        layout = variant.layout
        self.rank = order.ndim if layout.exact else layout.front + 1 + layout.back

    def _chosen(self, order: Order) -> Variant:
        """Return the variant, or raise an error if it does not fit into one kernel after all."""
        try:
            variant = order.compiled.variant(self.values, example_facts(order.ndim))
        except Unfit as unfit:
            help = f"{unfit.help}; or choose another number of dimensions with --ndim"
            construct = f"a tensor of {order.ndim} dimensions"
            raise OptlangError([refusal(order.compiled, NAME, construct, unfit.span, help)]) from None
        return variant

    def metadata(self) -> dict[str, str]:
        """Return the package's metadata."""
        known: dict[ValueName, Any] = as_values(self.values) | {"t": 1.0, "first": 1.0}
        defaults = [known.get(name) for name in self.numbers]
        layout = self.variant.layout
        flat = "flat" if layout.flat else f"front={layout.front} back={layout.back}"
        return {
            "rule": self.compiled.name,
            "numbers": " ".join(map(str, self.numbers)),
            "defaults": " ".join(repr(float(x)) if isinstance(x, int | float) else "nan" for x in defaults),
            "states": " ".join(slot.key for slot in self.states),
            "returned": " ".join(self.hosted),
            "layout": f"exact={self.rank}" if layout.exact else flat,
        }

    def started(self, p: Any, g: Any) -> dict[str, Any]:
        """Return the initial states by name, computed from the hyperparameters at the time of export."""
        start = load_module(self.variant.source, self.variant.name)["start"]
        given = as_values(self.values)
        found: dict[str, Any] = start(p, g, *(given[name] for name in self.variant.start_arguments))
        return found

    def model(self) -> Any:
        """Return the step as a module with inputs ``p, g``, the states, and the numbers."""
        import torch

        kernel, names, hosted = self.kernel, self.numbers, self.hosted
        host = load_module(kernel.text("traced_source"), kernel.name)["host"]
        update = load_module(kernel.source, kernel.name)["update"]
        held = [slot.name for slot in self.states]

        def as_number(x: Any) -> Any:
            return x if isinstance(x, torch.Tensor) else torch.full((), float(x), dtype=torch.float64)

        class Model(torch.nn.Module):
            def forward(self, p: Any, g: Any, *rest: Any) -> Any:
                *states, numbers = rest
                values: dict[ValueName, Any] = dict(zip(names, numbers.unbind(), strict=True)) if names else {}
                if "first" in values:
                    values["first"] = values["first"] != 0
                coefficients, kept = host(*(values[name] for name in kernel.host_arguments))
                c = torch.stack([as_number(x) for x in coefficients]).to(p.dtype)
                tensors: dict[ValueName, Any] = {"p": p, "g": g, **dict(zip(held, states, strict=True))}
                update(*(tensors[name] for name in kernel.tensors), c)
                return torch.stack([as_number(x) for x in kept]) if hosted else None

        return Model()

    def start(self) -> Any:
        """Return the module of initial states: from ``p, g``, it returns a tensor for each state and host number."""
        import torch

        contract = self

        class Start(torch.nn.Module):
            def forward(self, p: Any, g: Any) -> Any:
                found = contract.started(p, g)
                tensors = [
                    found[s.name].reshape(1) if s.storage is Storage.SCALAR else found[s.name] for s in contract.states
                ]
                numbers = [float(found[name]) for name in contract.hosted]
                # `clone`: the result must not be the parameter itself.
                return (*(t.clone() for t in tensors), torch.tensor(numbers, dtype=torch.float64))

        return Start()

    def examples(self) -> tuple[Any, ...]:
        """Return example arguments of the model, whose sizes are all different."""
        import torch

        from optlang.targets._inductor import EXAMPLE_SIZES

        sizes = (
            EXAMPLE_SIZES[: self.rank][::-1] if self.rank > 1 else (EXAMPLE_SIZES[0] * EXAMPLE_SIZES[1],) * self.rank
        )
        p, g = torch.randn(sizes), torch.randn(sizes)
        states = self.start()(p, g)[:-1]
        return (p, g, *states, torch.ones(max(len(self.numbers), 1), dtype=torch.float64))

    def shapes(self, examples: Sequence[Any]) -> tuple[Any, ...]:
        """Return which sizes of the examples are dynamic."""
        import torch

        open_sizes = [torch.export.Dim(f"n{i}", min=2) for i in range(self.rank)]
        sizes = tuple(examples[0].shape)
        found: list[Any] = []
        for example in examples[:-1]:
            same = example.dim() == len(sizes)
            found.append({i: open_sizes[i] for i, n in enumerate(example.shape) if same and n == sizes[i] and n > 1})
        return (*found, None)


def _packaged(contract: Contract) -> bytes:
    """Compile both models and return the package."""
    examples = contract.examples()
    shapes = contract.shapes(examples)
    with tempfile.TemporaryDirectory() as folder:
        metadata = contract.metadata()
        files = {
            "model": _compiled(contract.model(), examples, (shapes[0], shapes[1], shapes[2:]), metadata),
            "start": _compiled(contract.start(), examples[:2], shapes[:2], metadata),
        }
        path = Path(folder) / "package.pt2"
        from torch._inductor.package.package import package_aoti

        with _quiet():
            package_aoti(str(path), files)
        return path.read_bytes()


def _compiled(module: Any, examples: tuple[Any, ...], shapes: Any, metadata: dict[str, str]) -> Any:
    """Return the files that Inductor generates for a module."""
    import torch

    from optlang.targets import _inductor

    options: dict[str, Any] = {key: value for key, value in _inductor.OPTIONS.items() if _inductor.is_option(key)}
    options |= {"aot_inductor.package": True, "aot_inductor.metadata": metadata}
    with torch.no_grad(), _quiet():
        exported = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        inner = exported.module()
        try:
            with _inductor.trusted_processor():
                return _aot_compile(inner, examples, options)
        except Exception:
            return _aot_compile(inner, examples, options)


def _aot_compile(module: Any, examples: tuple[Any, ...], options: dict[str, Any]) -> Any:
    import torch._inductor

    return torch._inductor.aot_compile(module, examples, options=options)


def _quiet() -> contextlib.AbstractContextManager[None]:
    from optlang.targets import _inductor

    return _inductor.quiet()
