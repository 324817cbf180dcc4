"""The measurement: two optimizers on equal copies of the same tensors, in alternating rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from optlang.bench import cold, objective, rows, shapes
from optlang.bench.plan import Comparison, described, first_line
from optlang.runtime.kernels import compiled_count
from optlang.runtime.plan import GroupPlan

#: Target duration of a round in seconds: long compared with clock noise, short compared with a busy neighbor.
ROUND = 0.25
#: Seconds after which no more rounds of a comparison begin: a peer may take minutes per step.
LONGEST = 120.0


@dataclass(frozen=True)
class Settings:
    """Measurement settings.

    Attributes:
        steps: Steps per round; None for as many as take about ``ROUND`` seconds.
        rounds: Rounds of each side.
        longest: Seconds after which no more rounds of a comparison begin.
        threads: The number of threads that torch may use.
        first_step: Whether to time first steps in new processes, too.
    """

    steps: int | None = None
    rounds: int = 7
    longest: float = LONGEST
    threads: int | None = None
    first_step: bool = False


@dataclass(frozen=True)
class RowResult:
    """The result of a comparison; times are in milliseconds per step, and lists have one value per round.

    Attributes:
        rule: Name of the rule's class.
        peer: Label of the peer.
        shapes: Name of the list of shapes.
        tensors: The number of tensors.
        numbers: The total number of elements.
        dtype: The element type.
        device: The device.
        threads: The number of threads that torch used.
        ours: Our times.
        theirs: The peer's times.
        ready: Seconds that our first step took in this process, with the existing caches.
        compiled: The number of kernels compiled for this comparison, by the end of it.
        difference: Norm of the difference of the final parameters, relative to how far they moved.
        bytes: The minimum number of bytes that a step reads and writes: every tensor once.
        streaming: Milliseconds that a pass of ``x *= 1`` over the same number of bytes takes, for each round.
        first: First steps in new processes, if requested.
        closure: Whether the times include the closure.
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
        """A description of the tensors."""
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
        peer: Label of the intended peer.
        shapes: Name of the list of shapes.
        refused: The reason.
    """

    rule: str
    peer: str
    shapes: str
    refused: str

    @property
    def label(self) -> str:
        """A description of the intended tensors."""
        return self.shapes


def outcome(plan: Comparison, settings: Settings, tick: Callable[[str], None] = lambda _: None) -> RowResult | Failure:
    """Run one comparison, as :func:`measure` does; any error becomes the result."""
    try:
        return measure(plan, settings, tick)
    except Exception as error:  # an error of the rule, the peer or the machine: the other comparisons still run
        named = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
        return Failure(plan.name, plan.peer.label, plan.shapes, named)


def measure(plan: Comparison, settings: Settings, tick: Callable[[str], None] = lambda _: None) -> RowResult:
    """Run one comparison; ``tick`` is called with a word before each part of the work.

    Raises:
        ValueError: If the rule supports none of the tensors, or the peer fails.
    """
    if plan.refused is not None:
        raise ValueError(plan.refused)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    tick("first step")
    begun = time.perf_counter()
    start = _tensors(plan)
    ours, theirs = _copies(start), _copies(start)
    one = _Side(plan.cls(ours, **plan.arguments), ours, plan)
    ready = _seconds(one, 1, plan.device)
    try:
        made = plan.peer.make(theirs, one.optimizer.defaults)  # equal values for all hyperparameters that both have
        other = _Side(made, theirs, plan)
        slow = _seconds(other, 1, plan.device)
    except Exception as error:
        raise ValueError(f"{plan.peer.label} cannot step on {plan.shapes}: {error}") from error
    if slow > settings.longest / 10:  # avoids steps that are not needed
        steps = settings.steps or 1
    else:
        steps = settings.steps or _enough(max(_seconds(o, 2, plan.device) / 2 for o in (one, other)))
    times: tuple[list[float], ...] = ([], [], [])
    moved = bytes_moved(one.optimizer)
    pass_over = _Streaming(moved, plan.device)
    for number in range(settings.rounds):
        if number and time.perf_counter() - begun > settings.longest:
            break
        tick(f"round {number + 1} of {settings.rounds}")
        sides: tuple[_Side | _Streaming, ...] = (one, other, pass_over)
        for side, kept in zip(sides, times, strict=True):
            kept.append(1e3 * _seconds(side, steps, plan.device) / steps)
    first = None
    if settings.first_step:
        tick("first steps in new processes")
        first = cold.first_steps(plan)
    return RowResult(
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

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], plan: Comparison) -> None:
        self.optimizer = optimizer
        self._closure: Any = objective.closure(parameters, "hvp" in plan.asked) if plan.calls else None

    def step(self) -> None:
        if self._closure is None:
            self.optimizer.step()
        else:
            self.optimizer.step(self._closure)


class _Streaming:
    """A pass over memory in place that moves a number of bytes, half of them reads and half writes."""

    def __init__(self, moved: int, device: str) -> None:
        self.memory = torch.ones(max(1, moved // 8), dtype=torch.float32, device=device)

    def step(self) -> None:
        self.memory.mul_(1.0)


def _tensors(plan: Comparison) -> list[torch.Tensor]:
    """Return parameters like those of a newly initialized network, with gradients; the same ones each time."""
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
    """Return equal parameters with separate gradients, because some optimizers write to gradients."""
    copies: list[torch.Tensor] = []
    for tensor in tensors:
        copy = torch.nn.Parameter(tensor.detach().clone())
        copy.grad = None if tensor.grad is None else tensor.grad.clone()
        copies.append(copy)
    return copies


def _seconds(side: _Side | _Streaming, steps: int, device: str) -> float:
    """Return the duration of some steps in seconds."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        side.step()
    wait()
    return time.perf_counter() - start


def _enough(seconds: float) -> int:
    """Return the number of steps per round, given the duration of one step."""
    return max(3, min(1000, round(ROUND / seconds)))


def _difference(start: list[torch.Tensor], ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    apart = moved = 0.0
    with torch.no_grad():
        for s, a, b in zip(start, ours, theirs, strict=True):
            apart += float((a.double() - b.double()).square().sum())
            moved += float((b.double() - s.double()).square().sum())
    return math.sqrt(apart / moved) if moved else math.inf


def bytes_moved(optimizer: torch.optim.Optimizer) -> int:
    """Return how many bytes the last step of one of our optimizers moved.

    Every tensor counts once for being read, and once more if it is written.
    """
    plans: list[GroupPlan] = optimizer._plans  # type: ignore[attr-defined]
    return sum(batch.bytes_moved() for plan in plans for batch in plan.batches)
