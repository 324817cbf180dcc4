"""Names: every name that is read means something, and may be read where it is."""

from __future__ import annotations

from collections.abc import Sequence

from optlang.language.builtins import BUILTINS, FACT_NAMES, LATER, TENSOR_NAMES, TIME, TIME_NAMES
from optlang.language.checking.arguments import check_call
from optlang.language.checking.functions import check_one_result, check_result_count
from optlang.language.checking.hypers import tuple_help
from optlang.language.checking.instead import BUILTINS_OF_MATH, INSTEAD, MANUAL
from optlang.language.checking.places import BODY, DEFAULT, FUNCTION, REQUIRE, Place
from optlang.language.checking.scope import FREE_FUNCTIONS, Scope
from optlang.language.suggest import SYNONYMS, did_you_mean, nearest
from optlang.language.tree import (
    Assign,
    Binary,
    Call,
    Def,
    Expr,
    If,
    Member,
    Name,
    Return,
    Stmt,
    Tuple,
    Unsupported,
)
from optlang.language.walk import assigned, body_of, expressions, own_expressions, parts, statements
from optlang.source import Span


class Resolver:
    """One walk over the names of a rule."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.findings = scope.findings
        self.direct: Expr | None = None  # the whole value of an assignment, which may give several results
        self.refused: set[str] = set()

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt], place: Place, own: frozenset[str] = frozenset()) -> None:
        """Check the names of a block; ``own`` are the parameters and locals of the function it belongs to."""
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
                case If() | Return():
                    for expr in own_expressions(statement):
                        self.expression(expr, place, own)

    def function(self, function: Def) -> None:
        """Check the names of a function."""
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
        """Report an assignment to something that a rule cannot change."""
        scope, name = self.scope, target.name
        related: tuple[tuple[str, Span], ...] = ()
        if name in scope.places:
            related = (("declared here", scope.places[name]),)
        if name in scope.hypers or name in scope.tuples:
            what = f"`{target.text}` is a hyperparameter, which only the user changes"
            help = "compute with a new name, or declare a state to keep a value from step to step"
        else:
            what = f"`{target.text}` cannot be assigned: it is {scope.role(name)}"
            help = "choose another name"
        self.findings.add("E204", what, target.span, label="assigned here", help=help, related=related)

    # Expressions --------------------------------------------------------------------------------------------

    def expression(self, expr: Expr, place: Place, own: frozenset[str] = frozenset()) -> None:
        """Check the names and calls of an expression."""
        pending = [expr]
        while pending:
            node = pending.pop()
            match node:
                case Unsupported():
                    self.unsupported(node)
                case Name():
                    self.name(node, place, own)
                case Member():
                    self.member(node, place)
                    continue
                case Call():
                    self.call(node, place, own)
                    pending.extend(a.value for a in reversed(node.arguments) if a.name != "dim")
                    continue
                case Tuple():
                    self.findings.add(
                        "E309",
                        "several values in brackets are not a value",
                        node.span,
                        label="expected one value",
                        help="a tuple only stands after `dim=`, as in `mean(g, dim=(0, 1))`",
                    )
                    continue
                case Binary(op="|>" | "@" as op):
                    self.later(f"`{op}`", node.span)
                case _:
                    pass
            pending.extend(reversed(parts(node)))

    def name(self, node: Name, place: Place, own: frozenset[str]) -> None:
        """Check one name that is read as a value."""
        name, scope = node.name, self.scope
        if name in own or name in scope.excused:
            return
        role = self.role(name)
        if role is not None:
            if role not in place.roles:
                self.misplaced(node, role, place, scope.role(name) or "")
            return
        if name in scope.tuples:
            self.unknown("E209", f"`{node.text}` is a tuple, which formulas cannot read", node, tuple_help(name, scope))
        elif name == "group":
            help = "write `group.NAME` for a key of the parameter group, `group.t` for its steps"
            self.unknown("E209", "`group` is not a value by itself", node, help)
        elif name == "loss":
            self.later("`loss`", node.span)
        elif name in scope.functions or name in BUILTINS or (name in LATER and name not in SYNONYMS):
            self.unknown(
                "E207",
                f"`{node.text}` is a function, and is used here without arguments",
                node,
                f"call it: `{node.text}(...)`",
                label="expected `(`",
            )
        else:
            self.unknown_name(node, own)

    def role(self, name: str) -> str | None:
        """Return the role of a name that stands for a value."""
        scope = self.scope
        tables = (
            (scope.hypers, "hyper"),
            (scope.states, "state"),
            (TENSOR_NAMES, "tensor"),
            (TIME_NAMES, "time"),
            (FACT_NAMES, "fact"),
            (scope.locals, "local"),
        )
        return next((role for table, role in tables if name in table), None)

    def misplaced(self, node: Name | Member | Call, role: str, place: Place, phrase: str) -> None:
        """Report a name that may not be read where it is."""
        text = self.findings.source.excerpt(node.span)
        if role == "fact" and place is REQUIRE:
            self.later("a requirement on the shape of tensors", node.span)
        elif role == "local" and place is not FUNCTION:
            if not self.findings.once(place.what, text):
                return
            self.findings.add(
                "E312" if place.code == "E303" else place.code,
                f"{place.what} cannot depend on `{text}`, which the rule computes in a step",
                node.span,
                label=place.label,
                help=f"write out what `{text}` stands for",
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
        """Report a name once, and treat it as known afterwards."""
        self.scope.excused.add(node.name)
        self.findings.add(code, message, node.span, label=label, help=help)

    def unknown_name(self, node: Name, own: frozenset[str]) -> None:
        """Report a name that nothing declares."""
        scope = self.scope
        scope.excused.add(node.name)
        if scope.blind:
            return
        near = nearest(node.name, [*sorted(own), *scope.values()])
        place = scope.places.get(near or "") or scope.locals.get(near or "")
        helps = did_you_mean(node.name, [near]) if near else None
        if near is None and node.name in BUILTINS_OF_MATH:
            helps = BUILTINS_OF_MATH[node.name]
        self.findings.add(
            "E201",
            f"unknown name `{node.text}`",
            node.span,
            label="not declared, and never assigned",
            help=helps
            or f"declare it: `hyper {node.text}` if the user passes it, `state {node.text}` if it is "
            "kept from step to step",
            related=(("it is here", place),) if place else (),
        )

    def member(self, node: Member, place: Place) -> None:
        """Check ``group.NAME``."""
        scope = self.scope
        if not (isinstance(node.value, Name) and node.value.name == "group"):
            self.later(f"`.{node.name}`", node.span)
            return
        text = f"`group.{node.name}`"
        if node.name == "t":
            if "time" not in place.roles:
                self.misplaced(node, "time", place, "which counts steps")
        elif node.name in scope.hypers or node.name in scope.tuples or node.name in scope.states:
            role = scope.role(node.name)
            help = tuple_help(node.name, scope) if node.name in scope.tuples else f"write `{node.name}`"
            self.findings.add(
                "E209", f"{text} is {role} of this rule, not a key of the user's own", node.span, help=help
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

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: Call, place: Place, own: frozenset[str]) -> None:
        """Check what a call calls, and its arguments."""
        scope = self.scope
        if not isinstance(node.function, Name):
            self.later("calling anything but a function by its name", node.span)
            return
        name, text = node.function.name, node.function.text
        if name in scope.excused:
            return
        value = name in own or self.role(name) is not None
        if name in scope.functions:
            check_call(node, scope)
            if node is not self.direct:
                check_one_result(node, scope)
            self.reads_of(node, scope.functions[name], place)
        elif name in FACT_NAMES:
            self.later(f"`{text}(...)` of another tensor", node.function.span)
        elif value:
            help = f"to multiply, write `{text}*(...)`"
            if name in FREE_FUNCTIONS:
                help = f"the function `{text}` cannot be used beside a value of the same name: rename yours"
            self.findings.add(
                "E207",
                f"`{text}` is {'a value' if name in own else scope.role(name)}, not a function",
                node.function.span,
                label="called here",
                help=help,
            )
        elif name in BUILTINS:
            check_call(node, scope)
            if BUILTINS[name].group == TIME and "time" not in place.roles:
                self.misplaced(node, "time", place, "a function of the step count t")
        elif name in LATER:
            self.later(f"`{text}` ({LATER[name]})", node.function.span)
        else:
            self.unknown_function(node.function)

    def reads_of(self, node: Call, function: Def, place: Place) -> None:
        """Check that what a function reads by itself may be read where it is called."""
        if place in (BODY, FUNCTION):
            return
        for name, role in self.free_names(function, frozenset()).items():
            if role not in place.roles:
                self.misplaced(node, role, place, f"which reads `{name}`")
                return

    def free_names(self, function: Def, visiting: frozenset[str]) -> dict[str, str]:
        """Return the names of the rule that a function and those it calls read, with their roles."""
        found: dict[str, str] = {}
        body = body_of(function)
        own = {p.name.name for p in function.parameters} | {n.name for n in assigned(body)}
        for statement in statements(body):
            for expr in own_expressions(statement):
                for node in expressions(expr):
                    if isinstance(node, Name) and node.name not in own:
                        role = self.role(node.name)
                        if role is not None:
                            found[node.name] = role
                    elif isinstance(node, Call) and isinstance(node.function, Name):
                        callee = node.function.name
                        if callee in BUILTINS and BUILTINS[callee].group == TIME:
                            found["t"] = "time"
                        if callee in self.scope.functions and callee not in visiting:
                            inner = self.scope.functions[callee]
                            found |= self.free_names(inner, visiting | {callee})
        return found

    def unknown_function(self, function: Name) -> None:
        """Report a call of something that nothing defines."""
        scope = self.scope
        scope.excused.add(function.name)
        if scope.blind:
            return
        help = BUILTINS_OF_MATH.get(function.name) or did_you_mean(function.name, scope.callables())
        near = nearest(function.name, scope.callables())
        place = scope.places.get(near or "")
        self.findings.add(
            "E202",
            f"unknown function `{function.text}`",
            function.span,
            label="not a function of the language or of this rule",
            help=help or f"define it: `def {function.text}(x) = ...`, or multiply with `*`",
            related=(("it is here", place),) if place else (),
        )

    # Later parts of the language ----------------------------------------------------------------------------

    def unsupported(self, node: Unsupported) -> None:
        """Report a construct that the parser knows and the compiler does not."""
        self.later(node.what, node.span)

    def later(self, what: str, span: Span) -> None:
        """Report something that a later version will compile, once for each."""
        if what not in self.refused:
            self.refused.add(what)
            self.findings.add(
                "E901",
                f"{what} is not supported yet",
                span,
                label="understood, but not compiled by this version",
                help=next((hint for word, hint in INSTEAD.items() if f"`{word}`" in what), MANUAL),
            )
