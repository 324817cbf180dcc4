"""The checker: from a syntax tree to a checked rule, with a role for every name and a kind for every state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from keyword import iskeyword

from optlang.checker.counts import whole_numbers
from optlang.checker.events import check_events, event_scope
from optlang.checker.functions import check_functions, declare_function
from optlang.checker.histories import check_histories
from optlang.checker.places import BODY, REQUIRE
from optlang.checker.resolve import Resolver
from optlang.checker.routes import check_routes
from optlang.checker.samples import Sample, facts, samples
from optlang.checker.shape_errors import ShapeErrors
from optlang.checker.size import Size, check_counts, check_size
from optlang.checker.statements import StatementReader
from optlang.checker.states import check_states, declare_states
from optlang.checker.stored import check_kept, check_shapes, check_stores
from optlang.checker.values import Sort, Uses
from optlang.checker.warn import warn
from optlang.core.known import known_before
from optlang.core.substitute import placed
from optlang.declarations import infer
from optlang.declarations.findings import Findings
from optlang.declarations.hypers import declare_hypers
from optlang.declarations.scope import DeclaredState, Scope
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.expand.compose import compose, is_composed
from optlang.expand.histories import sizes_of, without_histories
from optlang.expand.iterations import without_iterations
from optlang.expand.together import one_by_one
from optlang.functions.table import BUILTINS, FACT_NAMES, MATRIX_FUNCTIONS, RANDOM, TIME
from optlang.kinds import STATIC, Kind, Level, join
from optlang.rule import Requirement, Rule, State, Stored
from optlang.source import Source, Span
from optlang.syntax.parse import parse
from optlang.syntax.tree import (
    Assign,
    Call,
    Def,
    Every,
    Expr,
    Flat,
    For,
    HyperDecl,
    HyperItem,
    If,
    Iterate,
    Member,
    Name,
    Nothing,
    On,
    OptimizerDecl,
    Push,
    Repeat,
    Require,
    Return,
    Route,
    Sparse,
    StateDecl,
    StateItem,
    StateScope,
    Stmt,
    StoreDecl,
    Tree,
    Unsupported,
)
from optlang.syntax.walk import assigned, body_of, expressions, is_matrix_call, own_expressions, statements

#: Maximum number of variants to check; fewer for a rule that is very long after inlining.
MAX_SAMPLES = 64
MAX_VISITS = 30_000

#: A node that is not in the rule; forcing it marks an interpretation as reached by no sample.
EVERYWHERE = Nothing(Span(-1, -1))


def check_text(source: Source) -> tuple[Rule | None, list[Diagnostic]]:
    """Parse and check a rule; never raises for an invalid one.

    Returns:
        The rule, or None if it has errors; and all findings, in source order.
    """
    try:
        tree = parse(source)
    except OptlangError as error:
        return None, list(error.diagnostics)
    return check(tree)


def check_file(source: Source) -> tuple[Rule | None, list[Diagnostic]]:
    """Parse and check a file, which may contain only functions for other rules."""
    try:
        tree = parse(source)
    except OptlangError as error:
        return None, list(error.diagnostics)
    if tree.items and all(isinstance(item, Def) for item in tree.items):  # add a rule: it tells what they read
        end = Span(tree.span.end, tree.span.end)
        step = placed(parse(Source("p -= lr*g\n")).items, lambda span: end)
        rule, found = check(replace(tree, items=(*tree.items, *step)))
        return rule and replace(rule, inferred=False), [d for d in found if d.code != "W604"]  # uncalled function
    return check(tree)


def check(tree: Tree) -> tuple[Rule | None, list[Diagnostic]]:
    """Check a tree.

    Returns:
        The rule, or None if it has errors; and all findings, in source order.
    """
    if not is_composed(tree):
        return _Check(tree).run()
    try:
        plain, names = compose(tree)
    except OptlangError as error:
        return None, list(error.diagnostics)
    rule, found = _Check(plain).run()
    return rule, names.restored(found)


class _Check:
    """The checks of one rule, in dependency order."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.items = one_by_one(without_iterations(without_histories(tree).items))
        self.flat = any(isinstance(item, Flat) for item in tree.items)
        self.findings = Findings(tree)
        self.scope = Scope(self.findings, histories=frozenset(sizes_of(tree)), flat=self.flat)
        self.resolver = Resolver(self.scope)
        statement = (Assign, If, Push, Return, Repeat, For, Every, Unsupported)
        self.body: tuple[Stmt, ...] = tuple(item for item in self.items if isinstance(item, statement))
        self.requires = [item for item in self.items if isinstance(item, Require)]
        self.events = [item for item in self.items if isinstance(item, On)]
        self.routes = [item for item in self.items if isinstance(item, Route)]
        self.stores = [item for item in self.items if isinstance(item, StoreDecl)]
        self.stored: tuple[Stored, ...] = ()
        self.shape_errors = ShapeErrors()
        self.inferred = not infer.declares(tree)
        self.kinds: dict[str, Kind] = {}

    def run(self) -> tuple[Rule | None, list[Diagnostic]]:
        """Return the rule and all findings."""
        if not self.tree.items:
            self.findings.add(
                "E401",
                "the rule is empty",
                None,
                help="write at least one update of the parameter: `p -= lr*g`",
            )
        elif self.routes:
            self.declare()
            check_routes(self.tree, self.resolver, check)
        elif check_counts(self.tree, self.findings):
            self.check_all()
        if self.findings.has_errors:
            return None, self.findings.diagnostics
        rule = self.rule()
        if not self.routes:
            warn(rule, self.looked_at, self.findings)
            check_kept(rule, self.looked_at, self.findings)
        return None if self.findings.has_errors else rule, self.findings.diagnostics

    def check_all(self) -> None:
        """Run the checks on a rule with a body of reasonable size."""
        self.excuse()
        self.declare()
        writable = check_functions(self.scope)
        self.scope.static = known_before(self.body, self.scope.hypers, self.scope.states, self.scope.functions)
        self.resolve()
        check_states(self.scope, self.resolver, self.reads_t())
        sparse = any(isinstance(item, Sparse) for item in self.items)
        self.stored = check_stores(self.stores, self.resolver, "flat" if self.flat else "sparse" if sparse else "")
        self.check_writes_p()
        if writable and check_size(self.body, self.scope):
            self.check_kinds()
            check_shapes(self.stored, self.kinds, self.findings)

    # Names --------------------------------------------------------------------------------------------------

    def excuse(self) -> None:
        """Declare the names that constructs of a later version would define."""
        for node in self.unsupported():
            self.scope.excused.update(node.defines)
            self.scope.blind |= node.what == "`use`"

    def unsupported(self) -> Iterator[Unsupported]:
        """Yield every construct that this version does not compile."""
        functions = (body_of(f) for f in self.items if isinstance(f, Def))
        for block in (self.body, *(event.body for event in self.events), *functions):
            for statement in statements(block):
                if isinstance(statement, Unsupported):
                    yield statement
                for own in own_expressions(statement):
                    yield from (e for e in expressions(own) if isinstance(e, Unsupported))

    def declare(self) -> None:
        """Fill the scope from the declarations, or by inferring roles in a rule without declarations."""
        first: OptimizerDecl | None = None
        for item in self.items:
            match item:
                case OptimizerDecl():
                    self.optimizer(item, first)
                    first = first or item
                case HyperDecl():
                    declare_hypers(item, self.scope)
                case StateDecl():
                    declare_states(item, self.scope)
                case Def():
                    declare_function(item, self.scope)
                case _:
                    pass
        if self.inferred:
            self.infer()
        for name in assigned(self.body):
            if self.resolver.role(name.name) is None and name.name not in self.scope.functions:
                self.scope.locals.setdefault(name.name, name.span)

    def optimizer(self, item: OptimizerDecl, first: OptimizerDecl | None) -> None:
        """Check the name of the class."""
        name = item.name
        if first is not None:
            self.findings.add(
                "E406",
                "the rule has two names",
                name.span,
                label="second `optimizer`",
                help="a file holds one rule; move the other to a separate file",
                related=(("first named here", first.name.span),),
            )
        elif not name.name.isidentifier() or iskeyword(name.name):
            self.findings.add(
                "E406",
                f"`{name.text}` cannot be the name of a class in Python",
                name.span,
                label="expected a name such as `MyOptimizer`",
                help="use letters, digits and underscores, and no Python keyword",
            )

    def infer(self) -> None:
        """Infer the roles of names in a rule without declarations."""
        found = infer.infer(self.scope.functions, self.body)
        for name in found.states:
            if name.name not in self.scope.excused:
                item = StateItem(name.span, name, None, None, None)
                self.scope.states[name.name] = DeclaredState(item, StateScope.TENSOR, None)
        for name in found.hypers:
            if name.name not in self.scope.excused:
                declare_hypers(HyperDecl(name.span, (HyperItem(name.span, name, None, None),), None), self.scope)
        self.scope.places.clear()  # without declarations, there are no places to show
        for name in found.hypers:
            self.scope.places[name.name] = name.span

    def resolve(self) -> None:
        """Resolve all names and calls in functions, requirements and statements."""
        for require in self.requires:
            self.resolver.expression(require.condition, REQUIRE)
            self.refuse_calls(require.condition)
        for function in self.scope.functions.values():
            self.resolver.function(function)
        self.resolver.block(self.body, BODY)
        check_events(self.events, self.resolver)
        functions = map(body_of, self.scope.functions.values())
        if self.flat and self.events:
            self.findings.add(
                "E316",
                "a `flat` rule has no `on` blocks",
                self.events[0].span,
                label="p is the vector of all parameters only during a step",
                help="remove `flat` or the block",
            )
        for again in (item for item in self.items if isinstance(item, Iterate)):
            self.findings.add(
                "E316",
                "a rule can have only one `iterate`",
                again.span,
                label="second `iterate`",
                help="write one `iterate`, and combine its conditions with `or`",
            )
        check_histories(self.scope, self.body, (*functions, *(event.body for event in self.events)))

    def refuse_calls(self, condition: Expr) -> None:
        """Report calls to the rule's functions in a requirement."""
        for node in expressions(condition):
            if not (isinstance(node, Call) and isinstance(node.function, Name)):
                continue
            if node.function.name in self.scope.functions:
                self.findings.add(
                    "E311",
                    "a requirement cannot call a function of the rule",
                    node.span,
                    label="expected comparisons and arithmetic",
                    help="write the function's formula here",
                )

    def reads_t(self) -> Span | None:
        """Return the first span where the rule needs the step count of a tensor."""
        for block in self.blocks():
            for statement in statements(block):
                if isinstance(statement, Every):
                    return statement.span
        for expr in self.expressions():
            for node in expressions(expr):
                if isinstance(node, Name) and node.name == "t":
                    return node.span
                if isinstance(node, Call) and isinstance(node.function, Name):
                    called = BUILTINS.get(node.function.name)
                    if called is not None and called.group in (TIME, RANDOM):
                        return node.span
        return None

    def blocks(self) -> Iterator[tuple[Stmt, ...]]:
        """Yield the statements of the rule, its events and its functions."""
        yield self.body
        yield from (event.body for event in self.events)
        yield from (body_of(function) for function in self.scope.functions.values())

    def expressions(self) -> Iterator[Expr]:
        """Yield the top-level expressions of the rule: in statements, functions, states and requirements."""
        for block in self.blocks():
            for statement in statements(block):
                yield from own_expressions(statement)
        for state in self.scope.states.values():
            yield from (e for e in (state.item.initial, state.when) if e is not None)
        yield from (require.condition for require in self.requires)

    def conditions(self) -> Iterator[Expr]:
        """Yield the expressions in condition position."""
        for block in self.blocks():
            for statement in statements(block):
                if isinstance(statement, If):
                    yield from (condition for condition, _ in statement.branches)
        yield from (s.when for s in self.scope.states.values() if s.when is not None)
        yield from (require.condition for require in self.requires)

    def check_writes_p(self) -> None:
        """Report a rule that never changes the parameter."""
        if any(name.name == "p" for name in assigned(self.body)) or any(self.unsupported()):
            return
        near = next((n for n in assigned(self.body) if n.name in ("P", "param", "theta", "w", "x")), None)
        self.findings.add(
            "E402",
            "the rule never changes the parameter `p`",
            near.span if near else None,
            label=f"`{near.text}` is a local variable; the parameter is `p`" if near else None,
            help=f"write `p` for `{near.text}`" if near else "add the update, for example `p -= lr*g`",
        )

    # Kinds --------------------------------------------------------------------------------------------------

    looked_at: tuple[Sample, ...] = ()

    def check_kinds(self) -> None:
        """Interpret the rule for every sample; then once more for each branch that no sample reached."""
        nodes = [node for expr in self.expressions() for node in expressions(expr)]
        size = len(nodes) if not self.repeats() else max(len(nodes), Size(self.scope).of_block(self.body))
        limit = max(4, min(MAX_SAMPLES, MAX_VISITS // (size + 1)))
        matrices = any(is_matrix_call(node, MATRIX_FUNCTIONS) for node in nodes)
        whole = whole_numbers(self.scope, tuple(self.blocks())) if matrices or self.repeats() else ()
        found = samples(self.scope, self.expressions(), self.conditions(), limit, matrices, whole)
        if self.flat:  # p is a vector, whatever the parameters are
            vectors = [sample for sample in found if len(sample.shape) == 1]
            found = vectors or [
                replace(sample, shape=(6,), values={**sample.values, **facts((6,))}) for sample in found
            ]
        seen: dict[Expr, set[bool]] = {}
        looked_at = []
        for sample in found:
            if self.permitted(self.variant(sample, {}, seen)):
                looked_at.append(sample)
                self.read(self.variant(sample, {}, seen))
        if not looked_at:  # no sample meets the requirements: check what does not depend on shapes
            self.read(self.variant(found[0], {EVERYWHERE: True}, seen))
        self.shape_errors.looked_at = {sample.shape for sample in looked_at}
        first = looked_at[0] if looked_at else found[0]
        tried: set[tuple[Expr, bool]] = set()
        settled = self.settled_by(found, nodes)
        while len(tried) < limit:
            missed = (
                (condition, True not in answers)
                for condition, answers in seen.items()
                if len(answers) == 1 and condition not in settled
            )
            forced = next((pair for pair in missed if pair not in tried), None)
            if forced is None:
                break
            tried.add(forced)
            self.read(self.variant(first, dict([forced]), seen))
        self.shape_errors.settle(self.findings)
        self.looked_at = tuple(sample for sample in looked_at if sample not in self.shape_errors.samples)

    def settled_by(self, found: Sequence[Sample], nodes: Sequence[Expr]) -> set[Expr]:
        """Return the conditions that depend only on the number of dimensions, and were tried with all of them.

        A branch of such a condition that no sample took is unreachable, because an enclosing condition excludes it.
        """
        if not {*range(5)} <= {len(sample.shape) for sample in found}:
            return set()
        return {
            node
            for node in nodes
            if {n.name for n in expressions(node) if isinstance(n, Name)} == {"ndim"}
            and not any(isinstance(n, Call | Member) for n in expressions(node))
        }

    def repeats(self) -> bool:
        """Return whether the rule contains a ``repeat``."""
        return any(isinstance(s, Repeat) for block in self.blocks() for s in statements(block))

    def variant(self, sample: Sample, forced: dict[Expr, bool], seen: dict[Expr, set[bool]]) -> StatementReader:
        """Return an interpreter of the rule for one sample."""
        return StatementReader(self.scope, sample, self.findings, forced, seen, self.shape_errors)

    def read(self, variant: StatementReader) -> None:
        """Interpret the rule for one sample and record the kinds of its states."""
        variant.rule(self.body)
        for event in self.events:
            own = event_scope(event, self.scope)
            inner = StatementReader(own, variant.sample, self.findings, variant.forced, variant.seen, self.shape_errors)
            inner.event(event.body, variant)
        for name, exists in variant.exists.items():
            if exists:
                known, kind = self.kinds.get(name, STATIC), variant.kinds[name]
                either = next((k for k in (kind, known) if k.level is Level.MATRIX), None)
                self.kinds[name] = either or join((known, kind))

    def permitted(self, variant: StatementReader) -> bool:
        """Return whether a sample meets the requirements; the defaults must meet those that do not concern tensors."""
        variant.declaring = True
        for require in self.requires:
            held = variant.condition(require.condition)
            if held.sort is Sort.UNKNOWN:
                continue
            if not held.is_static and self.findings.error_inside(require.condition.span):
                continue
            if not held.is_static:
                self.findings.add(
                    "E311",
                    "a requirement must be a condition on hyperparameters",
                    require.condition.span,
                    label="cannot be computed when the optimizer is created",
                    help="use comparisons, arithmetic, and functions such as max, min, sqrt, exp and log",
                )
            elif held.truth is False:
                default = variant.sample.defaults and not held.uses & Uses.FACT
                if default and not any(self.scope.hypers[n].required for n in self.names(require)):
                    self.findings.add(
                        "E410",
                        "the defaults do not meet this requirement",
                        require.condition.span,
                        label="does not hold for the defaults",
                        help="change a default, or the requirement",
                    )
                return default
        return True

    def names(self, require: Require) -> list[str]:
        """Return the hyperparameters that a requirement reads."""
        nodes = expressions(require.condition)
        return [n.name for n in nodes if isinstance(n, Name) and n.name in self.scope.hypers]

    # The rule -----------------------------------------------------------------------------------------------

    def rule(self) -> Rule:
        """Return the checked rule, given that there were no errors."""
        scope = self.scope
        counts = whole_numbers(scope, tuple(self.blocks()))
        named = next((item for item in self.items if isinstance(item, OptimizerDecl)), None)
        states = tuple(
            State(
                state.name,
                state.key,
                state.scope,
                self.kinds.get(state.name, STATIC),
                state.item.initial,
                state.when,
                state.item.span,
            )
            for state in scope.states.values()
        )
        requirements = tuple(
            Requirement(
                r.condition,
                r.message or f"must hold: {self.findings.text(r.condition)}",
                r.span,
                any(isinstance(n, Name) and n.name in FACT_NAMES for n in expressions(r.condition)),
            )
            for r in self.requires
        )
        return Rule(
            named.name.name if named else None,
            self.tree.doc.value if self.tree.doc else None,
            named.reference if named else None,
            tuple(replace(hyper, count=name in counts) for name, hyper in scope.hypers.items()),
            requirements,
            states,
            dict(scope.functions),
            self.body,
            self.inferred,
            self.tree,
            {event.event: event.body for event in self.events},
            tuple(self.routes),
            self.flat,
            any(isinstance(item, Sparse) for item in self.items),
            self.stored,
        )
