"""What modules are made of: the runtime that is run as it stands, what is taken from it, and functions made one."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from targets_made import text_of

from optlang.functions.table import BUILTINS
from optlang.targets._python import WIDTH, Function, Library, formatted
from optlang.targets.module import runtime
from optlang.targets.module.implied import Known, simplified
from optlang.targets.module.merge import Branch, Unit, Unmergeable, alike, units, unversioned
from optlang.targets.module.merge import lines as lines_of
from optlang.targets.module.pairs import Half, Pairs
from optlang.targets.module.trim import ModuleNeeds, Trimmed, flags, trimmed


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


# The runtime ------------------------------------------------------------------------------------------------


def test_the_runtime_is_an_optimizer_as_it_stands() -> None:
    ours, theirs = parameters((3, 4), (5,)), parameters((3, 4), (5,))
    optimizer, reference = runtime.Optimizer(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for step in range(3):
        for p, q, g in zip(ours, theirs, parameters((3, 4), (5,), seed=step + 1), strict=True):
            p.grad, q.grad = g.detach().clone(), g.detach().clone()
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    other = runtime.Optimizer(parameters((3, 4), (5,)), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("lr", "said"), [(-1.0, "Descent: lr must be >= 0, got -1"), (math.nan, "NaN"), ("fast", "must be a number")]
)
def test_the_runtime_checks_hyperparameters_and_parameters(lr: Any, said: str) -> None:
    optimizer = runtime.Optimizer(parameters((2,)))
    with pytest.raises(ValueError, match=said):
        optimizer.add_param_group({"params": parameters((3,)), "lr": lr})
    with pytest.raises(ValueError, match=r"parameter 0 \(of shape \(2,\)\) has type torch.int64"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 1


def test_numbers_that_python_refuses_follow_ieee_754() -> None:
    def shaky(a: float, b: float) -> tuple[float, ...]:
        return (a / b, math.log(b), min(a, b), float(math.floor(a)))

    shaky.__name__ = "shaky"
    runtime.__dict__["shaky"] = shaky
    try:
        assert runtime.computed(shaky, {"a": 1.5, "b": 0.0}) == (math.inf, -math.inf, 0.0, 1.0)
        assert runtime.computed(shaky, {"a": 1.5, "b": 1.0}) == (1.5, 0.0, 1.0, 1.0)
    finally:
        del runtime.__dict__["shaky"]


def test_torch_has_the_functions_that_numbers_are_computed_with() -> None:
    spellings = " ".join(row.host or "" for row in BUILTINS.values())
    names = set(re.findall(r"math\.(\w+)", spellings))
    assert len(names) > 8
    assert {name for name in names if not hasattr(torch, name)} == set()


# What is taken from it --------------------------------------------------------------------------------------


def taken(*features: str, replaced: Mapping[str, str] | None = None) -> Trimmed:
    """Return what a rule of one form takes that needs some features."""
    known = {name: name in features for name in flags()}
    given = ("start", "host", "update", "facts", "in_groups", "form_of", "form_on_train", "form_on_eval")
    return trimmed(ModuleNeeds("Mine", known, replaced or {}, {}, given, ()))


def test_branches_of_other_rules_go_and_comments_stay() -> None:
    few, many = taken(), taken("STAGED", "FORMS", "CHOOSES", "LATE", "TOTALS", "MATRICES", "EVENTS")
    assert {"Batch", "total", "Evaluation"} & set(few.pieces) == set()
    assert "Batch" in many.pieces and "total" in many.pieces and "Evaluation" not in many.pieces
    assert "# infinities of both signs" in many.pieces["total"]
    assert sum(text.count("\n") for text in few.members) < sum(text.count("\n") for text in many.members)
    for left in (few, many):
        text = "\n".join([*left.pieces.values(), "class Mine:", *left.members])
        read = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        assert read & {name for name in flags() if name not in ("HYPERPARAMETERS", "KINDS", "TOTALS")} == set()
        assert "{NAME}" not in text and "Descent" not in text


def test_parameters_that_nothing_reads_go_with_their_arguments() -> None:
    own = {f"form.{name}": name for name in ("states", "start", "host", "update", "tensors")}
    few, many = taken("START_READS", replaced=own), taken("FORMS", "CHOOSES", "START_READS")
    assert any("def _state(self, p, g, values):" in text for text in few.members)
    assert any("self._state(p, g, values)" in text for text in few.members)
    assert any("def _state(self, form, p, g, values):" in text for text in many.members)
    (state,) = (text for text in taken(replaced=own).members if "def _state" in text)
    assert "def _state(self, p, g):" in state and "start(p.detach(), g.detach())" in state


def test_what_stands_for_others_goes() -> None:
    """Variables that are others by another name, arguments that are always the same, attributes that nothing reads."""
    few, events = taken("STAGED", "CHOOSES", "REFUSES"), taken("STAGED", "CHOOSES", "REFUSES", "EVENTS")
    one, other = ("\n".join(left.members) for left in (few, events))
    assert "known = values" not in one and "def _form(self, place, p, values):" in one and "(form_of, values)" in one
    assert "def _form(self, choose, place, p, values):" in other
    assert "self.group" not in few.pieces["Batch"] and "group: " not in few.pieces["Batch"]
    counted = taken("STAGED", "COUNTS_GROUP").pieces["Batch"]
    assert "self.group.update(self.news)" in counted and "group: Their param group." in counted


def test_tables_keep_the_columns_that_are_read() -> None:
    few, many = taken("RANGES"), taken("RANGES", "TUPLES", "OPTIONAL")
    assert few.columns["HYPERPARAMETERS"] == (0, 3, 4, 5) and many.columns["HYPERPARAMETERS"] == (0, 1, 2, 3, 4, 5)
    assert "for name, kind, text, fits in HYPERPARAMETERS:" in few.pieces["hyperparameters"]
    assert "value is not None" not in few.pieces["hyperparameters"]


def test_what_is_for_other_tools_is_not_taken() -> None:
    left = taken("STAGED", "LATE", "ARRIVES", "IEEE", "POINTS", "AT_POINTS", "ASKED", "FORMS", "CHOOSES")
    text = "\n".join([*left.pieces.values(), *left.members])
    assert "type: ignore" not in text and "noqa" not in text
    assert "  # first the closure is called everywhere" in text
    assert "float(result)" not in text and "is_complex" not in text


@pytest.mark.parametrize(("name", "lines"), [("Lion", 310), ("AdamW", 335), ("SGD", 330), ("Muon", 640), ("SAM", 690)])
def test_modules_are_short(name: str, lines: int) -> None:
    assert len(text_of(name, "module").splitlines()) <= lines


# Functions made one -----------------------------------------------------------------------------------------


def executed(function: Function) -> Callable[..., Any]:
    scope: dict[str, Any] = {"torch": torch, "math": math}
    exec(function.text("made"), scope)
    made: Callable[..., Any] = scope["made"]
    return made


def function(name: str, names: str, *lines: str) -> Function:
    return Function([f"def {name}({names}):", '    """What it does."""', *(f"    {line}" for line in lines)])


def test_each_variant_keeps_its_own_statements() -> None:
    sums = {
        (False, None): ["y = x", "return y"],
        (True, None): ["y = -x", "return y"],
        (False, "l2"): ["y = x", "y = y * 2", "return y"],
        (True, "l2"): ["y = -x", "y = y * 2", "return y"],
        (False, "l1"): ["y = x", "y = y + 7", "return y"],
        (True, "l1"): ["y = -x", "# the sign", "y = y + 7", "return y"],
    }
    traces = [(("up", up), ("mode", mode)) for up, mode in sums]
    one = alike(traces, [function("f", "x", *lines) for lines in sums.values()])
    assert set(one.parameters) == {"x", "up", "mode"} and "    # the sign" not in one.lines[2]
    for (up, mode), lines in sums.items():
        own = executed(function("f", "x", *lines))
        assert executed(one)(x=3.0, up=up, mode=mode) == own(3.0)
    assert sum("y * 2" in line for line in one.lines) == 1


def test_what_no_question_tells_apart_is_not_made_one() -> None:
    traces = [(("up", True),), (("up", True),)]
    with pytest.raises(Unmergeable):
        alike(traces, [function("f", "x", "return x"), function("f", "x", "return -x")])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["p_1 = c * p", "p_2 = p_1 - g"], ["p = c * p", "p = p - g"]),
        (["p_1 = c * p", "q = p + p_1"], ["p_1 = c * p", "q = p + p_1"]),  # the old value is read afterwards
        (["eigh_1 = eigh(x)"], ["eigh_1 = eigh(x)"]),  # the name is a function's
        (["m_1 = m * b", "m_1 = m_1.to(c.dtype)"], ["m = m * b", "m = m.to(c.dtype)"]),
    ],
)
def test_versions_of_a_variable_have_one_name_where_that_is_safe(lines: list[str], expected: list[str]) -> None:
    loads = ["p = p_mem.to(c.dtype)", "m = m_mem.to(c.dtype)"]
    found = unversioned(units([f"    {line}" for line in (*loads, *lines)]), {"c", "p_mem", "m_mem"})
    assert [unit.text for unit in found][2:] == expected


def test_coefficients_that_play_one_part_are_computed_for_each_variant() -> None:
    hosts = [
        function("host", "lr, decay", "c1 = 1 - lr * decay", "return (c1, lr)"),
        function("host", "lr, decay", "c1 = 1 - decay", "return (c1, lr)"),
        function("host", "lr", "return (lr,)"),
    ]
    load, names = "p = p_mem.to(c.dtype)", "p_mem, g_mem, c"
    shrink = ("c1, lr = c.unbind()", load, "p_1 = c1 * p", "p_2 = p_1 - lr * g_mem", "p_mem.copy_(p_2)")
    updates = [
        function("update", names, *shrink),
        function("update", names, *shrink),
        function("update", names, "(lr,) = c.unbind()", load, "p_1 = p - lr * g_mem", "p_mem.copy_(p_1)"),
    ]
    traces = [(("decay", True), ("fixed", False)), (("decay", True), ("fixed", True)), (("decay", False),)]
    halves = [Half(*half, 2, True) for half in zip(traces, hosts, updates, strict=True)]
    host, update = Pairs(halves, ()).functions(["p_mem", "g_mem"])
    for place, (decay, fixed) in enumerate([(0.5, False), (0.5, True), (0.0, True)]):
        values = {"lr": 0.25, "decay": decay, "fixed": fixed}
        results = []
        for pair in ((host, update), (hosts[place], updates[place])):
            p, g = torch.arange(4.0), torch.ones(4)
            numbers = executed(pair[0])(**{n: values[n] for n in pair[0].parameters})
            options = {n: values[n] for n in pair[1].parameters[3:]}
            executed(pair[1])(p, g, torch.tensor(numbers), **options)
            results.append(p)
        assert torch.equal(*results)
    assert [line.strip() for line in update.lines if "p = " in line] == [load, "p = c1 * p", "p = p - lr * g_mem"]


@pytest.mark.parametrize("a", [0.0, 1.0])
@pytest.mark.parametrize("x", [-1.0, 0.0, 2.0])
def test_conditions_that_are_joined_stay_what_they_are(a: float, x: float) -> None:
    """Two branches do the same: their conditions are one, of which the first is itself a choice."""
    inner = Branch("x > 1", ((True, (Unit("y = 1"),)), (False, (Unit("y = 2"),))))
    block = [Branch("x > 0 if a else x < 0", ((True, (Unit("y = 1"),)), (False, (inner,))))]
    text = "\n".join(["def made(a, x):", *lines_of(block), "    return y"])
    made = executed(Function(text.split("\n")))
    assert made(a, x) == (1 if (x > 0 if a else x < 0) or x > 1 else 2)


def test_branches_of_one_question_are_one_where_nothing_changes() -> None:
    sums = {
        True: ["kept = x + 1", "found = {}", "found['m'] = kept", "return found"],
        False: ["found = {}", "return found"],
    }
    one = alike([(("m", m),) for m in sums], [function("f", "x", *body) for body in sums.values()])
    assert sum("if m" in line for line in one.lines) == 1
    for m, body in sums.items():
        assert executed(one)(x=1, m=m) == executed(function("f", "x", *body))(1)
    written = {True: ["x.fill_(2)", "y = x + 1", "x.fill_(y)", "return x"], False: ["y = x + 1", "return x"]}
    one = alike([(("m", m),) for m in written], [function("f", "x", *body) for body in written.values()])
    for m, body in written.items():
        own = executed(function("f", "x", *body))
        assert torch.equal(executed(one)(x=torch.zeros(()), m=m), own(torch.zeros(())))


def test_functions_that_differ_in_names_only_are_one() -> None:
    library = Library()
    first = function("update", "p_mem, c, lr", "x1 = p_mem * lr", "p_mem.copy_(x1 - c)")
    same = function("update", "q_mem, c, lr", "y = q_mem * lr", "q_mem.copy_(y - c)")
    swapped = function("update", "c, q_mem, lr", "y = q_mem * lr", "q_mem.copy_(y - c)")
    other = function("update", "q_mem, c, wd", "y = q_mem * wd", "q_mem.copy_(y - c)")  # passed by its name
    assert [library.add(one, "f", placed=2) for one in (first, same, swapped, other)] == ["f", "f", "f_2", "f_3"]


TERMS = " + ".join(f"({'a' * 8}_{i} + {'b' * 8}_{i})" for i in range(5))
FEW = " + ".join(f"({'a' * 8}_{i} + {'b' * 8}_{i})" for i in range(3))


@pytest.mark.parametrize(
    "formula",
    [
        f"(({FEW}) / d if d else {FEW}) + 1 / (2 + d)",
        f"(({TERMS}) / d if d else 7.0) + 1 / (2 + d)",
        f"({TERMS}) / d if d else 7.0",
        f"7.0 if not d else ({TERMS}) * ({TERMS} + 1) / d",
        f"(not d or ({TERMS}) / d > 1) + {TERMS}",
    ],
)
@pytest.mark.parametrize("d", [0.0, 4.0])
def test_what_is_computed_under_a_condition_stays_under_it(formula: str, d: float) -> None:
    """A long formula is computed in parts, of which none divides by 0 where the formula does not."""
    values = {name: float(i) for i, name in enumerate(sorted({*re.findall(r"[ab]{8}_\d", formula)}))} | {"d": d}
    code = formatted(f"    return {formula}")
    assert len(code) > 1 and (" or " in formula or all(len(line) <= WIDTH for line in code))
    made = executed(Function([f"def made({', '.join(values)}):", *code]))
    assert made(**values) == eval(formula, dict(values))


def simple(text: str) -> list[str]:
    return ast.unparse(ast.Module(simplified(ast.parse(text).body, Known()), [])).split("\n")


@pytest.mark.parametrize(
    ("first", "second", "truth"),
    [
        ("ndim > 1", "ndim <= 1", False),
        ("ndim > 1", "ndim >= 2", True),
        ("lr > 1", "lr >= 2", None),
        ("not lr > 1", "lr < 2", True),
        ("lr >= 1", "lr == 0.5", False),
        ("lr != 1", "lr == 1", False),
        ("ndim == 2", "ndim != 2", False),
        ("ndim == 2", "ndim in (1, 2)", True),
        ("mode is None", "mode == 'a'", False),
        ("mode == 'a'", "mode is None", False),
        ("mode == 'a'", "mode == 'b'", False),
        ("a and not b", "b or not a", False),
        ("a or b", "a", None),
        ("lr > 1", "wd > 1", None),
        ("lr > x", "lr > 1", None),
        ("lr > 1 and lr < 2", "lr == 1", False),
    ],
)
def test_what_conditions_say_of_one_another(first: str, second: str, truth: bool | None) -> None:
    test, asked = (ast.parse(text, mode="eval").body for text in (first, second))
    assert Known().also(test, True).truth(asked) is truth


def test_checks_that_cannot_fail_go() -> None:
    text = "if n > 1:\n    if n <= 1:\n        raise A\n    return 2\nif not n <= 1:\n    raise A\nreturn 1"
    assert simple(text) == ["if n > 1:", "    return 2", "return 1"]
    assert simple("if n == 2:\n    return 1\nelse:\n    return 2\nraise A")[-1] == "raise A"
