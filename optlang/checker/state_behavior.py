"""Measures how states behave: runs a rule on random gradients and perturbs its states as rounding would.

It measures whether a state can be negative, how much longer a step becomes if a state is wrongly 0, and how much of an
average a step replaces. So only what really happens is reported.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import NamedTuple

from optlang.checker.dry_run import DryRun
from optlang.checker.grid import Abandoned, Grid
from optlang.checker.samples import Sample, facts, ordinary_value
from optlang.identity import GivenName
from optlang.rule import Rule, Value, Values, remembering
from optlang.storage import Fixed, Format
from optlang.storage.blocks import Blocks
from optlang.storage.fp8 import Fp8
from optlang.syntax.tree import StateScope

#: The shape of the parameter: large enough to treat some elements differently from others.
SHAPE = (2, 3)
#: The number of steps, and the period of steps in which the first element's gradient is 0, as happens in practice.
STEPS, WITHOUT = 30, 7
#: A step late enough for averages to have their final weights, and the perturbation that measures them.
LATE, CHANGE = 100_000, 1e-6
#: How many times longer steps must become for a warning.
LONG = 3.0


class Remark(NamedTuple):
    """A warning about a format that does not suit a state.

    Attributes:
        code: The code of the warning or error.
        message: What happens.
        label: The cause.
        instead: A better format.
        reason: Why it is better.
    """

    code: str
    message: str
    label: str
    instead: str
    reason: str


@dataclass(frozen=True)
class StateBehavior:
    """The observed behavior of a state.

    Attributes:
        negative: Whether some of its numbers were negative.
        begun: Whether some were nonzero before the first step, as in a state that follows the parameter.
        weight: The fraction of the old value that a step replaces, 1 - beta for an average; None if it varies.
        longest: By which factor the longest step grows if the state is 0, absolutely or relative to other elements
            whose state is not 0.
    """

    negative: bool
    begun: bool
    weight: float | None
    longest: Callable[[], float]

    def is_slow_for(self, format: Format) -> bool:
        """Return whether a step changes an average by less than rounding discards, so that it stalls.

        A nonnegative state decreases by at most its weight. The codes of a block also move relative to its scale, which
        takes up at most half of that loss. A signed average of noise is moved by the noise itself, which is about
        sqrt(2/weight) times larger than the average.
        """
        if not self.weight:
            return False
        if self.negative:
            return math.sqrt(2 * self.weight) < format.half_code
        return self.weight < (format.half_code / 2 if isinstance(format, Blocks) else format.half_code)

    def sign(self, name: str, format: Format) -> Remark | None:
        """Return a remark if a format drops the sign of a state."""
        if not (self.negative and isinstance(format, Blocks) and not format.signed):
            return None
        message = f"`{name}` can be negative, but {format.name} has no sign"
        return Remark("E415", message, "negative values become 0", "fp8", "stores signs")

    def remark(self, name: str, format: Format) -> Remark | None:
        """Return a remark if a format does not suit the state."""
        if (sign := self.sign(name, format)) is not None:
            return sign
        is_slow = self.is_slow_for(format)
        longest = self.longest() if format.vanishes else 1.0
        if longest > LONG:
            lost = f"`{name}` is rounded to 0 next to larger elements"
            message = f"steps become up to {_times(longest)} as long where {lost}"
            instead, reason = "bf16" if self.negative else "log8", "keeps small numbers"
            if self.negative and self.begun:  # the loss would be as large as the parameter's steps
                instead, reason = "fp32", "loses nothing"
            return Remark("W613", message, f"{format.vanishes} become 0", instead, reason)
        if is_slow:
            message = (
                f"`{name}` can stop changing: a step changes it by a fraction of {self.weight:.2g}, and rounding "
                f"discards up to {format.half_code:.2g}"
            )
            instead = "bf16 stochastic" if self.negative or isinstance(format, Fixed) else "log8"
            reason = "rounds up or down at random, which is unbiased"
            return Remark("W614", message, "rounded to nearest in every step", instead, reason)
        return None


def behavior_of(rule: Rule, sample: Sample) -> dict[str, StateBehavior]:
    """Measure the states that are shaped like the parameter; empty if the rule cannot be run.

    Args:
        rule: The rule.
        sample: The values of its hyperparameters.
    """
    sample = replace(sample, values={**sample.values, **facts(SHAPE)}, shape=SHAPE)
    try:
        run = _SampledRun(rule, sample)
    except (Abandoned, ArithmeticError, ValueError, KeyError, RecursionError):
        return {}
    return {
        name: StateBehavior(any(x < 0 for x in seen), name in run.begun, run.weight(name), partial(run.longest, name))
        for name, seen in run.seen.items()
    }


def behavior_with(rule: Rule, values: Values) -> dict[str, StateBehavior]:
    """Measure the states with given values of the hyperparameters."""
    return behavior_of(rule, Sample({name: value for name, value in values.items() if isinstance(name, str)}, SHAPE))


@remembering
def slow_averages(rule: Rule) -> frozenset[str]:
    """Return the keys of averages that stall in eight bits with default hyperparameters."""
    values: dict[GivenName, Value] = {h.name: ordinary_value(h) if h.required else h.default for h in rule.hypers}
    behavior = behavior_with(rule, values)
    return frozenset(s.key for s in rule.states if s.name in behavior and behavior[s.name].is_slow_for(Fp8()))


def _times(factor: float) -> str:
    """Return a factor in words."""
    if math.isinf(factor):
        return "infinitely many times"
    return f"{factor:,.0f} times" if factor < 10_000 else f"10^{math.log10(factor):.0f} times"


def _lengths(steps: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the largest change in each step of the even elements, and of the odd ones.

    The first step is left out, because nothing has been rounded before it.
    """
    return [(max(map(abs, step[::2])), max(map(abs, step[1::2]))) for step in steps[1:]]


class _SampledRun:
    """A run of several steps on random gradients.

    Args:
        rule: The rule.
        sample: The values of its hyperparameters.

    Attributes:
        seen: All values of states shaped like the parameter, by name.
        begun: The names of states with nonzero values before the first step.
    """

    def __init__(self, rule: Rule, sample: Sample) -> None:
        self.rule, self.sample = rule, sample
        self.count = math.prod(SHAPE)
        self.names = [state.name for state in rule.states if state.scope is StateScope.TENSOR]
        self.seen: dict[str, list[float]] = {}
        self.steps = self._changes(None)

    def _numbers(self, source: random.Random) -> Grid:
        return Grid(*SHAPE, tuple(source.gauss(0.0, 1.0) for _ in range(self.count)))

    def _changes(self, gone: str | None) -> list[tuple[float, ...]]:
        """Return the change of each element in each step; the even elements of the state ``gone`` are set to 0."""
        source = random.Random(0)
        self.run = run = DryRun(self.rule, self.sample, self._numbers(source), self._numbers(source))
        run.start()
        self.begun = {name for name in self.names if any(self._data(name))}
        found = []
        for step in range(1, STEPS + 1):
            before, g = self._data("p"), self._numbers(source)
            self._step(g if step % WITHOUT else g._replace(data=(0.0, *g.data[1:])))
            found.append(tuple(b - a for a, b in zip(before, self._data("p"), strict=True)))
            if gone is None:
                self._look()
            else:
                kept = (x if i % 2 else 0.0 for i, x in enumerate(self._data(gone)))
                run.env[gone] = Grid(*SHAPE, tuple(kept))
        return found

    def _step(self, g: Grid) -> None:
        """Run a step with the given gradient."""
        run = self.run
        run.step += 1
        run.g = run.env["g"] = g
        run.block(self.rule.body)

    def _data(self, name: str) -> Sequence[float]:
        """Return the values of p or a state."""
        found = self.run.env.get(name)
        return found.spread(*SHAPE) if isinstance(found, Grid) else ()

    def _look(self) -> None:
        """Record the values of states shaped like the parameter."""
        for name in self.names:
            found = self.run.env.get(name)
            if isinstance(found, Grid) and (found.rows, found.cols) == SHAPE:
                self.seen.setdefault(name, []).extend(found.data)

    # Measurements -------------------------------------------------------------------------------------------

    def longest(self, name: str) -> float:
        """Return by which factor the longest step grows if a state is set to 0 after every step."""
        try:
            changed = self._changes(name)
        except (Abandoned, ArithmeticError, ValueError):
            return 1.0
        usual, zeroed = _lengths(self.steps), _lengths(changed)
        if not all(math.isfinite(x) for pair in zeroed for x in pair):
            return math.inf
        # If a step is scaled as a whole, the other elements barely move instead.
        found, expected = (
            (max(one for one, _ in pairs), max((one / other for one, other in pairs if other), default=0.0))
            for pairs in (zeroed, usual)
        )
        return max((x / y for x, y in zip(found, expected, strict=True) if y), default=1.0)

    def weight(self, name: str) -> float | None:
        """Return the fraction of the old value that a late step replaces; None if it differs between elements."""
        try:
            found = list(self._weights(name))
        except (Abandoned, ArithmeticError, ValueError):
            return None
        if not found or max(found) - min(found) > 1e-3 * max(map(abs, found)) + 1e-9:
            return None
        middle = median(found)
        return middle if 1e-9 < middle <= 1 else None

    def _weights(self, name: str) -> Iterator[float]:
        """Yield the fraction for each element."""
        run = self.run
        held, step, g = dict(run.env), run.step, self._numbers(random.Random(1))
        results = []
        for factor in (1.0, 1.0 + CHANGE):
            run.env, run.step = dict(held), LATE
            old = self._data(name)
            run.env[name] = Grid(*SHAPE, tuple(x * factor for x in old))
            self._step(g)
            results.append(self._data(name))
        run.env, run.step = held, step
        for x, a, b in zip(old, *results, strict=True):
            if x:
                yield 1 - (b - a) / (CHANGE * x)
