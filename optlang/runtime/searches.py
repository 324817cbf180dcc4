"""Line searches: how far to go along a line, calling the closure until the conditions hold.

Both take the loss along the line as a function of the distance; it returns the loss and its slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

#: The loss at a distance, and its slope there.
Line = Callable[[float], tuple[float, float]]


class SearchPoint(NamedTuple):
    """A point on the line that has been evaluated."""

    at: float
    loss: float
    slope: float


def backtracking(line: Line, start: SearchPoint, step: float, c1: float, shrink: float, evaluations: float) -> float:
    """Return the first of ``step``, ``shrink*step``, ... at which the loss has decreased enough; 0 if none is.

    Args:
        line: The loss along the line.
        start: The point at 0.
        step: The first distance.
        c1: The required fraction of the decrease that the slope predicts (Armijo's condition).
        shrink: The factor by which a distance that is too large is reduced.
        evaluations: The maximum number of calls of the closure.
    """
    for _ in range(int(evaluations)):
        loss, _ = line(step)
        if loss <= start.loss + c1 * step * start.slope:
            return step
        step *= shrink
    return 0.0


def strong_wolfe(
    line: Line,
    start: SearchPoint,
    largest: float,
    step: float,
    c1: float,
    c2: float,
    tolerance: float,
    evaluations: float,
) -> float:
    """Return a distance that meets the strong Wolfe conditions, or the best one found; 0 if the line does not descend.

    Nocedal and Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6, with the safeguards of minFunc, as in
    ``torch.optim.LBFGS``: steps grow at most tenfold, and stay a tenth of the bracket away from its ends unless they
    have just done so.

    Args:
        line: The loss along the line.
        start: The point at 0.
        largest: The largest absolute value in the direction.
        step: The first distance.
        c1: The required fraction of the decrease that the slope predicts.
        c2: The fraction of the slope that may remain.
        tolerance: The slope below which the line does not count as descending, and the largest change of a parameter
            for which a bracket is not narrowed any further.
        evaluations: The maximum number of calls of the closure after the first distance.
    """
    if not start.slope <= -tolerance:
        return 0.0
    search = _Search(line, start, c1, c2, int(evaluations))
    bracket = search.bracketed(step)
    return bracket[0].at if len(bracket) == 1 else search.narrowed(bracket, tolerance, largest)


class _Search:
    """One search for a distance that meets the strong Wolfe conditions."""

    def __init__(self, line: Line, start: SearchPoint, c1: float, c2: float, most: int) -> None:
        self.line, self.start, self.c1, self.c2, self.most = line, start, c1, c2, most
        self.called = 0

    def look(self, at: float) -> SearchPoint:
        """Return the point at a distance."""
        return SearchPoint(at, *self.line(at))

    def too_high(self, point: SearchPoint) -> bool:
        """Return whether the loss has not decreased enough."""
        return not point.loss <= self.start.loss + self.c1 * point.at * self.start.slope  # NaN is too high as well

    def flat_enough(self, point: SearchPoint) -> bool:
        """Return whether the remaining slope is small enough."""
        return abs(point.slope) <= -self.c2 * self.start.slope

    def bracketed(self, step: float) -> list[SearchPoint]:
        """Return a point that meets the conditions, or two points that bracket one."""
        before, point = self.start, self.look(step)
        while self.called < self.most:
            if self.too_high(point) or (self.called > 1 and point.loss >= before.loss):
                return [before, point]
            if self.flat_enough(point):
                return [point]
            if point.slope >= 0:
                return [before, point]
            low, high = point.at + 0.01 * (point.at - before.at), 10 * point.at
            following = _between(before, point, low, high)
            before, point = point, self.look(following)
            self.called += 1
        return [self.start, point]

    def narrowed(self, bracket: list[SearchPoint], tolerance: float, largest: float) -> float:
        """Return a distance between the ends of a bracket."""
        low, high = _lower(bracket)
        close = False  # the last step came close to an end
        while self.called < self.most:
            first, last = sorted(end.at for end in bracket)
            if (last - first) * largest < tolerance:
                break
            at = _between(bracket[0], bracket[1], first, last)
            margin = 0.1 * (last - first)
            if min(last - at, at - first) < margin:
                if close or at >= last or at <= first:
                    at = last - margin if abs(at - last) < abs(at - first) else first + margin
                    close = False
                else:
                    close = True
            else:
                close = False
            point = self.look(at)
            self.called += 1
            if self.too_high(point) or point.loss >= bracket[low].loss:
                bracket[high] = point
                low, high = _lower(bracket)
                continue
            if self.flat_enough(point):
                return point.at
            if point.slope * (bracket[high].at - bracket[low].at) >= 0:
                bracket[high] = bracket[low]
            bracket[low] = point
        return bracket[low].at


def _lower(bracket: list[SearchPoint]) -> tuple[int, int]:
    """Return the lower and the higher end of a bracket; an end that is NaN is not the lower one."""
    return (1, 0) if bracket[1].loss < bracket[0].loss else (0, 1)


def _between(a: SearchPoint, b: SearchPoint, low: float, high: float) -> float:
    """Return the minimum, between two bounds, of the cubic through two points with their slopes.

    Returns the midpoint of the bounds if there is no minimum.
    """
    if a.at > b.at:
        a, b = b, a
    least, width = math.nan, b.at - a.at
    if width:
        bend = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.at - b.at)
        square = bend * bend - a.slope * b.slope
        root = math.sqrt(square) if square >= 0 else math.nan
        below = b.slope - a.slope + 2 * root
        least = b.at - width * (b.slope + root - bend) / below if below else math.nan
    return min(max(least, low), high) if math.isfinite(least) else (low + high) / 2
