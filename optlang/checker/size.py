"""Estimates the size and depth of a rule after inlining, without inlining it."""

from __future__ import annotations

from collections.abc import Sequence

from optlang.core import definitions
from optlang.core.evaluate import NotStatic, evaluate
from optlang.core.limits import MAX_NODES, MAX_REPEATS
from optlang.declarations.constants import as_float
from optlang.declarations.findings import Findings
from optlang.declarations.scope import Scope
from optlang.functions.table import BUILTINS
from optlang.rule import Values
from optlang.syntax.tree import Assign, Call, Def, Every, Expr, For, If, Name, Number, On, Repeat, Return, Stmt, Tree
from optlang.syntax.walk import blocks, body_of, expressions, own_expressions, parts, statements

#: Maximum number of functions in a rule, and of branches in an ``if``.
MAX_FUNCTIONS = 100
MAX_BRANCHES = 50

#: Maximum nesting depth of operations after inlining: every later stage recurses that deep.
MAX_NESTING = 120


def check_counts(tree: Tree, findings: Findings) -> bool:
    """Check the number of functions and branches."""
    functions = [item for item in tree.items if isinstance(item, Def)]
    if len(functions) > MAX_FUNCTIONS:
        findings.add(
            "E511",
            f"the rule defines more than {MAX_FUNCTIONS} functions",
            functions[MAX_FUNCTIONS].name.span,
            label="one too many",
            help="an optimizer's formula is a few dozen lines: is this the right file?",
        )
        return False
    body = [item for item in tree.items if isinstance(item, If | Repeat | For | Every)]
    events = [item.body for item in tree.items if isinstance(item, On)]
    for block in (body, *events, *(body_of(f) for f in functions)):
        for statement in statements(block):
            if isinstance(statement, If) and len(statement.branches) > MAX_BRANCHES:
                findings.add(
                    "E511",
                    f"this `if` has more than {MAX_BRANCHES} branches",
                    statement.branches[MAX_BRANCHES][0].span,
                    label="one too many",
                    help="compute the value with a formula, or split this `if` into several",
                )
                return False
    return True


class _Depth:
    """The nesting depth of expressions after inlining."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.functions: dict[str, int] = {}

    def of_expression(self, expr: Expr) -> int:
        """Return the nesting depth of an expression."""
        levels: dict[int, int] = {}
        for node in reversed(list(expressions(expr))):  # inner expressions first
            inner = max((levels[id(part)] for part in parts(node)), default=0)
            if isinstance(node, Call) and isinstance(node.function, Name):
                inner += self.of_function(node.function.name)
            levels[id(node)] = inner + 1
        return levels[id(expr)]

    def of_block(self, block: Sequence[Stmt]) -> int:
        """Return the maximum depth of the expressions in a block, including enclosing blocks."""
        depth = 0
        for statement in block:
            depth = max([depth, *map(self.of_expression, own_expressions(statement))])
            depth = max([depth, *(1 + self.of_block(inner) for inner in blocks(statement))])
        return depth

    def of_function(self, name: str) -> int:
        """Return the depth that a call to a function adds."""
        if name not in self.scope.functions:
            return 0
        if name not in self.functions:
            self.functions[name] = 1 + self.of_block(body_of(self.scope.functions[name]))
        return self.functions[name]


class Size:
    """The number of nodes in a rule after inlining and unrolling."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.functions: dict[str, int] = {}
        self.numbers: Values = {h.name: h.default for h in scope.hypers.values() if not h.required}

    def of_expression(self, expr: Expr) -> int:
        """Return the size of an expression."""
        size = 0
        for node in expressions(expr):
            size += 1
            if isinstance(node, Call) and isinstance(node.function, Name):
                size += self.of_function(node.function.name)
        return size

    def of_block(self, block: Sequence[Stmt]) -> int:
        """Return the size of a block."""
        size = 0
        for statement in reversed(block):
            if isinstance(statement, If):
                inner = [b for _, b in statement.branches] + [statement.other or ()]
                early = any(isinstance(s, Return) for b in inner for s in statements(b))
                # The statements after an `if` that may return are inlined into each branch.
                size = size * (len(inner) if early else 1) + sum(map(self.of_block, inner))
            elif isinstance(statement, Repeat | For | Every):
                size += self.times(statement) * self.of_block(statement.body)
            size += 1 + sum(map(self.of_expression, own_expressions(statement)))
            if isinstance(statement, Assign):
                size += len(statement.targets)
        return size

    def of_function(self, name: str) -> int:
        """Return the size of one of the rule's functions, or of a builtin that is defined by a block."""
        if name in self.scope.functions:
            if name not in self.functions:
                self.functions[name] = self.of_block(body_of(self.scope.functions[name]))
            return self.functions[name]
        defined = definitions.function(name) if name in BUILTINS else None
        if defined is None:
            return 0
        if name not in self.functions:
            outer = self.numbers
            defaults = ((p.name.name, p.default) for p in defined.parameters)
            self.numbers = {n: as_float(d) for n, d in defaults if isinstance(d, Number)}
            self.functions[name] = self.of_block(body_of(defined))
            self.numbers = outer
        return self.functions[name]

    def times(self, statement: Repeat | For | Every) -> int:
        """Return how often the body of a loop is unrolled, using the defaults of hyperparameters."""
        if isinstance(statement, For):
            parts = self.scope.tuples.get(statement.over_name, statement.rows)
            return len(parts) or 1  # a loop over a history is not unrolled
        if isinstance(statement, Every):
            return 1
        try:
            count = evaluate(statement.count, self.numbers)
        except NotStatic:
            return 1
        return int(min(max(count, 1), MAX_REPEATS)) if isinstance(count, float) and count == count else 1


def check_size(body: Sequence[Stmt], scope: Scope) -> bool:
    """Check that a rule stays small after inlining."""
    size = Size(scope)
    depth = _Depth(scope)
    for statement in body:
        if depth.of_block((statement,)) > MAX_NESTING:
            scope.findings.add(
                "E511",
                f"operations are nested more than {MAX_NESTING} deep here when functions are inlined",
                statement.span,
                label="nested too deep",
                help="compute the inner parts first, and assign them to names on separate lines",
            )
            return False
        if size.of_block((statement,)) > MAX_NODES:
            repeats = any(isinstance(inner, Repeat) for inner in statements((statement,)))
            what = "the functions it calls are inlined" if not repeats else "its body is unrolled"
            scope.findings.add(
                "E511",
                f"this grows beyond {MAX_NODES:,} operations when {what}",
                statement.span,
                label="too large",
                help=f"{'repeat' if repeats else 'call functions'} fewer times, or assign a result to a name and use "
                f"the name",
            )
            return False
    if size.of_block(tuple(body)) > MAX_NODES:
        scope.findings.add(
            "E511",
            f"the rule grows beyond {MAX_NODES:,} operations when its functions are inlined",
            None,
            help="call functions fewer times, or assign a result to a name and use the name",
        )
        return False
    return True
