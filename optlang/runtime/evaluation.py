"""Calls of the closure in the middle of a step: at other points, and for Hessian-vector products.

A parameter is set to the value at which it is evaluated and then restored, whatever the closure does; afterwards,
``p.grad`` is what it was before the step. The model sees an ordinary evaluation: dropout draws new random numbers, and
running averages of normalization layers count it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import torch

from optlang.inputs import (
    Asked,
    Direction,
    EvaluationPoint,
    Exchanged,
    Gradient,
    HessianProduct,
    IterationControl,
    Loss,
    Progress,
    SearchDirection,
    SearchLength,
    ValueName,
)
from optlang.runtime import searches
from optlang.runtime.places import EvaluatedPoint, SearchLine
from optlang.runtime.tensors import pieces
from optlang.runtime.work import ScheduledWork

NO_CLOSURE = (
    "{name}.step() needs a closure: the rule evaluates {what}. Pass a function that computes the gradients and returns "
    "the loss: step(lambda: ...)"
)
NO_GRAPH = (
    "{name}: the rule computes products with the Hessian, but the gradients have no graph. Call "
    "loss.backward(create_graph=True) before step(), or give step() a closure that returns the loss and leaves "
    "backward() to the step"
)


class Stopped(Exception):
    """The steps of ``iterate`` ended before this one; nothing of it has been written."""


class Evaluation:
    """The calls of a closure in one step, or in the steps of a rule that iterates.

    Args:
        name: Name of the class, for messages.
        closure: Computes gradients and returns the loss; may be None.
        parameters: Every parameter of the optimizer.
        iterates: Whether the rule may make several steps.
        whole: Whether parameters keep their values until the step ends, because a flattened vector is updated instead.

    Attributes:
        loss: The closure's return value at the start of the step, as a number (on a device, as a tensor there).
        calls: How often the closure has been called.
        iteration: The number of the current step, from 1.
    """

    def __init__(
        self,
        name: str,
        closure: Callable[[], Any] | None,
        parameters: Sequence[torch.Tensor],
        iterates: bool = False,
        whole: bool = False,
    ) -> None:
        self.name, self.closure, self.parameters = name, closure, parameters
        self.iterates, self.whole = iterates, whole
        self.loss: Any = None
        self.calls, self.iteration, self._most = 0, 1, 1.0
        self._places: list[EvaluatedPoint] = []  # the start of this step, and the ends of its searches
        self._begin: dict[int, torch.Tensor] = {}  # the parameters at the start of a step, unless they stay there
        self._graph: dict[int, torch.Tensor] = {}
        self._straight = False  # the loss has a graph, but no curvature

    # Start of a step -----------------------------------------------------------------------------------------

    def start(self, curved: bool) -> Any:
        """Call the closure for the first time, as in any step, and return its result.

        Args:
            curved: Whether Hessian-vector products may be requested.

        Raises:
            TypeError: If there is neither a closure nor a gradient.
        """
        result = None
        if self.closure is None and all(p.grad is None for p in self.parameters):
            raise TypeError(NO_CLOSURE.format(name=self.name, what="the loss more than once"))
        if self.closure is not None:
            with torch.enable_grad():
                result = self.closure()
                self.calls += 1
                if curved:
                    self._differentiate(result)
                elif _has_graph(result) and all(p.grad is None for p in self.parameters):
                    raise RuntimeError(f"{self.name}: the closure computed no gradients; call loss.backward() in it")
            self.loss = self._number(result)
        if curved and not self._graph:
            graded = [p for p in self.parameters if p.grad is not None and p.grad.requires_grad]
            self._graph = {id(p): p.grad for p in graded if p.grad is not None}
        self._keep(self.loss)
        return result

    # Iteration -----------------------------------------------------------------------------------------------

    def look_ahead(self, late: Mapping[ValueName, Any]) -> None:
        """Record the maximum number of steps; raise ``Stopped`` if this step must not be made."""
        self._most = float(late[IterationControl.MOST])
        if self.iteration > self._most or bool(late[IterationControl.STOP]):
            raise Stopped

    def again(self) -> bool:
        """Begin the next step, if there may be one, with the loss and the gradients at the current point.

        The closure is called unless it was already called there: at the end of a search, or at the start of the last
        step.
        """
        if self.iteration >= self._most:
            return False
        self.iteration += 1
        if not self.whole:
            self.arrive([(p, p) for p in self.parameters])
        known = self._places.pop() if self._places else None
        if known is None:
            if self.closure is None:
                raise TypeError(NO_CLOSURE.format(name=self.name, what="the loss after each of its iterations"))
            for p in self.parameters:
                p.grad = None
            self.loss = self._call()
        else:
            self.loss = known.loss
            for p, g in zip(self.parameters, known.gradients, strict=True):
                p.grad = g
        self._keep(self.loss)
        return True

    def _keep(self, loss: Any) -> None:
        """Remember that the closure has been called at the start of the step."""
        if not self.iterates:
            return
        for p in () if self.whole else self.parameters:
            if id(p) in self._begin:
                self._begin[id(p)].copy_(p.detach())
            else:
                self._begin[id(p)] = p.detach().clone()
        # These gradients stay as they are until the closure is called again.
        self._places = [EvaluatedPoint(self._begin, loss, [p.grad for p in self.parameters])]

    def arrive(self, moved: Sequence[tuple[torch.Tensor, torch.Tensor]], quick: bool = False) -> None:
        """Record the new values of parameters; results from other points are dropped.

        Args:
            moved: The parameters, with their new values.
            quick: Whether C++ may be used.
        """
        with torch.no_grad():
            self._places = [place for place in self._places if place.holds(moved, quick)]

    def _differentiate(self, loss: Any) -> None:
        """Compute the gradients with their graph, if the closure left that to the step."""
        if not _has_graph(loss):
            return
        if any(p.grad is not None and p.grad.requires_grad for p in self.parameters):
            return
        wanted = [p for p in self.parameters if p.requires_grad]
        try:
            found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            return  # the closure called backward(); the error is raised when a product is needed
        for p, g in zip(wanted, found, strict=True):
            p.grad = None if g is None else g.detach()
            if g is not None and g.requires_grad:  # a constant gradient has no curvature
                self._graph[id(p)] = g
        self._straight = not self._graph

    def _fill_gradients(self, loss: Any) -> None:
        """Compute the gradients of a loss for which the closure did not call backward()."""
        wanted = [p for p in self.parameters if p.requires_grad]
        if not _has_graph(loss):
            raise RuntimeError(f"{self.name}: the closure computed no gradients, and its loss has no graph")
        for p, g in zip(wanted, torch.autograd.grad(loss, wanted, allow_unused=True), strict=True):
            p.grad = g

    @staticmethod
    def _number(loss: Any) -> Any:
        """Return a loss as a number; on a device, do not wait for it."""
        if not isinstance(loss, torch.Tensor):
            return None if loss is None else float(loss)
        return loss.detach().double().reshape(()) if loss.device.type != "cpu" else float(loss.detach())

    # Evaluation during a step --------------------------------------------------------------------------------

    def check(self, works: Sequence[ScheduledWork]) -> None:
        """Raise an error, before anything is changed, if the step will request something unavailable."""
        segments = [segment for work in works for segment in work.left]
        points = {point for segment in segments for point in segment.points}
        needs = _needed(works)
        at, lines = (any(isinstance(p, kind) for p in points) for kind in (EvaluationPoint, SearchDirection))
        if self.closure is None and (at or lines or Progress.LOSS in needs):
            what = "`grad` or `loss` at another point" if at else "the loss in a line search" if lines else "`loss`"
            raise TypeError(NO_CLOSURE.format(name=self.name, what=what))
        if (lines or Progress.LOSS in needs) and self.loss is None:
            raise TypeError(f"{self.name}: the rule reads `loss`: the closure must return the loss, not None")
        if any(isinstance(point, Direction) for point in points) and not (self._graph or self._straight):
            raise RuntimeError(NO_GRAPH.format(name=self.name))
        if points and any(hasattr(p, "to_local") for p in self.parameters):
            raise RuntimeError(f"{self.name}: the closure cannot be called again for sharded parameters")

    def at(
        self, point: Asked, works: Sequence[ScheduledWork], late: Mapping[ValueName, Any]
    ) -> Mapping[ValueName, Any]:
        """Evaluate at a point, or along a direction, and return the results by name.

        Args:
            point: What the closure is called for.
            works: The batches that take part.
            late: The results so far.
        """
        match point:
            case EvaluationPoint():
                return self._evaluate(point, works)
            case Direction():
                return self._along(point, works)
            case SearchDirection():
                return self._search(point, works, late)
            case _:
                assert_never(point)

    def _evaluate(self, point: EvaluationPoint, works: Sequence[ScheduledWork]) -> Mapping[ValueName, Any]:
        """Return the loss at a point, and compute the gradients there."""
        loss_there, gradient = Loss(point.site), Gradient(point.site)
        places = [pair for work in works for pair in _exchanged(work, point)]
        self._places = [place.with_gradients_apart() for place in self._places]
        with _moved(places, self.parameters):
            loss = self._call()
            for work in works:
                for p, memory in _exchanged(work, gradient):
                    _fill(memory, p.grad)
        if loss is None and loss_there in _needed(works):
            raise TypeError(f"{self.name}: the rule evaluates the loss at a point, but the closure returned None")
        return {loss_there: loss, gradient: True}

    def _call(self) -> Any:
        """Call the closure, which computes gradients, and return the loss."""
        with torch.enable_grad():
            assert self.closure is not None
            result = self.closure()
            self.calls += 1
            if all(p.grad is None for p in self.parameters):  # the closure leaves backward() to the step
                self._fill_gradients(result)
        return self._number(result)

    def _search(
        self, point: SearchDirection, works: Sequence[ScheduledWork], late: Mapping[ValueName, Any]
    ) -> Mapping[ValueName, Any]:
        """Search along a line, and return the step length.

        This waits for the values that the search reads, and for the loss at each step length.
        """
        pairs = [(p, _like(memory, p)) for work in works for p, memory in _exchanged(work, point)]
        search = point.search
        *options, sign = (float(late[option]) for option in search.options)
        self._places = [place.with_gradients_apart() for place in self._places]
        line = SearchLine(pairs, self.parameters, self._begin)
        seen: dict[float, EvaluatedPoint] = {}
        losses: dict[float, float] = {}

        def look(distance: float) -> tuple[float, float]:
            line.go(distance)
            for p in self.parameters:
                p.grad = None
            loss = self._call()
            if loss is None:
                raise TypeError(
                    f"{self.name}: the rule makes a line search: the closure must return the loss, not None"
                )
            losses[distance] = sign * float(loss)
            if self.iterates:
                seen[distance] = line.place(distance, loss)
            for at in sorted(seen, key=losses.__getitem__)[3:]:  # frees gradients where no search ends
                if at != distance:
                    del seen[at]
            return losses[distance], sign * line.slope()

        start = searches.SearchPoint(0.0, sign * float(self.loss), sign * line.slope())
        with _moved([], self.parameters), line:
            if search.method == "backtracking":
                length = searches.backtracking(look, start, *options)
            else:
                length = searches.strong_wolfe(look, start, line.largest(), *options)
        if length in seen:
            self._places.append(seen[length])
        return {SearchLength(search): length}

    def _along(self, point: Direction, works: Sequence[ScheduledWork]) -> Mapping[ValueName, Any]:
        """Multiply the Hessian by a direction."""
        directions = {id(p): _like(memory, p) for work in works for p, memory in _exchanged(work, point)}
        pairs = [(self._graph[i], z) for i, z in directions.items() if i in self._graph]
        wanted = [p for p in self.parameters if p.requires_grad] if pairs else []
        found: Sequence[torch.Tensor | None] = ()
        if pairs:
            found = torch.autograd.grad(
                [g for g, _ in pairs], wanted, [z.to(g.dtype) for g, z in pairs], retain_graph=True, allow_unused=True
            )
        result = HessianProduct(point.site)
        products = {id(p): product for p, product in zip(wanted, found, strict=True)}
        for work in works:
            for p, memory in _exchanged(work, result):
                _fill(memory, products.get(id(p)))
        return {result: True}


def _has_graph(loss: Any) -> bool:
    """Return whether a loss is a tensor that can be differentiated."""
    return isinstance(loss, torch.Tensor) and loss.requires_grad


def _needed(works: Sequence[ScheduledWork]) -> set[ValueName]:
    """Return the names of the late values that a step will read, on the host or in a stage."""
    needs = {name for work in works for segment in work.left for name in segment.needs}
    for work in works:
        own = work.schedule.own
        needs |= {*own.numbers_arguments[work.chosen], *(n for _, names in own.shared for n in names)}
    return needs


def _exchanged(work: ScheduledWork, name: Exchanged) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a batch's parameters with the tensors that they exchange under a name; nothing if they exchange none."""
    memory = work.schedule.exchanged(work.chosen, name)
    for record, held in zip(work.batch.records, memory, strict=True) if memory else ():
        yield from pieces(record.parameter, held)


def _like(memory: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return exchanged memory in the parameter's form: complex numbers are stored there as pairs."""
    return torch.view_as_complex(memory) if p.is_complex() else memory


def _fill(memory: torch.Tensor, value: torch.Tensor | None) -> None:
    """Write the results of an evaluation; a parameter that the loss does not depend on gets zeros."""
    if value is None:
        memory.zero_()
    else:
        memory.copy_(torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach())


@contextmanager
def _moved(places: Sequence[tuple[torch.Tensor, torch.Tensor]], parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Set parameters to the point of evaluation, without gradients, and restore them afterwards."""
    kept = [p.detach().clone() for p, _ in places]
    gradients = [p.grad for p in parameters]
    try:
        for p, there in places:
            p.data.copy_(_like(there, p))  # hidden from autograd, which may still need the restored values
        for p in parameters:
            p.grad = None
        yield
    finally:
        with torch.no_grad():
            for (p, _), own in zip(places, kept, strict=True):
                p.data.copy_(own)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
