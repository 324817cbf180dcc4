"""A parameter group's step: what runs for which parameters, kept from step to step while nothing changes.

A step has two halves. :meth:`GroupPlan.prepare` reads hyperparameters and gradients, checks everything, runs the host
functions and compiles kernels. It may raise, but has not modified any parameter or state. :meth:`GroupPlan.run` then
only computes.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any, NoReturn

import torch

from optlang.artifact import ShapeInfo, Variant
from optlang.identity import Count, GivenName
from optlang.inputs import ValueName, as_values
from optlang.rule import Value, Values
from optlang.runtime import host, rng
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.device_scalars import stays_on_device
from optlang.runtime.evaluation import Evaluation
from optlang.runtime.kernels import LoadedVariant, VariantCache
from optlang.runtime.parameter_names import describe
from optlang.runtime.records import STEP, ParameterState
from optlang.runtime.stages import Scratch
from optlang.runtime.stored import asked, formats_of
from optlang.runtime.tensors import address, facts_of, is_fake, local, lost, makes_fakes
from optlang.runtime.values import Hyperparameters
from optlang.runtime.work import PendingStep, ScheduledWork
from optlang.storage import Format
from optlang.storage.coded import WHOLE, Coded, ElementIndices
from optlang.syntax.tree import StateScope

State = MutableMapping[torch.Tensor, dict[str, Any]]


class GroupPlan:
    """The step of one parameter group.

    Args:
        group: The parameter group.
        hyper: Reads its hyperparameters.
        kernels: The variants and kernels of the rule.
        chosen: The parameters that the rule updates; by default all of the group.
    """

    #: The key of a parameter group that selects this kind of plan, and the name of the option in errors.
    switch: str | None = None
    option = ""
    #: Why this kind of plan does not support quantized states, for errors.
    unlike = ""

    def __init__(
        self,
        group: dict[str, Any],
        hyper: Hyperparameters,
        kernels: VariantCache,
        chosen: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self.group, self.hyper, self.kernels = group, hyper, kernels
        self.name = hyper.compiled.name
        self.batches: list[ParameterBatch] = []
        self._kept = asked(group)
        self.members: list[torch.Tensor] = list(group["params"])
        self.parameters: list[torch.Tensor] = self.members if chosen is None else list(chosen)
        # Parameters without views; one that is listed twice counts once.
        self.idle: list[torch.Tensor] = list({id(p): p for p in self.parameters}.values())
        self._values: dict[GivenName, Value] | None = None
        self._answers: tuple[Value, ...] | None = None
        self._leading: tuple[Any, LoadedVariant] | None = None
        self.offset = 0  # the number of parameters in the preceding groups
        self._places: dict[int, int] | None = None
        self.work: list[PendingStep] = []  # the prepared work
        self.staged: list[ScheduledWork] = []  # work that must run together with that of other groups
        self.evaluation: Evaluation | None = None  # the calls of the closure, for a rule that needs them
        self.inferring = False  # whether the step runs in inference mode
        self.instead: Mapping[str, Any] = {}  # values to check instead of these keys of the group
        self.scratch = Scratch()  # the optimizer replaces it by its own
        self._group_numbers: dict[str, float] = {}

    def fits(self, group: dict[str, Any]) -> bool:
        """Return whether the plan matches the current state of this parameter group."""
        members = group["params"]
        return (
            group is self.group
            and switched(group) == self.switch
            and asked(group) == self._kept
            and len(members) == len(self.members)
            and all(map(is_, members, self.members))
        )

    def is_settled(self) -> bool:
        """Return whether the next step can repeat this one: only hyperparameters of the group matter."""
        variants = [batch.prepared.variant for batch in self.batches]
        own = any(v.group_slots or v.counts_group or v.schedule.shared for v in variants)
        return self.switch is None and not (own or self.instead or self.inferring)

    def leading(self) -> LoadedVariant:
        """Return the variant of the first parameter, whose formulas of shared states apply."""
        if self._leading is None or self._leading[0] is not self._values:
            self._leading = self._values, self.variant_for(facts_of(self.parameters[0]))
        return self._leading[1]

    @property
    def values(self) -> Mapping[ValueName, Any]:
        """The hyperparameters of the last read, by name."""
        return as_values(self._values or {})

    # The first half -----------------------------------------------------------------------------------------

    def prepare(self, state: State, same: bool) -> bool:
        """Check everything and prepare the work of this step; return whether there is any.

        Args:
            state: ``optimizer.state``.
            same: Whether it holds the same dicts as after the last step.
        """
        self.work, self.staged, self._group_numbers = [], [], {}
        if makes_fakes():
            self._check_fake()
        self.read()
        active = self._gather(None if same else state)
        fresh = self._bind(state)
        active += fresh
        if not active:
            return False
        known = self._group_values(active[0].prepared)
        for batch in active:
            self.lay_out(batch, known)
        return True

    def lay_out(self, batch: ParameterBatch, known: Mapping[ValueName, Any]) -> None:
        """Prepare a batch's step."""
        if batch.schedule is not None:
            self.staged.append(ScheduledWork(batch, known, self.kernels, self.scratch))
        else:
            self.work.append(self.host(batch, known))

    def read(self) -> None:
        """Read the hyperparameters; check those that changed, and select variants again if a static answer changed."""
        values = self.hyper.read(self.group)
        if values == self._values:
            return
        self.hyper.check(self.hyper.read({**self.group, **self.instead}) if self.instead else values)
        answers = self.hyper.answers(values)
        if answers != self._answers and self._answers is not None:
            if self.kernels.by_shape:
                self._read_sizes(values)
            for batch in list(self.batches):
                if any(
                    self._is_changed(record, values, answers) for record in {r.facts: r for r in batch.records}.values()
                ):
                    self._dissolve(batch)
        self._values, self._answers = values, answers

    def _is_changed(self, record: ParameterState, values: Values, answers: tuple[Value, ...]) -> bool:
        """Return whether other hyperparameters select another variant for a parameter, or change its states' shapes."""
        prepared, p = record.prepared, record.parameter
        if self.kernels.prepared(values, answers, record.facts) is not prepared:
            return True
        return prepared.shapes(p, values) != prepared.shapes(p, self._values or {})

    def _read_sizes(self, values: Values) -> None:
        """Check whether the parameters suit the rule with the new hyperparameters."""
        seen: set[ShapeInfo] = set()
        for p in self.parameters:
            facts = facts_of(p)
            reason = None if facts in seen else self.kernels.compiled.unfit(values, facts)
            seen.add(facts)
            if reason is not None:
                self._fail(self._named(p), f"does not suit the rule: {reason}")

    def _dissolve(self, batch: ParameterBatch) -> None:
        """Drop the views of a batch; its parameters are bound again when they next have gradients."""
        self.batches.remove(batch)
        self.idle.extend(record.parameter for record in batch.records)

    def _gather(self, state: State | None) -> list[ParameterBatch]:
        """Collect the gradients and return the batches that have any; without ``state``, its dicts are the same."""
        active: list[ParameterBatch] = []
        for batch in list(self.batches):
            ready = None if batch.is_overwritten() else self._gather_batch(batch, state)
            if ready is None:
                self._dissolve(batch)
            elif len(ready) == len(batch.records):
                active.append(batch)
            elif ready:
                self.batches.remove(batch)
                parts = batch.split(ready)
                self.batches.extend(parts)
                active.append(parts[0])
        for batch in divided(self.batches):  # batches that a resumed optimizer would merge are merged here, too
            self._dissolve(batch)
            active = [other for other in active if other is not batch]
        return active

    def _gather_batch(self, batch: ParameterBatch, state: State | None) -> list[ParameterState] | None:
        """Collect the gradients of a batch; return the records that have one, or None if a record is stale."""
        if batch.volatile:
            return None
        if batch.many:
            usual = batch.usual(state)
            if usual is not None:
                batch.gradients = usual
                return batch.records
        ready: list[ParameterState] = []
        gradients: list[torch.Tensor] = []
        places: list[int] = []
        for place, record in enumerate(batch.records):
            p = record.parameter
            g = p.grad
            if g is None:
                continue
            if (
                not record.is_in_place()
                or g.dtype is not record.gradient_dtype
                or g.shape != record.shape
                or record.ordinary > (address(g) != 0 or not g.numel())
                or not record.is_current(record.state if state is None else state.get(p))
            ):
                return None
            if record.gradient_needs_check or not g.is_contiguous() or g.is_neg():
                self._check_gradient(p, g)
                g = record.fitting(g)
            gradients.append(g)
            ready.append(record)
            places.append(place)
        if batch.call is not None and not batch.many:
            gradients = [batch.call.operands[place].view(g) for place, g in zip(places, gradients, strict=True)]
        batch.gradients = gradients
        return ready

    def _bind(self, state: State) -> list[ParameterBatch]:
        """Bind the idle parameters that have gradients and return them as batches."""
        waiting = [p for p in self.idle if p.grad is not None]
        if not waiting:
            return []
        if len(waiting) > 1:  # in parameter order, like a resumed optimizer
            places = {id(p): i for i, p in enumerate(self.members)}
            waiting.sort(key=lambda p: places.get(id(p), 0))
        records: dict[Any, list[ParameterState]] = {}
        for p in waiting:
            assert p.grad is not None
            record = self._bound(p, p.grad, state)
            records.setdefault(ParameterBatch.key(record), []).append(record)
        batches = [self._batch(members) for members in records.values()]
        for batch in batches:
            batch.gradients = [r.fitting(g) for r in batch.records if (g := r.parameter.grad) is not None]
        ids = {id(p) for p in waiting}
        self.idle = [p for p in self.idle if id(p) not in ids]
        self.batches.extend(batches)
        return batches

    def _batch(self, records: list[ParameterState]) -> ParameterBatch:
        """Return a batch of some records."""
        batch = ParameterBatch(records)
        batch.seed = self.group.get(rng.SEED, 0)
        return batch

    def _bound(self, p: torch.Tensor, g: torch.Tensor, state: State) -> ParameterState:
        """Return a checked record for a parameter that has a gradient."""
        self._check_parameter(p)
        self._check_gradient(p, g)
        prepared = self.variant_for(facts_of(p))
        self._check_schedule(p, prepared)
        self._check_dimensions(p, prepared)
        record = ParameterState(p, prepared, state.get(p, {}))
        try:
            formats = self._formats(prepared, p)
            if reason := self.unfit(prepared.variant, self._named(p), formats):
                raise ValueError(f"it {reason}")
            record.place, record.places = self._place_of(self._named(record.owner)), self._places_of(p)
            record.draws = any(isinstance(format, Coded) and format.draws for format in formats.values())
            record.bind(g, self._values or {}, self._while_stepping(p, formats))
        except ValueError as error:
            self._fail(p, f"cannot be updated: {error}")
        return record

    def _formats(self, prepared: LoadedVariant, p: torch.Tensor) -> dict[str, Format]:
        """Return the storage formats of a parameter's states that override the rule's, by key."""
        return formats_of(self.kernels.compiled, self.group, prepared, self._named(p))

    @classmethod
    def unfit(cls, variant: Variant, p: torch.Tensor, formats: Mapping[str, Format]) -> str:
        """Return why a parameter's values cannot be stored in some formats; empty if they can."""
        return ""

    def _places_of(self, p: torch.Tensor) -> ElementIndices:
        """Return which elements of a parameter its local part holds."""
        return WHOLE

    def _while_stepping(self, p: torch.Tensor, formats: dict[str, Format]) -> dict[str, Format]:
        """Return how states are stored during a step, if that differs from their storage between steps."""
        return formats

    def _place_of(self, p: torch.Tensor) -> int:
        """Return the index of a parameter among all parameters of the optimizer."""
        if self._places is None:
            self._places = {id(q): i for i, q in enumerate(self.group["params"], self.offset)}
        return self._places.get(id(p), 0)

    def variant_for(self, facts: ShapeInfo) -> LoadedVariant:
        """Return the variant that updates a parameter with these facts."""
        return self.kernels.prepared(self._values or {}, self._answers or (), facts)

    def warm(self, state: State) -> None:
        """Compile the kernels of parameters that have not been updated yet; nothing else is changed.

        Args:
            state: ``optimizer.state``.
        """
        self.read()
        seen: set[Any] = set()
        for p in self.idle:
            if not (p.requires_grad or p.grad is not None):
                continue
            g = self._example(p)
            record = self._bound(p, g, state)
            key = ParameterBatch.key(record)
            if key not in seen:
                seen.add(key)
                batch = self._batch([record])
                batch.gradients = [record.fitting(g)]
                known = self._group_values(record.prepared)
                if batch.schedule is not None:
                    ScheduledWork(batch, known, self.kernels, self.scratch)
                else:
                    self.host(batch, known).rehearse()
        self._group_numbers = {}

    def _example(self, p: torch.Tensor) -> torch.Tensor:
        """Return the gradient of a parameter, or a zero of its type that takes no memory."""
        return p.grad if p.grad is not None else p.detach().new_zeros(()).expand(p.shape)

    # Checks -------------------------------------------------------------------------------------------------

    def _check_fake(self) -> None:
        """Reject real parameters in fake mode, where computed tensors have no values."""
        for p in self.parameters:
            if p.grad is not None and not is_fake(local(p)):
                self._fail(self._named(p), "is a real tensor, which cannot be updated within FakeTensorMode")

    def _check_parameter(self, p: torch.Tensor) -> None:
        if not (p.is_floating_point() or p.is_complex()):
            self._fail(p, f"has type {p.dtype}; only floating-point and complex parameters can be optimized")
        if hasattr(p, "to_local"):  # another plan handles these
            self._fail(p, f"is a distributed tensor, which is not supported with {self.option}")
        if p.layout is not torch.strided or p.is_nested:
            kind = "nested" if p.is_nested else f"of layout {p.layout}"
            self._fail(p, f"is {kind}; only dense (strided) parameters can be optimized")
        if reason := lost(p):
            self._fail(p, reason)
        if any(stride == 0 and size > 1 for stride, size in zip(p.stride(), p.shape, strict=True)):
            self._fail(
                p, "has elements that share memory (it is expanded), so they cannot be updated one by one; clone it"
            )
        if p.is_inference() and not self.inferring:
            self._fail(p, "is an inference tensor, which can only be updated within torch.inference_mode()")

    def _check_dimensions(self, p: torch.Tensor, prepared: LoadedVariant) -> None:
        variant = prepared.variant
        if p.dim() < variant.min_ndim:
            self._fail(
                p,
                f"has {p.dim()} dimensions, but {self.name} needs at least {variant.min_ndim}; give it to another "
                f"optimizer",
            )
        if p.is_complex() and not variant.layout.flat:
            self._fail(
                p, f"is complex, but {self.name} reduces over dimensions, which is supported only for real parameters"
            )

    def _check_schedule(self, p: torch.Tensor, prepared: LoadedVariant) -> None:
        """Reject parameters that steps with several stages do not support."""
        schedule = prepared.variant.schedule
        if not schedule.direct and self.switch is not None:
            self._fail(
                p,
                f"has {self.option}, which {self.name} does not support: "
                "its step has several stages (it uses matrices, sums over the whole model, `every` or random numbers)",
            )
        if any(stage.totals for stage in schedule.stages) and (is_fake(p) or p.is_meta):
            self._fail(p, f"has no values (it is fake, or on meta), but {self.name} computes sums over the whole model")
        if schedule.matrices and p.is_complex():
            self._fail(p, f"is complex, but {self.name} works on matrices, which is supported only for real parameters")

    def _check_gradient(self, p: torch.Tensor, g: torch.Tensor) -> None:
        self._check_layout(p, g)
        if reason := lost(g):
            self._fail(p, f"has a gradient that {reason}")
        if is_fake(g) is not is_fake(p):
            kinds = ("real", "fake")
            self._fail(p, f"is a {kinds[is_fake(p)]} tensor, but its gradient is a {kinds[is_fake(g)]} one")
        if g.shape != p.shape:
            self._fail(p, f"has shape {tuple(p.shape)}, but its gradient has shape {tuple(g.shape)}")
        if g.device != p.device:
            self._fail(p, f"is on {p.device}, but its gradient is on {g.device}")
        if g.is_complex() != p.is_complex() or not (g.is_floating_point() or g.is_complex()):
            self._fail(p, f"has type {p.dtype}, but its gradient has type {g.dtype}")

    def _check_layout(self, p: torch.Tensor, g: torch.Tensor) -> None:
        if g.layout is torch.strided:
            return
        if str(g.layout) == "torch._mkldnn":
            self._fail(p, f"has a gradient of layout {g.layout}, which {self.name} does not support; make it dense")
        message = f"has a sparse gradient ({g.layout}), which {self.name} does not support"
        if by_rows(self.variant_for(facts_of(p)).variant):
            message += ' unless sparse="lazy" is passed (to update only the rows that it touches)'
        self._fail(p, f"{message}; or make it dense (for an embedding: sparse=False)")

    def _fail(self, p: torch.Tensor, message: str) -> NoReturn:
        raise ValueError(f"{self.name}: {describe(self.group, self._named(p))} {message}")

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        """Return the parameter to name in messages."""
        return p

    # Host numbers -------------------------------------------------------------------------------------------

    def _group_values(self, prepared: LoadedVariant) -> dict[ValueName, Any]:
        """Run the group's own update and return every value that ``host`` may take."""
        values = self._values or {}
        slots, names = prepared.variant.group_slots, prepared.variant.group_arguments
        shared = tuple(slot for slot, _ in prepared.variant.schedule.shared)
        self._group_numbers = {}
        if not slots and not shared and not prepared.variant.counts_group:
            return as_values(values)
        known = {**as_values(values)}
        if slots or shared:
            initial = None
            for slot in (*slots, *shared):
                value = self.group.get(self.hyper.kept(slot.key))
                if value is None:
                    initial = initial or self.kernels.compiled.group_initial(values)
                    value = initial[slot.key]
                on_device = isinstance(value, torch.Tensor) and slot in shared and stays_on_device(value.device)
                known[slot.name] = value if on_device else float(value)
        if prepared.variant.counts_group:
            step = self.hyper.kept(STEP)
            known[Count.GROUP] = self._group_numbers[step] = float(self.group.get(step, 0.0)) + 1.0
        if slots:
            arguments = tuple(known[name] for name in names)
            results = host.call_group(prepared.plain["group"], arguments)
            for slot, value in zip(slots, results, strict=True):
                known[slot.new] = self._group_numbers[self.hyper.kept(slot.key)] = value
        return known

    def known(self) -> dict[ValueName, Any]:
        """Return the hyperparameters and the group's stored values, by name, as they are before a step."""
        rule, values = self.kernels.compiled.rule, self._values or {}
        kept = {s.name: s.key for s in rule.states if s.scope is not StateScope.TENSOR}
        initial = self.kernels.compiled.group_initial(values) if kept else {}
        return as_values(values) | {name: self.group.get(self.hyper.kept(k), initial[k]) for name, k in kept.items()}

    def steps(self) -> float:
        """Return the group's number of steps, including the current one."""
        step = self.hyper.kept(STEP)
        return float(self._group_numbers.get(step, self.group.get(step, 0.0)))

    def host(self, batch: ParameterBatch, known: Mapping[ValueName, Any]) -> PendingStep:
        """Run ``host`` for a batch, pack the coefficients, and find its kernel."""
        call = batch.call
        assert call is not None
        coefficients, numbers = host.call(call.prepared.functions["host"], batch.host_arguments(known))
        if call.loaded is None:
            self._see_to_kernel(batch, len(coefficients))
        return PendingStep(batch, call.packed(coefficients), numbers, batch.count)

    def _see_to_kernel(self, batch: ParameterBatch, coefficients: int) -> None:
        """Find the kernel of a batch that has none yet."""
        call = batch.call
        assert call is not None
        if call.loaded is None:
            call.see_to(self.kernels, coefficients, batch.prepared.variant)
            batch.gradients = call.view(batch.gradients)

    # The second half ----------------------------------------------------------------------------------------

    def run(self, state: State) -> list[torch.Tensor]:
        """Update parameters and states; return the parameters that are written.

        Batches whose steps have stages are left in ``staged``, to run together with those of other groups.
        """
        written: list[torch.Tensor] = []
        counted = bool(self.work) or not self._has_staged()
        for work in self.staged:
            if not work.batch.committed:
                self._commit(work.batch, state)
            written += work.batch.parameters
        for batch, coefficients, numbers, _ in self.work:
            if not batch.committed:
                self._commit(batch, state)
            batch.run(coefficients)
            batch.advance(numbers)
            written += batch.parameters
        self.work = []
        if counted:
            self.group.update(self._group_numbers)
        return written

    def _has_staged(self) -> bool:
        """Return whether some of the work remains to run together with that of other groups."""
        return bool(self.staged)

    def settle(self) -> list[torch.Tensor]:
        """Count what an interrupted step has updated, and drop the rest; return the updated parameters."""
        moved: list[torch.Tensor] = []
        if any(work.batch.moved or work.batch.count > work.before for work in self.work) or any(
            work.batch.count > work.count for work in self.staged
        ):
            self.group.update(self._group_numbers)
        for work in self.work:
            batch = work.batch
            if batch.moved:
                begun = batch.begun()
                if len(begun) < len(batch.records):
                    self.batches.remove(batch)
                    parts = batch.split(begun)
                    self.batches.extend(parts)
                    batch = parts[0]
                batch.count = work.before
                batch.advance(work.numbers)
                moved += batch.parameters
        self.abandon()
        return moved

    def finish(self, state: State) -> None:
        """Finish the step after the staged batches have run."""
        self.group.update(self._group_numbers)
        self.staged = []

    def begin(self, state: State) -> None:
        """Write the states that were initialized, and nothing else; called instead of :meth:`run`."""
        for batch, *_ in self.work:
            if not batch.committed:
                self._commit(batch, state)
            batch.gradients = []
        for work in self.staged:
            if not work.batch.committed:
                self._commit(work.batch, state)
            work.batch.gradients = []
        self.work, self.staged = [], []

    @staticmethod
    def _commit(batch: ParameterBatch, state: State) -> None:
        """Write the states that were initialized to ``optimizer.state``."""
        batch.reflect()
        for record in batch.records:
            record.commit()
            if record.state:
                state[record.parameter] = record.state
        batch.committed = True

    def abandon(self) -> None:
        """Discard a step that was prepared and will not run."""
        self.work, self.staged = [], []
        for batch in list(self.batches):
            batch.gradients = []
            if not batch.committed:
                self._dissolve(batch)


def divided(batches: Sequence[ParameterBatch]) -> list[ParameterBatch]:
    """Return the batches with a schedule that can be merged again, since they have the same number of updates.

    This matters to the last bit: products of stacked matrices are rounded differently from those of single matrices.
    """
    known: dict[Any, list[ParameterBatch]] = {}
    scheduled = [batch for batch in batches if batch.schedule is not None and batch.committed]
    for batch in scheduled if len(scheduled) > 1 else ():
        known.setdefault(batch.likeness(), []).append(batch)
    return [batch for alike in known.values() if len(alike) > 1 for batch in alike]


def switched(group: Mapping[str, Any]) -> str | None:
    """Return the option of a parameter group that selects a special kind of plan, if any."""
    return next((key for key in ("differentiable", "capturable", "sparse") if group.get(key)), None)


def by_rows(variant: Variant) -> bool:
    """Return whether a parameter's rows can be updated separately."""
    return variant.elementwise
