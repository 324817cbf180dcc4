"""Abstract interpretation of a rule for one sample: names and error reporting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from optlang.checker.matrices import shape_of
from optlang.checker.samples import Sample
from optlang.checker.shape_errors import ShapeError, ShapeErrors
from optlang.checker.values import MISTAKE, STATES, CheckedValue, Sort, Uses, combine
from optlang.declarations.findings import Findings
from optlang.declarations.scope import Scope
from optlang.functions.shapes import Mismatch, Size, described
from optlang.kinds import ELEMENT, HOST, STATIC, Kind, Level
from optlang.rule import HyperType
from optlang.source import Span
from optlang.syntax.tree import Every, Expr, For, Name, Repeat, Stmt
from optlang.syntax.walk import block_above, condition_above, expressions

Places = tuple[tuple[str, Span], ...]

#: Errors that are reported only where a variant can get to.
REACHED = frozenset({"E203", "E211", "E308"})


def is_key(value: CheckedValue) -> bool:
    """Return whether a value may be a key that the user has added to the param group."""
    return value.sort is Sort.UNKNOWN and value.kind == HOST


class Reader:
    """Infers names in one sample; subclasses handle expressions and statements."""

    body: Sequence[Stmt] = ()  # the statements of the rule

    def __init__(
        self,
        scope: Scope,
        sample: Sample,
        findings: Findings,
        forced: dict[Expr, bool],
        seen: dict[Expr, set[bool]],
        shape_errors: ShapeErrors,
    ) -> None:
        self.scope = scope
        self.sample = sample
        self.findings = findings
        self.shape_errors = shape_errors
        self.forced = forced
        self.seen = seen
        self.env: dict[str, CheckedValue] = {"g": CheckedValue(ELEMENT, uses=Uses.TENSOR)}
        self.frame: dict[str, CheckedValue] | None = None  # parameters and locals of the current function
        self.own: dict[str, tuple[Span, Span]] = {}  # its names: first target and statement
        self.declaring = False  # whether in a declaration, which sees only static locals
        self.static: dict[str, CheckedValue] = {}  # static locals
        self.mismatched: Expr | None = None  # the last expression with a shape mismatch
        self.spoilt: set[str] = set()  # states that were assigned a value of another shape
        self.site: Expr | None = None  # the call to a builtin whose definition is being interpreted
        self.around = Uses.NOTHING  # FACT inside blocks that depend on a tensor's shape, as do their assignments
        self.entries: dict[str, Size] = {}  # sizes of the histories that loops iterate over, by loop variable
        self.exists: dict[str, bool] = {}
        self.kinds: dict[str, Kind] = {}

    def report(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        label: str | None = None,
        help: str | None = None,
        related: tuple[tuple[str, Span], ...] = (),
    ) -> None:
        """Report an error, unless execution was forced into code that no variant reaches."""
        if self.site is None and not (self.forced and code in REACHED):
            self.findings.add(code, message, span, label=label, help=help, related=related)

    # Shapes ------------------------------------------------------------------------------------------------------

    def mismatch(self, expr: Expr, mismatch: Mismatch, related: Places = ()) -> CheckedValue:
        """Record a shape mismatch in an expression; return a placeholder for its value."""
        self.mismatched = expr
        self.shape_error(expr, ShapeError(self.sample, "E313", mismatch.message, mismatch.help, related=related))
        return MISTAKE

    def declared(self, expr: Expr) -> Places:
        """Return the places that determine the shapes of the states in an expression."""
        if self.site is not None or self.frame is not None:
            return ()
        names = dict.fromkeys(node.name for node in expressions(expr) if isinstance(node, Name))
        places = []
        for name in names:
            state = self.scope.states.get(name)
            kind = self.kinds.get(name)
            if state is not None and kind is not None and kind.level in (Level.MATRIX, Level.ELEMENT):
                shape = described(shape_of(kind, self.sample.shape))
                places.append(
                    (f"`{state.item.name.text}` has the shape of its initial value, {shape}", state.item.span)
                )
        return tuple(places)

    def shape_error(self, expr: Expr, shape_error: ShapeError) -> None:
        """Record a shape error at an expression."""
        if self.site is not None:  # users do not see the definition of a builtin
            text = self.text(self.site)
            expr, shape_error = (
                self.site,
                replace(shape_error, message=f"`{text}` cannot be computed: {shape_error.message}"),
            )
        if not self.forced:
            self.shape_errors.add(expr.span, shape_error)

    def fine(self, expr: Expr) -> None:
        """Record that the shapes in an expression match."""
        if self.site is None and not self.forced:
            self.shape_errors.fine(expr.span, self.sample.shape)

    def combine(self, expr: Expr, values: Iterable[CheckedValue], sort: Sort = Sort.NUMBER) -> CheckedValue:
        """Infer an elementwise combination of values, the expression ``expr``."""
        several = tuple(values)
        if Level.MATRIX not in [v.kind.level for v in several]:
            return combine(several, self.sample.shape, sort)
        # A user key counts as a number here.
        several = tuple(v._replace(sort=Sort.NUMBER) if is_key(v) else v for v in several)
        if any(v.sort is Sort.UNKNOWN for v in several):
            return MISTAKE
        try:
            result = combine(several, self.sample.shape, sort)
        except Mismatch as mismatch:
            return self.mismatch(expr, mismatch, related=self.declared(expr))
        self.fine(expr)
        return result

    def text(self, expr: Expr) -> str:
        """Return an expression as written."""
        return self.findings.text(expr)

    def decide(self, expr: Expr, value: CheckedValue) -> bool | None:
        """Return the truth of a condition in this sample; None if it is known only during a step."""
        if not value.is_static:
            return None
        truth = value.truth
        if self.site is not None:
            return True if truth is None else truth
        answer = self.forced.get(expr, True if truth is None else truth)
        self.seen.setdefault(expr, set()).add(answer)
        return answer

    # Names -------------------------------------------------------------------------------------------------------

    def name(self, node: Name) -> CheckedValue:
        """Infer a name."""
        name, scope = node.name, self.scope
        if self.frame is not None and name in self.frame:
            return self.present(node, self.frame[name])
        if self.frame is not None and name in self.own and scope.role(name) in (None, "a local variable"):
            return self.absent(node)
        if name in scope.hypers:
            return self.hyper(name)
        if name in scope.states:
            return self.state(node)
        if name == "p":
            return CheckedValue(ELEMENT, uses=Uses.TENSOR)
        if name == "t":
            return CheckedValue(HOST, uses=Uses.TIME)
        if name == "loss" and name not in self.env:
            return CheckedValue(HOST, uses=Uses.TOTAL)
        if name == "first":
            return CheckedValue(HOST, Sort.CONDITION, Uses.TIME)
        if name in self.sample.values:
            return CheckedValue(HOST, uses=Uses.FACT, known=self.sample.values[name])
        if name in self.static and (self.declaring or self.frame is not None):
            return self.static[name]
        if name in scope.locals and (self.declaring or self.frame is not None):
            return MISTAKE  # reported by name resolution
        if name in self.env:
            return self.present(node, self.env[name])
        if name not in scope.locals or name in scope.excused:
            return MISTAKE
        return self.absent(node)

    def hyper(self, name: str) -> CheckedValue:
        """Infer a hyperparameter."""
        hyper = self.scope.hypers[name]
        known = self.sample.values[name]
        match hyper.type:
            case HyperType.FLAG:
                return CheckedValue(STATIC, Sort.CONDITION, known=known, literal=True)
            case HyperType.TEXT:
                return CheckedValue(STATIC, Sort.TEXT, known=known, literal=True)
            case HyperType.OPTIONAL_TEXT if known is not None:
                return CheckedValue(STATIC, Sort.TEXT, known=known, optional=name, literal=True)
            case HyperType.OPTIONAL | HyperType.OPTIONAL_TEXT if known is None:
                return CheckedValue(STATIC, Sort.NONE, known=None, optional=name, literal=True)
            case HyperType.OPTIONAL:
                return CheckedValue(HOST, known=known, optional=name)
            case _:
                return CheckedValue(HOST, known=known)

    def state(self, node: Name) -> CheckedValue:
        """Infer a state."""
        state = self.scope.states[node.name]
        if not self.exists.get(node.name, True):
            assert state.when is not None
            condition = self.text(state.when)
            if not self.forced and not self.findings.once("E211", node.name):
                return MISTAKE
            self.report(
                "E211",
                f"`{node.text}` exists only when `{condition}`, but is used here without that condition",
                node.span,
                label="may not exist here",
                help=f"use it under `if {condition}:`, or declare it without `when`",
                related=(("declared here", state.item.span),),
            )
            return MISTAKE
        if node.name in self.spoilt:
            return MISTAKE
        return CheckedValue(self.kinds.get(node.name, ELEMENT), uses=STATES[state.scope])

    def present(self, node: Name, value: CheckedValue) -> CheckedValue:
        """Return the value of a local; report it if some path here does not assign it."""
        if value.missing:
            self.absent(node)
            return value._replace(missing=False, clash=None)
        if value.clash:
            self.shape_error(
                node,
                ShapeError(
                    self.sample,
                    "E313",
                    f"`{node.text}` is {value.clash}, depending on a condition of the step",
                    "both branches of a condition that a step decides must give values of the same shape; use the "
                    "value inside the `if`, or a different name in each branch",
                ),
            )
            return MISTAKE
        return value

    def absent(self, node: Name) -> CheckedValue:
        """Report a local that is read where it may be unassigned."""
        place, statement = self.scope.locals.get(node.name), None
        if self.frame is not None:
            place, statement = self.own.get(node.name, (None, None))
        if self.forced or not self.findings.once("E203", node.name):
            return MISTAKE
        if place is not None and (place >= node.span or (statement and statement.holds(node.span))):
            message, label = f"`{node.text}` is read before it is assigned", "no value yet"
            help = f"declare `state {node.text}` to keep a value between steps, or assign it first"
            if self.frame is not None:
                help = "assign it first, or make it a parameter"
        else:
            message, label = f"`{node.text}` may have no value here", "not assigned on every path to here"
            help = f"assign it on every path, for example before the `{self.word_above(place)}`"
            if self.word_above(place) == "for":
                help = "use it inside the `for`, or assign it before the loop"
        self.report(
            "E203",
            message,
            node.span,
            label=label,
            help=help,
            related=((self.assigned_where(place), place),) if place is not None else (),
        )
        return MISTAKE

    def word_above(self, place: Span | None) -> str:
        """Return the keyword of the block around an assignment."""
        words: dict[type, str] = {Repeat: "repeat", For: "for", Every: "every"}
        body = () if self.frame is not None else self.body
        return words.get(type(block_above(body, place)), "if") if place is not None else "if"

    def assigned_where(self, place: Span) -> str:
        """Return a phrase for an assignment, with its enclosing condition, if any."""
        above = block_above(self.body, place)
        if isinstance(above, Every):
            return f"assigned here, every `{self.text(above.period)}` steps"
        if isinstance(above, Repeat):
            return f"assigned here, `{self.text(above.count)}` times"
        if isinstance(above, For):
            return "has a value only inside this block"
        condition = condition_above(self.body, place)
        return f"assigned here, if `{self.text(condition)}`" if condition is not None else "assigned here"
