"""The forms of a rule: the effects of options and shapes, and the questions that decide.

A rule with options has several variants. :class:`Explorer` finds them: it varies hyperparameters and shapes so that
each static question gets another answer, for as long as that leads to new variants.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import product

from optlang.artifact import VariantKey
from optlang.codegen.naming import python_name
from optlang.compiler import CompiledRule
from optlang.core.core import Core, Key, KnownSize, Operation
from optlang.core.evaluate import FUNCTIONS, evaluate, member_name, nearest_float, truth
from optlang.core.known import known_locals
from optlang.core.sizes import Unfit
from optlang.core.specialise import specialise
from optlang.functions.table import BUILTINS
from optlang.identity import GivenName, GroupKey
from optlang.rule import HyperType, OneOf, Range, Unasked, Value, Values
from optlang.syntax import tree as ast
from optlang.syntax.quoting import literal
from optlang.syntax.walk import expressions
from optlang.targets._variants import facts_of

#: Shapes to try, by number of dimensions; sizes are prime, so that the factors of a product can be identified.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    *((7,), (100003,)),
    *((11, 7), (7, 11), (2, 3), (100003, 2), (2, 100003), (100003, 100019)),
    *((7, 11, 13), (1009, 11, 13), (7, 11, 100003), (100003, 11, 100019)),
    *((7, 11, 13, 17), (100003, 11, 13, 17), (7, 11, 13, 100003)),
)
#: More shapes, whose sizes are less distinctive: square, and with sizes of 1.
PLAIN_SHAPES: tuple[tuple[int, ...], ...] = (
    *((1,), (7, 7), (1, 7), (7, 1), (1, 1), (13, 7, 7)),
    *((7, 11, 1), (7, 1, 11), (7, 1, 1), (1, 7, 11), (1, 1, 1)),
    *((7, 11, 1, 1), (7, 11, 13, 1), (7, 11, 1, 13), (7, 1, 11, 13), (1, 7, 11, 13), (1, 1, 1, 1), (7, 11, 13, 13)),
)
#: Shapes to try if the rule accepts none of these.
HIGHER_SHAPES = tuple((7, 11, 13, 17, 19, 23, 29, 31)[:n] for n in range(5, 9))
#: Facts about a tensor that questions may read.
FACTS = ("ndim", "numel", "rows", "cols")
#: Name of the pseudo-question for the number of dimensions of a tensor, if the generated code depends on it.
DIMENSIONS = "ndim"


class Whole(Enum):
    """Values that a question may read besides names."""

    SHAPE = "the sizes of a tensor"


Read = GivenName | Whole
Trace = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Content:
    """The contents of a question.

    Attributes:
        reads: The hyperparameters, group keys and facts that it reads.
        numbers: The numbers that it contains.
    """

    reads: frozenset[Read] = frozenset()
    numbers: tuple[float, ...] = ()


class Unspoken(Exception):
    """A question that cannot be translated to Python."""


@dataclass(frozen=True)
class Way:
    """One path through the questions of a rule.

    Attributes:
        trace: The questions as Python, with their answers.
        key: The key of the variant that they select.
        core: The statements of this variant.
        shape: A shape for which it is valid.
        values: Hyperparameters that select it.
    """

    trace: Trace
    key: VariantKey
    core: Core
    shape: tuple[int, ...]
    values: Values = field(default_factory=dict, compare=False)


class Explorer:
    """Finds the paths through the questions of a rule.

    Args:
        compiled: The rule.
        values: Hyperparameters that are chosen.
        event: The event whose statements are explored; None for a step.
    """

    def __init__(self, compiled: CompiledRule, values: Values, event: str | None = None) -> None:
        self.compiled, self.event = compiled, event
        rule = compiled.rule
        self.start: dict[GivenName, Value] = {**compiled.defaults(), **values}
        self.start |= {GroupKey(key): 1.0 for key in compiled.group_keys}
        self.hypers = {h.name: h for h in rule.hypers}
        self.local = known_locals(rule)
        known = (v for n, v in values.items() if n in compiled.static_names)
        sizes = [int(v) for v in known if isinstance(v, (int, float)) and _is_size(v)]
        #: Shapes to try, including those with sizes that an option is compared with.
        options = (s for n in sizes for s in ((n,), (n, n), (2, n), (n, 2), (2, 3), (2, 2, n, 2)))
        self.shapes: tuple[tuple[int, ...], ...] = (*SHAPES, *PLAIN_SHAPES, *options)
        self._content: dict[str, Content] = {}  # by question that has been asked
        self._seen: dict[tuple[tuple[tuple[GivenName, Value], ...], tuple[int, ...]], Way | None] = {}

    # Paths --------------------------------------------------------------------------------------------------

    def ways(self, opened: Collection[GivenName], most: int) -> list[Way] | None:
        """Return the paths for values of the ``opened`` hyperparameters and for shapes; None if there are too many."""
        found: dict[VariantKey, Way] = {}
        waiting = [way for shape in self.shapes if (way := self.way(self.start, shape)) is not None]
        if not waiting:
            shapes = dict.fromkeys((*self.required(), *HIGHER_SHAPES))
            waiting = [way for shape in shapes if (way := self.way(self.start, shape)) is not None]
            self.shapes += tuple(way.shape for way in waiting)
        tried: set[tuple[Trace, Value]] = set()
        while waiting:
            way = waiting.pop(0)
            if way.key in found:
                continue
            found[way.key] = way
            if len(found) > most:
                return None
            for place, (question, answer) in enumerate(way.trace):
                before = way.trace[:place]
                tried.add(((*before, (question, "")), answer))
                for other in self.others(way, place, opened):
                    if other.trace[:place] == before and len(other.trace) > place and other.trace[place][0] == question:
                        mark = ((*before, (question, "")), other.trace[place][1])
                        if mark not in tried:
                            tried.add(mark)
                            waiting.append(other)
        return list(found.values())

    def required(self) -> Iterator[tuple[int, ...]]:
        """Yield shapes with the sizes that requirements mention, and with multiples of them."""
        for requirement in self.compiled.rule.requirements:
            if requirement.of_tensors:
                for n in _literals(requirement.condition):
                    yield from (
                        (n,),
                        (n, n),
                        (7 * n,),
                        (7 * n, n),
                        (n, 7 * n),
                        (5, 7 * n, n),
                        (5, n, 7 * n),
                        (3, 5, 7 * n, n),
                    )
                    yield from ((11 * n, 7 * n), (7 * n, 11 * n), (11, n), (n, 11), (11, 7 * n), (7 * n, 11))

    def bordering(self, question: str, values: Values) -> Iterator[tuple[int, ...]]:
        """Yield shapes on both sides of the sizes that a question compares with."""
        numbers = [*self.content(question).numbers]
        numbers += [
            x for n in self.reads(question) if not isinstance(n, Whole) and isinstance(x := values.get(n), float)
        ]
        for number in dict.fromkeys(int(x) for x in numbers if 1 <= x < 2**31 and x == int(x)):
            for n in (number - 1, number, number + 1):
                if n > 0:
                    yield from ((n,), (n, 7), (7, n), (n, n), (1, n), (n, 1))
                    yield from ((11, n, 7), (11, 7, n), (11, n, n), (13, 11, n, 7), (13, 11, 7, n), (13, 11, n, n))

    def way(self, values: Values, shape: tuple[int, ...]) -> Way | None:
        """Return the path for hyperparameters and a shape; None if they are invalid."""
        asked = (tuple(values.items()), shape)
        if asked not in self._seen:
            self._seen[asked] = self._way(values, shape)
        return self._seen[asked]

    def _way(self, values: Values, shape: tuple[int, ...]) -> Way | None:
        compiled, facts = self.compiled, facts_of(shape)
        if compiled.problems(values):
            return None
        try:
            known = {**values, **facts.named()}
            if not all(truth(evaluate(r.condition, known)) for r in compiled.rule.requirements if r.of_tensors):
                return None
            core = specialise(compiled.rule, known, shape, self.event)
            trace = self.trace(core, shape)
        except (Unfit, RecursionError):
            return None
        except Unspoken:
            if shape in SHAPES:
                raise
            return None
        key = VariantKey.of(core, facts.ndim)
        if core.matrices:
            trace = ((DIMENSIONS, facts.ndim), *trace)
        elif core.dims:
            trace = (*trace, (DIMENSIONS, key.ndim))
        return Way(trace, key, core, shape, dict(values))

    def trace(self, core: Core, shape: tuple[int, ...]) -> Trace:
        """Return the questions and answers of a variant, without questions that have only one possible answer."""
        found: dict[str, Value] = {}
        for question, answer in zip(core.questions, core.key, strict=True):
            if isinstance(answer, Unasked) or not any(self.names(question)):
                continue  # a flag instead of a number is rejected when hyperparameters are read
            written = self.written(question, shape)
            assert found.setdefault(written, answer) == answer, f"two questions read alike: {written}"
        return tuple(found.items())

    def others(self, way: Way, place: int, opened: Collection[GivenName]) -> Iterator[Way]:
        """Yield paths for other values of what a question reads."""
        question = way.trace[place][0]
        names = self.reads(question)
        hypers = sorted((n for n in names if not isinstance(n, Whole) and n in opened), key=str)
        choices = [self.candidates(name, question) for name in hypers]
        for values in product(*choices):
            changed = {**way.values, **dict(zip(hypers, values, strict=True))}
            found = self.way(changed, way.shape)
            if found is not None:
                yield found
        if names & {*FACTS, Whole.SHAPE} or question == DIMENSIONS:
            for shape in dict.fromkeys((*self.shapes, *self.bordering(question, way.values))):
                found = self.way(way.values, shape)
                if found is not None:
                    yield found

    def candidates(self, name: GivenName, question: str) -> list[Value]:
        """Return values of a hyperparameter that may change the answer to a question."""
        if not isinstance(name, str):
            return [1.0, 0.0]
        hyper = self.hypers[name]
        none: list[Value] = [None] if hyper.type is HyperType.OPTIONAL else []
        if isinstance(hyper.domain, OneOf):
            return [*hyper.domain.values, *none]
        if hyper.type is HyperType.FLAG:
            return [False, True]
        if hyper.type is HyperType.TEXT:
            return [self.start[name]]
        literals = self.content(question).numbers
        numbers = [0.0, 0.5, 1.0, 2.0, 10.0, *(n + d for n in literals for d in (0.0, 1.0, -1.0))]
        start = self.start[name]
        inside = [n for n in numbers if not isinstance(hyper.domain, Range) or n in hyper.domain]
        return [start, *none, *inside]

    def reads(self, question: str) -> frozenset[Read]:
        """Return the names that a question reads, if it has been asked."""
        return self.content(question).reads

    def content(self, question: str) -> Content:
        """Return the contents of a question that has been asked."""
        return self._content.get(question, Content())

    # Questions as Python ------------------------------------------------------------------------------------

    def inside(self, node: ast.Expr) -> Iterator[ast.Expr]:
        """Yield the nodes of a question, including the definitions of its locals."""
        for inner in expressions(node):
            if isinstance(inner, ast.Name) and inner.name in self.local:
                yield from self.inside(self.local[inner.name])
            else:
                yield inner

    def names(self, node: ast.Expr) -> Iterator[Read]:
        """Yield the hyperparameters, group keys and facts that a question reads."""
        for inner in self.inside(node):
            match inner:
                case ast.Name(name=name):
                    yield name
                case Key(key=key):
                    yield key
                case ast.Member() if (group_key := member_name(inner)) is not None:
                    yield group_key
                case KnownSize():
                    yield Whole.SHAPE
                case _:
                    pass

    def written(self, question: ast.Expr, shape: tuple[int, ...]) -> str:
        """Return a question as Python over hyperparameters and facts."""
        text = self.text(question, shape)
        numbers = (nearest_float(n.value) for n in self.inside(question) if isinstance(n, ast.Number))
        self._content[text] = Content(frozenset(self.names(question)), tuple(numbers))
        return text

    def text(self, node: ast.Expr, shape: tuple[int, ...]) -> str:
        """Return an expression as Python, with every operation in parentheses."""

        def inner(part: ast.Expr) -> str:
            text = self.text(part, shape)
            return text if text.isidentifier() or text[:1].isdigit() else f"({text})"

        match node:
            case KnownSize(value=size):
                return _size(size, shape)
            case ast.Number(value=exact):
                return repr(int(exact)) if exact == int(exact) else repr(float(exact))
            case ast.Infinity():
                return "math.inf"
            case ast.Text(value=text):
                return literal(text)
            case ast.Bool(value=flag):
                return repr(flag)
            case ast.Nothing():
                return "None"
            case ast.Name(name=name) if name in self.local:
                return self.text(self.local[name], shape)
            case ast.Name(name=name) if name in self.hypers or name in FACTS:
                return python_name(name)
            case Key(key=key):
                return python_name(key)
            case ast.Member() if (group_key := member_name(node)) is not None:
                return python_name(group_key)
            case ast.Unary(op=op, operand=operand):
                return f"{op} {inner(operand)}" if op == "not" else f"{op}{inner(operand)}"
            case ast.Binary(op="??", left=left, right=right):
                return f"{inner(right)} if {inner(left)} is None else {inner(left)}"
            case ast.Binary(op=op, left=left, right=right):
                return f"{inner(left)} {'**' if op == '^' else op} {inner(right)}"
            case ast.Compare(ops=("==",), operands=(left, ast.Nothing())):
                return f"{inner(left)} is None"
            case ast.Compare(ops=ops, operands=operands):
                return inner(operands[0]) + "".join(f" {o} {inner(x)}" for o, x in zip(ops, operands[1:], strict=True))
            case ast.Ternary(condition=c, then=a, other=b):
                return f"{inner(a)} if {inner(c)} else {inner(b)}"
            case Operation(function=name, arguments=arguments, dims=None) if name in FUNCTIONS:
                return _called(name, [self.text(a, shape) for a in arguments])
            case ast.Call(function=ast.Name(name=name), arguments=arguments) if name in FUNCTIONS:
                return _called(name, [self.text(a.value, shape) for a in arguments])
            case _:
                raise Unspoken(f"a condition on {type(node).__name__.lower()}")


def _called(name: str, texts: list[str]) -> str:
    """Return a call of a numeric function as Python."""
    if name in ("max", "min"):
        return f"{name}({', '.join(texts)})"
    return f"math.floor({texts[0]})" if name == "floor" else (BUILTINS[name].host or "").format(*texts)


def _is_size(value: float) -> bool:
    """Return whether an option may be compared with sizes."""
    return 1 < value < math.inf and value == int(value)


def _literals(node: ast.Expr) -> list[int]:
    """Return the integers in a condition that may be sizes."""
    numbers = (n.value for n in expressions(node) if isinstance(n, ast.Number))
    return [int(x) for x in numbers if x == int(x) and 1 < x < 2**20]


def _size(number: int, shape: tuple[int, ...]) -> str:
    """Return a size as a product of sizes of the parameter."""
    places = []
    large = [size for size in shape if size > 1]
    if len(set(large)) < len(large) and number > 1:
        raise Unspoken("a condition on a size that several dimensions have")
    for i, size in enumerate(shape):
        if number % size == 0:
            number //= size
            places.append(f"shape[{i}]")
    if number != 1:
        raise Unspoken("a condition on the size of a matrix that is no product of the parameter's sizes")
    return " * ".join(places) or "1"


def open_ways(
    compiled: CompiledRule, values: Values, most: int, event: str | None = None
) -> tuple[list[Way], frozenset[GivenName]]:
    """Return the paths through as many options as lead to few variants, and the names of these options.

    Args:
        compiled: The rule.
        values: Hyperparameters that are chosen; these options are fixed.
        most: The maximum number of variants; those that depend only on shapes are always included.
        event: The event whose statements are explored; None for a step.
    """
    explorer = Explorer(compiled, values, event)
    static, hypers = compiled.static_names, (h.name for h in compiled.rule.hypers)
    order: list[GivenName] = [name for name in hypers if name in static and name not in values]
    order += sorted((name for name in static if isinstance(name, GroupKey)), key=str)
    everything = explorer.ways(order, most)
    if everything is not None:
        return everything, frozenset(order)
    opened: list[GivenName] = []
    found = explorer.ways((), 1000) or []
    for name in order:
        more = explorer.ways([*opened, name], max(most, len(found)))
        if more is not None:
            opened.append(name)
            found = more
    return found, frozenset(opened)
