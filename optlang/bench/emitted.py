"""Peers that are emitted from the rule itself: the same steps, run by a file that does not need this package."""

from __future__ import annotations

import inspect
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from optlang.bench.peers import Peer
from optlang.compiler import CompiledRule, compile_source
from optlang.identity import GivenName
from optlang.source import Source
from optlang.targets import Order, aoti, torchscript
from optlang.targets._variants import facts_of

#: The targets that can be peers, by name.
TARGETS = ("torchscript", "aoti")


def peer(target: str, source: Source) -> Peer:
    """Return a rule's emitted file as a peer.

    Args:
        target: One of ``TARGETS``.
        source: The rule.

    Raises:
        OptlangError: If the target does not support the rule.
    """
    compiled = compile_source(source)
    base: type[_Emitted] = {"torchscript": _Scripted, "aoti": _Packaged}[target]
    order = Order(compiled, {})
    cls = type(f"{compiled.name}_{target}", (base,), {"content": base.emitted(order), "order": order})
    names = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    names += [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=0.0) for key in compiled.rule.keys]
    cls.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return Peer(f"{compiled.name} ({target})", cls, {})


class _Emitted(torch.optim.Optimizer):
    """The common part: parameters, and numbers by the names of the formulas."""

    content: bytes
    order: Order

    def __init__(self, params: Any, **given: Any) -> None:
        super().__init__(params, {})
        rule: CompiledRule = self.order.compiled
        self.numbers: dict[GivenName, float] = {}
        for key, hypers in rule.rule.keys.items():
            value = given.get(key)
            parts = value if isinstance(value, tuple) else (value,)
            self.numbers |= {
                h.name: float(x)
                for h, x in zip(hypers, parts, strict=False)
                if isinstance(x, int | float) and not isinstance(x, bool)
            }
        self.members = [p for group in self.param_groups for p in group["params"]]

    @classmethod
    def emitted(cls, order: Order) -> bytes:
        """Return the file."""
        raise NotImplementedError


class _Scripted(_Emitted):
    """The TorchScript module."""

    def __init__(self, params: Any, **given: Any) -> None:
        super().__init__(params, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._module = torch.jit.load(io.BytesIO(self.content))
        for name in self._module.hyper_names():
            if name in self.numbers:
                self._module.set_hyper(name, self.numbers[name])

    @classmethod
    def emitted(cls, order: Order) -> bytes:
        """Return the file."""
        return torchscript.emit(order)

    def step(self, closure: Any = None) -> Any:
        """Make a step."""
        self._module.step(self.members, [p.grad for p in self.members])


class _Packaged(_Emitted):
    """The ahead-of-time package, called tensor by tensor as a C++ program would."""

    def __init__(self, params: Any, **given: Any) -> None:
        super().__init__(params, **given)
        from torch._inductor.package.package import load_package

        self._contract = aoti.Contract(self.order)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rule.pt2"
            path.write_bytes(self.content)
            self._models = [load_package(str(path), name) for name in ("model", "start")]
        self._run = self._models[0].loader.run
        self._held: list[Any] = [None] * len(self.members)
        self._count = 0

    @classmethod
    def emitted(cls, order: Order) -> bytes:
        """Return the file."""
        return aoti.emit(order)

    def step(self, closure: Any = None) -> Any:
        """Make a step; numbers that depend on the tensor are packed for each one."""
        contract, layout = self._contract, self._contract.variant.layout
        self._count += 1
        counts: dict[GivenName, float] = {"t": float(self._count), "first": float(self._count == 1)}
        known = {**contract.values, **self.numbers, **counts}
        of_tensors = set(contract.numbers) - set(known)
        common = None if of_tensors else self._packed([known[name] for name in contract.numbers])
        for i, p in enumerate(self.members):
            assert p.grad is not None
            views = [t.detach().view(layout.shape(tuple(p.shape))) for t in (p, p.grad)]
            if self._held[i] is None:
                *states, numbers = self._models[1](*views)
                self._held[i] = states, dict(zip(contract.hosted, numbers.tolist(), strict=True))
            states, hosted = self._held[i]
            own = {**known, **facts_of(tuple(p.shape)).named(), **hosted} if common is None else known
            packed = common if common is not None else self._packed([own[name] for name in contract.numbers])
            results = self._run([*views, *states, packed])
            if contract.hosted:
                hosted.update(zip(contract.hosted, results[0].tolist(), strict=True))

    @staticmethod
    def _packed(numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers or [0.0], dtype=torch.float64)
