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
from optlang.core.needs import needs
from optlang.functions.table import HALT, SEARCHES
from optlang.identity import Count
from optlang.inputs import ValueName
from optlang.runtime import checkpoint, documentation, flat, keeping, rng, sparse
from optlang.runtime.capturable import CapturablePlan
from optlang.runtime.counterpart import SWITCHES, undecorated
from optlang.runtime.differentiable import DifferentiablePlan
from optlang.runtime.evaluation import Evaluation, Stopped
from optlang.runtime.events import TRAINING, EventPlan
from optlang.runtime.flat import FlatPlan
from optlang.runtime.kernels import LoadedVariant, VariantCache
from optlang.runtime.plan import GroupPlan, named, switched
from optlang.runtime.records import STEP
from optlang.runtime.routing import Parts, RoutedRule
from optlang.runtime.schedule_runner import run_schedule
from optlang.runtime.sparse import LAZY, LazyPlan
from optlang.runtime.stages import Scratch
from optlang.runtime.stored import ROUNDING, STORE, described
from optlang.runtime.tensors import facts_of, is_fake, local
from optlang.runtime.usual import UsualSteps
from optlang.runtime.values import plain
from optlang.runtime.vanishing import Vanishing
from optlang.runtime.work import ScheduledWork
from optlang.storage import choice, parameters
from optlang.syntax.suggest import nearest
from optlang.syntax.tree import StateScope

#: The staged work of a rule, with the other arguments of ``run_schedule``.
Together = tuple[RoutedRule, list[ScheduledWork], LoadedVariant, Mapping[ValueName, Any], rng.Seed | None]

_nothing = nullcontext()
_unknown: Mapping[ValueName, Any] = {}

#: Switches of ``torch.optim`` that change what a step may do, with the plans that do it.
PLANS: dict[str | None, type[GroupPlan]] = {
    plan.switch: plan for plan in (GroupPlan, CapturablePlan, DifferentiablePlan, LazyPlan)
}


def _kind(group: dict[str, Any], part: RoutedRule) -> type[GroupPlan]:
    """Return the kind of plan that a param group needs for a rule."""
    if part.compiled.rule.flat:
        return FlatPlan
    kind = PLANS[switched(group)]
    if kind is GroupPlan and any(hasattr(p, "to_local") for p in group["params"]):
        from optlang.runtime.sharded import ShardedPlan  # here, as only those who distribute tensors should wait for it

        return ShardedPlan
    return kind


class RuleOptimizer(Optimizer):
    """Base class of all optimizers made from rules."""

    _compiled: ClassVar[Compiled]
    _parts: ClassVar[Parts]
    _calling: ClassVar[frozenset[VariantCache]]  # those of rules that have the closure called
    _asked: ClassVar[frozenset[str]]  # what of the closure: ``loss``, ``grad``, ``hvp``
    _counting: ClassVar[bool]  # whether a step without gradients changes its param groups
    _random: ClassVar[bool]  # whether it draws random numbers
    _events: ClassVar[bool]  # whether its parameters are others while they are evaluated
    _rebuild: ClassVar[tuple[Callable[..., Any], tuple[Any, ...]] | None]
    found_inf: torch.Tensor | None

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._plans: list[GroupPlan] = []
        self._usual: UsualSteps | None = None  # what steps that are like the last one need
        self._scratch = Scratch()
        self._routes: list[Any] = []  # what decides which parameters go to which rule
        self._seen: list[Any] = []  # the dicts in `state` at the end of the last step
        self._untried = True  # no step has been made, or one that does not count
        self._rehearsed: list[tuple[Any, ...]] | None = None  # what that has left
        self._lent = checkpoint.Lent()
        self._fakes: Any = None  # the mode that the parameters were made in, if they are fake
        self._vanishing: Vanishing | None = None  # what looks for updates that are rounded away
        given = self._arguments(args, kwargs)
        groups = self._listed(params)
        missing = [
            key
            for key in self._parts.required
            if key not in given and not all(isinstance(g, Mapping) and key in g for g in groups)
        ]
        if missing:
            names = ", ".join(map(repr, missing))
            plural = "s" if len(missing) > 1 else ""
            raise TypeError(f"{self._name()}() is missing required argument{plural}: {names}")
        defaults = {**self._parts.defaults, **self._parts.counterpart.keys, **given}
        if self._compiled.rule.sparse:
            defaults.setdefault(LazyPlan.switch, LAZY)
        if self._random and rng.SEED not in defaults:
            defaults[rng.SEED] = rng.checked(self._name(), None)
        super().__init__(groups if not isinstance(params, torch.Tensor) else params, defaults)

    @classmethod
    def _name(cls) -> str:
        return cls._compiled.name

    @staticmethod
    def _listed(params: Any) -> list[Any]:
        return [] if isinstance(params, torch.Tensor) else list(params)

    @classmethod
    def _arguments(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by param-group key; positional ones follow the rule's order, as in ``torch.optim``."""
        parts, switches = cls._parts, cls._parts.counterpart.switches
        placed = parts.counterpart.positional
        keys = list(parts.keys if placed is None else placed)
        if len(args) > len(keys):
            raise TypeError(f"{cls._name()}() takes {len(keys)} arguments after params, but {len(args)} were given")
        placed_args = dict(zip(keys, args, strict=False))
        twice = next((key for key in kwargs if key in placed_args), None)
        if twice is not None:
            raise TypeError(f"{cls._name()}() got multiple values for argument {twice!r}")
        given: dict[str, Any] = {}
        for key, value in {**placed_args, **kwargs}.items():
            if key in parts.keys or key in switches:
                given[key] = value
            elif key == STORE:
                if value is not None:
                    given[key] = choice.checked(cls._name(), value, cls._stored())
            elif key == ROUNDING:
                if value is not None:
                    given[key] = parameters.checked(cls._name(), value)
            elif key == rng.SEED and cls._random:
                given[key] = rng.checked(cls._name(), value)
            elif key in PLANS:
                if key == LazyPlan.switch and cls._compiled.rule.sparse:
                    given[key] = value or None
                elif value:  # switched off, it is no key of the param groups
                    given[key] = value if key == LazyPlan.switch else True
            elif key not in SWITCHES:
                raise TypeError(cls._unknown(key))
        if kwargs.get("foreach") and kwargs.get("fused"):
            raise RuntimeError(f"{cls._name()}: foreach and fused cannot be True together (and have no effect here)")
        return parts.tidied(given)

    @classmethod
    def _stored(cls) -> list[str]:
        """Return the keys of the states that parameters have."""
        rules = (part.compiled.rule for part in cls._parts.parts)
        return [state.key for rule in rules for state in rule.states if state.scope is StateScope.TENSOR]

    @classmethod
    def _unknown(cls, key: str) -> str:
        """Return the message about a keyword that the rule does not have."""
        keys = cls._parts.keys
        for name, hypers in keys.items():
            if any(h.name == key and h.part is not None for h in hypers):
                parts = ", ".join(h.name for h in hypers)
                return f"{cls._name()}() got an unexpected keyword argument {key!r}; it is part of {name}=({parts})"
        close = nearest(key, keys)
        hint = f"did you mean {close!r}? " if close else ""
        return f"{cls._name()}() got an unexpected keyword argument {key!r}; {hint}it takes {', '.join(keys) or 'none'}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in ``torch.optim``; its hyperparameters are checked first.

        Args:
            param_group: A dict with the parameters under ``params``, and options for them.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        param_group.update(self._parts.tidied(param_group))
        self._parts.derive(param_group, self.defaults)
        self._parts.check({**self.defaults, **param_group})
        self._check_marks(param_group)
        sparse.check(self._name(), {**self.defaults, **param_group})
        keeping.check_names(self._name(), param_group, self._stored())
        undecorated(Optimizer.add_param_group)(self, param_group)
        self._fakes = _fakes(self.param_groups)
        try:
            for part, members in zip(self._parts.parts, self._placed(param_group), strict=True):
                self._begin(part, param_group, members)
        except ValueError:
            self.param_groups.pop()
            raise
        self._vanishing = Vanishing()
        if self._parts.counterpart.early:
            self._begin_early(param_group)

    def _check_marks(self, group: Mapping[str, Any]) -> None:
        """Refuse a group that asks for what another class does."""
        for key, value in self._parts.counterpart.marks.items():
            if group.get(key, value) != value:
                raise ValueError(f"{self._name()}: {key} is always {value} here; use the class that has this argument")

    def _begin_early(self, group: dict[str, Any]) -> None:
        """Start the states of a new group, for a class that has them before the first step."""
        (part,) = self._parts.parts
        with torch.no_grad():
            for p in group["params"]:
                if p.is_floating_point() or p.is_complex():
                    self.state[p] = part.started(group, p)

    def _placed(self, group: dict[str, Any]) -> list[list[torch.Tensor]]:
        """Return the parameters of a group by the rule they go to; each must go to one."""
        placed = self._parts.split(group)
        taken = {id(p) for members in placed for p in members}
        for p in group["params"]:
            if id(p) not in taken:
                raise ValueError(
                    f"{self._name()}: no route takes {named(group, p)}; "
                    "add `route RULE otherwise`, or give it to another optimizer"
                )
        return placed

    def _begin(self, part: RoutedRule, group: dict[str, Any], members: list[torch.Tensor]) -> None:
        """Give a param group what a rule keeps there, and refuse parameters whose shapes do not suit the rule."""
        if self._events:
            group.setdefault(TRAINING, self.param_groups[0].get(TRAINING, True))
        if switched(group) == LazyPlan.switch:
            sparse.check_rule(part, group, members)
        keeping.check(part, group, members, _kind(group, part))
        searches = bool(needs(part.compiled.rule).calls & {*SEARCHES})
        flat.check(part, group, len(self.param_groups), members, searches)
        if part.kernels.by_shape:
            values = part.hyper.read(group)
            known: set[Any] = set()
            for p, unit in flat.seen(part, members):
                facts = facts_of(unit)
                reason = None if facts in known else part.compiled.unfit(values, facts)
                known.add(facts)
                if reason is not None:
                    raise ValueError(f"{part.compiled.name}: {named(group, p)} does not suit the rule: {reason}")
        self._begin_numbers(part, group, members, self.param_groups[0])

    @staticmethod
    def _begin_numbers(
        part: RoutedRule, group: dict[str, Any], members: Sequence[torch.Tensor], others: Mapping[str, Any]
    ) -> None:
        """Give a param group the numbers that a rule keeps there, as far as it has none.

        Its count is there from the start: a checkpoint is loaded into the keys that an optimizer has. A number for the
        whole optimizer is that of ``others``.
        """
        if part.counts_steps_of(group, [unit for _, unit in flat.seen(part, members)]):
            group.setdefault(part.hyper.kept(STEP), 0.0)
        shared = {state.key for state in part.compiled.rule.states if state.scope is StateScope.SHARED}
        for key, value in part.compiled.group_initial(part.hyper.read(group)).items():
            kept = part.hyper.kept(key)
            group.setdefault(kept, others.get(kept, value) if key in shared else value)

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
        # Hooks and profilers are served by torch's own wrapper, which costs as much as a small step: only if needed.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        ):
            return _hooked_step(self, *args, **kwargs)  # hooks see the arguments as they were given
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
        else:  # as everything that a step makes has to be fake, too
            with self._fakes:
                self._update_all(evaluation)
        return loss

    def _update_all(self, evaluation: Evaluation | None) -> None:
        """Run one step of every param group; of a rule that iterates as many as it says."""
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
        """Whether a gradient scaler has found infinities; if not, gradients are divided by its scale, if it left one.

        A scaler does both itself and leaves no such attributes, unless it takes an optimizer for one of torch's fused.
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
        """Run one step of every param group; ``evaluation`` is for a rule that has the closure called."""
        state, seen = self.state, self._seen
        # Looking up a tensor in a dict costs a call of Python code; the dicts that it leads to are compared instead.
        same = len(seen) == len(state) and all(map(is_, seen, state.values()))
        if same and self._usual is not None and self._make_usual(self._usual):
            return
        with torch.no_grad():
            self._update_fully(evaluation, same)
        if not same or len(seen) != len(state):
            self._seen = list(state.values())

    def _make_usual(self, usual: UsualSteps) -> bool:
        """Make a step that is like the one before, if it is one; return whether it is."""
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
        """Do the second half of a step, in which everything has been prepared."""
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
            if not isinstance(error, (RuntimeError, Stopped)):  # those are torch's own and ours; others interrupt
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
        """Discard a step that failed before anything was written; the next step builds its plans again."""
        for plan in list(self._plans):
            plan.abandon()
        self._plans, self._seen = [], []

    def _update_fully(self, evaluation: Evaluation | None, same: bool) -> None:
        """Run one step, looking at everything; ``same``: the dicts in ``state`` are those of the last step."""
        if self._rehearsed is not None:
            # What the rehearsal started is started again, from gradients that are some, unless somebody wrote to it.
            if _alike(self._rehearsed, _contents(self.state)):
                self.state.clear()
            self._plans, self._seen, self._rehearsed = [], [], None
        plans, state = self._current_plans(), self.state
        inferring = torch.is_inference_mode_enabled()
        maybe = (self._untried or self._counting) and self._may_be_rehearsal()
        # A rule need not allow a step size of 0: that of the optimizer is checked in its place.
        instead = {"lr": self.defaults["lr"]} if maybe and "lr" in self.defaults else {}
        try:
            # What is made in inference mode could not be written to in later steps outside of it.
            with torch.inference_mode(False) if inferring else _nothing:
                for plan in plans:
                    plan.inferring, plan.instead, plan.evaluation = inferring, instead, evaluation
                busy = [plan for plan in plans if plan.prepare(state, same)]
            together = self._together(busy) if any(plan.staged for plan in busy) else []
            rehearsal = maybe and self._is_without_gradients()
            if maybe and not rehearsal:
                for group in self.param_groups:
                    self._parts.check(group)
            if evaluation is not None and not rehearsal:
                evaluation.check([work for _, works, *_ in together for work in works])
        except BaseException:
            self._abandon()
            raise
        if rehearsal:
            for plan in busy:
                plan.begin(state)
            self._rehearsed = _contents(state)
            return
        self._untried = False
        self._carry_out(busy, together, evaluation)
        self._usual = None
        if len(self._parts.parts) == 1 and not (self._asked or self._counting):
            usual = UsualSteps(self.param_groups, plans)
            self._usual = usual if usual.possible else None

    def _order(self, known: int) -> None:
        """Bring the states that a step has started into the order of their parameters, behind the ``known`` ones."""
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
        """Run what has been prepared, and note the parameters that are written."""
        before = None if evaluation is None else self._before()
        for calls in (True, False) if self._calling else (False,):  # the closure sees nothing that has moved
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
        """Write the states that the whole optimizer shares, by key, to every param group."""
        for group in self.param_groups:
            group.update((part.hyper.kept(key), value) for key, value in shared.items())

    def _before(self) -> tuple[set[Any], list[dict[str, Any]]]:
        """Return what a step changes before the closure is called: what has state, and the groups' keys."""
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
        if started:  # what was bound to it has to be bound again
            self._plans, self._seen = [], []

    def _together(self, busy: Sequence[GroupPlan]) -> list[Together]:
        """Return the staged work of each rule, with the other arguments of :func:`run_schedule`.

        Sums and shared states are those of one rule; the latter follow the variant and the values of its first group.
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

    def _may_be_rehearsal(self) -> bool:
        """Whether a step is only there to have states made, unless there are gradients: its size is 0.

        ``torch.distributed.checkpoint`` makes such a step where there is no state, before it saves and before it loads.
        Counting it, or dividing by a norm of 0, would be wrong.
        """
        return not self.state and all(plain(group.get("lr")) == 0 for group in self.param_groups)

    def _is_without_gradients(self) -> bool:
        """Whether all gradients are 0."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not any(bool(g.any()) for g in map(local, gradients) if not (is_fake(g) or g.is_meta))

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
        """Return a plan for each param group, made anew where the group is another or has other parameters."""
        plans, parts = self._plans, self._parts
        groups = [group for group in self.param_groups for _ in parts.parts]
        routes = [parts.answers(group) for group in self.param_groups] if len(parts.parts) > 1 else self._routes
        fits = len(plans) == len(groups) and all(plan.fits(group) for plan, group in zip(plans, groups, strict=True))
        if not fits or routes != self._routes:
            self._routes = routes
            for group in self.param_groups:
                sparse.check(self._name(), group)
                keeping.check_names(self._name(), group, self._stored())
            plans[:] = [
                _kind(group, part)(group, part.hyper, part.kernels, members)
                for group in self.param_groups
                for part, members in zip(parts.parts, self._placed(group), strict=True)
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
        """Run an event for the param groups that it is not over for."""
        plans = [
            EventPlan(event, group, part.hyper, part.kernels, members)
            for group in self.param_groups
            if group.get(TRAINING, True) is not (event == "train")
            for part, members in zip(self._parts.parts, self._placed(group), strict=True)
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
        for group in self.param_groups:  # a scheduler may have written numbers of NumPy
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
                self._begin_numbers(part, group, members, groups[0])
        self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    # Copying ------------------------------------------------------------------------------------------------

    def _public(self) -> dict[str, Any]:
        """Return the attributes that belong to a copy: not what is made anew, nor the ``step`` of a scheduler.

        A learning-rate scheduler puts a function of its own in place of ``step``; it steps this very optimizer.
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
        own = {
            part.hyper.kept(key)
            for part in self._parts.parts
            for key in (STEP, *(s.key for s in part.compiled.rule.states if s.scope is not StateScope.TENSOR))
        }
        hidden = {"params", "param_names", *own}
        lines = [f"{self._name()} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(set(group) - hidden)]
            lines += [f"    states: {line}" for line in self._kept_as(group)]
        return "\n".join([*lines, ")"])

    def _kept_as(self, group: dict[str, Any]) -> list[str]:
        """Return how the states of a group are kept where somebody has asked for a format, a line for each rule."""
        try:
            placed = zip(self._parts.parts, self._parts.split(group), strict=True)
            found = (described(part, group, members) for part, members in placed)
            return [line for line in found if line is not None]
        except ValueError:  # hyperparameters that the next step will refuse
            return []


#: A step with its hooks, under the name that profilers show.
_hooked_step = Optimizer.profile_hook_step(RuleOptimizer._step)


@_disable_dynamo
def _update_apart(optimizer: RuleOptimizer, evaluation: Evaluation | None) -> None:
    """Run one step where Dynamo, which is compiling the caller, does not look."""
    optimizer._vanishing = None  # who compiles steps does not want to wait for the device in any
    optimizer._update_all(evaluation)


def _fakes(groups: Sequence[Mapping[str, Any]]) -> Any:
    """Return the mode that makes fake tensors for parameters that are fake."""
    found = (local(p) for group in groups for p in group["params"])
    return next((p.fake_mode for p in found if is_fake(p)), None)  # type: ignore[attr-defined]


def _contents(state: Mapping[Any, Any]) -> list[tuple[Any, ...]]:
    """Return what is in ``optimizer.state``, with the versions of its tensors."""
    found: list[tuple[Any, ...]] = []
    for held in state.values():
        for key, value in held.items() if isinstance(held, dict) else ():
            is_versioned = isinstance(value, torch.Tensor) and not value.is_inference()
            found.append((held, key, value, value._version if is_versioned else 0))
    return found


def _alike(some: Sequence[tuple[Any, ...]], others: Sequence[tuple[Any, ...]]) -> bool:
    """Whether contents of ``optimizer.state`` are the same objects, which nobody has written to in between."""
    return len(some) == len(others) and all(
        a[0] is b[0] and a[1] == b[1] and a[2] is b[2] and a[3] == b[3] for a, b in zip(some, others, strict=True)
    )


def _changed(written: list[torch.Tensor]) -> None:
    """Let autograd know which parameters have been written to."""
    if not written:
        return
    try:
        torch.autograd.graph.increment_version(written)
    except RuntimeError:  # some of them are inference tensors, which have no versions
        for p in written:
            if not p.is_inference():
                torch.autograd.graph.increment_version(p)


def _blank(rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return an instance without contents of the class that ``rebuild`` returns; for unpickling."""
    cls = rebuild(*arguments)
    return cls.__new__(cls)


def share_memory(optimizer: RuleOptimizer) -> None:
    """Move the states to shared memory, for processes that train one model; each counts its own steps."""
    for held in optimizer.state.values():
        for key, value in held.items():
            if key != STEP and isinstance(value, torch.Tensor):
                value.share_memory_()
    optimizer._plans = []  # they know where the states were


def make_class(
    compiled: Compiled,
    *,
    backend: str = "auto",
    module: str = "optlang",
    qualname: str | None = None,
    rebuild: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
) -> type[Optimizer]:
    """Return the optimizer class of a compiled rule.

    Args:
        compiled: The compiled rule.
        backend: Name of the backend.
        module: Module name of the class.
        qualname: Qualified name of the class; by default its name.
        rebuild: A function and its arguments that return this class in another process, for pickling.

    Raises:
        ValueError: If there is no such backend.
    """
    parts = Parts.of(compiled, backend)
    random = any(needs(part.compiled.rule).draws for part in parts.parts)
    signature = documentation.signature(parts, random)

    def __init__(self: RuleOptimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        RuleOptimizer.__init__(self, params, *args, **kwargs)

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([first, *signature.parameters.values()])  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{qualname or compiled.name}.__init__"
    return type(
        compiled.name,
        (RuleOptimizer,),
        {
            "__doc__": documentation.docstring(compiled, parts, random),
            "__module__": module,
            "__qualname__": qualname or compiled.name,
            "__signature__": signature,
            "__init__": __init__,
            "_compiled": compiled,
            "_parts": parts,
            "_counting": any(part.keeps_numbers for part in parts.parts),
            "_random": random,
            "_calling": frozenset(part.kernels for part in parts.parts if needs(part.compiled.rule).calls),
            "_asked": frozenset().union(*(needs(part.compiled.rule).calls for part in parts.parts)),
            "_events": any(part.compiled.rule.events for part in parts.parts),
            "_rebuild": rebuild,
            **({"share_memory": share_memory} if parts.counterpart.early else {}),
        },
    )
