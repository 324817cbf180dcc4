"""States in fewer bits: formats, and whatever `store` is given for."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import optlang
from optlang.runtime import stages
from optlang.runtime.rng import mixed
from optlang.storage import choice
from optlang.storage.blocks import SCALE, Blocks, is_large, rows_of
from optlang.storage.fp8 import Fp8
from optlang.storage.int8 import Int8
from optlang.storage.log8 import Log8
from optlang.storage.named import CODES, format_of
from optlang.storage.parameters import KEY, WAYS
from optlang.storage.softsign8 import Softsign8
from optlang.storage.sqrt8 import Sqrt8

FORMATS: tuple[Blocks, ...] = (Fp8(), Log8(), Int8(), Softsign8(), Sqrt8(), Fp8(64), Log8(32))
SHAPES = ((100, 300), (5000,), (64, 64, 3, 3), (10,), (3, 70000), (4100, 1))
RULES = ("AdamW", "Adam", "Lion", "LAMB", "AdamWClip", "AdEMAMix", "Adan", "SGD", "RMSprop", "Adagrad", "Muon")


@functools.cache
def compiled(rule: str, backend: str) -> Any:
    return optlang.compile(optlang.rules.path(rule), backend=backend)


def made(rule: str, backend: str, store: Any, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return an optimizer with parameters of many shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [s for s in SHAPES if len(s) == 2] if rule == "Muon" else SHAPES
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    options |= {"momentum": 0.9} if rule == "SGD" else {}
    return compiled(rule, backend)(params, lr=0.01, store=store, **options), params


def step(optimizer: Any, params: Sequence[torch.nn.Parameter], numbers: Sequence[int]) -> None:
    """Make steps with gradients of their own."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            scales = torch.exp(torch.randn(p.shape, generator=generator))
            p.grad = scales * torch.randn(p.shape, generator=generator)
        optimizer.step()


def as_bytes(value: Any) -> Any:
    """Return a tensor whose elements can be compared, whatever their type."""
    return value.view(torch.uint8) if isinstance(value, torch.Tensor) and value.dim() else value


def assert_same_states(one: Any, other: Any, params: Sequence[Any], others: Sequence[Any]) -> None:
    """Assert that two optimizers have the same states to the bit."""
    for p, q in zip(params, others, strict=True):
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            assert torch.equal(as_bytes(torch.as_tensor(value)), as_bytes(torch.as_tensor(other.state[q][key]))), key


# Formats ------------------------------------------------------------------------------------------------------


def numbers(format: Blocks, shape: Sequence[int], spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    found = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    return found if format.signed else found.abs()


@pytest.mark.parametrize("shape", [(1000,), (7, 300), (5, 4, 3, 9), (1,), (0,), (3, 0), (300, 1)], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_shapes_of_codes_and_scales(format: Blocks, shape: tuple[int, ...]) -> None:
    x = numbers(format, shape, 1.0)
    codes, scales = format.encode(x)
    assert (codes.shape, str(codes.dtype)) == (x.shape, f"torch.{format.codes}")
    assert tuple(scales.shape) == format.scales_shape(shape)
    rows, columns = rows_of(shape)
    assert scales.numel() == rows * math.ceil(columns / format.block)
    assert format.decode(codes, scales).shape == x.shape
    if x.numel():
        assert choice.found(codes, scales).scales_shape(shape) == tuple(scales.shape)


@pytest.mark.parametrize("largest", [0.0, 1e-38, 1e-37, 1e-36])
@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_int8_of_tiny_numbers(backend: str, largest: float) -> None:
    p = torch.nn.Parameter(torch.zeros(1, 4096))
    optimizer = compiled("SGD", backend)([p], momentum=0.9, store={"momentum_buffer": "int8"})
    p.grad = torch.full_like(p, largest)
    p.grad[0, 7] = 0.0
    optimizer.step()
    kept = optimizer.state_dict(full=True)["state"][0]["momentum_buffer"]
    assert float((kept - p.grad).abs().max()) <= 1e-38


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_what_is_kept_is_near(format: Blocks, spread: float) -> None:
    x = numbers(format, (50, 1000), spread)
    kept = format.decode(*format.encode(x, 7))
    largest = format._in_blocks(x).abs().amax(1, keepdim=True)
    errors, blocks = format._in_blocks((kept - x).abs()), format._in_blocks(x.abs())
    if isinstance(format, Int8):
        assert (errors <= largest / 254 * 1.001).all()
    elif isinstance(format, Softsign8):  # coarsest at the largest, whose scale is rounded to float16
        assert (errors <= largest * (2 / 254 + 2.0**-11) * 1.001).all()
    elif isinstance(format, Sqrt8):
        root = 1 / 510 + 2.0**-11
        assert (errors <= (2 * (blocks * largest).sqrt() * root + largest * root**2) * 1.001).all()
    else:  # an eighth where numbers are rounded up or down, a sixteenth where to the nearest
        least = largest * (2.0**-31 if isinstance(format, Log8) else 2.0**-14)
        bound = blocks / (8 if format.draws else 16) * 1.001
        assert (errors <= torch.maximum(bound, least)).all()


def test_rounding_at_random_is_right_on_average() -> None:
    x = torch.full((1, 4096), 0.3) * torch.linspace(0.5, 1.5, 4096)
    keys = [mixed(0, t) & 0xFFFFFFFF for t in range(400)]
    found = torch.stack([Log8().decode(*Log8().encode(x, key)) for key in keys])
    assert float((found.mean(0) / x - 1).abs().max()) < 0.03
    assert abs(float(found.mean() / x.mean() - 1)) < 1e-4


def test_nothing_but_zero_becomes_zero() -> None:
    x = torch.tensor([[1.0, 1e-30, 1e-20, 0.0, 1e-12, 3e38, 1e-38]])
    kept = Log8().decode(*Log8().encode(x))
    assert ((kept == 0) == (x == 0)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_a_block_with_what_is_not_finite_is_undefined(format: Blocks, bad: float) -> None:
    x = torch.ones(2, 600)
    x[1, 3] = bad
    kept = format.decode(*format.encode(x))
    assert kept[1, : format.block].isnan().all() and kept[0].isfinite().all() and kept[1, 256:].isfinite().all()


def test_fp8_is_that_of_torchao() -> None:
    x = numbers(Fp8(), (1000, 1024), 2.0)
    codes, scales = Fp8().encode(x)
    blocks = x.view(-1, 256)
    expected = blocks.abs().amax(-1).clip(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    assert torch.equal(scales.view(-1), expected)
    found = (blocks / expected.view(-1, 1)).to(torch.float8_e4m3fn)
    assert torch.equal(codes.view(torch.uint8).view(-1, 256), found.view(torch.uint8))


def of_flashoptim(x: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and scales that the paper on FlashOptim (arXiv 2602.23349) prescribes, in float64."""
    groups = x.double().view(-1, 32)
    groups = groups if signed else groups.sqrt()
    scale = groups.abs().amax(1, keepdim=True)
    part = groups / scale
    return (2 * part / (1 + part.abs()) * 127 if signed else part * 255), scale


@pytest.mark.parametrize("format", [Softsign8(), Sqrt8()], ids=repr)
def test_codes_are_those_of_flashoptim(format: Blocks) -> None:
    x = numbers(format, (1000, 1024), 1.0)
    codes, scales = format.encode(x)
    exact, scale = of_flashoptim(x, format.signed)
    assert torch.equal(scales.view(-1, 1), scale.half())
    near = (exact + 0.5).floor()
    different = codes.view(-1, 32).double() != near
    # Nothing but what lies halfway between two codes is rounded otherwise than in float64.
    assert ((exact - near).abs()[different] > 0.5 - 1e-4).all() and different.double().mean() < 1e-4


# Steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["8bit", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_cpp_keeps_the_codes_that_torch_does(rule: str, store: str) -> None:
    one, params = made(rule, "eager", store)
    other, others = made(rule, "cpp", store)
    step(one, params, range(4))
    step(other, others, range(4))
    if rule == "LAMB":  # sums of a tensor may differ in the last bit, and what is divided by them
        for p, q in zip(params, others, strict=True):
            assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)
        return
    assert_same_states(one, other, params, others)
    for p, q in zip(params, others, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("format", [*CODES, "fp8(block=16)", "log8(block=1024)"])
def test_whatever_number_has_the_same_code_in_cpp(format: str) -> None:
    generator = torch.Generator().manual_seed(3)
    columns = 2 * 256 + 64 + 32 + 16 + 5
    x = torch.randn(40, columns, generator=generator) * torch.exp(4 * torch.randn(40, 1, generator=generator))
    x[:8] = torch.randint(-1024, 1025, (8, columns), generator=generator) / 64  # some lie between two codes
    x[8:16] *= torch.exp(5 * torch.randn(8, columns, generator=generator))
    x[torch.rand(x.shape, generator=generator) < 0.1] = 0.0
    x[16, 3], x[17, 300], x[18, -1], x[19] = math.nan, math.inf, -math.inf, 0.0
    x[20:24] *= 1e-38
    x = torch.where(x == 0, -x, x) if format_of(format.partition("(")[0]).signed else x.abs()
    kept = []
    for backend in ("eager", "cpp"):
        p = torch.nn.Parameter(torch.zeros_like(x))
        optimizer = compiled("SGD", backend)([p], lr=1.0, momentum=0.9, store={"momentum_buffer": format})
        p.grad = x.clone()
        optimizer.step()
        kept.append(optimizer.state[p])
    for key in ("momentum_buffer", "momentum_buffer" + SCALE):
        assert torch.equal(as_bytes(kept[0][key]), as_bytes(kept[1][key]))


def test_roots_are_rounded_correctly() -> None:
    x = torch.rand(1000, 256, generator=torch.Generator().manual_seed(5))
    codes, scales = Sqrt8(block=256).encode(x)
    roots, most = np.sqrt(x.numpy()), np.sqrt(x.numpy().max(1, keepdims=True))
    expected = np.floor(roots / most * np.float32(255) + np.float32(0.5))
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_array_equal(scales.numpy(), most.astype(np.float16))


def test_a_block_may_be_more_than_a_thread_takes_at_once() -> None:
    kept = []
    for backend in ("eager", "cpp"):
        p = torch.nn.Parameter(torch.zeros(200_000))
        optimizer = compiled("SGD", backend)([p], lr=1.0, momentum=0.9, store={"momentum_buffer": "fp8(block=65536)"})
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        kept.append(optimizer.state[p]["momentum_buffer"])
    assert torch.equal(*map(as_bytes, kept))


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_small_tensors_and_numbers_stay_as_they_are(backend: str) -> None:
    optimizer, params = made("AdamW", backend, "8bit")
    step(optimizer, params, range(2))
    kept = [optimizer.state[p]["exp_avg"].dtype for p in params]
    assert kept == [torch.float8_e4m3fn if is_large(p.shape) else torch.float32 for p in params]
    assert all(optimizer.state[p]["exp_avg_sq"].dtype == torch.uint8 for p in params if is_large(p.shape))
    assert [is_large(shape) for shape in SHAPES] == [True, False, True, False, True, True]
    assert is_large((2**20,)) and is_large((64, 64)) and not is_large((63, 64)) and not is_large((2**19,))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("Muon", {"momentum_buffer": torch.bfloat16}),
        ("SOAP", {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.uint8}),
        ("SCION", {"d": torch.bfloat16}),
        ("AdaMuon", {"m": torch.bfloat16, "v": torch.uint8}),
        ("AdamW", {"exp_avg": torch.float8_e4m3fn, "exp_avg_sq": torch.uint8}),
        ("ScheduleFreeSGD", {"z": torch.float32}),
    ],
)
def test_the_preset_goes_by_what_a_state_is_for(rule: str, expected: dict[str, torch.dtype]) -> None:
    p = torch.nn.Parameter(torch.randn(80, 60))
    optimizer = compiled(rule, "eager")([p], lr=0.01, store="8bit")
    step(optimizer, [p], range(3))
    assert {key: optimizer.state[p][key].dtype for key in expected} == expected
    assert p.isfinite().all()


@pytest.mark.parametrize("store", ["8bit", "bf16"])
def test_states_in_differences_stay_as_they_are(store: str) -> None:
    # The root of square_avg - grad_avg^2 is that of a negative number if either part is rounded.
    ends = []
    for asked in (None, store):
        p = torch.nn.Parameter(torch.zeros(80, 60))
        optimizer = compiled("RMSprop", "eager")([p], lr=1e-3, centered=True, store=asked)
        for number in range(100):
            p.grad = 1 + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
        ends.append(p.detach().clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_formats_by_state_and_by_group(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(64, 100, generator=generator)) for _ in range(3)]
    groups = [
        {"params": params[:1], "store": {"exp_avg": "int8(block=128)"}},
        {"params": params[1:2], "store": {"exp_avg_sq": "log8", "exp_avg": "bf16"}},
        {"params": params[2:]},
    ]
    optimizer = compiled("AdamW", backend)(groups, lr=0.01)
    step(optimizer, params, range(3))
    first, second, third = (optimizer.state[p] for p in params)
    assert (first["exp_avg"].dtype, first["exp_avg_sq"].dtype) == (torch.int8, torch.float32)
    assert first["exp_avg" + SCALE].shape == (64, 1)
    assert (second["exp_avg"].dtype, second["exp_avg_sq"].dtype) == (torch.bfloat16, torch.uint8)
    assert {third[key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}


@pytest.mark.parametrize("rule", ["AdamW", "AdamWClip"])
def test_parameters_may_be_without_gradients_for_a_step(rule: str) -> None:
    results = []
    for backend in ("eager", "cpp"):
        optimizer, params = made(rule, backend, "8bit")
        step(optimizer, params, range(2))
        held = {p: copy.deepcopy(optimizer.state[p]) for p in params[:1]}
        for p in params[1:]:
            p.grad = torch.ones_like(p)
        params[0].grad = None
        optimizer.step()
        assert all(
            torch.equal(as_bytes(v), as_bytes(optimizer.state[params[0]][k])) for k, v in held[params[0]].items()
        )
        step(optimizer, params, range(3, 5))
        results.append((optimizer, params))
    (one, params), (other, others) = results
    assert_same_states(one, other, params, others)
    assert all(bool(p.isfinite().all()) for p in params)


def test_stages_with_parameters_in_several_orders_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CHUNK", {"cpu": 4 * 64 * 64 * 9})  # a chunk for each parameter
    results = []
    for backend in ("eager", "cpp"):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(64, 64, 3, 3, generator=generator)) for _ in range(3)]
        params[1] = torch.nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
        optimizer = compiled("AdamWClip", backend)(params, lr=0.01, store="8bit")
        step(optimizer, params, range(3))
        results.append((optimizer, params))
    (one, params), (other, others) = results
    assert_same_states(one, other, params, others)


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_formats_may_change_between_steps(backend: str) -> None:
    optimizer, params = made("AdamW", backend, None)
    step(optimizer, params, range(3))
    for store, dtype in (("8bit", torch.float8_e4m3fn), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        optimizer.param_groups[0]["store"] = store
        before = [held["exp_avg"].float() for held in optimizer.state_dict(full=True)["state"].values()]
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        after = [held["exp_avg"].float() for held in optimizer.state_dict(full=True)["state"].values()]
        assert optimizer.state[params[0]]["exp_avg"].dtype == dtype
        for old, new in zip(before, after, strict=True):  # gradients of 0 leave 0.9 of what was there
            assert float((new - 0.9 * old).abs().max()) <= float(old.abs().max()) / 12
    optimizer.param_groups[0]["store"] = "4bit"
    with pytest.raises(ValueError, match="store must be one of"):
        optimizer.step()


@pytest.mark.parametrize("way", ["between steps", "checkpoint", "full checkpoint"])
@pytest.mark.parametrize("after", ["8bit", {}, "off", None], ids=str)
def test_what_was_in_16_bits_gets_its_own_type_back(after: Any, way: str) -> None:
    p = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = compiled("Adagrad", "eager")([p], store="bf16")
    step(optimizer, [p], range(2))
    assert optimizer.state[p]["sum"].dtype == torch.bfloat16
    if way == "between steps":
        if after is None:
            pytest.skip("what was asked for before is not known")
        optimizer.param_groups[0]["store"] = after
    else:
        saved = optimizer.state_dict(full=way == "full checkpoint")
        optimizer = compiled("Adagrad", "eager")([p], store=after)
        optimizer.load_state_dict(saved)
    step(optimizer, [p], range(2))
    assert optimizer.state[p]["sum"].dtype == torch.float32  # no preset keeps a sum in eight bits


def test_small_squares_of_float16_survive_a_checkpoint() -> None:
    p = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float16))
    optimizer = compiled("AdamW", "eager")([p], store="bf16")
    p.grad = torch.full_like(p, 1e-4)
    optimizer.step()
    kept = optimizer.state[p]["exp_avg_sq"].float()
    other = compiled("AdamW", "eager")([p])
    other.load_state_dict(optimizer.state_dict())
    assert float(kept.min()) > 0 and torch.equal(other.state[p]["exp_avg_sq"], kept)


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("4bit", "store must be one of 'fp32', 'bf16', '8bit'"),
        ({"exp_avg": "fp4"}, "unknown format 'fp4'"),
        ({"m": "fp8"}, "store names a state 'm', but the rule has 'exp_avg'"),
        ({"exp_avg": "fp8(block=100)"}, "must be a power of 2"),
        ({"exp_avg": "fp8(block=16, block=32)"}, "unknown format"),
        (3, "store must be one of"),
    ],
)
def test_what_cannot_be_is_said(store: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        made("AdamW", "eager", store)


def test_states_of_other_shapes_are_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(100, 100))
    with pytest.raises(ValueError, match="'row_var' cannot be kept in fp8, because it is not shaped like"):
        compiled("Adafactor", "eager")([p], store={"row_var": "fp8"})


def test_float64_is_not_cut() -> None:
    p = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optimizer = compiled("AdamW", "cpp")([p], store="fp32")
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_types(dtype: torch.dtype) -> None:
    results = []
    for backend in ("eager", "cpp"):
        p = torch.nn.Parameter(torch.ones(100, 100, dtype=dtype))
        optimizer = compiled("AdamW", backend)([p], store="8bit")
        for number in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number)).to(dtype)
            optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype == torch.float8_e4m3fn
        results.append(p.detach().float())
    assert torch.allclose(*results, rtol=2e-2, atol=1e-5)


# Parameters in bfloat16 ---------------------------------------------------------------------------------------


def made_narrow(rule: str, backend: str, rounding: str | None, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return an optimizer with parameters in bfloat16, one of them in another order of memory."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).bfloat16()) for s in ((60, 100), (64, 8, 3, 3))]
    params[1] = torch.nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
    return compiled(rule, backend)(params, lr=1e-3, rounding=rounding, store="fp32", **options), params


def narrow_step(optimizer: Any, params: Sequence[torch.nn.Parameter], numbers: Sequence[int]) -> None:
    """Make steps with gradients of the parameters' types and orders of memory."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = torch.empty_like(p).copy_(g)
        optimizer.step()


@pytest.mark.parametrize("rounding", list(WAYS))
@pytest.mark.parametrize("rule", ["AdamW", "Lion", "LAMB", "AdamWClip", "SGD"])
def test_parameters_in_16_bits_are_the_same_in_cpp(rule: str, rounding: str) -> None:
    results = []
    for backend in ("eager", "cpp"):
        optimizer, params = made_narrow(rule, backend, rounding)
        narrow_step(optimizer, params, range(4))
        results.append((optimizer, params))
    (one, params), (other, others) = results
    way = WAYS[rounding]
    for p, q in zip(params, others, strict=True):  # what is rounded may differ in the last bit of float32
        kept = [way.decode(x.detach(), o.state[x].get(KEY, torch.empty(0))) for o, x in ((one, p), (other, q))]
        apart = (kept[0] - kept[1]).abs() > (1e-6 if rounding == "bf16+16" else 2**-14) * kept[0].abs() + 1e-7
        assert float(apart.float().mean()) <= (1e-3 if rounding == "stochastic" else 0.0)


@pytest.mark.parametrize("rule", ["AdamW", "Lion", "LAMB"])
def test_what_is_kept_besides_makes_float32_of_them(rule: str) -> None:
    optimizer, params = made_narrow(rule, "cpp", "bf16+16")
    wide = [torch.nn.Parameter(torch.empty_like(p, dtype=torch.float32).copy_(p)) for p in params]
    usual = compiled(rule, "cpp")(wide, lr=1e-3)
    for number in range(20):
        narrow_step(optimizer, params, [number])
        for p, q in zip(params, wide, strict=True):
            q.grad = p.grad.float()
        usual.step()
    for p, q in zip(params, wide, strict=True):
        assert torch.equal(WAYS["bf16+16"].decode(p.detach(), optimizer.state[p][KEY]), q)
        assert float((p.float() - q).abs().max()) <= float(q.abs().max()) / 256


@pytest.mark.parametrize(("rounding", "most"), [("kahan", 2**-15), ("bf16+8", 2**-15), ("bf16+16", 0.0)])
def test_how_much_is_lost(rounding: str, most: float) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 100_000)
    way = WAYS[rounding]
    codes = torch.empty_like(x, dtype=torch.bfloat16)
    second = way.companion(codes)
    way.keep(x, codes, second, 0)
    assert float(((way.decode(codes, second) - x) / x).abs().max()) <= most
    assert float(((codes.float() - x) / x).abs().max()) <= 2**-8


def test_stochastic_rounding_is_right_on_average() -> None:
    x, way = torch.linspace(1.0, 2.0, 4001), WAYS["stochastic"]
    codes = torch.empty_like(x, dtype=torch.bfloat16)
    total = torch.zeros_like(x)
    for t in range(400):
        way.keep(x, codes, way.companion(codes), mixed(0, t) & 0xFFFFFFFF)
        total += codes.float()
    assert float((total / 400 - x).abs().max()) < 2**-7 / 4  # codes are 2**-7 apart
    assert float((total / 400 - x).mean().abs()) < 2**-7 / 400


@pytest.mark.parametrize("rounding", list(WAYS))
def test_small_updates_are_not_lost(rounding: str) -> None:
    p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = compiled("SGD", "cpp")([p], lr=1e-4, rounding=rounding)
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert abs(float(p.float().mean()) - 0.98) < 2e-3
    q = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    plain = compiled("SGD", "cpp")([q], lr=1e-4)
    for _ in range(200):
        q.grad = torch.ones_like(q)
        plain.step()
    assert float(q.float().mean()) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rounding", list(WAYS))
def test_what_is_not_finite_stays_so(rounding: str, bad: float) -> None:
    x, way = torch.tensor([1.0, bad]), WAYS[rounding]
    codes = torch.empty_like(x, dtype=torch.bfloat16)
    second = way.companion(codes)
    way.keep(x, codes, second, 12345)
    kept = way.decode(codes, second)
    assert kept[0] == 1.0 and (kept[1].isnan() if math.isnan(bad) else kept[1] == bad)


@pytest.mark.parametrize("rounding", list(WAYS))
def test_parameters_in_16_bits_are_resumed(rounding: str) -> None:
    whole, params = made_narrow("AdamW", "cpp", rounding)
    narrow_step(whole, params, range(3))
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = compiled("AdamW", "cpp")(others, lr=1e-3, rounding=rounding, store="fp32")
    resumed.load_state_dict(saved(whole))
    narrow_step(whole, params, range(3, 6))
    narrow_step(resumed, others, range(3, 6))
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("between", ["nearest", "stochastic", None])
def test_a_correction_does_not_outlive_its_parameter(between: str | None) -> None:
    p = torch.nn.Parameter(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer = compiled("SGD", "eager")([p], lr=1e-3, rounding="kahan")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p][KEY].any()
    for way in (between, "kahan"):
        optimizer.param_groups[0].update(rounding=way, lr=0.0)
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        assert not p.any()
        assert (KEY in optimizer.state[p]) is (way == "kahan")


def test_rounding_is_for_bfloat16() -> None:
    p = torch.nn.Parameter(torch.zeros(10))
    with pytest.raises(ValueError, match="rounding is for parameters in bfloat16"):
        compiled("AdamW", "eager")([p], rounding="kahan")
    with pytest.raises(ValueError, match="rounding must be one of 'stochastic', 'kahan'"):
        compiled("AdamW", "eager")([p.bfloat16()], rounding="up")


# Checkpoints --------------------------------------------------------------------------------------------------


def saved(optimizer: Any) -> dict[str, Any]:
    """Return what becomes of a state dict in a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


@pytest.mark.parametrize("backend", ["eager", "cpp"])
@pytest.mark.parametrize("rule", ["AdamW", "Lion", "AdEMAMix"])
def test_resumed_is_the_same_to_the_bit(rule: str, backend: str) -> None:
    resumed_after_three_steps(rule, backend, "8bit")


@pytest.mark.parametrize("block", [64, 1024])
def test_resumed_with_rows_shorter_than_blocks(block: int) -> None:
    # The shapes do not tell the block size of rows shorter than a block. Encoding the codes again would draw again.
    resumed_after_three_steps("AdamW", "eager", {"exp_avg_sq": f"log8(block={block})"})


def resumed_after_three_steps(rule: str, backend: str, store: Any) -> None:
    whole, params = made(rule, backend, store)
    step(whole, params, range(3))
    middle = saved(whole)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = compiled(rule, backend)(others, lr=0.01, store=store)
    resumed.load_state_dict(middle)
    step(whole, params, range(3, 6))
    step(resumed, others, range(3, 6))
    assert_same_states(whole, resumed, params, others)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("before", ["8bit", "bf16", None, {"exp_avg": "int8"}], ids=str)
@pytest.mark.parametrize("after", ["8bit", "bf16", None, {"exp_avg": "int8"}], ids=str)
def test_checkpoints_are_converted(before: Any, after: Any) -> None:
    one, params = made("AdamW", "cpp", before)
    step(one, params, range(3))
    other = compiled("AdamW", "cpp")(params, lr=0.01, store=after)
    other.load_state_dict(saved(one))
    kept = {p: copy.deepcopy(one.state_dict(full=True)["state"][i]) for i, p in enumerate(params)}
    for p in params:
        p.grad = torch.zeros_like(p)
    other.step()
    assert other.param_groups[0].get("store") == after
    full = other.state_dict(full=True)["state"]
    for i, p in enumerate(params):
        wanted = other.state[p]["exp_avg"].dtype
        asked = {"8bit": torch.float8_e4m3fn, "bf16": torch.bfloat16, None: torch.float32}
        if is_large(p.shape) or after == "bf16":
            assert wanted == (torch.int8 if isinstance(after, dict) else asked[after])
        moved = full[i]["exp_avg"].float()
        expected = 0.9 * kept[p]["exp_avg"].float()  # gradients of 0 leave that much of it
        assert float((moved - expected).abs().max()) <= float(expected.abs().max()) / 12


@pytest.mark.parametrize("store", ["8bit", None])
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_codes_without_scales_are_refused(key: str, store: str | None) -> None:
    p = torch.nn.Parameter(torch.ones(100, 100))
    optimizer = compiled("AdamW", "eager")([p], store="8bit")
    step(optimizer, [p], range(2))
    saved = optimizer.state_dict()
    del saved["state"][0][key + SCALE]
    other = compiled("AdamW", "eager")([p], store=store)
    other.load_state_dict(saved)
    with pytest.raises(ValueError, match=rf"state '{key}' is in codes of torch\.\w+, but '{key}\.scale' is missing"):
        step(other, [p], range(1))


def test_torch_loads_a_full_state_dict() -> None:
    optimizer, params = made("AdamW", "cpp", "8bit")
    step(optimizer, params, range(3))
    full = optimizer.state_dict(full=True)
    assert not any(key.endswith(SCALE) for held in full["state"].values() for key in held)
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(full)
    theirs.step()
    back = compiled("AdamW", "cpp")(params, lr=0.01, store="8bit")
    back.load_state_dict(theirs.state_dict())
    step(back, params, range(1))
    assert back.state[params[0]]["exp_avg"].dtype == torch.float8_e4m3fn


def test_a_checkpoint_takes_as_little() -> None:
    p = torch.nn.Parameter(torch.zeros(1024, 1024))
    p.grad = torch.ones_like(p)
    optimizer = compiled("Adam", "cpp")([p], store="8bit")
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert len(file.getvalue()) / p.numel() < 2.05


# Safety -------------------------------------------------------------------------------------------------------

SCALES = {
    "equal": lambda n, g: torch.ones(n),
    "lognormal 1": lambda n, g: torch.exp(torch.randn(n, generator=g)),
    "lognormal 2": lambda n, g: torch.exp(2 * torch.randn(n, generator=g)),
    "one in 32": lambda n, g: torch.where(torch.arange(n) % 32 == 0, 1000.0, 1.0),
}


def largest_update(rule: str, store: str | None, scales: str, steps: int = 100) -> tuple[float, float]:
    """Return the largest update of an element in units of the step size, and the mean displacement."""
    generator = torch.Generator().manual_seed(1)
    n, lr = 8192, 1e-3
    size = SCALES[scales](n, generator) * 1e-3
    p = torch.nn.Parameter(torch.zeros(1, n))  # a row, as vectors stay in float32
    optimizer = compiled(rule, "cpp")([p], lr=lr, weight_decay=0.0, store=store)
    largest = 0.0
    for _ in range(steps):
        p.grad = (size * (0.3 + torch.randn(n, generator=generator))).view_as(p)
        before = p.detach().clone()
        optimizer.step()
        largest = max(largest, float((p.detach() - before).abs().max()) / lr)
    return largest, float(p.detach().mean())


@pytest.mark.parametrize("scales", list(SCALES))
@pytest.mark.parametrize("rule", ["Adam", "AdamW", "Adan", "AdEMAMix", "LAMB"])
def test_no_step_is_much_longer_than_in_float32(rule: str, scales: str) -> None:
    largest, displaced = largest_update(rule, "8bit", scales)
    usual, expected = largest_update(rule, None, scales)
    assert largest <= 1.5 * usual
    assert abs(displaced / expected - 1) <= 0.03
