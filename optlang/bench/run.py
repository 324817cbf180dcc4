"""The measurement: two optimizers on equal copies of the same tensors, in rounds that take turns."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import optlang
from optlang.bench import adapters, cold, objective, peers, rows, shapes
from optlang.bench.shapes import Shape
from optlang.diagnostics import raise_errors
from optlang.language.check import check_text
from optlang.runtime.kernels import compiled_count
from optlang.runtime.plan import bytes_moved
from optlang.source import Source

#: Seconds that a round of steps should take: long against the noise of the clock, short against a busy neighbour.
ROUND = 0.25

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """One comparison: a rule, its peer, and the tensors they update.

    Attributes:
        members: The shapes of the tensors: those of the list that the rule takes.
        total: How many tensors the list has.
        refused: Why the rule takes none of the list, or None.
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

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the rule's class."""
        return {**self.values, **_sparse(self.shapes)}

    @property
    def asked(self) -> frozenset[str]:
        """What the rule has the closure compute again: ``loss``, ``grad``, ``hvp``."""
        return frozenset(self.cls._asked)  # type: ignore[attr-defined]

    @property
    def calls(self) -> bool:
        """Whether steps take a closure."""
        return bool(self.asked) or adapters.needs_closure(self.peer.cls)


@dataclass(frozen=True)
class Settings:
    """How long and how to measure; without ``steps``, a round takes about ``ROUND`` seconds."""

    steps: int | None = None
    rounds: int = 7
    threads: int | None = None
    first_step: bool = False


@dataclass(frozen=True)
class Result:
    """What a comparison found; times are milliseconds a step, a list has one value for each round.

    Attributes:
        rule: Name of the rule's class.
        peer: What it was compared with.
        shapes: Name of the list of shapes.
        tensors: How many tensors.
        numbers: How many numbers they hold.
        dtype: Their type.
        device: Where they are.
        threads: Threads that torch used.
        ours: Our times.
        theirs: The peer's times.
        ready: Seconds our first step took in this process, with whatever caches were there.
        compiled: Kernels that were made for this comparison, by the end of it.
        difference: Norm of the difference of the final parameters, relative to how far they moved.
        bytes: Bytes that a step has to read and write at least: every tensor once.
        streaming: Milliseconds of a pass of ``x *= 1`` that moves as many bytes, for each round.
        first: First steps in new processes, if asked for.
        closure: Whether the times hold what a closure takes.
    """

    rule: str
    peer: str
    shapes: str
    tensors: int
    numbers: int
    dtype: str
    device: str
    threads: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ready: float
    compiled: int
    difference: float
    bytes: int
    streaming: tuple[float, ...]
    first: cold.FirstSteps | None = None
    closure: bool = False

    @property
    def label(self) -> str:
        """What the tensors are."""
        return described(self.shapes, self.tensors, self.numbers)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our time over the peer's, round by round."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def bandwidth(self) -> float:
        """Our bandwidth relative to that of the streaming pass: the median over the rounds."""
        return statistics.median(b / a for a, b in zip(self.ours, self.streaming, strict=True))


@dataclass(frozen=True)
class Failure:
    """A comparison that could not be made.

    Attributes:
        rule: Name of the rule's class.
        peer: What it was to be compared with.
        shapes: Name of the list of shapes.
        refused: Why not.
    """

    rule: str
    peer: str
    shapes: str
    refused: str

    @property
    def label(self) -> str:
        """What the tensors were to be."""
        return self.shapes


def described(name: str, tensors: int, numbers: int) -> str:
    """Return a list of shapes in words: ``mlp (6 tensors, 0.1 M)``."""
    return f"{name} ({tensors} tensor{'s' * (tensors != 1)}, {numbers / 1e6:.1f} M)"


def plan(
    sources: Sequence[Source],
    names: str | None,
    against: str | None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    values: Mapping[str, Any] | None = None,
    backend: str = "auto",
    left_out: dict[str, str] | None = None,
) -> list[Plan]:
    """Return the comparisons to make: every rule on every list of shapes.

    Args:
        sources: The rules.
        names: Names of lists of shapes; None is ResNet-50, or matrices for a rule that does not take all of it.
        against: The peer, as :func:`peers.find` takes it.
        dtype: Type of the parameters.
        device: Where they are.
        values: Hyperparameters.
        backend: The backend.
        left_out: Takes the rules that have nothing to be compared with, and why; without it they are an error.

    Raises:
        ValueError: If a name is unknown, the device is not there, or nothing is left to compare.
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
                peer = _peer(against or peers.USUAL.get(name), source, rule.reference, cls.__name__)
                if left_out is not None and peer.cls is torch.optim.SparseAdam and name not in shapes.TOUCHED:
                    raise peers.NoPeer(f"{peer.label} does not take the gradients of {name}")
            except peers.NoPeer as error:
                if left_out is None:
                    raise
                left_out[cls.__name__] = str(error)
                break
            whole = shapes.SHAPES[name]()
            members, refused = _taken(cls, whole, {**settings, **_sparse(name)})
            plans.append(
                Plan(
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
                )
            )
    if not plans:
        raise ValueError(next(iter((left_out or {}).values()), "there is nothing to compare"))
    return plans


def _require_settings(cls: type[torch.optim.Optimizer], values: Mapping[str, Any]) -> None:
    """Raise ValueError if the class does not know one of its settings; whether it takes tensors is seen later."""
    for name in values:
        if name not in inspect.signature(cls).parameters:
            keys = cls._compiled.rule.keys if hasattr(cls, "_compiled") else {}
            part = next((key for key, hypers in keys.items() if name in [h.name for h in hypers]), None)
            hint = f"; it is a part of {part}: --set {part}=..." if part else ""
            raise ValueError(f"--set {name}: {cls.__name__} has no such hyperparameter{hint}")


def _suited(cls: type[torch.optim.Optimizer], reference: str | None, values: Mapping[str, Any]) -> str:
    """Return the list of shapes that a rule is measured on if none is named."""
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
    """Return those of some shapes that a rule takes, and why it takes none of them."""
    reasons: dict[Shape, str | None] = {}
    for shape in whole:
        if shape not in reasons:
            try:
                cls([torch.nn.Parameter(torch.empty(shape))], **arguments)
                reasons[shape] = None
            except (TypeError, ValueError) as error:
                reasons[shape] = _line(error)
    taken = tuple(shape for shape in whole if reasons[shape] is None)
    return taken, None if taken else next(reason for reason in reasons.values() if reason is not None)


def _sparse(name: str) -> dict[str, str]:
    """Return what a rule is told beside its hyperparameters where gradients are sparse."""
    return {"sparse": "lazy"} if name in shapes.TOUCHED else {}


def _line(error: Exception) -> str:
    """Return the first line of an error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _peer(against: str | None, source: Source, reference: str | None, name: str) -> peers.Peer:
    """Return the peer: another optimizer, or a file that the rule itself is written to."""
    from optlang.bench import emitted

    return emitted.peer(against, source) if against in emitted.TARGETS else peers.find(against, reference, name)


def _require_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {device}: {reason}") from error


def outcome(plan: Plan, settings: Settings, tick: Callable[[str], None] = lambda _: None) -> Result | Failure:
    """Carry out one comparison, as :func:`measure` does; whatever goes wrong is what was found."""
    try:
        return measure(plan, settings, tick)
    except Exception as error:  # the rule's, the peer's, the machine's: the other comparisons are made all the same
        named = _line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {_line(error)}"
        return Failure(plan.name, plan.peer.label, plan.shapes, named)


def measure(plan: Plan, settings: Settings, tick: Callable[[str], None] = lambda _: None) -> Result:
    """Carry out one comparison; ``tick`` is called with a word before each part of the work.

    Raises:
        ValueError: If the rule takes none of the tensors, or the peer fails.
    """
    if plan.refused is not None:
        raise ValueError(plan.refused)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    tick("first step")
    start = _tensors(plan)
    ours, theirs = _copies(start), _copies(start)
    one = _Side(plan.cls(ours, **plan.arguments), ours, plan)
    ready = _seconds(one, 1, plan.device)
    try:
        made = plan.peer.make(theirs, one.optimizer.defaults)  # the same numbers wherever both have a name for them
        other = _Side(made, theirs, plan)
        _seconds(other, 1, plan.device)
    except Exception as error:
        raise ValueError(f"{plan.peer.label} cannot step on {plan.shapes}: {error}") from error
    steps = settings.steps or _enough(max(_seconds(o, 2, plan.device) / 2 for o in (one, other)))
    times: tuple[list[float], ...] = ([], [], [])
    moved = bytes_moved(one.optimizer)
    pass_over = _Streaming(moved, plan.device)
    for number in range(settings.rounds):
        tick(f"round {number + 1} of {settings.rounds}")
        sides: tuple[_Side | _Streaming, ...] = (one, other, pass_over)
        for side, kept in zip(sides, times, strict=True):
            kept.append(1e3 * _seconds(side, steps, plan.device) / steps)
    first = None
    if settings.first_step:
        tick("first steps in new processes")
        first = cold.first_steps(plan)
    return Result(
        rule=plan.name,
        peer=plan.peer.label,
        shapes=plan.shapes,
        tensors=len(start),
        numbers=sum(p.numel() for p in start),
        dtype=plan.dtype,
        device=plan.device,
        threads=torch.get_num_threads(),
        ours=tuple(times[0]),
        theirs=tuple(times[1]),
        ready=ready,
        compiled=compiled_count(plan.cls),
        difference=_difference(start, ours, theirs),
        bytes=moved,
        streaming=tuple(times[2]),
        first=first,
        closure=plan.calls,
    )


class _Side:
    """An optimizer, and the closure of its steps if they take one."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], plan: Plan) -> None:
        self.optimizer = optimizer
        self._closure: Any = objective.closure(parameters, "hvp" in plan.asked) if plan.calls else None

    def step(self) -> None:
        if self._closure is None:
            self.optimizer.step()
        else:
            self.optimizer.step(self._closure)


class _Streaming:
    """A pass over memory in place that moves a number of bytes, half of them in and half of them out."""

    def __init__(self, moved: int, device: str) -> None:
        self.memory = torch.ones(max(1, moved // 8), dtype=torch.float32, device=device)

    def step(self) -> None:
        self.memory.mul_(1.0)


def _tensors(plan: Plan) -> list[torch.Tensor]:
    """Return parameters like those of a network at its start, with gradients; the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in plan.members:
        p = torch.randn(shape, generator=generator).mul_(0.02).to(plan.device, getattr(torch, plan.dtype))
        touched = shapes.TOUCHED.get(plan.shapes)
        if touched is None:
            p.grad = torch.randn(shape, generator=generator).mul_(1e-3).to(p)
        else:
            p.grad = rows.gradient(p, touched, generator)
        made.append(p)
    return made


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return equal parameters with gradients of their own, because some optimizers write into gradients."""
    copies: list[torch.Tensor] = []
    for tensor in tensors:
        copy = torch.nn.Parameter(tensor.detach().clone())
        copy.grad = None if tensor.grad is None else tensor.grad.clone()
        copies.append(copy)
    return copies


def _seconds(side: _Side | _Streaming, steps: int, device: str) -> float:
    """Return how long some steps take."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        side.step()
    wait()
    return time.perf_counter() - start


def _enough(seconds: float) -> int:
    """Return how many steps to put into a round, if one takes so long."""
    return max(3, min(1000, round(ROUND / seconds)))


def _difference(start: list[torch.Tensor], ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    apart = moved = 0.0
    with torch.no_grad():
        for s, a, b in zip(start, ours, theirs, strict=True):
            apart += float((a.double() - b.double()).square().sum())
            moved += float((b.double() - s.double()).square().sum())
    return math.sqrt(apart / moved) if moved else math.inf
