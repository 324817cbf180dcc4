"""`store` in a rule: how its states are kept, what overrides it, and what is said of formats that do not suit."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import optlang
from optlang.checker.check import check_text
from optlang.checker.samples import Sample
from optlang.checker.show import show_rule
from optlang.checker.state_behavior import SHAPE, behavior_of, slow_averages
from optlang.rule import Rule
from optlang.source import Source
from optlang.storage import Fixed, Format
from optlang.storage.fp8 import Fp8
from optlang.storage.int8 import Int8
from optlang.storage.log8 import Log8
from optlang.storage.parameters import KEY, WAYS
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

BF16, FP32 = Fixed("bfloat16"), Fixed("float32")
ADAM = """optimizer Stored
hyper lr = 1e-3, beta1 = 0.9 in [0, 1), beta2 = 0.99 in [0, 1), eps = 1e-8
state m as exp_avg, v as exp_avg_sq
{}
m = beta1*m + (1 - beta1)*g
v = beta2*v + (1 - beta2)*g^2
p -= lr*m/(sqrt(v) + eps)
"""


def rule_of(text: str) -> Rule:
    rule, found = check_text(Source(text))
    assert rule is not None and found == [], found
    return rule


def stored(text: str) -> dict[str, Format]:
    return {each.key: each.format for each in rule_of(text).stored}


def made(text: str, backend: str = "eager", **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return an optimizer of a rule with a large and a small parameter."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 100), (30, 10))]
    return optlang.compile(text, backend=backend)(params, **options), params


def step(optimizer: Any, params: list[torch.nn.Parameter], count: int = 3) -> None:
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def kept(optimizer: Any, p: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    return optimizer.state[p]["exp_avg"].dtype, optimizer.state[p]["exp_avg_sq"].dtype


# The statement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "formats"),
    [
        ("store m: fp8; store v: log8", {"exp_avg": Fp8(), "exp_avg_sq": Log8()}),
        ("store m: int8(block = 64)", {"exp_avg": Int8(64)}),
        ("store m, v: bf16 stochastic", dict.fromkeys(("exp_avg", "exp_avg_sq"), WAYS["stochastic"])),
        ("store m: fp32 when ndim > 1", {"exp_avg": FP32}),
        ("store p: bf16+8; store m: bf16", {KEY: WAYS["bf16+8"], "exp_avg": BF16}),
    ],
)
def test_formats_of_a_rule(statements: str, formats: dict[str, Format]) -> None:
    assert stored(ADAM.format(statements)) == formats


def test_a_rule_that_declares_nothing_may_store_its_states() -> None:
    assert stored("store v: fp8\nv = 0.9*v + 0.1*g\np -= lr*v\n") == {"v": Fp8()}


def test_a_condition_takes_the_place_of_the_bound() -> None:
    without, always = (rule_of(ADAM.format(f"store m: fp8{when}")).stored[0] for when in ("", " when numel >= 100"))
    assert isinstance(without.format, Fp8) and isinstance(always.format, Fp8)
    assert (without.format.least, always.format.least) == (None, 0)


@pytest.mark.parametrize(
    "text",
    [
        "store m: int8(block = 256)",
        "store m, v: bf16 stochastic when numel >= 4096",
        "store p: bf16+16",
        "store p: kahan",
    ],
)
def test_formatted_text_is_as_written(text: str) -> None:
    loose = text.replace(" = ", "=").replace("+", " + ").replace(": ", ":").replace(", ", " ,")
    assert format_tree(parse(Source(loose + "\n"))) == text + "\n"


def test_rules_are_shown_with_their_formats() -> None:
    shown = show_rule(rule_of(ADAM.format("store m: fp8 when ndim == 2\nstore p: stochastic")))
    assert "  store   m: fp8, blocks of 256 when ndim == 2\n" in shown
    assert "  store   p: bfloat16, rounded at random\n" in shown


# Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_it_is_what_the_keyword_does(backend: str) -> None:
    one, params = made(ADAM.format("store m: fp8; store v: log8"), backend)
    other, others = made(ADAM.format(""), backend, store={"exp_avg": "fp8", "exp_avg_sq": "log8"})
    step(one, params)
    step(other, others)
    assert all(map(torch.equal, params, others))
    assert kept(one, params[0]) == kept(other, others[0]) == (torch.float8_e4m3fn, torch.uint8)
    assert kept(one, params[1]) == (torch.float32, torch.float32)


def test_the_constructor_overrides_it() -> None:
    text = ADAM.format("store m: fp8; store v: log8")
    for store, expected in (
        ({"exp_avg": "bf16"}, (torch.bfloat16, torch.uint8)),
        ({}, (torch.float8_e4m3fn, torch.uint8)),
        ("bf16", (torch.bfloat16, torch.bfloat16)),
        ("fp32", (torch.float32, torch.float32)),
        ("off", (torch.float32, torch.float32)),
        (None, (torch.float8_e4m3fn, torch.uint8)),
    ):
        optimizer, params = made(text, store=store)
        step(optimizer, params)
        assert kept(optimizer, params[0]) == expected, store


def test_a_group_overrides_it() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(100, 100)) for _ in range(2))
    cls = optlang.compile(ADAM.format("store m: fp8"), backend="eager")
    optimizer = cls([{"params": [p]}, {"params": [q], "store": "off"}])
    step(optimizer, [p, q])
    assert [kept(optimizer, x)[0] for x in (p, q)] == [torch.float8_e4m3fn, torch.float32]


def test_conditions_are_about_each_tensor() -> None:
    optimizer, params = made(ADAM.format("store m: fp8 when numel >= 300\nstore v: bf16 stochastic when rows > 50"))
    step(optimizer, params)
    assert kept(optimizer, params[0]) == (torch.float8_e4m3fn, torch.bfloat16)
    assert kept(optimizer, params[1]) == (torch.float8_e4m3fn, torch.float32)


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ({"exp_avg": "fp8(least=300)"}, (torch.float8_e4m3fn, torch.float32)),
        ({"exp_avg": "int8(block=64, least=301)"}, (torch.float32, torch.float32)),
        ("8bit(least=0)", (torch.float8_e4m3fn, torch.uint8)),
        ("8bit", (torch.float32, torch.float32)),
    ],
)
def test_the_bound_may_be_given(store: Any, expected: tuple[torch.dtype, torch.dtype]) -> None:
    optimizer, params = made(ADAM.format(""), store=store)
    step(optimizer, params)
    assert kept(optimizer, params[1]) == expected
    assert kept(optimizer, params[0])[0] != torch.float32


@pytest.mark.parametrize(
    "store", ["bf16(least=3)", "8bit(block=64)", "fp8", "8bit stochastic", {"exp_avg": "bf16(least=3)"}]
)
def test_what_presets_and_types_do_not_take(store: Any) -> None:
    with pytest.raises(ValueError, match=r"store must be one of|takes nothing in brackets"):
        made(ADAM.format(""), store=store)


@pytest.mark.parametrize(
    "asked", ["fp8(least)", "fp8(least=-1)", "fp8(deep=3)", "fp8 stochastic", "fp8(", 7, ["fp8"], ""]
)
def test_formats_that_there_are_not(asked: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown format|takes block and least|has no stochastic rounding"):
        made(ADAM.format(""), store={"exp_avg": asked})


@pytest.mark.parametrize("backend", ["eager", "cpp"])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_rounding_of_parameters(way: str, backend: str) -> None:
    results = []
    for statement, rounding in ((f"store p: {way}", None), ("", way)):
        optimizer, params = made(ADAM.format(statement), backend)
        params = [torch.nn.Parameter(p.detach().bfloat16()) for p in params]
        optimizer = type(optimizer)(params, rounding=rounding)
        step(optimizer, params)
        results.append((params, [optimizer.state[p].get(KEY) for p in params]))
    (one, extra), (other, others) = results
    assert all(map(torch.equal, one, other))
    assert [x is None for x in extra] == [x is None for x in others] == [way == "stochastic"] * 2


def test_parameters_of_other_types_are_not_rounded_and_nearest_overrides() -> None:
    optimizer, params = made(ADAM.format("store p: kahan"))
    step(optimizer, params)
    assert KEY not in optimizer.state[params[0]]
    narrow = torch.nn.Parameter(torch.ones(10, 10, dtype=torch.bfloat16))
    optimizer = type(optimizer)([narrow], rounding="nearest")
    step(optimizer, [narrow])
    assert KEY not in optimizer.state[narrow]


def test_what_needs_another_kind_of_step_says_how_to_go_without() -> None:
    p = torch.nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
    cls = optlang.compile(ADAM.format("store m: fp8\nstore p: kahan"), backend="eager")
    with pytest.raises(ValueError, match=r"`store` of the rule \(store='off' ignores it\) cannot be given together"):
        cls([p], differentiable=True)
    with pytest.raises(ValueError, match=r"`store p` of the rule \(rounding='nearest' ignores it\)"):
        cls([p], differentiable=True, store="off")
    cls([p], differentiable=True, store="off", rounding="nearest")
    cls([torch.nn.Parameter(torch.ones(100, 100))], differentiable=True, store="off")  # nothing is rounded


@pytest.mark.parametrize("target", ["plain", "module", "torchscript"])
def test_files_for_use_elsewhere_keep_states_in_their_types_where_that_is_asked_for(target: str) -> None:
    text = ADAM.format("store m: fp8 when ndim == 2\nstore v: log8\nstore p: stochastic")
    assert len(optlang.export(text, target, store="off")) > 1000
    with pytest.raises(optlang.OptlangError) as raised:
        optlang.export(text, target)
    assert len(raised.value.diagnostics) == 3


def test_checkpoints_are_converted_to_the_types_of_the_rule() -> None:
    narrow, params = made(ADAM.format("store m: bf16; store v: bf16 stochastic"))
    step(narrow, params)
    wide = type(narrow)(params, store="off")
    wide.load_state_dict(copy.deepcopy(narrow.state_dict()))
    step(wide, params)
    assert kept(wide, params[0]) == (torch.float32, torch.float32)


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_states_rounded_at_random_are_resumed_to_the_bit(backend: str) -> None:
    text = ADAM.format("store m, v: bf16 stochastic")
    whole, params = made(text, backend)
    params[0] = torch.nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    whole = type(whole)(params)
    step(whole, params)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = type(whole)(others)
    resumed.load_state_dict(whole.state_dict())
    step(whole, params)
    step(resumed, others)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert set(whole.state[p]) == {"exp_avg", "exp_avg_sq", "step"}
        assert torch.equal(whole.state[p]["exp_avg_sq"], resumed.state[q]["exp_avg_sq"])


# Composed rules ---------------------------------------------------------------------------------------------------


def test_transforms_carry_it_along() -> None:
    text = """optimizer Chain
hyper lr = 1e-3
transform smoothed(u, beta = 0.9, twice = false):
    state b
    state c when twice
    store b: fp8 when numel >= 100
    store c: bf16
    b = beta*b + (1 - beta)*u
    if twice: c = beta*c + (1 - beta)*b
    return b + c if twice else b
p -= lr*(g |> smoothed |> smoothed(0.5, true))
"""
    assert stored(text) == {"smoothed.b": Fp8(), "smoothed_2.b": Fp8(), "smoothed_2.c": BF16}
    optimizer, params = made(text)
    step(optimizer, params)
    held = optimizer.state[params[1]]
    assert [held[key].dtype for key in ("smoothed.b", "smoothed_2.c")] == [torch.float8_e4m3fn, torch.bfloat16]


BASE = (
    "optimizer Base\nhyper lr = 1e-3\nstate m as exp_avg\nstore m: fp8\nstore p: kahan\nm = 0.9*m + 0.1*g\np -= lr*m\n"
)


def test_used_and_inner_rules_carry_it_along(tmp_path: Path) -> None:
    file = tmp_path / "base.opt"
    file.write_text(BASE, encoding="utf-8")
    assert stored(f'use "{file}"\n') == {"exp_avg": Fp8(), KEY: WAYS["kahan"]}
    assert stored(f'use "{file}"\nstore p: stochastic\n') == {"exp_avg": Fp8(), KEY: WAYS["stochastic"]}
    assert stored(f'use "{file}"\nstore m, p: bf16\n'.replace("m, p", "m")) == {"exp_avg": BF16, KEY: WAYS["kahan"]}
    two = f'optimizer Two\ninner B = "{file}"\ninner C = "{file}"\nB(p, g)\nC(p, g)\n'
    assert stored(two) == {"b.exp_avg": Fp8(), KEY: WAYS["kahan"], "c.exp_avg": Fp8()}
    own = f'optimizer Own\nstore p: stochastic\ninner B = "{file}"\nB(p, g)\n'
    assert stored(own) == {"b.exp_avg": Fp8(), KEY: WAYS["stochastic"]}
    like = f'optimizer Like\nstate q = 2*p\ninner B = "{file}" like q\nB(q, g)\np = lerp(p, q, 0.1)\n'
    assert "b.exp_avg" not in stored(like)


def test_the_library_is_stored_otherwise_by_a_line() -> None:
    assert stored("use AdamW\nstore m: fp8\nstore v: log8\n") == {"exp_avg": Fp8(), "exp_avg_sq": Log8()}


# For people -------------------------------------------------------------------------------------------------------


def test_repr_says_how_states_are_kept() -> None:
    optimizer, params = made(ADAM.format("store m: fp8\nstore v: log8 when ndim == 2\nstore p: kahan"))
    large = [torch.nn.Parameter(torch.zeros(512, 512, dtype=torch.bfloat16))]
    shown = repr(type(optimizer)([{"params": large}, {"params": params, "store": "bf16"}]))
    assert (
        "    states: exp_avg in fp8, blocks of 256; exp_avg_sq in log8, blocks of 256; param in kahan (4.03 " in shown
    )
    assert (
        "    states: exp_avg in bfloat16; exp_avg_sq in bfloat16, rounded at random (4.00 bytes per element)\n" in shown
    )
    plain, _ = made(ADAM.format(""))
    assert "states" not in repr(plain)
    assert "``exp_avg`` in fp8, blocks of 256" in (type(optimizer).__doc__ or "")


# What does not suit a rule ----------------------------------------------------------------------------------------


def told(rule: str, **options: Any) -> list[str]:
    """Return the warnings of making an optimizer."""
    p = torch.nn.Parameter(torch.zeros(100, 100))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(optlang.rules, rule)([p], **options)
    assert all(Path(each.filename) == Path(__file__) for each in found)
    return [str(each.message) for each in found]


def test_keywords_that_do_not_suit_the_rule_are_warned_of() -> None:
    (zero,) = told("AdamW", store={"exp_avg": "fp8", "exp_avg_sq": "int8"})
    assert "steps become up to 10^8 times as long where `exp_avg_sq` is rounded to 0 next to larger elements" in zero
    assert "1/254 of the largest of their block become 0" in zero and "'log8' keeps small numbers [W613]" in zero
    assert "'fp32' loses nothing [W613]" in told("ScheduleFreeAdamW", store={"z": "int8"})[0]  # it stays near p
    assert "[W613]" in told("LAMB", store={"exp_avg_sq": "int8"})[0]  # the others stand still
    assert told("RMSprop", store={"square_avg": "fp16"}) == []  # it divides the gradient itself, which is in the state
    (still,) = told("AdamW", store={"exp_avg": "bf16", "exp_avg_sq": "bf16"})
    assert "`exp_avg_sq` can stop changing: a step changes it by a fraction of 0.001" in still
    assert "'bf16 stochastic'" in still
    assert told("AdamW", store={"exp_avg_sq": "bf16"}, betas=(0.9, 0.95)) == []
    (slow,) = told("AdEMAMix", store={"exp_avg_slow": "fp8"})
    assert "`exp_avg_slow` can stop changing" in slow


def test_step_sizes_may_be_tensors() -> None:
    assert len(told("AdamW", store={"exp_avg_sq": "int8"}, lr=torch.tensor(1e-3))) == 1


@pytest.mark.parametrize("rule", ["AdamW", "Lion", "AdEMAMix", "Adan", "AdaBelief", "SGD", "Muon", "Adagrad", "LAMB"])
@pytest.mark.parametrize("store", ["8bit", "bf16", "fp32", "off", {}])
def test_presets_suit_every_rule(rule: str, store: Any) -> None:
    assert told(rule, store=store, **({"lr": 0.1, "momentum": 0.9} if rule == "SGD" else {})) == []


def behavior(text: str) -> Any:
    rule, _ = check_text(Source(text))
    assert rule is not None
    values = {h.name: h.default for h in rule.hypers}
    return behavior_of(rule, Sample(values, SHAPE))


def test_what_a_rule_does_with_its_states_is_measured() -> None:
    found = behavior(ADAM.format(""))
    assert (found["m"].negative, found["v"].negative) == (True, False)
    assert abs(found["m"].weight - 0.1) < 1e-6 and abs(found["v"].weight - 0.01) < 1e-6
    assert found["m"].longest() < 1.5 < 1e4 < found["v"].longest()
    assert [found["v"].is_slow_for(each) for each in (Fp8(), BF16, Log8(), FP32)] == [True, False, False, False]
    # What is added to the root keeps a step short.
    assert behavior(ADAM.format("").replace("+ eps)", "+ 1)"))["v"].longest() < 3


@pytest.mark.parametrize(
    ("beta", "format", "is_slow"),
    # After gradients had become a fourth, averages of squares were 8.1, 0.8, 1.3, 1.2 and 0.96 times too large.
    [(0.997, BF16, True), (0.996, BF16, False), (0.99, Fp8(), True), (0.98, Fp8(), True), (0.95, Fp8(), False)],
)
def test_which_averages_stand_still(beta: float, format: Format, is_slow: bool) -> None:
    found = behavior(f"hyper lr = 1, beta = {beta}\nstate v\nv = beta*v + (1 - beta)*g^2\np -= lr*g/(sqrt(v) + 1)\n")
    assert found["v"].is_slow_for(format) is is_slow


def test_a_sum_is_no_average() -> None:
    found = behavior("hyper lr = 1e-3\nstate s\ns += g^2\np -= lr*g/(sqrt(s) + 1e-8)\n")
    assert found["s"].weight is None


def test_averages_that_are_too_slow_for_eight_bits() -> None:
    def slow(name: str) -> frozenset[str]:
        path = optlang.rules.path(name)
        return slow_averages(rule_of(path.read_text()))

    assert slow("AdEMAMix") == {"exp_avg_slow", "exp_avg_sq"}
    assert slow("Lion") == frozenset()


# The measurements behind it ---------------------------------------------------------------------------------------


def second_moment(store: Any, beta2: float) -> float:
    """Return an average of squares, in parts of that in float32, after gradients have become a fourth."""
    n, steps = 4096, round(3 / (1 - beta2))
    found = []
    for kept_as in (store, "fp32"):
        p = torch.nn.Parameter(torch.zeros(1, n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = optlang.rules.Adam([p], lr=1e-6, betas=(0.9, beta2), store=kept_as)
        generator = torch.Generator().manual_seed(0)
        for t in range(2 * steps):
            p.grad = torch.randn(1, n, generator=generator) / (1 if t < steps else 4)
            optimizer.step()
        found.append(float(optimizer.state_dict(full=True)["state"][0]["exp_avg_sq"].float().mean()))
    return found[0] / found[1]


def test_an_average_in_bfloat16_stands_still_unless_it_is_rounded_at_random() -> None:
    assert second_moment({"exp_avg_sq": "bf16"}, 0.999) > 5
    assert abs(second_moment("bf16", 0.999) - 1) < 0.01
    assert abs(second_moment("8bit", 0.999) - 1) < 0.03
    assert abs(second_moment({"exp_avg_sq": "bf16"}, 0.95) - 1) < 0.01  # as the criterion says


def slow_average(store: Any) -> float:
    """Return the relative error of a slow average of noise."""
    n, found = 4096, []
    for kept_as in (store, None):
        p = torch.nn.Parameter(torch.zeros(1, n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = optlang.rules.AdEMAMix([p], lr=1e-6, store=kept_as)
        generator = torch.Generator().manual_seed(0)
        for _ in range(1000):
            p.grad = 0.03 + torch.randn(1, n, generator=generator)
            optimizer.step()
        found.append(optimizer.state_dict(full=True)["state"][0]["exp_avg_slow"].float())
    return float((found[0] - found[1]).norm() / found[1].norm())


def test_slow_averages_are_kept_in_more_bits() -> None:
    assert slow_average({"exp_avg_slow": "fp8"}) > 0.5
    assert slow_average("8bit") < 0.15


@pytest.mark.parametrize(("rule", "key"), [("DoG", "init_buffer"), ("ScheduleFreeAdamW", "z"), ("MADGRAD", "x0")])
def test_bf16_keeps_what_is_near_a_parameter_in_float32(rule: str, key: str) -> None:
    moved = []
    for store in ("bf16", "off"):
        p = torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
        before = p.detach().clone()
        optimizer = optlang.compile(optlang.rules.path(rule), backend="eager")([p], store=store)
        for number in range(3):
            p.grad = 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
        assert optimizer.state[p][key].dtype == torch.float32
        moved.append(p.detach() - before)
    assert float((moved[0] - moved[1]).norm()) < 0.05 * float(moved[1].norm())


def test_sums_in_bf16_are_rounded_at_random() -> None:
    p = torch.nn.Parameter(torch.zeros(64, 64))
    assert "    states: s in bfloat16, rounded at random;" in str(optlang.rules.DAdaptSGD([p], store="bf16"))


def test_a_format_without_a_sign_is_warned_of() -> None:
    p = torch.nn.Parameter(torch.zeros(64, 64))
    with pytest.warns(UserWarning, match=r"`exp_avg` can be negative, but log8 has no sign .*'fp8' stores signs .E415"):
        optlang.rules.AdamW([p], store={"exp_avg": "log8"})


def test_bytes_of_complex_numbers() -> None:
    p = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.complex64))
    assert "(16.00 bytes per element)" in str(optlang.rules.AdamW([p], store="8bit"))
