"""Collects shape errors over the samples, to find out whether the rule is wrong or restricted to some shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter

from optlang.checker.samples import Sample
from optlang.declarations.findings import Findings
from optlang.functions.shapes import Shape, shown
from optlang.source import Span


@dataclass(frozen=True)
class ShapeError:
    """A shape error at some span, in one sample."""

    sample: Sample
    code: str
    message: str
    help: str
    label: str | None = None
    related: tuple[tuple[str, Span], ...] = ()


@dataclass
class ShapeErrors:
    """The shape errors of a rule, by span.

    A span whose shapes mismatch for an ordinary matrix, or in every sample that reaches it, is an error. If they
    mismatch for tensors with other numbers of dimensions, the rule is restricted to matrices.
    """

    failed: dict[Span, list[ShapeError]] = field(default_factory=dict)
    passed: dict[Span, list[Shape]] = field(default_factory=dict)
    looked_at: set[Shape] = field(default_factory=set)

    def add(self, span: Span, error: ShapeError) -> None:
        """Record a shape error."""
        self.failed.setdefault(span, []).append(error)

    def fine(self, span: Span, shape: Shape) -> None:
        """Record that all shapes match at a span."""
        self.passed.setdefault(span, []).append(shape)

    @property
    def samples(self) -> list[Sample]:
        """The samples with shape errors."""
        return [error.sample for errors in self.failed.values() for error in errors]

    def settle(self, findings: Findings) -> None:
        """Report the errors; without any, report once that the rule is restricted to some shapes."""
        narrow: list[tuple[Span, ShapeError]] = []
        certain = any(error.sample.ordinary for errors in self.failed.values() for error in errors)
        for span, errors in sorted(self.failed.items(), key=itemgetter(0)):
            sure = next((error for error in errors if error.sample.ordinary), None)
            if sure is None and span in self.passed:
                narrow.append((span, errors[0]))
                continue
            if sure is None and certain:
                continue  # no ordinary matrix gets here until the other errors are fixed
            error = sure or errors[0]
            findings.add(
                error.code,
                error.message,
                span,
                label=error.label or self.for_shape(error.sample),
                help=error.help + self.restriction(span, error.sample),
                related=error.related,
            )
        if narrow and not findings.has_errors:
            self.warn(narrow, findings)

    @staticmethod
    def for_shape(sample: Sample) -> str:
        """Return a phrase for the parameter whose shape causes the error."""
        return f"for a parameter of shape {shown(sample.shape)}" if sample.shape else "for a parameter of one number"

    def restriction(self, span: Span, sample: Sample) -> str:
        """Return a phrase for a span whose shapes match for other parameters."""
        fine = self.passed.get(span, ())
        if not fine or not sample.ordinary:
            return ""
        if all(len(shape) == 2 and shape[0] == shape[1] for shape in fine):
            return "; if the rule is only for square matrices, add `require rows == cols`"
        if all(len(shape) > 2 for shape in fine):
            return f"; if the rule is only for such tensors, add `require ndim >= {min(map(len, fine))}`"
        return ""

    def warn(self, narrow: list[tuple[Span, ShapeError]], findings: Findings) -> None:
        """Warn that the rule does not accept tensors with every number of dimensions."""
        bad = {len(error.sample.shape) for _, errors in self.failed.items() for error in errors}
        good = sorted({len(shape) for shape in self.looked_at} - bad)
        if not good or 2 in bad:
            return  # sizes mismatch only for some tensors, which is reported for each tensor
        several = len(good) > 1 and good == list(range(good[0], max(map(len, self.looked_at)) + 1))
        condition = f"ndim >= {good[0]}" if several else " or ".join(f"ndim == {n}" for n in good)
        span, error = next((pair for pair in narrow if len(pair[1].sample.shape) == 1), next(iter(narrow)))
        findings.add(
            "W612",
            f"the rule works only for parameters with {_dimensions(good, several)}",
            span,
            label=f"{self.for_shape(error.sample)}: {error.message}",
            help=f"add `require {condition}`, or handle other shapes: `if {condition}: ... else: ...`",
        )


def _dimensions(good: list[int], several: bool) -> str:
    if several:
        return f"{good[0]} or more dimensions" if good[0] != 1 else "at least one dimension"
    if good == [1]:
        return "one dimension"
    return f"{' or '.join(map(str, good))} dimensions"
