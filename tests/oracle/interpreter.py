"""The oracle: a rule run directly over its syntax tree, in float64 numpy.

It shares nothing with the compiler: no SymPy, no generated source, no torch. Every name has a value, every statement
is carried out where it stands. Values on the device are arrays (0-d ones for one number per tensor), all others are
plain Python values; that is the only difference between a condition that chooses and one that selects.

Sums over the whole model are found by running the step again and again from the same values. Every tensor stops at
the first sum that it does not know yet; the sum that comes first in the rule is then added up, for nobody can come
upon it any more, and all start over. When nobody stops, the step is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import landscape
import numpy as np
from interpreter_formulas import Place, Scope, Setting
from interpreter_runs import CommonRun, Decided, Halted, Progress, TensorRun, Waiting
from interpreter_statements import Run
from interpreter_values import UNKNOWN, Array, Shape, Value, number, spread

from optlang.core.needs import needs
from optlang.functions.table import HALT
from optlang.kinds import Level
from optlang.rule import Rule, State
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned

#: ``draw(kind, shape, site, index, t)``: random numbers of a kind (``"randn"`` or ``"rand"``) for the call that is the
#: ``site``-th (from 0) in this update of the tensor at position ``index``, in its update ``t``.
Draw = Callable[[str, Shape, int, int, int], Array]


class Interpreter:
    """Runs a rule on numpy arrays, for one param group.

    Args:
        rule: A checked rule.
        hypers: Values by param-group key (tuples whole) or by name; the rest are defaults.
        group: The user's own keys, which the rule reads as ``group.NAME``.
        eps: What ``eps_of`` is: the machine epsilon of the type that the parameters stand for.
        draw: Where random numbers come from; numpy's generator if it is left out.
    """

    def __init__(
        self,
        rule: Rule,
        hypers: Mapping[str, Any] | None = None,
        group: Mapping[str, Any] | None = None,
        eps: float = float(np.finfo(np.float64).eps),
        draw: Draw | None = None,
    ) -> None:
        self.rule = rule
        self.group = dict(group or {})
        self.eps = eps
        self.draw = draw or _numpy_draw()
        self.hypers: dict[str, Value] = {h.name: h.default for h in rule.hypers if not h.required}
        self.set(**(hypers or {}))
        for hyper in rule.hypers:
            if hyper.derived is not None and (hypers or {}).get(hyper.name) is None:
                self.hypers[hyper.name] = Run(self._setting(None)).value(hyper.derived, Scope(dict(self.hypers)))
        self.params: Sequence[Array] = ()
        self.state: list[dict[str, Value]] = []
        self.counts: list[int] = []
        self.group_steps = 0
        self.progress = Progress()
        self.origin: Array | None = None
        self.group_state: dict[str, Value] = {}
        self.shared_state: dict[str, Value] = {}
        self.training = True

    def set(self, **values: Any) -> None:
        """Change hyperparameters, by key or by name."""
        keys = self.rule.keys
        for name, value in values.items():
            parts = keys.get(name, ())
            if parts and parts[0].part is not None:
                given = dict(zip((h.name for h in parts), value, strict=True))
            else:
                given = {name: value}
            self.hypers.update({n: float(v) if type(v) is int else v for n, v in given.items()})

    def step(self, params: Sequence[Array], grads: Sequence[Array | None]) -> None:
        """Update ``params`` in place; a tensor without a gradient is left alone, and so is a group of such."""
        step_all([self], [params], [grads])

    def eval(self) -> None:
        """Carry out ``on eval`` for the tensors that have been updated, unless that was the last thing done."""
        if self.training:
            self._event("eval")
        self.training = False

    def train(self) -> None:
        """Undo :meth:`eval`."""
        if not self.training:
            self._event("train")
        self.training = True

    # One group -----------------------------------------------------------------------------------------------

    def _setting(self, steps: int | None, rule_number: int = 0) -> Setting:
        return Setting(self.rule, self.hypers, self.group, self.eps, steps, rule_number)

    def _time(self, t: int) -> dict[str, Value]:
        return {**self.hypers, "t": float(t), "first": t == 1}

    def begin(self, params: Sequence[Array], takes_part: bool) -> None:
        """Get to know the parameters, and count the step if it is one of this group."""
        for param in params[len(self.counts) :]:
            scope, run = Scope({**self.hypers, **facts(param.shape)}), Run(self._setting(None))
            for requirement in self.rule.requirements:
                if requirement.of_tensors and not run.truth(run.value(requirement.condition, scope)):
                    raise ValueError(f"{requirement.message} (for a parameter of shape {param.shape})")
            self.state.append({})
            self.counts.append(0)
        self.params = params
        self.origin = np.concatenate([param.ravel() for param in params]) if params else None
        self.group_steps += takes_part

    def _states(self, scope: str) -> list[State]:
        return [state for state in self.rule.states if state.scope.value == scope]

    def decide(
        self, owner: str, rule_number: int, totals: Mapping[Place, float] | None, steps: int | None = None
    ) -> tuple[dict[str, Value], Decided, Waiting | None]:
        """Find new values of group or shared states: those after the step, those after each statement.

        The last result is the exception that ended the run at a sum not known yet, or None. ``steps`` is the time, if
        it is not the group's.
        """
        steps = self.group_steps if steps is None else steps
        states, old = self._states(owner), self.group_state if owner == "group" else self.shared_state
        if not states:
            return {}, {}, None
        names = self._time(steps)
        run = CommonRun(self._setting(steps, rule_number), owner, totals)
        for state in states:
            if state.name not in old:
                old[state.name] = 0.0 if state.initial is None else number(run.value(state.initial, Scope(names)))
        unknown = dict.fromkeys(["p", "g", *facts(()), *(s.name for s in self.rule.states)], UNKNOWN)
        scope = Scope({**names, **unknown, **old})
        try:
            run.run(self.rule.body, scope)
        except Waiting as waiting:
            return {}, run.decided, waiting
        return {state.name: scope.names[state.name] for state in states}, run.decided, None

    # One tensor ----------------------------------------------------------------------------------------------

    def _constants(self, raw: dict[str, Array]) -> dict[str, Value]:
        """Return the facts of a tensor and the rule's local names that follow from what is known before the step.

        That ``raw`` values are only asked for their sizes (``rows(matrix(p))``) is the checker's business.
        """
        shape = raw["p"].shape
        names, run = {**self.hypers, **facts(shape), **raw}, Run(self._setting(None), shape)
        known: dict[str, Value] = dict(facts(shape))
        kept = {"p", "g", *(state.name for state in self.rule.states)}
        times = Counter(name.name for name in assigned(self.rule.body))
        for statement in self.rule.body:
            if not isinstance(statement, ast.Assign) or statement.op != "=":
                continue
            targets = [target.name for target in statement.targets]
            if all(times[name] == 1 and name not in kept for name in targets):
                scope = Scope({**names, **known})
                try:
                    run.assign(statement, scope)
                except LookupError:  # it reads what is not known yet
                    continue
                known.update({name: scope.names[name] for name in targets})
        return known

    def _begun(self, index: int, run: TensorRun, scope: Scope) -> dict[str, Value]:
        """Return the values of the states that a tensor has now, new ones at their start."""
        assert run.shape is not None
        values: dict[str, Value] = {}
        for state in self._states("tensor"):
            if state.when is None or run.truth(run.value(state.when, scope)):
                old = self.state[index].get(state.name)
                values[state.name] = self._start(state, run, scope) if old is None else old
        return values

    def _start(self, state: State, run: TensorRun, scope: Scope) -> Value:
        assert run.shape is not None
        initial = 0.0 if state.initial is None else number(run.value(state.initial, scope))
        if np.ndim(initial):
            return np.array(initial, dtype=np.float64)  # its shape, whatever it is
        return initial if state.kind.level is Level.SCALAR else spread(initial, run.shape, run.shape)

    def update(
        self,
        index: int,
        grad: Array,
        rule_number: int,
        decided: Decided,
        totals: Mapping[Place, float],
        drawn: dict[int, Array],
    ) -> tuple[Array, dict[str, Value]]:
        """Return what a tensor and its states become; nothing is changed, so it can be done again."""
        t, param = self.counts[index] + 1, self.params[index]

        def draw(kind: str, shape: Shape, site: int) -> Array:
            if site not in drawn:
                drawn[site] = np.asarray(self.draw(kind, shape, site, index, t), dtype=np.float64)
            return drawn[site]

        raw = {"p": np.array(param, dtype=np.float64), "g": np.array(grad, dtype=np.float64)}
        ground = (raw["p"], raw["g"]) if needs(self.rule).calls else None
        if ground is not None:  # what is given is the slope of a landscape
            raw["g"] = landscape.gradient(*ground)
        known = {**self._time(t), **self.group_state, **self.shared_state, **facts(param.shape), **raw}
        run = TensorRun(self._setting(self.group_steps, rule_number), param.shape, {}, decided, totals, draw)
        run.ground, run.so_far = ground, self.progress
        run.so_far.looked, run.so_far.end = 0, None
        run.states = self._begun(index, run, Scope({**known, **self._constants(raw)}))
        scope = Scope({**known, **run.states})
        self.started(index, run, scope)
        run.run(self.rule.body, scope)
        return scope.names["p"], {name: v for name, v in scope.names.items() if name in run.states or "." in name}

    def started(self, index: int, run: TensorRun, scope: Scope) -> None:
        """Add what a rule made of others needs, before the step."""

    def commit(self, index: int, param: Array, state: dict[str, Value]) -> None:
        """Keep what :meth:`update` returned."""
        self.counts[index] += 1
        self.state[index].update(state)
        self.params[index][...] = param

    def _event(self, event: str) -> None:
        """Carry out ``on eval`` or ``on train``, for the tensors that have been updated."""
        body = self.rule.events.get(event, ())
        with np.errstate(all="ignore"):
            for index, param in enumerate(self.params):
                if not self.counts[index]:
                    continue
                raw = {"p": np.array(param, dtype=np.float64)}
                names = {**self.hypers, **self.group_state, **self.shared_state, **self._constants(raw), **raw}
                run = TensorRun(self._setting(None), param.shape, dict(self.state[index]))
                scope = Scope({**names, **run.states})
                run.run(body, scope)
                self.state[index].update({name: scope.names[name] for name in run.states})
                param[...] = scope.names["p"]


def facts(shape: Shape) -> dict[str, Value]:
    """Return what a rule may ask about a tensor's shape."""
    return {
        "ndim": float(len(shape)),
        "numel": float(np.prod(shape)),
        "rows": float(shape[-2]) if len(shape) > 1 else 1.0,
        "cols": float(shape[-1]) if shape else 1.0,
    }


def step_all(
    interpreters: Sequence[Interpreter],
    params_lists: Sequence[Sequence[Array]],
    grads_lists: Sequence[Sequence[Array | None]],
) -> None:
    """Make one step of all param groups of one optimizer, or as many as their rule says.

    The next one is about the loss where the last one has led. That is looked at again unless it has been: where the
    last step started, and where a search has ended.
    """
    iterating = [one for one in interpreters if HALT in needs(one.rule).calls]
    for one in iterating:
        one.progress = Progress()
    try:
        _step_once(interpreters, params_lists, grads_lists)
        while iterating and all(one.progress.iteration < one.progress.most for one in iterating):
            (one,) = iterating
            here, so_far = np.concatenate([p.ravel() for p in params_lists[0]]), one.progress
            known = [place for place in (so_far.end, one.origin) if place is not None]
            so_far.calls += so_far.looked + (not any(np.array_equal(here, place) for place in known))
            so_far.iteration += 1
            _step_once(interpreters, params_lists, grads_lists)
    except Halted:
        for one in iterating:
            one.group_steps -= 1


def _step_once(
    interpreters: Sequence[Interpreter],
    params_lists: Sequence[Sequence[Array]],
    grads_lists: Sequence[Sequence[Array | None]],
) -> None:
    """Make one step of all param groups of one optimizer.

    Groups that follow the same rule have its sums over the whole model and its shared states in common; for the latter
    the first of them gives the hyperparameters, and time is that of the group with the most steps.
    """
    flat = [
        one.rule.flat and any(g is not None for g in grads)
        for one, grads in zip(interpreters, grads_lists, strict=True)
    ]
    pieces = params_lists
    params_lists = [_joined(params) if f else params for f, params in zip(flat, pieces, strict=True)]
    grads_lists = [
        _joined([np.full(p.shape, absent(one)) if g is None else g for p, g in zip(params, grads, strict=True)])
        if f
        else grads
        for f, one, params, grads in zip(flat, interpreters, pieces, grads_lists, strict=True)
    ]
    step = _Step(interpreters, grads_lists)
    if not any(step.moves):
        return
    with np.errstate(all="ignore"):
        for interpreter, params, moves in zip(interpreters, params_lists, step.moves, strict=True):
            interpreter.begin(params, moves)
        while waiting := step.attempt():
            place = min(found.place for found in waiting)
            step.totals[place] = sum(found.part for found in waiting if found.place == place)
        for commit, arguments in step.commits:
            commit(*arguments)
    for f, own, joined in zip(flat, pieces, params_lists, strict=True):
        for p, part in zip(own, np.split(joined[0], np.cumsum([p.size for p in own])[:-1]), strict=True) if f else ():
            p[...] = part.reshape(p.shape)


def absent(interpreter: Interpreter) -> float:
    """Return what stands in a vector for a gradient that is not there: 0; of a landscape, that it has no slope."""
    return float("nan") if needs(interpreter.rule).calls else 0.0


def _joined(arrays: Sequence[Array]) -> list[Array]:
    """Return all arrays as one vector."""
    return [np.concatenate([array.ravel() for array in arrays])]


class _Step:
    """A step of several param groups, attempted until every sum over the whole model is known."""

    def __init__(self, interpreters: Sequence[Interpreter], grads_lists: Sequence[Sequence[Array | None]]) -> None:
        self.interpreters, self.grads_lists = interpreters, grads_lists
        self.moves = [any(grad is not None for grad in grads) for grads in grads_lists]
        self.totals: dict[Place, float] = {}
        self.drawn: dict[tuple[int, int], dict[int, Array]] = defaultdict(dict)
        self.commits: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def attempt(self) -> list[Waiting]:
        """Run everything once from the starting values; return who has come to a sum that is not known."""
        self.commits, waiting = [], []
        rules: dict[int, list[int]] = {}
        for i, interpreter in enumerate(self.interpreters):
            rules.setdefault(id(interpreter.rule), []).append(i)
        for rule_number, members in enumerate(rules.values()):
            if any(self.moves[i] for i in members):
                waiting += self._attempt_rule(rule_number, members)
        return waiting

    def _attempt_rule(self, rule_number: int, members: Sequence[int]) -> list[Waiting]:
        leader = self.interpreters[members[0]]
        steps = max(self.interpreters[i].group_steps for i in members)
        shared, everywhere, stopped = leader.decide("shared", rule_number, self.totals, steps)
        waiting = [] if stopped is None else [stopped]
        self.commits.append((leader.shared_state.update, (shared,)))
        for i in members:
            one = self.interpreters[i]
            one.shared_state = leader.shared_state
            if not self.moves[i]:
                continue
            own, in_group, _ = one.decide("group", rule_number, None)
            self.commits.append((one.group_state.update, (own,)))
            decided = {**everywhere, **in_group}
            for index, grad in enumerate(self.grads_lists[i]):
                if grad is None:
                    continue
                try:
                    new = one.update(index, grad, rule_number, decided, self.totals, self.drawn[i, index])
                except Waiting as found:
                    waiting.append(found)
                else:
                    self.commits.append((one.commit, (index, *new)))
        return waiting


def routed(rule: Rule, shape: Shape, group: Mapping[str, Any] | None = None) -> str:
    """Return the name of the rule that a rule with routes sends a tensor to; keys that a group lacks are false."""
    keys: dict[str, Any] = defaultdict(bool, group or {})
    run, scope = Run(Setting(rule, {}, keys, 0.0)), Scope(facts(shape))
    for route in rule.routes:
        if route.when is None or run.truth(run.value(route.when, scope)):
            return route.title
    raise ValueError(f"no route for a parameter of shape {shape}")


def _numpy_draw() -> Draw:
    generator = np.random.default_rng(0)

    def draw(kind: str, shape: Shape, site: int, index: int, t: int) -> Array:
        return np.asarray(generator.standard_normal(shape) if kind == "randn" else generator.random(shape))

    return draw
