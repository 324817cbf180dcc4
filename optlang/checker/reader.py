"""One reading of a rule in one sample: its names, and where mistakes go."""

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

#: Mistakes that only count where a variant can really come to the place.
REACHED = frozenset({"E203", "E211", "E308"})


def is_key(value: CheckedValue) -> bool:
    """Whether a value is, as far as one can tell, a key of the param group that the user has put there."""
    return value.sort is Sort.UNKNOWN and value.kind == HOST


class Reader:
    """Reads names in one sample; expressions and statements are read by its subclasses."""

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
        self.frame: dict[str, CheckedValue] | None = None  # parameters and locals of the function being read
        self.own: dict[str, tuple[Span, Span]] = {}  # what it assigns, each where first, and that statement
        self.declaring = False  # whether a declaration is being read, which sees only locals that are static
        self.static: dict[str, CheckedValue] = {}  # such locals
        self.mismatched: Expr | None = None  # the last expression in which shapes do not fit
        self.spoilt: set[str] = set()  # states that have been given a value of another shape
        self.site: Expr | None = None  # the call of a function of the language whose statements are being read
        self.around = Uses.NOTHING  # FACT inside of what a tensor's shape decides: what it assigns depends on it
        self.entries: dict[str, Size] = {}  # sizes of the histories that loops go through, by the loops' names
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
        """Report a mistake, unless this reading was forced to come where no variant comes."""
        if self.site is None and not (self.forced and code in REACHED):
            self.findings.add(code, message, span, label=label, help=help, related=related)

    # Shapes ------------------------------------------------------------------------------------------------------

    def mismatch(self, expr: Expr, mismatch: Mismatch, related: Places = ()) -> CheckedValue:
        """Note that shapes do not fit in an expression; returns what takes the place of its value."""
        self.mismatched = expr
        self.shape_error(expr, ShapeError(self.sample, "E313", mismatch.message, mismatch.help, related=related))
        return MISTAKE

    def declared(self, expr: Expr) -> Places:
        """Return where the states in an expression have their shapes from."""
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
        """Note what does not fit at an expression."""
        if self.site is not None:  # its own statements are nothing that the user sees
            text = self.text(self.site)
            expr, shape_error = (
                self.site,
                replace(shape_error, message=f"`{text}` cannot be computed: {shape_error.message}"),
            )
        if not self.forced:
            self.shape_errors.add(expr.span, shape_error)

    def fine(self, expr: Expr) -> None:
        """Note that the shapes in an expression fit."""
        if self.site is None and not self.forced:
            self.shape_errors.fine(expr.span, self.sample.shape)

    def combine(self, expr: Expr, values: Iterable[CheckedValue], sort: Sort = Sort.NUMBER) -> CheckedValue:
        """Return what is known of an elementwise combination of values, ``expr``."""
        several = tuple(values)
        if Level.MATRIX not in [v.kind.level for v in several]:
            return combine(several, self.sample.shape, sort)
        # A key of the user's own is some number here.
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
        """Return which way a condition goes in this sample, None if only a step can tell."""
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
        """Return what is known of a name."""
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
            return MISTAKE  # reported where names are resolved
        if name in self.env:
            return self.present(node, self.env[name])
        if name not in scope.locals or name in scope.excused:
            return MISTAKE
        return self.absent(node)

    def hyper(self, name: str) -> CheckedValue:
        """Return what is known of a hyperparameter."""
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
        """Return what is known of a state."""
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
        """Return the value of a local, reporting it if some path to here does not assign it."""
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
        """Report a local that is read where it may have no value."""
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
        """Return the word that begins the block around an assignment."""
        words: dict[type, str] = {Repeat: "repeat", For: "for", Every: "every"}
        body = () if self.frame is not None else self.body
        return words.get(type(block_above(body, place)), "if") if place is not None else "if"

    def assigned_where(self, place: Span) -> str:
        """Return how to refer to an assignment: with the condition it stands under, if it stands under one."""
        above = block_above(self.body, place)
        if isinstance(above, Every):
            return f"assigned here, every `{self.text(above.period)}` steps"
        if isinstance(above, Repeat):
            return f"assigned here, `{self.text(above.count)}` times"
        if isinstance(above, For):
            return "has a value only inside this block"
        condition = condition_above(self.body, place)
        return f"assigned here, if `{self.text(condition)}`" if condition is not None else "assigned here"
