"""Lower: translate the statements of a variant to a program.

Assignments are in single assignment form; an ``if`` on runtime values becomes a select per assigned name. Kinds follow
from the inputs. A ``: scalar`` state is kept on the host unless it depends on a tensor.

Conditional work (``every``, and an ``if`` on host values around matrices) does not become a select that computes both
sides. Each combination of answers to such questions is a separate program, a *path*, and the step chooses its path
before it starts.

A sum over the whole model is a late host input, available once every tensor has contributed to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import sympy as sp

from optlang.artifact import FACTS, Draw
from optlang.core.core import Core
from optlang.core.needs import needs
from optlang.core.texts import rule_text
from optlang.expand.histories import starter
from optlang.identity import Count
from optlang.inputs import Asked, Contribution, LateNumber, New, NumberContribution, Progress, ValueName
from optlang.ir import algebra
from optlang.ir.builder import ProgramBuilder, Ref
from optlang.ir.expressions import ExpressionLowering
from optlang.ir.histories import is_history
from optlang.ir.matrices import runs_only_when_due
from optlang.ir.passes import prune
from optlang.ir.program import Program, Store
from optlang.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level
from optlang.rule import Rule, State
from optlang.source import Source, Span
from optlang.syntax import tree as ast
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import assigned

#: The values of group states after the statements that assign them, by the identity of the statement and the state's
#: name. (A source position does not identify a statement of an unrolled loop.)
Trail = dict[tuple[Any, str], Ref]


@dataclass(frozen=True)
class Path:
    """One combination of answers to the questions that a step asks before it starts.

    Attributes:
        answers: The answers that select this path.
        questions: The conditions they answer, over inputs, in the order in which they are asked.
        program: The step.
        draws: The random numbers read.
    """

    answers: tuple[bool, ...]
    questions: tuple[sp.Expr, ...]
    program: Program
    draws: tuple[Draw, ...]


@dataclass(frozen=True)
class Lowered:
    """The programs of a variant.

    ``step`` is the program of the first of the ``paths``; without questions it is the only one. ``on_host`` names the
    per-tensor scalar states kept on the host. ``group`` and ``shared`` are None if the rule has no such states.
    ``kinds`` are the kinds of the states. ``evaluates`` says that a step evaluates the closure again, so that no tensor
    may change before that.
    """

    paths: tuple[Path, ...]
    start: Program
    group: Program | None
    shared: Program | None
    on_host: frozenset[str]
    kinds: dict[str, Kind]
    evaluates: bool = False

    @property
    def step(self) -> Program:
        """The step of the first path."""
        return self.paths[0].program

    @property
    def staged(self) -> bool:
        """Whether a step needs more than one kernel over the elements that is always the same."""
        return (
            len(self.paths) > 1
            or self.shared is not None
            or any(path.draws for path in self.paths)
            or any(v.matrices for v in self.start.tensor)
            or any(v.matrices or v.kind.level is Level.MATRIX for path in self.paths for v in path.program.tensor)
            or any(i.kind.level is Level.MATRIX for path in self.paths for i in path.program.inputs)
            or self.evaluates
            or any(isinstance(s.target, Contribution) for path in self.paths for s in path.program.stores)
        )


#: Maximum number of paths of a step; each is compiled.
MAX_PATHS = 32


def lower(rule: Rule, core: Core) -> Lowered:
    """Return the programs of a variant: its steps, the start of its states, and the updates of group and shared states.

    Raises:
        TooManyPaths: If the step asks too many independent questions.
    """
    on_host = frozenset(s.name for s in core.states if s.scope is StateScope.TENSOR and s.kind == SCALAR)
    while True:  # a state that depends on a tensor moves to the device, possibly taking others with it
        start = _Lowering(rule, core, on_host, Section.START)
        start_program = start.run()
        started = start.started()
        try:
            paths, moved = _paths(rule, core, on_host, started)
        except TooManyPaths:
            paths, moved = _paths(rule, core, on_host, started, select_both_sides=True)
        moved |= start.on_device
        if not moved:
            break
        on_host -= moved
    if core.event is not None:  # an event concerns only some states; the others exist already
        named = {n for path in paths for n in path.program.names()}
        start_program = prune.run(start_program.storing(named))
    others: dict[Section, Program | None] = {Section.GROUP: None, Section.SHARED: None}
    for section in others if core.event is None else ():
        if any(s.scope is section.scope for s in core.states):
            others[section] = _Lowering(rule, core, on_host, section, started).run()
    evaluates = core.event is None and bool(needs(rule).calls)
    return Lowered(
        tuple(paths), start_program, others[Section.GROUP], others[Section.SHARED], on_host, started.kinds, evaluates
    )


class TooManyPaths(Exception):
    """A step asks too many independent questions."""


def _paths(
    rule: Rule, core: Core, on_host: frozenset[str], started: Started, select_both_sides: bool = False
) -> tuple[list[Path], set[str]]:
    """Return the paths of a step, and the states found not to be host values."""
    paths: list[Path] = []
    moved: set[str] = set()
    pending: list[tuple[bool, ...]] = [()]
    while pending:
        given = pending.pop()
        step = _Lowering(rule, core, on_host, Section.STEP, started, given, select_both_sides)
        program = step.run()
        moved |= step.on_device
        answers = tuple(answer for _, answer in step.asked)
        paths.append(Path(answers, tuple(q for q, _ in step.asked), program, tuple(step.draws)))
        pending += [(*answers[:i], False) for i in reversed(range(len(given), len(answers)))]
        if len(paths) > MAX_PATHS:
            raise TooManyPaths
    return paths, moved


@dataclass(frozen=True)
class Started:
    """The states' initial values, as found by lowering the start.

    Attributes:
        kinds: The kinds of the states.
        names: The size inputs that symbols in shapes of states denote.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    names: dict[sp.Symbol, ValueName] = field(default_factory=dict)


class Section(Enum):
    """The sections of a variant, each lowered to its own program."""

    STEP = auto()
    START = auto()
    GROUP = auto()
    SHARED = auto()

    @property
    def scope(self) -> StateScope:
        """The scope of the states that this section assigns."""
        return {Section.GROUP: StateScope.GROUP, Section.SHARED: StateScope.SHARED}.get(self, StateScope.TENSOR)


NOTHING_STARTED = Started()


class _Lowering(ExpressionLowering):
    """Lowers one section of a variant.

    Args:
        rule: The rule.
        core: The specialised rule.
        on_host: The scalar states assumed to be on the host.
        part: The section.
        started: The result of lowering the start; needed for every other section.
        given: Answers to the first questions; the rest are answered by yes.
        select_both_sides: Whether both sides of conditions around matrices are computed instead of branching.
    """

    def __init__(
        self,
        rule: Rule,
        core: Core,
        on_host: frozenset[str],
        part: Section,
        started: Started = NOTHING_STARTED,
        given: tuple[bool, ...] = (),
        select_both_sides: bool = False,
    ) -> None:
        self.select_both_sides = select_both_sides
        self.before, self.given = started, given
        self.asked: list[tuple[sp.Expr, bool]] = []
        self.draws: list[Draw] = []
        self.parts_of_totals: dict[NumberContribution, Ref] = {}
        self.points: dict[Asked, Store] = {}  # where the closure is evaluated, and the directions of Hessian products
        self.done: dict[sp.Expr, Ref] = {}
        self.entries, self.places = {}, {}
        self.at: Span | None = None  # the statement being lowered
        self.rule, self.core, self.part, self.stepping = rule, core, part, part is Section.STEP
        self.source = Source(rule_text(rule))
        self.states = {s.name: s for s in core.states}
        self.hypers = {h.name for h in rule.hypers}
        self.out = ProgramBuilder((*self.hypers, *self.states), started.names)
        self.env: dict[str, Ref] = {}
        self.on_host = on_host
        self.on_device: set[str] = set()  # states found to depend on a tensor
        self.assigned: dict[str, None] = {}
        self.trail: Trail = {}
        self.guards: list[tuple[Ref, bool, dict[str, Ref]]] = []  # enclosing conditions, side taken, names before

    def run(self) -> Program:
        """Return the program of this section."""
        if self.part is Section.STEP:
            self.trail = self.group_trail()
        self.block(self.core.start if self.part is Section.START else self.core.body)
        stores = tuple(self.stores())
        out = self.out
        notes = {v.line: self.source.line(v.line).strip() for v in (*out.host, *out.tensor) if v.line}
        return Program(
            self.rule.name or "Rule",
            tuple(out.inputs.values()),
            tuple(out.host),
            (tuple(out.tensor),),
            stores,
            notes,
        )

    def group_trail(self) -> Trail:
        """Return the values of group states after each statement that assigns them.

        The group's update runs before the step, which reads its results. Intermediate values of a group state are
        recomputed on the host, with the same formulas.
        """
        states = [s.name for s in self.core.states if s.scope is not StateScope.TENSOR]
        if not states:
            return {}
        group = _Lowering(self.rule, self.core, self.on_host, Section.GROUP, self.before)
        body = self.core.body
        times = Counter(target.name for target in assigned(body))
        chosen = {target.name for s in body if isinstance(s, (ast.If, ast.Every)) for target in assigned((s,))}
        if any(times[name] > 1 or name in chosen for name in states):
            group.out = self.out
        group.block(body)
        final = {name: group.env.get(name) for name in states}
        return {
            (place, name): self.input(New(name), HOST) if ref == final[name] else ref
            for (place, name), ref in group.trail.items()
        }

    def input(self, name: ValueName, kind: Kind) -> Ref:
        """Return an input, adding it on first use."""
        return self.out.input(name, kind)

    def stores(self) -> list[Store]:
        """Return the stores at the end: initial values, group states, or the parameter and the tensor's states."""
        stores = []
        for state in self.core.states:
            if state.scope is not self.part.scope:
                continue
            ref = self.env.get(state.name)
            if self.part is Section.START:
                ref = ref or Ref(sp.Integer(0), STATIC)
            elif self.part is not Section.STEP:
                ref = ref or self.name(state.name)
            elif state.name not in self.assigned:
                continue
            assert ref is not None
            kind = self.kind_of(state)
            if self.part is Section.START and kind.on_device and kind != SCALAR:
                kind = ref.kind if ref.kind.on_device else ELEMENT
            if ref.kind.level > kind.level and state.name in self.on_host:
                self.on_device.add(state.name)
            if is_history(ref):
                start = self.plain(self.name(starter(state.name)))
                stores += self.stored(state.name, ref, start, kind)
                continue
            stores.append(Store(state.name, self.plain(ref), kind))
        if self.part is Section.STEP and "p" in self.assigned:
            stores.insert(0, Store("p", self.plain(self.env["p"]), ELEMENT))
        if self.part is Section.STEP:
            stores += [Store(name, self.plain(ref), SCALAR) for name, ref in self.parts_of_totals.items()]
            stores += self.points.values()
        return stores

    def started(self) -> Started:
        """Return what lowering the other sections needs, from a section that starts the states."""
        return Started(self.state_kinds(), {i.symbol: i.name for i in self.out.inputs.values()})

    def state_kinds(self) -> dict[str, Kind]:
        """Return the kinds of the initial values of device states, in a section that starts the states."""
        kinds = {}
        for state in self.core.states:
            ref = self.env.get(state.name)
            kinds[state.name] = state.kind
            if state.scope is StateScope.TENSOR and state.kind.level > Level.SCALAR:
                kinds[state.name] = ref.kind if ref is not None and ref.kind.on_device else ELEMENT
        return kinds

    # Names --------------------------------------------------------------------------------------------------

    def name(self, name: str) -> Ref:
        """Return the current value of a name."""
        if name in self.env:
            return self.env[name]
        if name in ("p", "g"):
            return self.input(name, ELEMENT)
        if name == "loss":
            return self.input(Progress.LOSS, HOST)
        if name == "first" and self.part in (Section.GROUP, Section.SHARED):
            return self.bind("first", Ref(algebra.call("eq", self.name("t").expr, sp.Integer(1)), HOST, True))
        if name == "t":
            return self.input(Count.GROUP if self.part in (Section.GROUP, Section.SHARED) else "t", HOST)
        if name == "first" or name in FACTS or name in self.hypers:
            return self.input(name, HOST)
        return self.history(name, self.input(name, self.kind_of(self.states[name])))

    def kind_of(self, state: State) -> Kind:
        """Return the kind of a state in this lowering."""
        if state.name in self.on_host or state.scope is not StateScope.TENSOR:
            return HOST
        return self.before.kinds.get(state.name, state.kind)

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, statements: Sequence[ast.Stmt]) -> None:
        """Lower statements in order."""
        for statement in statements:
            self.out.line = self.line_of(statement.span)
            if self.out.line:
                self.at = statement.span
            match statement:
                case ast.Assign(at=ast.Name()):
                    self.entry(statement)
                case ast.For():
                    self.loop(statement)
                case ast.Assign(targets=(target,), op=op, value=value):
                    self.assign(target.name, op, value, id(statement))
                case ast.If():
                    self.branch(statement)
                case ast.Every(body=body):
                    due = self.due(statement)
                    answer = self.answer(due)
                    if answer is None:  # in a group update: a select on the host costs nothing
                        self.choose(due, body, (), statement)
                    elif answer:
                        self.block(body)
                    self.settle(statement)
                case _:
                    raise AssertionError(f"{type(statement).__name__} is not left by specialise")

    def settle(self, node: ast.If | ast.Every) -> None:
        """Set group and shared states to their values after a statement, whichever branch was taken."""
        for target in assigned((node,)):
            if self.part is Section.STEP and self.is_group(target.name):
                self.env[target.name] = self.trail.get((_place(node), target.name), self.name(target.name))

    def due(self, node: ast.Every) -> Ref:
        """Return the condition under which an ``every`` block runs."""
        t, period = self.name("t"), self.expr(node.period)
        start = None if node.start is None else self.expr(node.start)
        since = t if start is None else self.binary("-", t, start)
        due = algebra.call("eq", algebra.call("mod", since.expr, period.expr), sp.Integer(0))
        due = algebra.call("and", algebra.call("lt", sp.Integer(0), period.expr), due)
        if start is not None:
            due = algebra.call("and", algebra.call("le", start.expr, t.expr), due)
        if node.first:
            due = algebra.call("or", algebra.call("eq", t.expr, sp.Integer(1)), due)
        return Ref(due, HOST, True)

    def branches(self, sides: Sequence[Sequence[ast.Stmt] | ast.Expr]) -> bool:
        """Return whether a condition known before the step selects a path, instead of becoming a select."""
        return any(runs_only_when_due(side, matrices=not self.select_both_sides) for side in sides)

    def answer(self, condition: Ref) -> bool | None:
        """Return this path's answer to a question; None for one that cannot be asked before the step starts."""
        if not self.stepping or condition.kind.level > Level.HOST:
            return None
        question, turned = self.unfolded(condition.expr), False
        while question.is_Function and algebra.name_of(question) == "not":
            question, turned = question.args[0], not turned
        names = {i.symbol: i.name for i in self.out.inputs.values()}
        if any(self.is_late(names[s]) for s in question.free_symbols):
            return None
        known = dict(self.asked)
        if question not in known:
            place = len(self.asked)
            known[question] = self.given[place] if place < len(self.given) else True
            self.asked.append((question, known[question]))
        return known[question] is not turned

    def is_late(self, name: ValueName) -> bool:
        """Return whether an input becomes available only in the middle of a step."""
        shared = isinstance(name, New) and self.states[name.state].scope is StateScope.SHARED
        return shared or isinstance(name, LateNumber)

    def line_of(self, span: Span) -> int:
        """Return the line of a span in the rule (0 for a span in a builtin's definition)."""
        if span.line or self.rule.tree.span.origin is not None:
            return span.line
        return self.source.position(span.start)[0] if span.end <= len(self.source.text) else 0

    def assign(self, name: str, op: str, value: ast.Expr, place: Any) -> None:
        """Lower one assignment."""
        if self.is_group(name) and self.part is Section.STEP:
            if self.states[name].scope is StateScope.SHARED:
                self.expr(value)  # for this tensor's contributions to sums in it
            self.env[name] = self.trail[place, name]  # the group update has its own program
            return
        ref = self.expr(value)
        if op != "=":
            ref = self.binary(op[:-1], self.name(name), ref)
        self.write(name, ref)
        if self.is_group(name):
            self.trail[place, name] = self.guarded(name)

    def guarded(self, name: str) -> Ref:
        """Return a group state inside conditions: its value before, where the group does not take that branch.

        A tensor may take it, because it counts its own steps.
        """
        ref = self.env[name]
        for held, side, before in reversed(self.guards):
            old = before.get(name) or self.input(name, HOST)
            ref = self.select(held, ref, old) if side else self.select(held, old, ref)
        return ref

    def is_group(self, name: str) -> bool:
        """Return whether a name is a state of the group or of the whole optimizer."""
        return name in self.states and self.states[name].scope is not StateScope.TENSOR

    def write(self, name: str, ref: Ref) -> None:
        """Set the current value of ``name``."""
        if is_history(ref):  # its parts are already named
            self.assigned.setdefault(name)
            self.env[name] = ref
            return
        state = self.states.get(name)
        kind = ELEMENT if name == "p" else self.kind_of(state) if state else ref.kind
        kept = name == "p" or state is not None
        if kept and self.part is Section.START and kind.on_device and kind != SCALAR:
            kind = ref.kind if ref.kind.on_device else ELEMENT
        if kept and kind == ELEMENT:
            ref = self.like_parameter(ref)
        if kept and ref.boolean:  # states hold numbers
            ref = Ref(self.number(ref), ref.kind)
        if kept and kind.level is Level.MATRIX:
            ref = self.materialised(Ref(ref.expr, kind))
        if kept and kind.on_device and ref.kind != kind:
            ref = Ref(ref.expr, kind)  # broadcast over the tensor
        if kept and self.part is not Section.START:
            self.assigned.setdefault(name)
            # A separate symbol that algebraic rewriting does not see through.
            if kind.on_device or not ref.expr.is_Symbol:
                ref = self.bind(name, ref, rounds=True)
        elif not (ref.expr.is_Atom or algebra.is_literal(ref.expr)):
            ref = self.bind(name, self.materialised(ref) if kind.level is Level.MATRIX else ref)
        self.env[name] = ref

    def branch(self, node: ast.If) -> None:
        """Lower an ``if``: run each branch on its own names, then select per name."""
        condition, body = node.branches[0]
        held = self.condition(condition)
        other: tuple[ast.Stmt, ...] = node.other or ()
        if len(node.branches) > 1:
            other = (ast.If(node.span, node.branches[1:], node.other),)
        if self.branches((body, other)):
            answer = self.answer(held)
            if answer is not None:
                self.block(body if answer else other)
                self.settle(node)
                return
        self.choose(held, body, other, node)

    def choose(self, held: Ref, body: Sequence[ast.Stmt], other: Sequence[ast.Stmt], node: ast.If | ast.Every) -> None:
        """Run both branches of a condition on their own names, then select per name."""
        before = dict(self.env)
        self.guards.append((held, True, before))
        self.block(body)
        then = self.env
        self.env = dict(before)
        self.guards[-1] = (held, False, before)
        self.block(other)
        otherwise = self.env
        self.env = dict(before)
        self.guards.pop()
        self.out.line = self.line_of(node.span)
        for name in dict.fromkeys((*then, *otherwise)):
            if self.is_group(name) and self.part is Section.STEP:
                self.env[name] = self.trail.get((_place(node), name), self.name(name))
                continue
            self.merge(name, held, then.get(name), otherwise.get(name))
            if self.is_group(name):
                self.trail[_place(node), name] = self.guarded(name)

    def merge(self, name: str, condition: Ref, a: Ref | None, b: Ref | None) -> None:
        """Select the value of a name after an ``if``."""
        kept = name == "p" or name in self.states
        if kept or name == "g":
            a, b = a or self.name(name), b or self.name(name)
        if a is None or b is None:  # assigned on one side only: the checker allows no later read
            self.env[name] = a or b or self.name(name)
        elif a == b:
            self.env[name] = a
        elif is_history(a):
            self.write(name, self.pushed_where(condition, a, b))
        else:
            self.write(name, self.select(condition, a, b))


def _place(node: ast.If | ast.Every) -> Any:
    """Return a key that identifies a condition, even where the rest of an ``elif`` has become a separate ``if``."""
    if isinstance(node, ast.Every):
        return id(node)
    return (*(part for condition, body in node.branches for part in (id(condition), id(body))), id(node.other))
