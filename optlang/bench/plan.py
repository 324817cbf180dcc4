"""The comparisons: rules, their peers, and the tensors that both update."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import optlang
from optlang.bench import adapters, peers, shapes
from optlang.bench.shapes import Shape
from optlang.checker.check import check_text
from optlang.diagnostics import raise_errors
from optlang.source import Source

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Comparison:
    """One comparison: a rule, its peer, and the tensors they update.

    Attributes:
        members: The shapes of the tensors: those in the list that the rule supports.
        total: The number of tensors in the list.
        refused: Why the rule supports none of the list, or None.
        store: How the states of the rule are stored: a preset, or formats by key; None for the rule's own formats.
    """

    name: str
    source: Source
    cls: type[torch.optim.Optimizer]
    peer: peers.Peer
    shapes: str
    dtype: str
    device: str
    values: Mapping[str, Any]
    backend: str
    members: tuple[Shape, ...]
    total: int
    refused: str | None = None
    store: str | dict[str, str] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the rule's class."""
        return {**self.values, **sparse_arguments(self.shapes), **({} if self.store is None else {"store": self.store})}

    @property
    def asked(self) -> frozenset[str]:
        """Which values the rule computes by calling the closure again: ``loss``, ``grad``, ``hvp``."""
        return frozenset(self.cls._asked)  # type: ignore[attr-defined]

    @property
    def calls(self) -> bool:
        """Whether steps take a closure."""
        return bool(self.asked) or adapters.needs_closure(self.peer.cls)


def described(name: str, tensors: int, numbers: int) -> str:
    """Return a description of a list of shapes: ``mlp (6 tensors, 0.1 M)``."""
    return f"{name} ({tensors} tensor{'s' * (tensors != 1)}, {numbers / 1e6:.1f} M)"


def plans_of(
    sources: Sequence[Source],
    names: str | None,
    against: str | None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    values: Mapping[str, Any] | None = None,
    backend: str = "auto",
    store: str | dict[str, str] | None = None,
    left_out: dict[str, str] | None = None,
) -> list[Comparison]:
    """Return the comparisons to make: every rule on every list of shapes.

    Args:
        sources: The rules.
        names: Names of lists of shapes; None is ResNet-50, or matrices for a rule that does not support all of it.
        against: The peer, as :func:`peers.find` takes it.
        dtype: The type of the parameters.
        device: The device of the parameters.
        values: Hyperparameters.
        backend: The backend.
        store: How states are stored.
        left_out: Receives the rules that have nothing to be compared with, and why; without it they are an error.

    Raises:
        ValueError: If a name is unknown, the device does not exist, or nothing remains to compare.
        OptlangError: If a rule has errors.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype: {dtype} is not one of {', '.join(DTYPES)}")
    wanted = None if names is None else shapes.chosen(names)
    _require_device(device)
    plans = []
    for source in sources:
        rule, found = check_text(source)
        raise_errors(found)
        assert rule is not None
        cls = optlang.compile(source, backend=backend)
        settings = dict(values or {})
        if left_out is None:
            _require_settings(cls, settings)
        for name in wanted or [_suited(cls, rule.reference, settings)]:
            try:
                peer = peers.Peer(f"{cls.__name__} without store", cls, {}) if against == peers.ITSELF else None
                peer = peer or _peer(against or peers.USUAL.get(name), source, rule.reference, cls.__name__)
                if left_out is not None and peer.cls is torch.optim.SparseAdam and name not in shapes.TOUCHED:
                    raise peers.NoPeer(f"{peer.label} does not take the gradients of {name}")
            except peers.NoPeer as error:
                if left_out is None:
                    raise
                left_out[cls.__name__] = str(error)
                break
            whole = shapes.SHAPES[name]()
            kept = {} if store is None else {"store": store}
            members, refused = _taken(cls, whole, {**settings, **sparse_arguments(name), **kept})
            plans.append(
                Comparison(
                    cls.__name__,
                    source,
                    cls,
                    peer,
                    name,
                    dtype,
                    device,
                    settings,
                    backend,
                    members,
                    len(whole),
                    refused,
                    store,
                )
            )
    if not plans:
        raise ValueError(next(iter((left_out or {}).values()), "there is nothing to compare"))
    return plans


def _require_settings(cls: type[torch.optim.Optimizer], values: Mapping[str, Any]) -> None:
    """Raise ValueError if the class does not have one of its settings; tensors are checked later."""
    for name in values:
        if name not in inspect.signature(cls).parameters:
            keys = cls._compiled.rule.keys if hasattr(cls, "_compiled") else {}
            part = next((key for key, hypers in keys.items() if name in [h.name for h in hypers]), None)
            hint = f"; it is a part of {part}: --set {part}=..." if part else ""
            raise ValueError(f"--set {name}: {cls.__name__} has no such hyperparameter{hint}")


def _suited(cls: type[torch.optim.Optimizer], reference: str | None, values: Mapping[str, Any]) -> str:
    """Return the list of shapes on which a rule is measured by default."""
    for name, usual in peers.USUAL.items():
        if reference is not None and reference == usual.replace(":", "."):
            return name
    whole = shapes.SHAPES["resnet50"]()
    if len(_taken(cls, whole, values)[0]) < len(whole) and _taken(cls, shapes.matrices(), values)[0]:
        return "matrices"
    return "resnet50"


def _taken(
    cls: type[torch.optim.Optimizer], whole: Sequence[Shape], arguments: Mapping[str, Any]
) -> tuple[tuple[Shape, ...], str | None]:
    """Return the shapes that a rule supports, and why it supports none of them."""
    reasons: dict[Shape, str | None] = {}
    for shape in whole:
        if shape not in reasons:
            try:
                cls([torch.nn.Parameter(torch.empty(shape))], **arguments)
                reasons[shape] = None
            except (TypeError, ValueError) as error:
                reasons[shape] = first_line(error)
    taken = tuple(shape for shape in whole if reasons[shape] is None)
    return taken, None if taken else next(reason for reason in reasons.values() if reason is not None)


def sparse_arguments(name: str) -> dict[str, str]:
    """Return the arguments of a rule, besides hyperparameters, that enable sparse gradients."""
    return {"sparse": "lazy"} if name in shapes.TOUCHED else {}


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _peer(against: str | None, source: Source, reference: str | None, name: str) -> peers.Peer:
    """Return the peer: another optimizer, or the rule's own emitted file."""
    from optlang.bench import emitted

    return emitted.peer(against, source) if against in emitted.TARGETS else peers.find(against, reference, name)


def _require_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {device}: {reason}") from error
