"""A compiled rule as a ``torch.optim.Optimizer`` class."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from operator import is_
from typing import Any, ClassVar

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from optlang.artifact import Compiled
from optlang.functions.table import HALT
from optlang.identity import Count
from optlang.inputs import ValueName
from optlang.runtime import arguments, checkpoint, documentation, param_groups, rehearsal, rng
from optlang.runtime.counterpart import undecorated
from optlang.runtime.evaluation import Evaluation, Stopped
from optlang.runtime.events import TRAINING, EventPlan
from optlang.runtime.kernels import LoadedVariant, VariantCache
from optlang.runtime.plan import GroupPlan
from optlang.runtime.routing import Parts, RoutedRule
from optlang.runtime.schedule_runner import run_schedule
from optlang.runtime.stages import Scratch
from optlang.runtime.tensors import is_fake, local
from optlang.runtime.usual import UsualSteps
from optlang.runtime.vanishing import Vanishing
from optlang.runtime.work import ScheduledWork

#: The staged work of a rule, with the other arguments of ``run_schedule``.
Together = tuple[RoutedRule, list[ScheduledWork], LoadedVariant, Mapping[ValueName, Any], rng.Seed | None]

_nothing = nullcontext()
_unknown: Mapping[ValueName, Any] = {}


class RuleOptimizer(Optimizer):
    """Base class of all optimizers made from rules."""

    _compiled: ClassVar[Compiled]
    _parts: ClassVar[Parts]
    _calling: ClassVar[frozenset[VariantCache]]  # those of rules that call the closure
    _asked: ClassVar[frozenset[str]]  # values needed from the closure: ``loss``, ``grad``, ``hvp``
    _counting: ClassVar[bool]  # whether a step without gradients changes its parameter groups
    _random: ClassVar[bool]  # whether it draws random numbers
    _events: ClassVar[bool]  # whether parameters differ between training and evaluation
    _rebuild: ClassVar[tuple[Callable[..., Any], tuple[Any, ...]] | None]
    found_inf: torch.Tensor | None

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._plans: list[GroupPlan] = []
        self._usual: UsualSteps | None = None  # prepared data for steps that repeat the last one
        self._scratch = Scratch()
        self._routes: list[Any] = []  # the values that decide which parameters each rule updates
        self._seen: list[Any] = []  # the dicts in `state` at the end of the last step
        self._untried = True  # no step has been made yet, or only a rehearsal
        self._rehearsed: list[rehearsal.Content] | None = None  # the state that the rehearsal created
        self._lent = checkpoint.Lent()
        self._fakes: Any = None  # the mode in which the parameters were created, if they are fake
        self._vanishing: Vanishing | None = None  # detects updates that are rounded away
        given = arguments.given(self._parts, args, kwargs)
        groups = [] if isinstance(params, torch.Tensor) else list(params)
        defaults = arguments.defaults(self._parts, given, groups)
        super().__init__(groups if not isinstance(params, torch.Tensor) else params, defaults)

    @classmethod
    def _name(cls) -> str:
        return cls._compiled.name

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in ``torch.optim``; its hyperparameters are checked first.

        Args:
            param_group: A dict with the parameters under ``params``, and options for them.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        param_groups.check_new(self._parts, param_group, self.defaults)
        undecorated(Optimizer.add_param_group)(self, param_group)
        self._fakes = _fakes(self.param_groups)
        try:
            param_groups.begin(self._parts, param_group, self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        self._vanishing = Vanishing()
        if self._parts.counterpart.early:
            self.state.update(param_groups.states_before_steps(self._parts, param_group))

    # Stepping -----------------------------------------------------------------------------------------------

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Update the parameters.

        Everything is checked before anything is written: a step that raises changes nothing. A step that is interrupted
        (Ctrl-C) while it computes has updated and counted some parameters and left the others unchanged; training can
        continue from there, or be saved.

        Args:
            *args: ``closure``, which recomputes the gradients and returns the loss; optional.
            **kwargs: The same, by keyword.

        Returns:
            The return value of the closure, if there is one.
        """
        # torch's wrapper serves hooks and profilers, but costs as much as a small step: use it only if needed.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        ):
            return _hooked_step(self, *args, **kwargs)  # hooks see the arguments as they were passed
        return self._step(*args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # or Optimizer.__init__ would wrap it
    step.__signature__ = inspect.signature(Optimizer.step)  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, without hooks."""
        if self._events and not all(group.get(TRAINING, True) for group in self.param_groups):
            raise RuntimeError(
                f"{self._name()}: the parameters hold the weights for evaluation; call optimizer.train() before step()"
            )
        evaluation, loss = None, None
        if self._asked:
            members = list({id(p): p for group in self.param_groups for p in group["params"]}.values())
            whole = all(part.compiled.rule.flat for part in self._parts.parts)
            evaluation = Evaluation(self._name(), closure, members, HALT in self._asked, whole)
            loss = evaluation.start("hvp" in self._asked)
        elif closure is not None:
            with torch.enable_grad():
                loss = closure()
        if "found_inf" in self.__dict__ and self._is_skipped():
            return loss
        if torch.compiler.is_compiling():
            _update_apart(self, evaluation)
        elif self._fakes is None:
            self._update_all(evaluation)
        else:  # because all tensors that a step creates must be fake, too
            with self._fakes:
                self._update_all(evaluation)
        return loss

    def _update_all(self, evaluation: Evaluation | None) -> None:
        """Run one step of every parameter group, or as many as a rule that iterates asks for."""
        try:
            self._update(evaluation)
            while evaluation is not None and evaluation.again():
                self._update(evaluation)
        except Stopped:
            return
        finally:
            for plan in self._plans:
                plan.evaluation = None

    def _is_skipped(self) -> bool:
        """Return whether a gradient scaler has found infinities; otherwise, divide gradients by its scale, if set.

        A scaler normally does both itself. It sets these attributes only if it takes the optimizer for one of torch's
        fused ones.
        """
        if self.found_inf is not None and bool(self.found_inf):
            return True
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"]):
                    if p.grad is not None:
                        p.grad.div_(scale)
        return False

    def _update(self, evaluation: Evaluation | None = None) -> None:
        """Run one step of every parameter group; ``evaluation`` is for a rule that calls the closure."""
        state, seen = self.state, self._seen
        # Looking up a tensor in a dict costs a Python call, so the dicts themselves are compared.
        same = len(seen) == len(state) and all(map(is_, seen, state.values()))
        if same and self._usual is not None and self._make_usual(self._usual):
            return
        with torch.no_grad():
            self._update_fully(evaluation, same)
        if not same or len(seen) != len(state):
            self._seen = list(state.values())

    def _make_usual(self, usual: UsualSteps) -> bool:
        """Run a step that repeats the one before, if possible; return whether it was."""
        try:
            if not usual.prepare(self.param_groups, self._plans):
                return False
            together = self._together(self._plans) if any(plan.staged for plan in self._plans) else []
        except BaseException:
            self._abandon()
            raise
        with torch.no_grad() if together else _nothing:
            self._carry_out(self._plans, together, None)
        return True

    def _carry_out(
        self, busy: Sequence[GroupPlan], together: Sequence[Together], evaluation: Evaluation | None
    ) -> None:
        """Run the second half of a step that has been prepared completely."""
        started = len(self.state)
        if self._lent:
            self._lent.part()
        written: list[torch.Tensor] = []
        compared = None if self._vanishing is None else self._vanishing.before(busy)
        try:
            self._move(busy, together, evaluation, written)
            for plan in busy:
                plan.finish(self.state)
            self._order(started)
        except BaseException as error:
            if not isinstance(error, (RuntimeError, Stopped)):  # expected errors; others interrupt
                written += [p for plan in busy for p in plan.settle()]
                self._plans, self._seen = [], []
                _changed(written)
            raise
        _changed(written)
        if self._vanishing is not None:
            if compared:
                self._vanishing.after(self._name(), compared, self.param_groups)
            self._vanishing = None if self._vanishing.over else self._vanishing

    def _abandon(self) -> None:
        """Discard a step that failed before anything was written; the next step rebuilds its plans."""
        for plan in list(self._plans):
            plan.abandon()
        self._plans, self._seen = [], []

    def _update_fully(self, evaluation: Evaluation | None, same: bool) -> None:
        """Run one step, checking everything; ``same``: the dicts in ``state`` are those of the last step."""
        if self._rehearsed is not None:
            # States from the rehearsal are initialized again, with real gradients, unless someone else wrote to them.
            if rehearsal.are_alike(self._rehearsed, rehearsal.contents(self.state)):
                self.state.clear()
            self._plans, self._seen, self._rehearsed = [], [], None
        plans, state = self._current_plans(), self.state
        inferring = torch.is_inference_mode_enabled()
        maybe = (self._untried or self._counting) and rehearsal.is_possible(state, self.param_groups)
        # A rule need not allow a step size of 0, so the optimizer's own step size is checked instead.
        instead = {"lr": self.defaults["lr"]} if maybe and "lr" in self.defaults else {}
        try:
            # Later steps outside inference mode could not write to tensors created in it.
            with torch.inference_mode(False) if inferring else _nothing:
                for plan in plans:
                    plan.inferring, plan.instead, plan.evaluation = inferring, instead, evaluation
                busy = [plan for plan in plans if plan.prepare(state, same)]
            together = self._together(busy) if any(plan.staged for plan in busy) else []
            rehearses = maybe and rehearsal.is_without_gradients(self.param_groups)
            if maybe and not rehearses:
                for group in self.param_groups:
                    self._parts.check(group)
            if evaluation is not None and not rehearses:
                evaluation.check([work for _, works, *_ in together for work in works])
        except BaseException:
            self._abandon()
            raise
        if rehearses:
            for plan in busy:
                plan.begin(state)
            self._rehearsed = rehearsal.contents(state)
            return
        self._untried = False
        self._carry_out(busy, together, evaluation)
        self._usual = None
        if len(self._parts.parts) == 1 and not (self._asked or self._counting):
            usual = UsualSteps(self.param_groups, plans)
            self._usual = usual if usual.possible else None

    def _order(self, known: int) -> None:
        """Sort the states that a step has initialized into parameter order, after the ``known`` ones."""
        if len(self.state) == known:
            return
        fresh = list(self.state)[known:]
        if len(fresh) > 1:
            started = {p: self.state.pop(p) for p in fresh}
            members = [p for group in self.param_groups for p in group["params"] if p in started]
            self.state.update((p, started[p]) for p in dict.fromkeys([*members, *fresh]))

    def _move(
        self,
        busy: Sequence[GroupPlan],
        together: Sequence[Together],
        evaluation: Evaluation | None,
        written: list[torch.Tensor],
    ) -> None:
        """Run what has been prepared, and record the parameters that are written."""
        before = None if evaluation is None else self._before()
        for calls in (True, False) if self._calling else (False,):  # the closure must not see any updated parameter
            for plan in busy:
                if (plan.kernels in self._calling) == calls:
                    written += plan.run(self.state)
            for part, works, first, known, seed in together:
                if (part.kernels in self._calling) != calls:
                    continue
                shared: dict[str, Any] = {}
                try:
                    run_schedule(works, first, known, seed, shared, evaluation)
                    self._keep_shared(part, shared)
                except BaseException:
                    if any(work.batch.count > work.count for work in works):
                        self._keep_shared(part, shared)
                    elif before is not None:
                        self._take_back(before)
                    raise

    def _keep_shared(self, part: RoutedRule, shared: Mapping[str, Any]) -> None:
        """Write the states of the whole optimizer, by key, to every parameter group."""
        for group in self.param_groups:
            group.update((part.hyper.kept(key), value) for key, value in shared.items())

    def _before(self) -> tuple[set[Any], list[dict[str, Any]]]:
        """Return what a step changes before it calls the closure: which parameters have state, and the groups' keys."""
        return set(self.state), [dict(group) for group in self.param_groups]

    def _take_back(self, before: tuple[set[Any], list[dict[str, Any]]]) -> None:
        """Undo the beginning of a step in which the closure failed: no parameter or state has been written."""
        known, groups = before
        started = set(self.state) - known
        for key in started:
            del self.state[key]
        for group, kept in zip(self.param_groups, groups, strict=True):
            group.clear()
            group.update(kept)
        for plan in self._plans:
            plan.abandon()
        if started:  # records bound to it must be bound again
            self._plans, self._seen = [], []

    def _together(self, busy: Sequence[GroupPlan]) -> list[Together]:
        """Return the staged work of each rule, with the other arguments of :func:`run_schedule`.

        Sums and shared states belong to one rule; shared states use the variant and the values of its first group.
        """
        found, seed = [], rng.Seed(self.param_groups) if self._random else None
        for part in self._parts.parts:
            works = [work for plan in busy for work in plan.staged if work.rule is part.kernels]
            if works:
                own = [plan for plan in self._plans if plan.kernels is part.kernels and plan.parameters]
                first, known = own[0].leading(), _unknown
                if first.variant.schedule.shared:
                    known = {**own[0].known(), Count.GROUP: max(plan.steps() for plan in own)}
                found.append((part, works, first, known, seed))
        return found

    def warmup(self) -> None:
        """Compile everything that the first step would compile, so that it is as fast as later steps.

        Gradients are not needed; they are assumed to have the types of their parameters. Nothing is changed.

        Raises:
            ValueError: If a step would raise it for a hyperparameter or a parameter.
        """
        with torch.no_grad():
            for plan in self._current_plans():
                plan.warm(self.state)

    def _current_plans(self) -> list[GroupPlan]:
        """Return a plan for each parameter group, rebuilt if the group was replaced or has other parameters."""
        plans, parts = self._plans, self._parts
        groups = [group for group in self.param_groups for _ in parts.parts]
        routes = [parts.answers(group) for group in self.param_groups] if len(parts.parts) > 1 else self._routes
        fits = len(plans) == len(groups) and all(plan.fits(group) for plan, group in zip(plans, groups, strict=True))
        if not fits or routes != self._routes:
            self._routes = routes
            for group in self.param_groups:
                param_groups.check_options(parts, group)
            plans[:] = [
                param_groups.plan_kind(group, part)(group, part.hyper, part.kernels, members)
                for group in self.param_groups
                for part, members in param_groups.placed(parts, group)
            ]
            offset = 0
            for i, plan in enumerate(plans):
                plan.scratch, plan.offset = self._scratch, offset
                if i % len(parts.parts) == len(parts.parts) - 1:
                    offset += len(plan.group["params"])
        return plans

    # Evaluation ---------------------------------------------------------------------------------------------

    def eval(self) -> None:
        """Switch the parameters to the weights for evaluation, as ``on eval`` defines; without it, do nothing.

        Call it before evaluating or saving the model. It is idempotent.
        """
        self._switch("eval")

    def train(self, mode: bool = True) -> None:
        """Switch the parameters back to the weights for training, as ``on train`` of the rule defines.

        Args:
            mode: False is the same as :meth:`eval`, as for modules.
        """
        self._switch("train" if mode else "eval")

    def _switch(self, event: str) -> None:
        """Run an event for the parameter groups that are not in its mode yet."""
        plans = [
            EventPlan(event, group, part.hyper, part.kernels, members)
            for group in self.param_groups
            if group.get(TRAINING, True) is not (event == "train")
            for part, members in param_groups.placed(self._parts, group)
            if event in part.compiled.rule.events
        ]
        with torch.no_grad():
            for plan in plans:
                plan.prepare_event(self.state)
            self._lent.part()
            _changed([p for plan in plans for p in plan.run_event()])
        for group in self.param_groups if self._events else ():
            group[TRAINING] = event == "train"

    # Saving and loading -------------------------------------------------------------------------------------

    def state_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Return hyperparameters and state, as ``torch.optim`` does.

        The result is a snapshot: later steps do not change it.

        Args:
            full: Whether to convert states that ``store`` keeps in fewer bits to float32, so that the optimizer of the
                same name in ``torch.optim`` can load them.

        Raises:
            ValueError: If there is state of tensors that are in no parameter group.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        for group in self.param_groups:  # a scheduler may have written NumPy numbers
            group.update(self._parts.tidied(group))
        if wrong := checkpoint.left_behind(self.state, self.param_groups):
            raise ValueError(f"{self._name()}: {wrong}")
        self._lent.forget()
        saved = checkpoint.packed(self.param_groups, self.state, self._lent)
        if full:
            saved = checkpoint.without_codes(saved)
        if any(group.get("capturable") for group in self.param_groups):  # graphs write to states unseen
            self._lent.part()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, saved)
            if replaced is not None:
                saved = replaced
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, or that of the optimizer of the same name in ``torch.optim``.

        Parameters are matched by name where both sides have names (``model.named_parameters()``), by position
        otherwise. Nothing is cast: every state keeps the type it was saved with. A parameter with state but without a
        step count counts as updated once.

        Args:
            state_dict: The checkpoint; it is not changed, and shares no memory with the optimizer afterwards.

        Raises:
            ValueError: If it does not match; nothing is loaded then.
        """
        state_dict = copy.copy(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            if replaced is not None:
                state_dict = replaced
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError("a state dict has the keys 'state' and 'param_groups'; was this saved by an optimizer?")
        saved = checkpoint.matched(self.param_groups, state_dict["param_groups"])
        checkpoint.check_groups(self.param_groups, saved)
        groups = checkpoint.loaded_groups(self.param_groups, saved, self._parts)
        state = checkpoint.loaded_state(groups, saved, state_dict["state"], self._parts.counterpart.unknown)
        checkpoint.check_state(groups, state, self._parts)
        for group in groups:
            for part, members in zip(self._parts.parts, self._parts.split(group), strict=True):
                param_groups.begin_numbers(part, group, members, groups[0])
        self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    # Copying ------------------------------------------------------------------------------------------------

    def _public(self) -> dict[str, Any]:
        """Return the attributes that a copy keeps: neither those that are rebuilt nor a scheduler's ``step``.

        A learning-rate scheduler replaces ``step`` by a wrapper, which is bound to this optimizer.
        """
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_") and key != "step"}

    def __getstate__(self) -> dict[str, Any]:
        public = self._public()
        state: defaultdict[Any, Any] = defaultdict(dict)
        for key, value in self.state.items():
            state[key] = checkpoint.detached(value) if isinstance(value, dict) else value
        return {**public, "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        counterpart = self._parts.counterpart
        if not self.defaults.get("differentiable") and "differentiable" not in counterpart.keys:
            self.defaults.pop("differentiable", None)  # the base class adds it, and every new group would get it
        for group in self.param_groups:
            for key, value in counterpart.switches.items():
                group.setdefault(key, value)
            group.update(counterpart.marks)
        self._plans, self._seen, self._routes, self._scratch = [], [], [], Scratch()
        self._untried, self._rehearsed, self._usual = True, None, None
        self._vanishing = Vanishing()
        self._lent = checkpoint.Lent()
        self._fakes = _fakes(self.param_groups)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._rebuild is None:
            return super().__reduce_ex__(protocol)
        return _blank, self._rebuild, self.__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> RuleOptimizer:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __copy__(self) -> RuleOptimizer:
        new = type(self).__new__(type(self))
        new.__setstate__(self._public())
        new._lent = self._lent  # the states are the same tensors
        return new

    def __repr__(self) -> str:
        return documentation.described(self._parts, self.param_groups)


#: A step with its hooks, under the name that profilers show.
_hooked_step = Optimizer.profile_hook_step(RuleOptimizer._step)


@_disable_dynamo
def _update_apart(optimizer: RuleOptimizer, evaluation: Evaluation | None) -> None:
    """Run one step hidden from Dynamo, which is compiling the caller."""
    optimizer._vanishing = None  # compiled steps must never synchronize with the device
    optimizer._update_all(evaluation)


def _fakes(groups: Sequence[Mapping[str, Any]]) -> Any:
    """Return the mode that creates fake tensors for parameters that are fake."""
    found = (local(p) for group in groups for p in group["params"])
    return next((p.fake_mode for p in found if is_fake(p)), None)  # type: ignore[attr-defined]


def _changed(written: list[torch.Tensor]) -> None:
    """Tell autograd which parameters have been written."""
    if not written:
        return
    try:
        torch.autograd.graph.increment_version(written)
    except RuntimeError:  # some of them are inference tensors, which have no versions
        for p in written:
            if not p.is_inference():
                torch.autograd.graph.increment_version(p)


def _blank(rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return an empty instance of the class that ``rebuild`` returns; for unpickling."""
    cls = rebuild(*arguments)
    return cls.__new__(cls)
