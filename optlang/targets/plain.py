"""A rule as a short function that reads like its paper: one tensor at a time, statement by statement.

It is generated from the statements of one variant, with the rule's own names and order; nothing is regrouped or shared.
Constructs that involve more than one tensor (sums over the model, the closure, routes) are rejected.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NoReturn

from optlang.codegen.helpers import HELPERS, called
from optlang.codegen.naming import python_name
from optlang.compiler import example_facts
from optlang.core.core import Core, Operation, Part, Result, SizeOf, Transposed
from optlang.core.evaluate import member_name
from optlang.core.specialise import specialise
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.functions.table import BUILTINS, EVALUATIONS, RANDOMS, SEARCHES
from optlang.identity import GivenName
from optlang.kinds import Level
from optlang.rule import Hyper, State, Value
from optlang.syntax import tree as ast
from optlang.syntax.quoting import docstring, literal
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import assigned, block_expressions, body_of, expressions, names_read
from optlang.targets import Order, _refusals, refusal
from optlang.targets._python import INDENT, WIDTH, formatted, spaced
from optlang.targets._questions import Explorer, Unspoken, Whole

SUFFIX = ".py"
NAME = "plain"

#: The kinds of values: a number, a scalar on the device, elements (or any tensor with dimensions).
NUMBER, SCALAR, TENSOR = range(3)
FACTS = {
    "ndim": "p.dim()",
    "numel": "p.numel()",
    "rows": "(p.shape[-2] if p.dim() > 1 else 1)",
    "cols": "(p.shape[-1] if p.dim() else 1)",
}
#: Functions of a single matrix.
MATRIX = {name: row.one or row.torch for name, row in BUILTINS.items() if row.matrix and (row.one or row.torch)}
#: These, and type conversions, whose results may alias their arguments.
VIEWS = frozenset(("matrix", "flatten", "f32", "bf16"))
#: Constructs that involve more than one tensor.
ELSEWHERE = {"total": "a sum over the whole model", **dict.fromkeys(RANDOMS, "random numbers")}
ELSEWHERE |= dict.fromkeys(EVALUATIONS - {*SEARCHES}, "the closure")


def emit(order: Order) -> str:
    """Return the file.

    Raises:
        OptlangError: If the rule involves more than one tensor.
    """
    found = list(constructs(order))
    if found:
        raise OptlangError(found)
    return _Function(order).file()


def constructs(order: Order) -> Iterator[Diagnostic]:
    """Yield an error for each construct that such a function does not support."""
    compiled, rule = order.compiled, order.compiled.rule
    help = "use --target module"
    for route in rule.routes:
        yield refusal(compiled, NAME, "`route`", route.span, help)
    yield from _refusals.whole_vectors(compiled, NAME)
    yield from _refusals.derived_defaults(compiled, NAME)
    yield from _refusals.histories(compiled, NAME)
    for event in rule.events:
        span = next((d.span for d in rule.tree.items if isinstance(d, ast.On) and d.event == event), None)
        yield refusal(compiled, NAME, f"`on {event}`", span, help)
    for state in rule.states:
        if state.scope is not StateScope.TENSOR:
            yield refusal(compiled, NAME, f"`{state.scope.value} state`", state.span, help)
    blocks = (rule.body, *(body_of(f) for f in rule.functions.values()))
    seen: set[str] = set()
    for node in (n for block in blocks for n in block_expressions(block)):
        name = node.function.name if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) else ""
        name = "total" if name == "gnorm" else name
        name = "loss" if isinstance(node, ast.Name) and node.name == "loss" else name
        if name in ELSEWHERE and name not in rule.functions and name not in seen:
            seen.add(name)
            yield refusal(compiled, NAME, ELSEWHERE[name], node.span, help)
        if isinstance(node, ast.Member) and member_name(node) is not None and "group" not in seen:
            seen.add("group")
            yield refusal(compiled, NAME, "`group.`", node.span, help)


class _Function:
    """Builds the function."""

    def __init__(self, order: Order) -> None:
        self.order, self.rule = order, order.compiled.rule
        self.values: dict[GivenName, Value] = {**order.compiled.defaults(), **order.values}
        facts = example_facts(order.ndim)
        misfit = order.compiled.shape_error(self.values, facts)
        if misfit is not None:
            raise OptlangError([misfit])
        self.core: Core = specialise(self.rule, {**self.values, **facts.named()}, facts.shape)
        self.kinds: dict[str, int] = {h.name: NUMBER for h in self.rule.hypers}
        self.kinds |= dict.fromkeys((*FACTS, "t", "first"), NUMBER) | {"p": TENSOR, "g": TENSOR}
        self.explorer = Explorer(order.compiled, order.values)
        self.asked = [(q, a) for q, a in self.questions(facts.shape) if self.explorer.reads(q) & {*FACTS, Whole.SHAPE}]
        self.is_for_ndim = bool(self.asked) or self.core.fixed_ndim
        self.names: dict[str, str] = {"first": "(t == 1)", **FACTS, **(_sizes(order.ndim) if self.is_for_ndim else {})}
        self.taken = {"param", "params", "grads", "states", "state", "t", "p", "g"}
        self.helpers: set[str] = set()
        self.borrowed = {"p", "g"}  # names of values that may alias the parameter or its gradient
        self.matrices = {"p", "g"} if order.ndim > 1 else set()
        self.least: dict[str, int] = {}  # names that have the higher of their kinds in every step and branch
        self.depth = 0  # the current nesting depth of blocks
        for name in (*(h.name for h in self.rule.hypers), *(s.name for s in self.core.states)):
            self.name(name)

    def questions(self, shape: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
        """Yield the conditions that options and shapes decide, with their answers."""
        try:
            trace = self.explorer.trace(self.core, shape)
        except Unspoken:
            return
        yield from ((question, answer) for question, answer in trace if isinstance(answer, bool))

    def file(self) -> str:
        """Return the file."""
        start, body = self.settled()
        guards = list(self.guards())
        used = "\n".join((*guards, *start, *body))
        doc = (self.rule.doc or self.order.compiled.name).strip()
        kept = {s.key: self.names[s.name] for s in self.core.states}
        left, slots = list(kept.values()), [f"state[{literal(key)}]" for key in kept]
        count = literal("count" if "step" in kept else "step")
        counts = "t" in spaced_words(used)
        inside = [
            "for param, g, state in zip(params, grads, states):",
            f"{INDENT}if g is None:",
            f"{INDENT * 2}continue",
            f"{INDENT}p = param.detach()",
            *(INDENT + line for line in guards),
            *(INDENT + line for line in start),
            *([f"{INDENT}t = state[{count}] = state.get({count}, 0) + 1"] if counts else []),
            *(INDENT + line for line in _together(left, slots)),
            *(INDENT + line for line in body),
            *(INDENT + line for line in _together(slots, left)),
            f"{INDENT}param.copy_(p)",
        ]
        name = self.order.compiled.name.lower()
        args = [
            "Args:",
            "    params: Tensors, which are changed in place.",
            "    grads: Their gradients, None where there is none.",
            "    states: A dict for each tensor, empty before its first step.",
            *(f"    {self.names[h.name]}: {(h.doc or 'See the formulas').rstrip('.')}." for h in self.read(used)),
        ]
        said = [doc, "", *(out for line in args for out in _wrapped(line))]
        lines = [
            "@torch.no_grad()",
            *self.definition(name, used),
            INDENT + docstring("\n".join(said), INDENT, apart=True),
            *(out for line in inside for out in formatted(INDENT + line)),
        ]
        helpers = [HELPERS[h] + "\n\n" for h in HELPERS if h in self.helpers]
        code = "\n".join(lines)
        imports = "import math\n\n" if "math." in code or any("math." in h for h in helpers) else ""
        head = docstring(f"{self.order.compiled.name}, to read; the file is yours under whatever licence you like.")
        return f"{head}\n\n{imports}import torch\n\n\n{''.join(helpers)}{code}\n"

    def read(self, used: str) -> list[Hyper]:
        """Return the hyperparameters that the statements read."""
        words = set(spaced_words(used))
        return [h for h in self.rule.hypers if self.names[h.name] in words]

    def definition(self, name: str, used: str) -> list[str]:
        """Return the first lines of the function."""
        required, optional = [], []
        for hyper in self.read(used):
            given = self.values[hyper.name]
            if hyper.required and hyper.name not in self.order.values:
                required.append(self.names[hyper.name])
            else:
                optional.append(f"{self.names[hyper.name]}={literal(given)}")
        own = ["*", *required, *optional] if required or optional else []
        return formatted(f"def {python_name(name)}({', '.join(['params', 'grads', 'states', *own])}):")

    def guards(self) -> Iterator[str]:
        """Yield the lines that reject tensors for which the rule differs."""
        if self.is_for_ndim:
            yield f"if p.dim() != {self.order.ndim}:"
            yield f'{INDENT}raise ValueError("this is for tensors of {self.order.ndim} dimensions")'
        for question, answer in self.asked:
            if not self.explorer.reads(question) <= {"ndim"}:
                code = re.sub(r"\bshape\[", "p.shape[", question)
                code = re.sub(r"\b(numel|rows|cols)\b", lambda found: self.names[found[0]], code)
                yield f"if not ({code}):" if answer else f"if {code}:"
                said = f"this is for tensors with {'' if answer else 'not '}{spaced(question)}"
                yield f"{INDENT}raise ValueError({literal(said)})"

    # Statements ---------------------------------------------------------------------------------------------

    def settled(self) -> tuple[list[str], list[str]]:
        """Return the lines that initialize the states and those of a step; each name has a consistent kind."""
        while True:
            known, least = dict(self.kinds), dict(self.least)
            start = list(self.started())
            body = [line for statement in self.tidied(self.core.body) for line in self.statement(statement)]
            if least == self.least:
                return start, body
            self.kinds, self.borrowed = known, {"p", "g"}

    def tidied(self, body: tuple[ast.Stmt, ...]) -> tuple[ast.Stmt, ...]:
        """Return statements without redundant ones."""
        return _alive(_once(body), {"p", *(s.name for s in self.core.states)})

    def started(self) -> Iterator[str]:
        """Yield the lines that initialize the states."""
        states = self.core.states
        if not states:
            return
        initial = {s.targets[0].name: s for s in self.core.start if isinstance(s, ast.Assign)}
        yield "if not state:"
        for statement in self.tidied(self.core.start):
            assert isinstance(statement, ast.Assign)
            if statement.targets[0].name not in {s.name for s in states}:
                yield from (INDENT + line for line in self.statement(statement))
        for state in states:
            value = self.initial(state, initial.get(state.name))
            yield f"{INDENT}state[{literal(state.key)}] = {value}"

    def initial(self, state: State, statement: ast.Stmt | None) -> str:
        """Return the initial value of a state."""
        whole = state.kind.level > Level.SCALAR
        least = self.least.get(state.name, NUMBER)
        if statement is None:
            self.kinds[state.name] = TENSOR if whole else least
            return "torch.zeros_like(p)" if whole else "p.new_zeros(())" if least else "0.0"
        assert isinstance(statement, ast.Assign)
        value, kind = self.number(statement.value), self.kind(statement.value)
        self.kinds[state.name] = max(kind, TENSOR if whole else least)
        if kind == NUMBER and whole:
            return f"torch.full_like(p, {value})"
        if kind == SCALAR and whole:
            return f"({value}).expand_as(p).clone()"
        if kind == NUMBER:
            return f"p.new_tensor({value})" if least else value
        return f"({value}).clone()"

    def statement(self, node: ast.Stmt) -> Iterator[str]:
        """Yield the lines of a statement."""
        match node:
            case ast.Assign(targets=(target,), op=op, value=value):
                name = target.name
                if op != "=":
                    value = ast.Binary(node.span, op[:-1], target, value)
                written, kind = self.number(value), self.kind(value)
                fixed = name in ("p", *(s.name for s in self.core.states))
                if fixed or self.depth or name in self.least:
                    self.least[name] = max(kind, self.least.get(name, NUMBER), self.kinds[name] if fixed else NUMBER)
                if fixed and kind < TENSOR == self.least[name]:
                    written = f"torch.zeros_like({self.name(name)}) + ({written})"
                elif kind == NUMBER < self.least.get(name, NUMBER):
                    written = f"p.new_tensor({written})"
                self.kinds[name] = max(kind, self.least.get(name, NUMBER))
                if self.borrows(value) and not fixed:
                    self.borrowed.add(name)
                else:
                    written = f"({written}).clone()" if self.borrows(value) else written
                    self.borrowed -= {name} if not self.depth else set()
                is_matrix = self.is_matrix(value) if name not in ("p", "g") else self.order.ndim > 1
                self.matrices = self.matrices | {name} if is_matrix else self.matrices - {name}
                yield f"{self.name(name)} = {written}"
            case ast.If(branches=branches, other=other):
                for i, (condition, body) in enumerate(branches):
                    if self.kind(condition) == TENSOR:
                        self.fail(condition, "an `if` on elements", "write a choice: `a if c else b`")
                    yield f"{'elif' if i else 'if'} {self.condition(condition)}:"
                    yield from self.block(body)
                if other:
                    yield "else:"
                    yield from self.block(other)
            case ast.Every(period=period, start=start, first=also, body=body):
                since = "t" if start is None else f"(t - ({self.number(start)}))"
                first = "" if start is None else f"{since} >= 0 and "
                due = f"{first}{since} % ({self.number(period)}) == 0"
                yield f"if t == 1 or {due}:" if also else f"if {due}:"
                yield from self.block(body)
            case _:
                self.fail(node, "this statement", "use --target module")

    def block(self, body: tuple[ast.Stmt, ...]) -> Iterator[str]:
        """Yield the lines of a block."""
        if not body:
            yield f"{INDENT}pass"
        self.depth += 1
        for statement in body:
            yield from (INDENT + line for line in self.statement(statement))
        self.depth -= 1

    def name(self, name: str) -> str:
        """Return the Python name for a name of the rule."""
        if name in ("p", "g", "t"):
            return name
        if name not in self.names:
            self.names[name] = python_name(name, self.taken)
            self.taken.add(self.names[name])
        return self.names[name]

    def fail(self, node: ast.Node, construct: str, help: str) -> NoReturn:
        """Raise the error for a construct that the function does not support."""
        raise OptlangError([refusal(self.order.compiled, NAME, construct, node.span, help)])

    # Expressions --------------------------------------------------------------------------------------------

    def kind(self, node: ast.Expr) -> int:
        """Return the kind of an expression: a number, a scalar on the device, or elements."""
        match node:
            case ast.Name(name=name):
                return self.kinds.get(name, NUMBER)
            case Operation(function="eps_of") | SizeOf():
                return NUMBER
            case Operation(function=name, arguments=arguments, dims=dims):
                if BUILTINS[name].reduction and (name not in ("max", "min") or len(arguments) == 1):
                    return SCALAR if dims is None else TENSOR
                return TENSOR if name in MATRIX else max(map(self.kind, arguments), default=NUMBER)
            case Transposed() | Part() | Result():
                return TENSOR
            case _:
                inside = [p for p in expressions(node) if p is not node and isinstance(p, ast.Name | ast.Later)]
                direct = [p for p in inside if not (isinstance(p, ast.Name) and _inside_call(node, p))]
                return max(map(self.kind, direct), default=NUMBER)

    def is_matrix(self, node: ast.Expr) -> bool:
        """Return whether a value certainly has at least two dimensions."""
        match node:
            case ast.Name(name=name):
                return name in self.matrices
            case ast.Binary(left=left, right=right):
                return self.is_matrix(left) or self.is_matrix(right)
            case Operation(function=name):
                return name in ("matrix", "eye")
            case _:
                return isinstance(node, Transposed)

    def borrows(self, node: ast.Expr) -> bool:
        """Return whether the value of an expression may alias the parameter or its gradient."""
        match node:
            case ast.Name(name=name):
                return name in self.borrowed
            case Transposed(value=value) | Part(value=value):
                return self.borrows(value)
            case ast.Ternary(condition=condition, then=a, other=b):
                return self.kind(condition) == NUMBER and (self.borrows(a) or self.borrows(b))
            case Operation(function=name, arguments=arguments) if name in VIEWS:
                return self.borrows(arguments[0])
            case _:
                return False

    def number(self, node: ast.Expr) -> str:
        """Return an expression that is used as a number: conditions become 1 or 0."""
        if not _is_condition(node):
            return self.written(node)
        if isinstance(node, ast.Bool):
            return str(int(node.value))
        on_host = self.kind(node) == NUMBER
        return f"float({self.written(node)})" if on_host else f"({self.written(node)}).to(p.dtype)"

    def condition(self, node: ast.Expr) -> str:
        """Return an expression that is used as a condition: numbers are compared with zero."""
        return self.written(node) if _is_condition(node) else f"({self.written(node)}) != 0"

    def written(self, node: ast.Expr) -> str:
        """Return an expression as Python, with parentheses around anything that may need them."""
        match node:
            case ast.Number(value=exact):
                return repr(int(exact)) if exact == int(exact) and abs(exact) < 10**15 else repr(float(exact))
            case ast.Infinity():
                return "math.inf"
            case ast.Bool(value=flag):
                return repr(flag)
            case ast.Name(name=name):
                return self.name(name)
            case Transposed(value=value):
                return f"({self.number(value)}).T"
            case ast.Unary(op="not", operand=ast.Name(name="first")):
                return "t != 1"
            case ast.Unary(op=op, operand=operand):
                if op != "not":
                    return f"{op}({self.number(operand)})"
                return f"{'~' if self.kind(operand) else 'not '}({self.condition(operand)})"
            case ast.Binary(op=op, left=left, right=right):
                if op in ("and", "or"):
                    return f"({self.condition(left)}) {self.operator(op, node)} ({self.condition(right)})"
                return f"({self.number(left)}) {self.operator(op, node)} ({self.number(right)})"
            case ast.Compare(ops=(op,), operands=(a, b)):
                return f"({self.number(a)}) {op} ({self.number(b)})"
            case ast.Ternary(condition=c, then=a, other=b):
                if self.kind(c) != NUMBER:
                    sides = [self.number(side) for side in (a, b)]
                    if self.kind(a) == self.kind(b) == NUMBER:  # with two numbers, torch would create its default type
                        sides[0] = f"p.new_tensor({sides[0]})"
                    return f"torch.where({self.condition(c)}, {sides[0]}, {sides[1]})"
                return f"({self.number(a)}) if ({self.condition(c)}) else ({self.number(b)})"
            case Part(value=value, items=items):
                inside = ", ".join(map(self.item, items))
                return f"({self.number(value)})[{inside}]"
            case Result(operation=operation, index=index):
                return f"({self.number(operation)})[{index}]"
            case SizeOf():
                return self.size(node)
            case Operation():
                return self.call(node)
            case _:
                self.fail(node, "this expression", "use --target module")

    def operator(self, op: str, node: ast.Expr) -> str:
        """Return a binary or unary operation."""
        if op in ("and", "or") and self.kind(node) != NUMBER:
            return "&" if op == "and" else "|"
        return "**" if op == "^" else op

    def item(self, node: ast.Expr | ast.Slice) -> str:
        """Return one item of an index."""
        if isinstance(node, ast.Slice):
            ends = ["" if end is None else self.number(end) for end in (node.start, node.stop)]
            return ":".join(end if end.isdigit() or not end else f"int({end})" for end in ends)
        return self.number(node)

    def size(self, node: SizeOf) -> str:
        """Return a size of a value."""
        shape = f"({self.number(node.value)}).shape"
        if node.dim is not None:
            return f"{shape}[{self.number(node.dim)}]"
        shape = shape if self.is_matrix(node.value) else f"(1, 1, *{shape})"
        return f"{shape}[{-2 if node.function == 'rows' else -1}]"

    def call(self, node: Operation) -> str:
        """Return a call."""
        name, row = node.function, BUILTINS[node.function]
        texts, kinds = list(map(self.number, node.arguments)), list(map(self.kind, node.arguments))
        if name == "eps_of":
            return f"torch.finfo(({texts[0]}).dtype).eps"
        if name in ("max", "min") and len(texts) > 1:
            return self.extreme(name, texts, kinds)
        if row.reduction:
            along = "" if node.dims is None else f"dim=({', '.join(map(str, node.dims))},), keepdim=True"
            return f"({texts[0]}).{'a' if name in ('max', 'min') else ''}{name}({along})"
        if name in MATRIX:
            template = MATRIX[name] or ""
            whole = [x if x.isdigit() else f"int({x})" for x in texts]
            return template.replace("{*}", ", ".join(whole)).format(*(f"({x})" for x in texts))
        on_host = max(kinds, default=NUMBER) == NUMBER
        spelling = row.host if on_host else row.torch
        if spelling is None:
            self.fail(node, f"`{name}`", "use --target module")
        self.helpers |= called(spelling)
        return spelling.format(*(f"({x})" for x in texts))

    def extreme(self, name: str, texts: list[str], kinds: list[int]) -> str:
        """Return the largest or smallest of several values."""
        if max(kinds) == NUMBER:
            return f"{name}({', '.join(texts)})"
        tensors = [x for x, kind in zip(texts, kinds, strict=True) if kind != NUMBER]
        result = tensors[0]
        for other in tensors[1:]:
            result = f"torch.{name}imum({result}, {other})"
        for number in (x for x, kind in zip(texts, kinds, strict=True) if kind == NUMBER):
            result = f"torch.clamp({result}, {'min' if name == 'max' else 'max'}={number})"
        return result


def _is_condition(node: ast.Expr) -> bool:
    """Return whether an expression is generated as a bool; names are numbers."""
    match node:
        case ast.Compare() | ast.Bool() | ast.Unary(op="not") | ast.Binary(op="and" | "or") | ast.Name(name="first"):
            return True
        case Operation(function=name):
            return BUILTINS[name].boolean
        case _:
            return False


def _inside_call(node: ast.Expr, name: ast.Node) -> bool:
    """Return whether a name occurs inside a call in an expression, so that the call determines its kind."""
    calls = (c for c in expressions(node) if isinstance(c, ast.Later) and c is not node)
    return any(name is inner for call in calls for inner in expressions(call))


def spaced_words(code: str) -> list[str]:
    """Return the words in some code."""
    return "".join(c if c.isalnum() or c == "_" else " " for c in code).split()


def _sizes(ndim: int) -> dict[str, str]:
    """Return the names of the last two sizes of a tensor with this number of dimensions."""
    return {"rows": "p.shape[-2]" if ndim > 1 else "1", "cols": "p.shape[-1]" if ndim else "1"}


def _once(body: Iterable[ast.Stmt]) -> tuple[ast.Stmt, ...]:
    """Return statements without those that assign a name the value it already has: the specializer repeats some."""
    held: dict[str, ast.Assign] = {}  # assignments that still hold, because none of their names has been reassigned
    left: list[ast.Stmt] = []
    for statement in body:
        name = statement.targets[0].name if isinstance(statement, ast.Assign) else ""
        if held.get(name) == statement:
            continue
        left.append(statement)
        given = {n.name for n in assigned((statement,))}
        held = {n: s for n, s in held.items() if n not in given and not given & {r.name for r in names_read((s,))}}
        if isinstance(statement, ast.Assign) and not given & {r.name for r in names_read((statement,))}:
            held[name] = statement
    return tuple(left)


def _alive(body: tuple[ast.Stmt, ...], kept: set[str]) -> tuple[ast.Stmt, ...]:
    """Return statements without assignments that no other statement reads."""

    def living(block: Iterable[ast.Stmt], read: Counter[str]) -> Iterator[ast.Stmt]:
        for statement in block:
            match statement:
                case ast.Assign(targets=(target,)):
                    own = [n.name for n in names_read((statement,))].count(target.name)
                    if target.name in kept or read[target.name] > own:
                        yield statement
                case ast.If(branches=branches, other=other):
                    sides = tuple((condition, tuple(living(inner, read))) for condition, inner in branches)
                    last = None if other is None else tuple(living(other, read))
                    if last or any(inner for _, inner in sides):
                        yield replace(statement, branches=sides, other=last)
                case ast.Every(body=inner):
                    if alive := tuple(living(inner, read)):
                        yield replace(statement, body=alive)
                case _:
                    yield statement

    while True:
        left = tuple(living(body, Counter(n.name for n in names_read(body))))
        if left == body:
            return left
        body = left


def _together(targets: list[str], values: list[str]) -> list[str]:
    """Return assignments, on one line if there is room."""
    line = f"{', '.join(targets)} = {', '.join(values)}"
    if not targets or len(line) + 2 * len(INDENT) <= WIDTH:
        return [line] if targets else []
    return [f"{target} = {value}" for target, value in zip(targets, values, strict=True)]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH - 4, subsequent_indent=INDENT * 2) if line.startswith(" ") else [line]
