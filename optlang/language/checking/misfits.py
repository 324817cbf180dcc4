"""Shapes that do not fit, gathered over the sample shapes: a mistake of the rule, or a rule for some shapes only."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter

from optlang.language.checking.findings import Findings
from optlang.language.checking.worlds import World
from optlang.language.shapes import Shape, shown
from optlang.source import Span


@dataclass(frozen=True)
class Misfit:
    """What does not fit at some place, in one world."""

    world: World
    code: str
    message: str
    help: str
    label: str | None = None
    related: tuple[tuple[str, Span], ...] = ()


@dataclass
class Misfits:
    """What does not fit, by place.

    A place where shapes do not fit for an ordinary matrix, or for no sample that comes there, is a mistake. Where they
    do not fit for tensors of other dimensions, the rule is one of matrices.
    """

    failed: dict[Span, list[Misfit]] = field(default_factory=dict)
    passed: dict[Span, list[Shape]] = field(default_factory=dict)
    looked_at: set[Shape] = field(default_factory=set)

    def add(self, span: Span, misfit: Misfit) -> None:
        """Note that something does not fit."""
        self.failed.setdefault(span, []).append(misfit)

    def fine(self, span: Span, shape: Shape) -> None:
        """Note that everything fits at a place."""
        self.passed.setdefault(span, []).append(shape)

    @property
    def worlds(self) -> list[World]:
        """The worlds in which something does not fit."""
        return [misfit.world for misfits in self.failed.values() for misfit in misfits]

    def settle(self, findings: Findings) -> None:
        """Report the mistakes; else, once, that the rule is for some shapes only."""
        narrow: list[tuple[Span, Misfit]] = []
        certain = any(misfit.world.ordinary for misfits in self.failed.values() for misfit in misfits)
        for span, misfits in sorted(self.failed.items(), key=itemgetter(0)):
            sure = next((misfit for misfit in misfits if misfit.world.ordinary), None)
            if sure is None and span in self.passed:
                narrow.append((span, misfits[0]))
                continue
            if sure is None and certain:
                continue  # no ordinary matrix comes here until the other mistakes are gone
            misfit = sure or misfits[0]
            findings.add(
                misfit.code,
                misfit.message,
                span,
                label=misfit.label or self.for_shape(misfit.world),
                help=misfit.help + self.restriction(span, misfit.world),
                related=misfit.related,
            )
        if narrow and not findings.has_errors:
            self.warn(narrow, findings)

    @staticmethod
    def for_shape(world: World) -> str:
        """Return which parameter it is that something does not fit for."""
        return f"for a parameter of shape {shown(world.shape)}" if world.shape else "for a parameter of one number"

    def restriction(self, span: Span, world: World) -> str:
        """Return what to say of a place that fits for other shapes."""
        fine = self.passed.get(span, ())
        if not fine or not world.ordinary:
            return ""
        if all(len(shape) == 2 and shape[0] == shape[1] for shape in fine):
            return "; if the rule is only for square matrices, add `require rows == cols`"
        if all(len(shape) > 2 for shape in fine):
            return f"; if the rule is only for such tensors, add `require ndim >= {min(map(len, fine))}`"
        return ""

    def warn(self, narrow: list[tuple[Span, Misfit]], findings: Findings) -> None:
        """Warn that the rule is not for tensors of every number of dimensions."""
        bad = {len(misfit.world.shape) for _, misfits in self.failed.items() for misfit in misfits}
        good = sorted({len(shape) for shape in self.looked_at} - bad)
        if not good or 2 in bad:
            return  # it is the sizes of some tensors that do not fit, which is told for each tensor
        several = len(good) > 1 and good == list(range(good[0], max(map(len, self.looked_at)) + 1))
        condition = f"ndim >= {good[0]}" if several else " or ".join(f"ndim == {n}" for n in good)
        span, misfit = next((pair for pair in narrow if len(pair[1].world.shape) == 1), next(iter(narrow)))
        findings.add(
            "W612",
            f"the rule works only for parameters with {_dimensions(good, several)}",
            span,
            label=f"{self.for_shape(misfit.world)}: {misfit.message}",
            help=f"add `require {condition}`, or handle other shapes: `if {condition}: ... else: ...`",
        )


def _dimensions(good: list[int], several: bool) -> str:
    if several:
        return f"{good[0]} or more dimensions" if good[0] != 1 else "at least one dimension"
    if good == [1]:
        return "one dimension"
    return f"{' or '.join(map(str, good))} dimensions"
