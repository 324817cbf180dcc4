"""Resolves where and how often inner rules are called: whether they need a count, and for which tensors they exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from optlang.core.known import is_known, known_before
from optlang.core.substitute import all_names, names_in, renamed
from optlang.expand.clocks import Clock
from optlang.expand.context import Work
from optlang.expand.rules import STATEMENTS, Items
from optlang.functions.table import FACT_NAMES
from optlang.syntax import tree
from optlang.syntax.unparse_formulas import Formulas
from optlang.syntax.walk import assigned, body_of, expressions, rebuilt

#: Maximum number of nodes in the expanded condition under which a rule is called.
MAX_CONDITION = 500
#: Maximum depth of expanding names and functions in it.
MAX_DEPTH = 50

#: Maximum number of distinct conditions for which a rule is confined to them.
MAX_WAYS = 16

Way = tuple[tree.Expr, ...]


def settled(work: Work, items: Items, clocks: Sequence[Clock]) -> Items:
    """Return a rule with the placeholders of its inner rules resolved.

    Args:
        work: Collects errors.
        items: The expanded rule.
        clocks: The placeholders of its inner rules.
    """
    for clock in clocks:
        items = _Calls(work, items, clock).settled()
    return items


@dataclass
class _Calls:
    """The calls of one inner rule.

    Attributes:
        work: Collects errors.
        items: The expanded rule.
        clock: The placeholders of the inner rule.
        ways: For each call, the enclosing conditions that are known before the step.
        regular: Whether it is called at most once per step, depending only on the tensor's shape.
        before: The names assigned before the current position.
        needless: Statements that set a state to the value it already has.
        unclear: Whether an undecidable condition has been reported.
    """

    work: Work
    items: Items
    clock: Clock
    ways: list[Way] = field(default_factory=list)
    regular: bool = True
    before: set[str] = field(default_factory=set)
    needless: set[tree.If] = field(default_factory=set)
    unclear: bool = False

    def settled(self) -> Items:
        """Return the rule with the placeholders of this inner rule resolved."""
        body = [item for item in self.items if isinstance(item, STATEMENTS)]
        self.functions = {item.name.name: item for item in self.items if isinstance(item, tree.Def)}
        hypers = [i for d in self.items if isinstance(d, tree.HyperDecl) for i in d.items]
        names = {i.name.name for i in hypers} | {p.name.name for i in hypers for p in i.parts or ()}
        states = [i for d in self.items if isinstance(d, tree.StateDecl) for i in d.items]
        self.known = known_before(body, names, {i.name.name for i in states}, self.functions)
        self.free = {*names, *FACT_NAMES, *self.known}
        self.starts = {i.name.name: i.initial for i in states}
        once = self.look(body, (), True) <= 1
        self.regular = self.regular and once
        return self.without_marks(_some(self.ways))

    # Analysis -----------------------------------------------------------------------------------------------

    def look(self, body: Sequence[tree.Stmt], around: Way, regular: bool) -> int:
        """Record the calls in a block; return the maximum number of calls per step.

        Args:
            body: The statements.
            around: The enclosing conditions that are known before the step.
            regular: Whether the block runs once per step at most, depending only on the tensor's shape.
        """
        count = 0
        for statement in body:
            match statement:
                case tree.Assign(targets=(tree.Name(name=self.clock.step),)):
                    self.ways.append(around)
                    self.regular &= regular
                    count += 1
                case tree.If():
                    count += self.branches(statement, around, regular)
                case tree.Repeat(body=inside) | tree.For(body=inside) | tree.Every(body=inside):
                    self.look(inside, around, False)
            self.before |= {name.name for name in assigned((statement,))}
        return count

    def branches(self, node: tree.If, around: Way, regular: bool) -> int:
        """Record the calls in the branches of an ``if``; return the maximum number of calls per step."""
        counts = []
        for condition, body in node.branches:
            if self.is_redundant_start(condition, body, node):
                self.needless.add(node)
            static = is_known(condition, self.free, self.functions)
            regular &= static and self.about_shapes(condition)
            counts.append(self.look(body, (*around, condition) if static else around, regular))
            around = (*around, tree.Unary(condition.span, "not", condition)) if static else around
        counts.append(self.look(node.other or (), around, regular))
        return max(counts)

    def is_redundant_start(self, condition: tree.Expr, body: Sequence[tree.Stmt], node: tree.If) -> bool:
        """Return whether a statement sets a state in the first step to the initial value it already has."""
        match body:
            case (tree.Assign(targets=(tree.Name(name=name),), op="=", value=value),) if node.other is None:
                start = self.starts.get(name)
                if condition != tree.Name(condition.span, self.clock.first, self.clock.first) or start is None:
                    return False
                same = Formulas().expression(start) == Formulas().expression(value)
                return same and not self.before & {name, *names_in(value)}
        return False

    def about_shapes(self, condition: tree.Expr) -> bool:
        """Return whether a condition depends only on the shape of a tensor, which never changes."""
        whole = self.expanded(condition)
        keys = any(isinstance(node, tree.Member) for node in expressions(whole))
        return not keys and is_known(whole, FACT_NAMES, self.functions)

    def expanded(self, condition: tree.Expr) -> tree.Expr:
        """Return a condition with the rule's names and functions inlined, unless it becomes too long."""
        for _ in range(MAX_DEPTH):
            before = condition
            names = names_in(condition) & self.known.keys()
            condition = renamed(condition, {name: self.known[name] for name in names})
            condition = rebuilt(condition, lambda new, old: self.inlined(new))
            if condition == before or any(count > MAX_CONDITION for count, _ in enumerate(expressions(condition))):
                break
        return condition

    def inlined(self, node: tree.Node) -> tree.Node:
        """Inline a function call if the function is a single formula; return any other node unchanged."""
        match node:
            case tree.Call(function=tree.Name(name=name), arguments=given) if name in self.functions:
                function = self.functions[name]
            case _:
                return node
        names = [parameter.name.name for parameter in function.parameters]
        scope = {p.name.name: p.default for p in function.parameters if p.default is not None}
        scope |= dict(zip(names, (a.value for a in given if a.name is None), strict=False))
        scope |= {a.name: a.value for a in given if a.name is not None}
        if scope.keys() != {*names}:  # an error reported elsewhere
            return node
        for statement in body_of(function):
            match statement:
                case tree.Assign(targets=(target,), op="=", value=value, at=None):
                    scope[target.name] = renamed(value, scope)
                case tree.Return(values=(value,)):
                    return renamed(value, scope)
                case _:
                    break
        return node

    # Rewriting ----------------------------------------------------------------------------------------------

    def without_marks(self, reach: tree.Expr | None) -> Items:
        """Return the rule with its count, if needed, and with the ``reached`` placeholders resolved."""
        clock = self.clock
        items: tuple[Any, ...] = tuple(self.items)
        if self.regular:
            items = rebuilt(items, lambda new, old: () if isinstance(old, tree.If) and old in self.needless else new)
        used = all_names(rebuilt(items, lambda new, old: () if self.ticks(old) else new))
        counted = not self.regular and bool(used & {clock.step, clock.first, clock.due, *clock.timed.values()})

        def change(new: tree.Node, old: tree.Node) -> tree.Node | tuple[tree.Node, ...]:
            match new:
                case tree.Assign() if self.ticks(old):
                    return old if counted else ()
                case tree.If(branches=branches, other=None) if not any(body for _, body in branches):
                    return ()
                case tree.Require(condition=tree.Call(function=tree.Name(name=clock.reached), arguments=(held,))):
                    return replace(new, condition=self.required(held.value, reach))
                case tree.StateDecl(when=tree.Call(function=tree.Name(name=clock.reached), arguments=given)):
                    return _existing(replace(new, when=given[0].value if given else None), reach)
                case tree.Assign(value=tree.Call(function=tree.Name(name=clock.reached), arguments=(held,))):
                    return replace(new, value=self.computed(held.value, reach))
                case tree.If(branches=((tree.Call(function=tree.Name(name=clock.reached)), body),)):
                    return body if reach is None else replace(new, branches=((reach, body),))
            return clock.alone(new) if counted else clock.with_tensor(new)

        self.check_common(reach, counted)
        made = rebuilt(items, change)
        declared = [_existing(clock.state(), reach), *clock.schedules(used)] if counted else []
        at = next((i for i, item in enumerate(made) if isinstance(item, STATEMENTS)), len(made))
        return [*made[:at], *declared, *made[at:]]

    def check_common(self, reach: tree.Expr | None, counted: bool) -> None:
        """Report a rule with group or shared states that is not called for all tensors alike."""
        clock = self.clock
        if clock.common is None:
            return
        kept = f"`{clock.piece}` keeps a number for the whole {clock.common}"
        if reach is not None and all_names(self.expanded(reach)) & FACT_NAMES.keys():
            help = f"use `route {clock.piece} when ...` in a separate rule to send tensors to different rules"
            self.work.error("E217", f"{kept}, but is called for only some tensors", clock.place, "not for all", help)
        elif counted:
            help = "call it once per step, outside blocks, or use an inner rule without such a number"
            self.work.error(
                "E217", f"{kept}, but is not called exactly once per step", clock.place, "not once per step", help
            )

    def ticks(self, node: tree.Node) -> bool:
        """Return whether a node is the statement that increments the count."""
        return isinstance(node, tree.Assign) and node.targets[0].name == self.clock.step

    def required(self, condition: tree.Expr, reach: tree.Expr | None) -> tree.Expr:
        """Restrict a requirement of the inner rule to the tensors it is called for."""
        if reach is None:
            return condition
        whole = self.expanded(reach)
        left = sorted(all_names(whole) & {*self.known, *self.functions})
        if left and not self.unclear:
            self.unclear = True
            self.work.error(
                "E217",
                f"cannot determine which tensors `{self.clock.piece}` is called for, and it is not for all tensors",
                reach.span,
                f"depends on `{left[0]}`, which is not a single formula" if left[0] in self.functions else "too long",
                "write the condition as one formula, such as `ndim == 2`",
            )
        if left:
            return condition
        return tree.Binary(condition.span, "or", condition, tree.Unary(condition.span, "not", whole))

    def computed(self, value: tree.Expr, reach: tree.Expr | None) -> tree.Expr:
        """Guard a value known before the step, so that it is computed only if needed: it may need a matrix."""
        whole = None if reach is None else self.expanded(reach)
        if whole is None or all_names(whole) & self.known.keys():
            return value
        if not any(isinstance(node, tree.Call) for node in expressions(value)):
            return value
        return tree.Ternary(value.span, whole, value, tree.Number(value.span, "1", Fraction(1)))


def _some(ways: Sequence[Way]) -> tree.Expr | None:
    """Return the disjunction of the ways; None if some call is unconditional or there are too many."""
    found: dict[str, tree.Expr] = {}
    for way in ways:
        if not way:
            return None
        whole = way[0]
        for condition in way[1:]:
            whole = tree.Binary(whole.span, "and", whole, condition)
        found.setdefault(Formulas().expression(whole), whole)
    if not found or len(found) > MAX_WAYS:
        return None
    first, *others = found.values()
    for other in others:
        first = tree.Binary(first.span, "or", first, other)
    return first


def _existing(state: tree.StateDecl, reach: tree.Expr | None) -> tree.StateDecl:
    """Restrict a state to the tensors for which the inner rule is called."""
    if reach is None:
        return state
    when = reach if state.when is None else tree.Binary(reach.span, "and", reach, state.when)
    return replace(state, when=when)
