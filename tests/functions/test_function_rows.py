"""The rows of functions: which lacks which spelling and why, and that the facets of a row agree."""

from __future__ import annotations

import math
import types
from typing import Any

import pytest
import torch
from scripted import module_of

import optlang
from optlang.codegen.cpp_terms import REDUCTIONS
from optlang.codegen.helpers import HELPERS, called, texts
from optlang.core.definitions import definition
from optlang.functions.table import BUILTINS, ELEMENTWISE, EMPTY, PUSH, TYPES, Builtin
from optlang.runtime.host import Real, ieee
from optlang.syntax.latex import expression_latex

PRIMITIVE = {name: row for name, row in BUILTINS.items() if row.definition is None}

CHOICE = "the writers spell choices themselves"
FACT = "a number that the runtime knows of a tensor"
SIZES = "made of sizes alone: the writer of stacks spells them"
REFUSED = "the target refuses histories"

#: What primitive functions of each kind lack. Whoever adds a row without a spelling finds it here.
GAPS: dict[tuple[str, str], str] = {
    **{("where", facet): CHOICE for facet in ("cpp", "triton", "value")},
    **{("eps_of", facet): FACT for facet in ("torch", "host", "cpp", "triton", "value")},
    **{(name, facet): SIZES for name in ("zeros", "ones", "eye") for facet in ("torch", "shape")},
    **{(EMPTY, facet): SIZES for facet in ("torch", "shape")},
    (EMPTY, "one"): REFUSED,
    **{(PUSH, facet): "lowered to what is stored of a history" for facet in ("torch", "one")},
}

#: Functions that are no arithmetic: what a step asks for, or is handed.
REQUESTS = frozenset(
    (
        "total",
        "grad",
        "loss",
        "hvp",
        "iteration",
        "evaluations",
        "strong_wolfe",
        "backtracking",
        "iterate until",
        "count",
    )
) | {"size", "randn", "rand", "rademacher", "bernoulli"}


def facets(row: Builtin) -> dict[str, Any]:
    """Return what a primitive function of its kind must say of itself."""
    if row.matrix:
        return {"torch": row.torch, "one": row.one or row.torch, "shape": row.shape}
    if row.group in (ELEMENTWISE, TYPES):
        found = {"torch": row.torch, "host": row.host, "cpp": row.cpp, "triton": row.triton, "value": row.value}
        return {**found, **(reduced(row) if row.reduction else {})}
    return reduced(row) if row.reduction else {}


def reduced(row: Builtin) -> dict[str, Any]:
    """Return what a primitive reduction must say of itself, and its row among the C++ reductions."""
    return {"value": row.value, "parts": row.parts, "reduced in C++": REDUCTIONS.get(row.name)}


def test_which_function_lacks_which_spelling() -> None:
    lacking = {(name, facet) for name, row in PRIMITIVE.items() for facet, said in facets(row).items() if said is None}
    assert lacking == set(GAPS)
    assert {name for name, row in PRIMITIVE.items() if not facets(row)} == REQUESTS


@pytest.mark.parametrize("name", [name for name, row in PRIMITIVE.items() if row.value and row.host])
def test_the_value_of_a_row_is_what_the_host_computes(name: str) -> None:
    """Also where Python raises; the target module says once more in ``LIMITS`` what IEEE 754 has there."""
    row = BUILTINS[name]
    assert row.value is not None and row.host is not None
    made: dict[str, Any] = {"math": math, "torch": torch, "__name__": "made"}
    spelled = row.host.replace("{*}", "x, 0.5").format("x")
    exec("\n".join([*(HELPERS[helper] for helper in called(row.host)), f"def host(x):\n    return {spelled}"]), made)
    exact = [0.0, 0.25, 1.0, -1.0, -2.5, 20.0, math.inf, -math.inf, math.nan]
    for x in [*exact, 1e30, -1e30, 1e308] if row.group == ELEMENTWISE else exact:  # others round
        found = row.value(x, 0.5) if row.variadic else row.value(x)
        assert found == pytest.approx(float(ieee(made["host"])(Real(x))), rel=1e-15, nan_ok=True), x


#: Functions of one number.
OF_ONE = [n for n, row in PRIMITIVE.items() if row.group == ELEMENTWISE and row.parameters == (("x", None),)]


def test_functions_of_hyperparameters_and_of_tensors_in_every_target() -> None:
    """Each function of a number on the host and on elements, and in a question if it may stand in one."""
    static = [name for name in OF_ONE if BUILTINS[name].static]
    asked = "".join(f"    k{i} = 1 if {name}(k) > -8 else 2\n" for i, name in enumerate(static))
    rule = (
        f"optimizer Functions\nhyper lr = 0.1, k = 0.375 > 0\nrequire {' + '.join(f'{n}(k)' for n in static)} < 99\n"
        f"def asked():\n{asked}    return {' + '.join(f'k{i}' for i in range(len(static)))}\n"
        + "".join(f"p -= lr*g*{name}(k)*{name}(abs(g) + 0.01)\n" for name in OF_ONE)
        + "p -= lr*g*asked()\n"
    )
    g = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def value(name: str, x: float) -> float:
        function = BUILTINS[name].value
        assert function is not None
        return float(function(x))

    expected = sum(
        (value(n, 0.375) * torch.tensor([value(n, abs(float(x)) + 0.01) for x in g], dtype=g.dtype) for n in OF_ONE),
        torch.full_like(g, float(len(static))),
    )
    found = {}
    for target in ("class", "module", "plain", "torchscript"):
        p = torch.nn.Parameter(torch.zeros_like(g))
        p.grad = g.clone()
        scope = types.ModuleType("made")
        if target in ("module", "plain"):
            exec(str(optlang.export(rule, target)), scope.__dict__)
        match target:
            case "class":
                optlang.compile(rule, backend="eager")([p]).step()
            case "module":
                scope.Functions([p]).step()
            case "plain":
                scope.functions([p], [p.grad], [{}])
            case _:
                module_of(rule).step([p], [p.grad])
        found[target] = p.detach()
    for target, moved in found.items():
        torch.testing.assert_close(moved, -0.1 * g * expected, rtol=1e-13, atol=1e-13, msg=target)


def test_latex_is_one_command_or_goes_around_an_argument() -> None:
    for name, row in BUILTINS.items():
        assert row.latex is None or "{0}" in row.latex or row.latex == f"\\{name}"
    assert (
        expression_latex(definition("softplus"))
        == r"\max\left(x, 0\right) + \operatorname{log1p}\left(\exp\left(-\left| x \right|\right)\right)"
    )


def test_helpers_are_read_as_they_stand() -> None:
    assert called("regular(*torch.linalg.inv_ex(x)) + push.sign(host_max(x, y))") == {"regular", "host_max"}
    spellings = [s for row in PRIMITIVE.values() for s in (row.torch, row.host) if s is not None]
    for name in set().union(*map(called, spellings)):
        assert HELPERS[name].startswith(f"def {name}(") and HELPERS[name].endswith("\n")
        assert not name.startswith("host_") or name in texts("torchscript")
    for name, text in {**texts("torchscript"), **texts("triton_blocks")}.items():
        assert text.startswith(f"def {name}("), "without its decorators"


def test_every_helper_of_a_triton_spelling_is_there() -> None:
    names = {spelling.partition("(")[0] for row in PRIMITIVE.values() if (spelling := row.triton)}
    assert {name for name in names if name.startswith("triton_")} <= texts("triton_blocks").keys()
    assert PUSH in PRIMITIVE
