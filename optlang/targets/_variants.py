"""The variants of a rule in a file, and the conditions that select each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from optlang.artifact import ShapeInfo, Variant, VariantKey
from optlang.codegen.build_variant import cut, optimised
from optlang.compiler import CompiledRule
from optlang.core.core import Core
from optlang.core.evaluate import evaluate, truth
from optlang.core.sizes import SymbolicSize, Unfit
from optlang.core.specialise import specialise
from optlang.identity import DimensionSize, GivenName, GroupKey
from optlang.ir.lower import Lowered
from optlang.ir.program import Program
from optlang.rule import HyperType, Range, Value, Values
from optlang.syntax import tree as ast
from optlang.syntax.walk import expressions
from optlang.targets import Order

#: Shapes whose variants are included: up to four dimensions; tall, wide and square, with and without a size of 1.
SHAPES: tuple[tuple[int, ...], ...] = (
    *((), (5,), (1,), (4, 6), (6, 4), (5, 5), (1, 4), (4, 1), (1, 1)),
    *((3, 4, 5), (24, 2, 3), (3, 6, 2), (1, 4, 5), (3, 4, 1), (3, 2, 2, 4), (96, 2, 3, 4), (3, 2, 6, 2), (3, 2, 1, 4)),
    *((3, 1, 5), (3, 1, 1), (1, 1, 1), (3, 2, 4, 1), (3, 2, 1, 1), (1, 1, 1, 1)),
)
#: The maximum number of hyperparameters with separate variants for 0 and for other values.
SWITCHES = 2


@dataclass(frozen=True)
class Carried:
    """A variant, and the conditions that select it.

    Attributes:
        variant: The variant.
        ndim: The number of dimensions that it is for; None for any.
        asked: Questions about hyperparameters and sizes, with the answers that select it.
        known: Locals that the questions use.
        lowered: Its programs before the passes.
        dimensions: The number of dimensions of the tensor for which it was created.
    """

    variant: Variant
    ndim: int | None
    asked: tuple[tuple[ast.Expr, Value], ...]
    known: Mapping[str, ast.Expr]
    lowered: Lowered
    dimensions: int

    @cached_property
    def programs(self) -> Lowered:
        """Its programs after the passes, not split into stages."""
        return optimised(self.lowered) if self.lowered.staged else self.lowered

    @cached_property
    def numbers(self) -> tuple[Program, ...]:
        """The new values of the host states, by path."""
        return tuple(cut(path, self.programs.shared)[1] for path in self.lowered.paths)


def facts_of(shape: Sequence[int]) -> ShapeInfo:
    """Return the facts about a float32 tensor."""
    rows, cols = shape[-2] if len(shape) > 1 else 1, shape[-1] if shape else 1
    return ShapeInfo(len(shape), math.prod(shape), rows, cols, 2.0**-23, tuple(shape))


def with_formulas(shape: Sequence[int]) -> tuple[SymbolicSize, ...]:
    """Return a shape whose sizes record the fact that they come from."""
    names: list[GivenName] = [DimensionSize(i) for i in range(len(shape))]
    names[-2:] = ["rows", "cols"][-len(shape) :] if shape else []
    return tuple(SymbolicSize(size, name) for size, name in zip(shape, names, strict=True))


def chosen(order: Order) -> dict[GivenName, Value]:
    """Return the initial values of the file, by name."""
    compiled = order.compiled
    group: Values = {GroupKey(key): 1.0 for key in compiled.group_keys}
    return {**compiled.defaults(), **group, **order.values}


def carried(order: Order, event: str | None = None, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Carried]:
    """Return the distinct variants of a rule for tensors of the usual shapes."""
    found: dict[VariantKey, Carried] = {}
    for values in _settings(order, shapes):
        for shape in (*shapes, *_bordering(order, values, shapes)):
            facts = facts_of(shape)
            key_and_more = _questions(order.compiled, values, shape, event)
            if key_and_more is None:
                continue
            key, core = key_and_more
            if key not in found:
                variant, lowered = order.compiled.variant(values, facts, event), order.compiled.lowered(core)
                found[key] = Carried(variant, key.ndim, core.asked, core.known, lowered, len(shape))
    return list(found.values())


def _questions(
    compiled: CompiledRule, values: Values, shape: Sequence[int], event: str | None
) -> tuple[VariantKey, Core] | None:
    """Return the key of the variant for a shape, and its statements; None if the shape is invalid."""
    facts = facts_of(shape)
    named = {**values, **facts.named()}
    for requirement in compiled.rule.requirements:
        if requirement.of_tensors and not truth(evaluate(requirement.condition, named)):
            return None
    try:
        core = specialise(compiled.rule, named, with_formulas(shape), event)
    except Unfit:
        return None
    return compiled.variant_key(values, facts, event), core


def _bordering(order: Order, values: Values, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Yield matrices on both sides of the sizes that a rule compares with (`rows <= max_dim`)."""
    bounds: dict[int, None] = {}
    for shape in shapes:
        more = _questions(order.compiled, values, shape, None)
        for question, _ in more[1].asked if more else ():
            named = [n.name for n in expressions(question) if isinstance(n, ast.Name)]
            if isinstance(question, ast.Compare) and {"rows", "cols", "numel"} & set(named):
                numbers = (values[name] for name in named if name in values)
                bounds |= {int(x): None for x in numbers if isinstance(x, float) and 1 < x < 2**31}
    for bound in bounds:
        sizes = (bound - 1, bound, bound + 1)
        yield from itertools.product(sizes, sizes)


def _settings(order: Order, shapes: Sequence[tuple[int, ...]]) -> Iterator[dict[GivenName, Value]]:
    """Yield the settings to include: the chosen values, and variations of hyperparameters between 0 and nonzero."""
    values = chosen(order)
    switches = _switches(order, values, shapes)
    if len(switches) > SWITCHES:
        yield values
        for name, other in switches.items():
            yield {**values, name: other}
        return
    for picked in itertools.product(*(((name, values[name]), (name, other)) for name, other in switches.items())):
        yield {**values, **dict(picked)}


def _switches(order: Order, values: Values, shapes: Sequence[tuple[int, ...]]) -> dict[str, Value]:
    """Return the hyperparameters that are only compared with 0, each with a value that gives the other answer."""
    hypers = {h.name: h for h in order.compiled.rule.hypers if h.type is HyperType.NUMBER}
    asked: dict[str, None] = {}
    for shape in shapes:
        more = _questions(order.compiled, values, shape, None)
        for question, answer in more[1].asked if more else ():
            if isinstance(question, ast.Name) and isinstance(answer, bool):
                asked.setdefault(question.name)
    found: dict[str, Value] = {}
    for name in asked:
        if name in hypers:
            domain = hypers[name].domain
            others = (0.0,) if values[name] else (0.5, 1.0, 2.0)
            fits = [x for x in others if domain is None or (isinstance(domain, Range) and x in domain)]
            if fits and not order.compiled.problems({**order.compiled.defaults(), **values, name: fits[0]}):
                found[name] = fits[0]
    return found
