"""Infers the effect of statements in one variant of a rule: kinds, and which paths assign a value."""

from __future__ import annotations

from collections.abc import Sequence

from optlang.checker.inlining import Inliner
from optlang.checker.matrices import fits, kind_of
from optlang.checker.shape_errors import ShapeError
from optlang.checker.values import MISTAKE, CheckedValue, Sort, Uses, uses_of
from optlang.declarations.scope import DeclaredState
from optlang.functions.shapes import Shape, described
from optlang.functions.table import RANDOMS
from optlang.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level
from optlang.syntax.tree import Assign, Call, Every, Expr, For, If, Name, Repeat, StateScope, Stmt
from optlang.syntax.walk import expressions, statements

#: Functions that sum over the whole model.
WHOLE_MODEL = ("total", "gnorm")


#: Maximum number of passes over the body of a loop over a history, until a fixed point is reached.
MAX_TURNS = 8


class StatementReader(Inliner):
    """Interprets a whole rule for one sample."""

    path: tuple[tuple[Expr, CheckedValue], ...] = ()  # conditions of the enclosing blocks, as far as they affect states

    def rule(self, body: Sequence[Stmt]) -> None:
        """Interpret the states and the statements of a rule."""
        self.declaring = True
        for name, value in self.scope.static.items():
            self.static[name] = self.value(value)
        for state in self.scope.states.values():
            self.exists[state.name] = self.state_exists(state)
        for state in self.scope.states.values():
            self.kinds[state.name] = self.initial_kind(state)
        self.declaring = False
        self.body = body
        self.block(body)

    def event(self, body: Sequence[Stmt], around: StatementReader) -> None:
        """Interpret the statements of an ``on`` block; ``around`` has interpreted the rule."""
        self.exists, self.kinds = around.exists, around.kinds
        self.env, self.body = {}, body
        self.block(body)

    # States -------------------------------------------------------------------------------------------------

    def state_exists(self, state: DeclaredState) -> bool:
        """Return whether a state exists in this sample."""
        if state.when is None:
            return True
        held = self.condition(state.when)
        if held.sort is Sort.UNKNOWN and not held.is_static:
            return True
        if not held.is_static and self.findings.error_inside(state.when.span):
            return True
        if not held.is_static:
            self.report(
                "E303",
                "whether a state exists must be known before the first step",
                state.when.span,
                label="not known before the first step",
                help="after `when`, compare hyperparameters and the tensor's shape (ndim, numel, rows, cols)",
            )
            return True
        if state.scope is not StateScope.TENSOR and held.uses & Uses.FACT:
            self.report(
                "E303",
                f"a {state.scope.value} state cannot depend on one tensor's shape",
                state.when.span,
                label="differs from tensor to tensor",
                help=f"make it a state per tensor: remove `{state.scope.value}`",
            )
            return True
        return self.decide(state.when, held) is not False

    def initial_kind(self, state: DeclaredState) -> Kind:
        """Infer the kind of a state from its initial value."""
        initial = state.item.initial
        grouped, scalar = state.scope is not StateScope.TENSOR, state.item.type == "scalar"
        if initial is None or not self.exists[state.name]:
            return HOST if grouped else (SCALAR if scalar else ELEMENT)
        self.mismatched = None
        value = self.number(initial)
        if value.sort is Sort.UNKNOWN and (state.name in self.scope.histories or self.mismatched is not None):
            self.spoilt.add(state.name)
        if grouped:
            self.group_initial(state, initial, value)
            return HOST
        if scalar:
            if value.kind.level > Level.SCALAR and value.sort is not Sort.UNKNOWN:
                self.report(
                    "E301",
                    f"`{state.item.name.text}` is one number, but its initial value is {self.phrase(value)}",
                    initial.span,
                    label=self.phrase(value),
                    help="remove `: scalar`, or reduce the value: `norm(x)`, `mean(x)`",
                )
            return SCALAR
        return value.kind if value.kind.level >= Level.SCALAR else ELEMENT

    def group_initial(self, state: DeclaredState, initial: Expr, value: CheckedValue) -> None:
        """Check that the initial value of a group state depends only on hyperparameters."""
        if value.sort is not Sort.UNKNOWN and not value.is_static and not self.findings.error_inside(initial.span):
            whole = "parameter group" if state.scope is StateScope.GROUP else "optimizer"
            self.report(
                "E312",
                f"the initial value of `{state.item.name.text}` cannot be computed when the {whole} is created",
                initial.span,
                label="expected arithmetic on numbers and hyperparameters",
                help="functions such as max, min, sqrt, exp and log can be used here",
            )

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> None:
        """Interpret a block."""
        for statement in body:
            match statement:
                case Assign():
                    self.assign(statement)
                case If():
                    self.branch(statement.branches, statement.other or ())
                case Repeat() | For() | Every():
                    self.loop(statement)
                case _:
                    pass

    def loop(self, node: Repeat | For | Every) -> None:
        """Interpret a block that is repeated, or runs only in some steps."""
        match node:
            case Repeat(count=count, body=body):
                outside, around = self.path, self.around
                by = self.facts(count)
                self.path, self.around = (*outside, (count, by)), around | by.uses
                self.repeated(node, lambda: self.block(body))
                self.path, self.around = outside, around
            case For(over_name=over) if over in self.scope.histories:
                self.history(node)
            case For(names=names, body=body):
                for values in self.turns(node):
                    self.env.update(values)
                    self.block(body)
                for name in names:
                    self.env.pop(name.name, None)
            case Every(period=period, start=start, body=body):
                held, before, outside, around = self.due(node), dict(self.env), self.path, self.around
                numbers = [(expr, self.facts(expr)) for expr in (period, start) if expr is not None]
                self.path = (*outside, (period, held), *numbers)
                self.around |= uses_of(value for _, value in numbers)
                self.block(body)
                self.env = self.meet(self.env, before, held)
                self.path, self.around = outside, around

    def history(self, node: For) -> None:
        """Interpret a block that runs for every entry of a history, possibly for none."""
        before, none = dict(self.env), CheckedValue(HOST, Sort.CONDITION, Uses.TIME)
        if node.over_name not in self.kinds or node.over_name in self.spoilt:
            return
        size = self.shape(CheckedValue(self.kinds[node.over_name]))[0]
        for _ in range(MAX_TURNS):  # the kind of a loop-carried value may grow
            found = dict(self.env)
            self.env[node.name.name] = CheckedValue(HOST, uses=Uses.TIME)
            self.entries[node.name.name] = size
            self.block(node.body)
            del self.env[node.name.name]
            if found == self.env:
                break
        filled = {
            t.name for s in statements(node.body) if isinstance(s, Assign) and s.at is not None for t in s.targets
        }
        kept = {name: value for name, value in self.env.items() if name in filled}
        self.env = {**self.meet(self.env, before, none), **kept}

    def assign(self, node: Assign) -> None:
        """Interpret an assignment."""
        if len(node.targets) > 1:
            results = self.results(node)
            for target, value in zip(node.targets, results, strict=True):
                self.store(target, value, node.value)
            return
        target = node.targets[0]
        if target.name in self.scope.states:
            self.state(target)  # reported before reads in the value
        value = self.assigned(node)
        if node.at is not None and value.sort is not Sort.UNKNOWN:  # one value per entry of a history
            shape = (self.entries.get(node.at.name, 1), *self.shape(value))
            value = CheckedValue(kind_of(shape), uses=value.uses | Uses.TENSOR)
            before = self.env.get(target.name)
            if (
                node.op == "="
                and before is not None
                and before.sort is not Sort.UNKNOWN
                and self.shape(before) != shape
            ):
                self.report(
                    "E316",
                    f"`{target.text}` is assigned values of different shapes",
                    node.value.span,
                    label=f"{described(shape[1:])}, not {described(self.shape(before)[1:])}",
                    help="use a different name for each shape",
                )
                value = MISTAKE
        if target.name == "p":
            self.parameter(target, value, node.value)
        elif target.name in self.scope.states:
            self.store_state(target, value, node.value)
        elif target.name not in self.scope.hypers:
            self.store(target, value, node.value)

    def store(self, target: Name, value: CheckedValue, expr: Expr) -> None:
        """Assign a value to a local name (or to one of several targets)."""
        if target.name == "p":
            self.parameter(target, value, expr)
        elif target.name in self.scope.states:
            self.store_state(target, value, expr)
        elif target.name not in self.scope.hypers:
            if target.name == "g":
                self.filling(value, expr)
            value = value._replace(uses=value.uses | self.around)
            keep = value.literal or value.sort is not Sort.NUMBER or target.name in self.scope.static
            self.env[target.name] = value if keep else value._replace(uses=value.uses | Uses.LOCAL)

    def filling(self, value: CheckedValue, expr: Expr) -> None:
        """Check that a value can be stored in a tensor."""
        if value.sort in (Sort.TEXT, Sort.NONE):
            self.number(expr)

    def parameter(self, target: Name, value: CheckedValue, expr: Expr) -> None:
        """Check that ``p`` can take a value."""
        self.filling(value, expr)
        if value.sort is Sort.UNKNOWN or value.kind.level is not Level.MATRIX:
            return
        if fits(value.kind, ELEMENT, self.sample.shape):
            self.fine(expr)
            return
        given, own = self.phrase(value), described(self.sample.shape)
        self.shape_error(
            expr,
            ShapeError(
                self.sample,
                "E313",
                f"`{target.text}` is {own}, but its new value is {given}",
                "the new value must have the shape of p; `x.T` is the transpose, `matrix(x)` of a tensor with more "
                "dimensions is reshaped to p automatically",
                given,
            ),
        )

    def store_state(self, target: Name, value: CheckedValue, expr: Expr) -> None:
        """Check that a state can hold a value."""
        state = self.scope.states[target.name]
        self.state(target)
        self.filling(value, expr)
        if value.sort is Sort.UNKNOWN:
            if self.mismatched is not None and reads(self.mismatched, target.name):
                self.spoilt.add(target.name)
            return
        if state.scope is not StateScope.TENSOR:
            self.store_number(target, state, value, expr)
            return
        kind = self.kinds[target.name]
        for cause, given in ((expr, value), *self.path):
            if not fits(given.kind, kind, self.sample.shape):
                self.too_large(target, state, kind, cause, given, cause is expr)
                if Level.MATRIX in (given.kind.level, kind.level):
                    self.spoilt.add(target.name)
                return
        if Level.MATRIX in (value.kind.level, kind.level):
            self.fine(expr)

    def too_large(
        self, target: Name, state: DeclaredState, kind: Kind, cause: Expr, value: CheckedValue, direct: bool
    ) -> None:
        """Report a value with more elements than its state, or with another shape."""
        given = self.phrase(value)
        held = "one number for each tensor" if kind.level is Level.SCALAR else self.phrase(CheckedValue(kind))
        if direct:
            message = f"`{target.text}` is {held}, but this value is {given}"
        else:
            message = f"`{target.text}` is {held}, but is assigned where a condition is {given}"
        helps = "reduce the value: `norm(x)`, `mean(x)`, `sum(x)`"
        if kind.level is Level.REDUCED:
            helps = "reduce the value over the same dimensions, written the same way"
        other = f"give `{target.text}` an initial value of the larger shape"
        if value.kind.level is Level.MATRIX:
            other = f"declare `state {target.text} = zeros({self.sizes(value.kind.shape)})`"
        elif state.item.type == "scalar":
            other = "remove `: scalar` for a state shaped like p"
        help = f"{helps}; or {other}"
        if Level.MATRIX in (value.kind.level, kind.level) and kind.level > Level.SCALAR:
            example = f"declare `state {target.text}` without one for a state shaped like p"
            if value.kind.level is Level.MATRIX:
                example = f"`state {target.text} = zeros({self.sizes(value.kind.shape)})`"
            help = f"a state has the shape of its initial value: {example}"
        declared = (("declared here", state.item.span),)
        if Level.MATRIX in (value.kind.level, kind.level):
            self.shape_error(cause, ShapeError(self.sample, "E301", message, help, given, declared))
            return
        self.report("E301", message, cause.span, label=given, help=help, related=declared)

    def sizes(self, shape: Shape) -> str:
        """Return a shape in terms of the parameter's."""
        names = {self.sample.shape[-1]: "cols", self.sample.shape[-2]: "rows"} if len(self.sample.shape) > 1 else {}
        return ", ".join(names.get(size, str(size)) for size in shape)

    def changed(self, node: Assign, before: CheckedValue, by: CheckedValue) -> CheckedValue:
        """Infer the new value of a name changed by ``+=`` and the like."""
        if Level.MATRIX not in (before.kind.level, by.kind.level):
            return self.combine(node.value, (before, by))
        target = node.targets[0]
        if Sort.UNKNOWN in (before.sort, by.sort):
            return self.combine(node.value, (before, by))
        state = self.scope.states.get(target.name)
        held = ELEMENT if target.name == "p" else before.kind
        if (state is not None or target.name == "p") and not fits(by.kind, held, self.sample.shape):
            return by  # mismatches are reported at the store
        return self.combine(node.value, (before, by))

    def store_number(self, target: Name, state: DeclaredState, value: CheckedValue, expr: Expr) -> None:
        """Check that a group or shared state is not assigned a value of narrower scope."""
        for cause, given in ((expr, value), *self.path):
            wrong, differs, help = self.narrower(target, state, given)
            if not wrong or (state.when is not None and self.findings.error_inside(state.when.span)):
                continue
            name, whole = (
                self.culprit(cause, wrong),
                "parameter group" if state.scope is StateScope.GROUP else "optimizer",
            )
            self.report(
                "E302",
                f"`{target.text}` is one number for the whole {whole} and cannot depend on {differs[0]}",
                name.span,
                label=f"`{name.text}` {differs[1]}" if isinstance(name, Name) else differs[1],
                help=help,
                related=(("declared here", state.item.span),),
            )
            return

    def narrower(self, target: Name, state: DeclaredState, given: CheckedValue) -> tuple[int, tuple[str, str], str]:
        """Return what a value must not depend on in a group or shared state, with a message and a help."""
        grouped = state.scope is StateScope.GROUP
        if given.uses & (Uses.TENSOR | Uses.FACT):
            words = "a single tensor", "differs from tensor to tensor"
            help = f"use hyperparameters, t and group states only, or declare `state {target.text}` for each tensor"
            if not grouped:
                help = f"sum over the model, `total(x)`, or declare `state {target.text}` for each tensor"
            return given.uses & (Uses.TENSOR | Uses.FACT), words, help
        if grouped and given.uses & (Uses.TOTAL | Uses.SHARED):
            words = "a sum over all parameter groups", "is one number for the whole optimizer"
            return given.uses & (Uses.TOTAL | Uses.SHARED), words, f"declare it `shared state {target.text}`"
        if not grouped and given.uses & Uses.GROUP:
            words = "a single parameter group", "differs from group to group"
            return Uses.GROUP, words, f"declare it `group state {target.text}`, or make both states shared"
        return Uses.NOTHING, ("", ""), ""

    def culprit(self, expr: Expr, wrong: int) -> Expr:
        """Return the first name or call in an expression with a forbidden dependency, or the whole expression."""
        for node in expressions(expr):
            if isinstance(node, Call) and isinstance(node.function, Name):
                called = WHOLE_MODEL if wrong & Uses.TOTAL else RANDOMS if wrong & Uses.TENSOR else ()
                if node.function.name in called:
                    return node
            if isinstance(node, Name) and node.name == "loss" and wrong & Uses.TOTAL:
                return node
            if isinstance(node, Name) and node.name not in self.scope.functions:
                known = self.env.get(node.name)
                if node.name in self.scope.states or node.name in ("p", "g", *self.sample.values):
                    known = self.name(node)
                if known is not None and known.uses & wrong:
                    return node
        return expr

    # Branches -----------------------------------------------------------------------------------------------

    def branch(self, branches: Sequence[tuple[Expr, Sequence[Stmt]]], other: Sequence[Stmt]) -> None:
        """Interpret an ``if``: the branch this variant takes, or all branches if the condition is a runtime one."""
        if not branches:
            self.block(other)
            return
        (condition, body), *rest = branches
        held = self.condition(condition)
        answer = self.decide(condition, held)
        outside, around = self.path, self.around
        self.around |= held.uses & Uses.FACT
        # A static condition does not enlarge a state, but may differ between tensors (`ndim > 1`).
        self.path = (*outside, (condition, held if answer is None else held._replace(kind=STATIC)))
        if answer is not None:
            if answer:
                self.block(body)
            else:
                self.branch(rest, other)
            self.path, self.around = outside, around
            return
        before = dict(self.env)
        self.block(body)
        taken, self.env = self.env, before.copy()
        self.branch(rest, other)
        self.env = self.meet(taken, self.env, held)
        self.path, self.around = outside, around


def reads(expr: Expr, name: str) -> bool:
    """Return whether a name occurs in an expression."""
    return any(isinstance(node, Name) and node.name == name for node in expressions(expr))
