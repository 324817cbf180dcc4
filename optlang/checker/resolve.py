"""Name resolution: every name that is read must be defined, and allowed in its context."""

from __future__ import annotations

from collections.abc import Sequence

from optlang.checker.arguments import check_call, check_size_call
from optlang.checker.functions import check_one_result, check_result_count, result_count
from optlang.checker.places import BODY, DEFAULT, EVENT, FUNCTION, ROUTE, Place
from optlang.checker.tensors import literal_index
from optlang.declarations.hypers import tuple_help
from optlang.declarations.instead import BUILTINS_OF_MATH, NOT_YET, instead_of
from optlang.declarations.scope import FREE_FUNCTIONS, Scope
from optlang.functions.table import (
    BUILTINS,
    CLOSURE,
    FACT_NAMES,
    MEMBERS,
    RANDOM,
    SIZES,
    TENSOR_NAMES,
    TIME,
    TIME_NAMES,
    WHOLE,
    Builtin,
)
from optlang.source import Span
from optlang.syntax.library import transform_files
from optlang.syntax.suggest import did_you_mean, nearest
from optlang.syntax.tree import (
    Assign,
    Call,
    Def,
    Every,
    Expr,
    For,
    If,
    Index,
    Member,
    Name,
    Repeat,
    Return,
    Slice,
    StateScope,
    Stmt,
    Tuple,
    Unsupported,
)
from optlang.syntax.walk import assigned, body_of, expressions, own_expressions, parts, statements

#: What calls read, by function group, with a phrase for it.
ROLES_OF_GROUPS = {TIME: "time", WHOLE: "total", CLOSURE: "total", RANDOM: "random"}
PHRASES_OF_ROLES = {
    "time": "a function of the step count t",
    "total": "a sum over all tensors",
    "random": "which draws new numbers in each step",
}


class Resolver:
    """Resolves the names of a rule."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.findings = scope.findings
        self.direct: Expr | None = None  # the value of an assignment, which may have several results
        self.one: Expr | None = None  # a call of which one result is selected
        self.refused: set[str] = set()

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt], place: Place, own: frozenset[str] = frozenset()) -> None:
        """Resolve the names of a block; ``own`` are the parameters and locals of its function."""
        for statement in statements(body):
            match statement:
                case Unsupported():
                    self.unsupported(statement)
                case Assign(targets=targets, value=value):
                    for target in targets:
                        self.target(target, place, own)
                        if statement.op != "=":
                            self.name(target, place, own)
                    self.direct = value
                    self.expression(value, place, own)
                    check_result_count(targets, value, self.scope)
                case For(over=over):
                    for name in statement.names:
                        self.target(name, place, own)
                    for value in (value for row in statement.rows for value in row):
                        self.expression(value, place, own)
                    if isinstance(over, Name):
                        self.over(over, place, own)
                case Every() if place is EVENT:
                    self.findings.add(
                        "E315",
                        "an `on` block cannot count steps",
                        statement.period.span,
                        label=place.label,
                        help="it runs when `optimizer.eval()` or `.train()` is called: remove `every`",
                    )
                case If() | Return() | Repeat() | Every():
                    for expr in own_expressions(statement):
                        self.expression(expr, place, own)

    def over(self, node: Name, place: Place, own: frozenset[str]) -> None:
        """Check what a ``for`` iterates over."""
        scope = self.scope
        if node.name in scope.tuples or node.name in scope.histories or node.name in scope.excused:
            return
        if node.name in own or self.role(node.name) is not None:
            self.findings.add(
                "E209",
                f"`for` cannot loop over `{node.text}`",
                node.span,
                label=f"{scope.role(node.name) or 'a value'}, not a tuple of hyperparameters",
                help=f"it loops over a history or a tuple: `hyper {node.text}s = (beta1 = 0.9, beta2 = 0.99)`; to run "
                f"a block several times, write `repeat n:`",
            )
        else:
            near = did_you_mean(node.name, scope.tuples)
            self.unknown(
                "E201",
                f"unknown tuple `{node.text}`",
                node,
                near or f"declare it: `hyper {node.text} = (beta1 = 0.9, beta2 = 0.99)`",
                label="not declared",
            )

    def function(self, function: Def) -> None:
        """Resolve the names of a function."""
        parameters = frozenset(p.name.name for p in function.parameters)
        body = body_of(function)
        own = parameters | {n.name for n in assigned(body)}
        for parameter in function.parameters:
            if parameter.default is not None:
                self.expression(parameter.default, DEFAULT)
        self.block(body, FUNCTION, own)

    def target(self, target: Name, place: Place, own: frozenset[str]) -> None:
        """Check that a name may be assigned."""
        name, scope = target.name, self.scope
        if name in scope.excused:
            return
        if place is FUNCTION:
            if name in scope.hypers or name in scope.states or name in TENSOR_NAMES:
                self.findings.add(
                    "E204",
                    f"a function cannot change `{target.text}`",
                    target.span,
                    label=f"{scope.role(name)}",
                    help="functions only compute values: return the new value and assign it in the rule",
                )
                return
        elif place is EVENT and (
            name == "g" or (name in scope.states and scope.states[name].scope is not StateScope.TENSOR)
        ):
            what = "the gradient" if name == "g" else f"`{target.text}`, which does not belong to a single tensor"
            self.findings.add(
                "E315",
                f"an `on` block cannot change {what}",
                target.span,
                label="assigned here",
                help="it may change p and the states of each tensor",
            )
            return
        elif name in scope.states or name in TENSOR_NAMES:
            return
        if name in scope.hypers or name in scope.tuples or name in TIME_NAMES or name in FACT_NAMES:
            self.fixed(target)
        elif name in scope.functions:
            self.findings.add(
                "E204",
                f"`{target.text}` is a function of this rule and cannot be assigned",
                target.span,
                label="expected a state, p or a new name",
                help="choose another name for the value",
                related=(("defined here", scope.places[name]),),
            )
        elif name not in scope.excused and not scope.free(name, target.text, target.span):
            scope.excused.add(name)

    def fixed(self, target: Name) -> None:
        """Report an assignment to a predefined name."""
        scope, name = self.scope, target.name
        related: tuple[tuple[str, Span], ...] = ()
        if name in scope.places:
            related = (("declared here", scope.places[name]),)
        if name in scope.hypers or name in scope.tuples:
            what = f"`{target.text}` is a hyperparameter, which a rule cannot change"
            help = "assign to a new name, or declare a state to keep a value between steps"
        else:
            what = f"`{target.text}` cannot be assigned: it is {scope.role(name)}"
            help = "choose another name"
        self.findings.add("E204", what, target.span, label="assigned here", help=help, related=related)

    # Expressions --------------------------------------------------------------------------------------------

    def expression(self, expr: Expr, place: Place, own: frozenset[str] = frozenset()) -> None:
        """Resolve the names and calls in an expression."""
        pending = [expr]
        while pending:
            node = pending.pop()
            match node:
                case Unsupported():
                    self.unsupported(node)
                case Name():
                    self.name(node, place, own)
                case Member():
                    if self.member(node, place):
                        pending.append(node.value)
                    continue
                case Index():
                    self.picked(node)
                case Call():
                    if not self.call(node, place, own):
                        continue
                    pending.extend(a.value for a in reversed(node.arguments) if a.name != "dim")
                    continue
                case Tuple() | Slice():
                    self.findings.add(
                        "E309",
                        f"several {'values in brackets' if isinstance(node, Tuple) else 'dimensions'} are not one "
                        f"value",
                        node.span,
                        label="expected one value",
                        help="these can only follow `dim=`, as in `mean(g, dim=(0, 1))` and `mean(g, dim=1:)`",
                    )
                    continue
                case _:
                    pass
            pending.extend(reversed(parts(node)))

    def name(self, node: Name, place: Place, own: frozenset[str]) -> None:
        """Resolve a name that is read as a value."""
        name, scope = node.name, self.scope
        if name in own or name in scope.excused:
            return
        role = self.role(name)
        if role is not None:
            if role == "local" and name in scope.static:
                role = "static"
            if role not in place.roles:
                self.misplaced(node, role, place, scope.role(name) or "")
            return
        if name in scope.tuples:
            self.unknown("E209", f"`{node.text}` is a tuple, which formulas cannot use", node, tuple_help(name, scope))
        elif name == "group":
            help = "write `group.NAME` for a key of the parameter group, `group.t` for its step count"
            self.unknown("E209", "`group` is not a value by itself", node, help)
        elif name in scope.functions or name in BUILTINS:
            self.unknown(
                "E207",
                f"`{node.text}` is a function, but is used here without arguments",
                node,
                "the gradient is `g`; `grad(x)` is the gradient at another point"
                if name == "grad"
                else f"call it: `{node.text}(...)`",
                label="expected `(`",
            )
        else:
            self.unknown_name(node, own, place)

    def role(self, name: str) -> str | None:
        """Return the role of a name that denotes a value."""
        scope = self.scope
        if name == "g":
            return "gradient"
        if name in scope.states and scope.states[name].scope is not StateScope.TENSOR:
            return "group state"
        tables = (
            (scope.hypers, "hyper"),
            (scope.states, "state"),
            (TENSOR_NAMES, "tensor"),
            (TIME_NAMES, "time"),
            (FACT_NAMES, "fact"),
            (scope.locals, "local"),
            ({"loss"}, "total"),
        )
        return next((role for table, role in tables if name in table), None)

    def misplaced(self, node: Name | Member | Call, role: str, place: Place, phrase: str) -> None:
        """Report a name that may not be read in its context."""
        text = self.findings.text(node)
        if role in ("local", "static") and place is not FUNCTION:
            if not self.findings.once(place.what, text):
                return
            known = "a local variable" if role == "static" else "which the rule computes in a step"
            self.findings.add(
                "E312" if place.code == "E303" else place.code,
                f"{place.what} cannot depend on `{text}`, {known}",
                node.span,
                label=place.label,
                help=f"write the expression for `{text}` here",
                related=(("computed here", self.scope.locals[text]),) if text in self.scope.locals else (),
            )
        else:
            self.findings.add(
                place.code,
                f"{place.what} cannot depend on `{text}`" + (f", {phrase}" if phrase else ""),
                node.span,
                label=place.label,
                help=place.help,
            )

    def unknown(self, code: str, message: str, node: Name, help: str | None, label: str | None = None) -> None:
        """Report an unknown name once, and treat it as known afterwards."""
        self.scope.excused.add(node.name)
        self.findings.add(code, message, node.span, label=label, help=help)

    def unknown_name(self, node: Name, own: frozenset[str], place: Place) -> None:
        """Report an undeclared name."""
        scope = self.scope
        scope.excused.add(node.name)
        if scope.blind:
            return
        known = FACT_NAMES if place is ROUTE else [*sorted(own), *scope.values()]
        near = nearest(node.name, known)
        where = scope.places.get(near or "") or scope.locals.get(near or "")
        helps = did_you_mean(node.name, [near]) if near else None
        if near is None and node.name in BUILTINS_OF_MATH:
            helps = BUILTINS_OF_MATH[node.name]
        if near is None and place is ROUTE:
            helps = f"for a key of the parameter group, write `group.{node.text}`; the shape is ndim, numel, rows, cols"
        self.findings.add(
            "E201",
            f"unknown name `{node.text}`",
            node.span,
            label="not declared and never assigned",
            help=helps
            or f"declare it: `hyper {node.text}` if the user passes it, `state {node.text}` if it is kept between "
            f"steps",
            related=(("similar name here", where),) if where else (),
        )

    def picked(self, node: Index) -> None:
        """Check an index that selects one of several results of a call."""
        call = node.value
        names = self.results_of(call)
        if names is None:
            return
        assert isinstance(call, Call) and isinstance(call.function, Name)
        self.one = call
        place = literal_index(node)
        if place is None or not 0 <= place < len(names):
            self.findings.add(
                "E214",
                f"`{call.function.text}` has {len(names)} results, and this selects none of them",
                node.span,
                label=f"expected one number from 0 to {len(names) - 1}",
                help=f"write `{call.function.text}(...)[0]` for the first; for a part of it, add another index",
            )

    def results_of(self, call: Expr) -> tuple[str, ...] | None:
        """Return the names of a call's results; None if it has just one."""
        if not (isinstance(call, Call) and isinstance(call.function, Name)):
            return None
        name = call.function.name
        if name in self.scope.functions:
            count = result_count(self.scope.functions[name])
            return ("",) * count if count > 1 else None
        return (BUILTINS[name].results or None) if name in BUILTINS else None

    def member(self, node: Member, place: Place) -> bool:
        """Check ``group.NAME``, ``x.T`` and ``f(x).NAME``; return whether the part before the dot is a value."""
        scope = self.scope
        if not (isinstance(node.value, Name) and node.value.name == "group"):
            if isinstance(node.value, Name) and node.name not in MEMBERS:
                self.later(f"`.{node.name}`", node.span)
                return False
            self.named_result(node)
            return True
        text = f"`group.{node.name}`"
        if node.name == "t":
            if "time" not in place.roles:
                self.misplaced(node, "time", place, "which counts steps")
        elif node.name in scope.hypers or node.name in scope.tuples or node.name in scope.states:
            role = scope.role(node.name)
            help = tuple_help(node.name, scope) if node.name in scope.tuples else f"write `{node.name}`"
            self.findings.add(
                "E209", f"{text} is {role} of this rule, not a key that the user adds", node.span, help=help
            )
        elif node.name in ("params", "step", "param_names"):
            self.findings.add(
                "E209",
                f"{text} is not a number that a rule can read",
                node.span,
                label="belongs to the optimizer",
                help="write `t` for the updates of this tensor, `group.t` for the steps of its group",
            )
        elif "key" not in place.roles:
            self.misplaced(node, "key", place, "a key of the parameter group")
        return False

    def named_result(self, node: Member) -> None:
        """Check ``f(x).NAME``, a named result, or ``x.T``, a transpose."""
        names = self.results_of(node.value) or ()
        if node.name in names:
            self.one = node.value
        elif node.name != "T":
            known = [f"`.{name}`" for name in names if name]
            self.findings.add(
                "E214",
                f"there is no result `{node.name}` here",
                node.span,
                label="not a result of this function" if names else "expected a call of a function with this result",
                help=f"its results are {', '.join(known)}"
                if known
                else "`svd(x).S` selects one of several results; `x.T` is the transpose",
            )
            if names:
                self.one = node.value

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: Call, place: Place, own: frozenset[str]) -> bool:
        """Check a callee and its arguments; return whether to resolve the names in them."""
        scope = self.scope
        if not isinstance(node.function, Name):
            self.later("calling anything but a function by its name", node.span)
            return True
        name, text = node.function.name, node.function.text
        if name in scope.excused:
            return True
        value = name in own or (self.role(name) is not None and not self.is_loss(name))
        if name in scope.functions:
            check_call(node, scope)
            if node is not self.direct and node is not self.one:
                check_one_result(node, scope)
            self.reads_of(node, scope.functions[name], place)
        elif name in SIZES:
            check_size_call(node, scope)
        elif value:
            help = f"to multiply, write `{text}*(...)`"
            if name in FACT_NAMES:
                help = f"`{text}` alone refers to p; for other values, write `rows(x)` and `cols(x)`"
            if name in FREE_FUNCTIONS:
                help = f"the function `{text}` cannot be used with a value of the same name: rename the value"
            self.findings.add(
                "E207",
                f"`{text}` is {'a value' if name in own else scope.role(name)}, not a function",
                node.function.span,
                label="called here",
                help=help,
            )
        elif name in BUILTINS:
            check_call(node, scope)
            if node is not self.direct and node is not self.one:
                check_one_result(node, scope)
            return self.builtin_role(node, BUILTINS[name], place)
        else:
            self.unknown_function(node.function)
        return True

    def is_loss(self, name: str) -> bool:
        """Return whether a name is ``loss``, which is both a value and a function."""
        taken = (self.scope.hypers, self.scope.states, self.scope.locals, self.scope.functions)
        return name == "loss" and not any(name in table for table in taken)

    def builtin_role(self, node: Call, builtin: Builtin, place: Place) -> bool:
        """Check that a builtin may be called in its context."""
        role = ROLES_OF_GROUPS.get(builtin.group)
        if role is not None and role not in place.roles:
            self.misplaced(node, role, place, PHRASES_OF_ROLES[role])
            return False
        return True

    def reads_of(self, node: Call, function: Def, place: Place) -> None:
        """Check that everything a function reads may be read where it is called."""
        if place in (BODY, FUNCTION):
            return
        for name, role in self.free_names(function, frozenset()).items():
            if role not in place.roles:
                self.misplaced(node, role, place, f"which reads `{name}`")
                return

    def free_names(self, function: Def, visiting: frozenset[str]) -> dict[str, str]:
        """Return the free names of a function and of those it calls, with their roles."""
        found: dict[str, str] = {}
        body = body_of(function)
        own = {p.name.name for p in function.parameters} | {n.name for n in assigned(body)}
        for statement in statements(body):
            for expr in own_expressions(statement):
                for node in expressions(expr):
                    if isinstance(node, Name) and node.name not in own:
                        role = self.role(node.name)
                        if role is not None:
                            found[node.name] = "static" if node.name in self.scope.static else role
                    elif isinstance(node, Call) and isinstance(node.function, Name):
                        callee = node.function.name
                        if callee in BUILTINS and BUILTINS[callee].group in ROLES_OF_GROUPS:
                            role = ROLES_OF_GROUPS[BUILTINS[callee].group]
                            found["t" if role == "time" else callee] = role
                        if callee in self.scope.functions and callee not in visiting:
                            inner = self.scope.functions[callee]
                            found |= self.free_names(inner, visiting | {callee})
        return found

    def unknown_function(self, function: Name) -> None:
        """Report a call to an undefined function."""
        scope = self.scope
        scope.excused.add(function.name)
        if scope.blind:
            return
        known = [*scope.callables(), *transform_files()]
        near = nearest(function.name, known)
        help = BUILTINS_OF_MATH.get(function.name) or did_you_mean(function.name, known)
        place = scope.places.get(near or "")
        self.findings.add(
            "E202",
            f"unknown function `{function.text}`",
            function.span,
            label="not a function of the language or of this rule",
            help=help or f"define it: `def {function.text}(x) = ...`, or multiply with `*`",
            related=(("similar name here", place),) if place else (),
        )

    # Later parts of the language ----------------------------------------------------------------------------

    def unsupported(self, node: Unsupported) -> None:
        """Report a construct that is parsed but not compiled."""
        self.later(node.what, node.span)

    def later(self, what: str, span: Span) -> None:
        """Report something that a later version will compile, once per construct."""
        if what not in self.refused:
            self.refused.add(what)
            self.findings.add(
                "E901",
                f"{what} is not supported yet",
                span,
                label=NOT_YET,
                help=instead_of(what),
            )
