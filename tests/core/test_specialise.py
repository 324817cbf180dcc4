"""Static questions: what is decided while compiling leaves nothing behind but the right statements."""

from __future__ import annotations

from typing import Any

import pytest
from agreement import HEAD, agree

import optlang
from optlang.compiler import compile_source
from optlang.core.core import KnownSize
from optlang.core.sizes import SymbolicSize
from optlang.core.specialise import specialise
from optlang.identity import DimensionSize
from optlang.source import Source
from optlang.syntax.walk import expressions
from optlang.targets._variants import facts_of

STATIC = 'hyper flag = false, mode = "a" in {"a", "b"}, o = none\n'

RETURNS = """def f(x, y):
    if t > 2: return x*y
    z = x
    if y > 0:
        z = z + 1
        if z > 1: return z*2
    elif x < 0.1: return 3*x
    else:
        z *= 2
    if flag: return z
    w = 4
    if mode == "a": w = 5
    if w > 4: z = z + w
    return z - y
"""


@pytest.mark.parametrize(
    "call",
    ["f(g, p)", "f(g, lr)", "f(b, lr)*g", "f(mean(g), p)", "f(mean(g), norm(p))*g", "f(f(g, p), f(p, 0.2))", "f(g, 1)"],
)
def test_early_returns_on_every_kind_of_condition(call: str) -> None:
    changes = {1: {"flag": True}, 2: {"flag": False, "mode": "b"}}
    agree(f"{HEAD}{STATIC}{RETURNS}p -= lr*b*{call} + (o ?? 0)", changes=changes)


@pytest.mark.parametrize(
    "body",
    [
        'a = mode\nif a == "a": p -= 0.1\np -= lr*g',
        "a = o\nif a == none: p -= 0.1\np -= lr*g",
        "a = flag\nif not a: p -= 0.1\np -= lr*g",
        "a = 3\nif a > 2: a = a - 1\nif a == 2: p -= 1\np -= lr*g",
        "a = 3\nif t > 2: a = 4\nif a > 3: p -= 0.1\np -= lr*a*g",
        "y = 1\nif o: y = o*3\np -= lr*y*g",
        "if o and o > 0.2: p -= o*lr\np -= lr*g",
        "x = b > 0.5\nif x: p -= 0.1\np -= lr*g*x",
    ],
)
def test_locals_and_options_that_are_static(body: str) -> None:
    use = 'p -= 0.01*(b + (o ?? 0)) + (0.1 if flag else 0.2) + (0.3 if mode == "b" else 0.4)\n'
    changes: dict[int, dict[str, Any]] = {
        1: {"o": 0.5, "flag": True},
        2: {"o": None, "mode": "b", "b": 0.3},
        3: {"o": 0.1},
    }
    agree(f"{HEAD}{STATIC}{use}{body}", changes=changes)


def test_options_that_only_static_questions_read_leave_no_trace() -> None:
    text = optlang.emit(f'{HEAD}hyper mode = "a" in {{"a", "b"}}\nx = mode\nif x == "a": p -= b\np -= lr*g')
    assert "mode" not in text.split("def host")[1].replace('if x == "a"', "")


def test_a_number_beyond_float64_is_infinite() -> None:
    assert "p - 7" not in optlang.emit("optimizer X\nhyper lr = 0.1\nif lr > 1e400: p -= 7\np -= lr*g")


def test_sizes_that_are_asked_for_know_what_they_are_made_of() -> None:
    """Where the shape has formulas; a size of the example says only how large it is."""
    compiled = compile_source(Source("hyper lr = 0.1\nG = matrix(g)\nif cols(G) > 3: p -= 0.1\np -= lr*g\n"))
    values = {**compiled.defaults(), **facts_of((4, 6, 5)).named()}
    shape = (SymbolicSize(4, DimensionSize(0)), SymbolicSize(6, "rows"), SymbolicSize(5, "cols"))
    found = []
    for sizes in (shape, tuple(map(int, shape))):
        ((question, answer),) = specialise(compiled.rule, values, sizes).asked
        found += [node for node in expressions(question) if isinstance(node, KnownSize)]
        assert answer is True
    assert [size.value for size in found] == [30, 30]
    assert {*(found[0].factors or ())} - {1} == {"rows", "cols"} and found[1].factors is None


@pytest.mark.parametrize("size", [SymbolicSize(3, "rows") * 4, 4 * SymbolicSize(3, "rows")])
def test_products_of_sizes_have_formulas(size: SymbolicSize) -> None:
    assert size == 12 and size.factors == ("rows", 4)
    assert (size * SymbolicSize(5, "cols")).factors == ("rows", 4, "cols")
