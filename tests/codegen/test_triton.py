"""The Triton kernel for many parameters: its text, its tables, its steps in the interpreter, and its machine code.

The last two need Triton, but no GPU.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimizing import optimizer_class

import optlang
from optlang.artifact import Kernel, Variant
from optlang.backends import triton
from optlang.backends.loading import jit, launch, registry
from optlang.backends.loading.launch import BLOCK, CHUNK, KEPT, AddressTable, Launch
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.codegen import triton_source
from optlang.compiler import example_variant
from optlang.storage.blocks import Blocks
from optlang.storage.fp8 import Fp8
from optlang.storage.log8 import Log8
from optlang.storage.named import CODES
from optlang.storage.parameters import WAYS

CPU = torch.device("cpu")

#: Triton's interpreter has none of the functions of libdevice.
NOT_INTERPRETED = {"MADGRAD", "Adai"}

#: A rule with every function of the table that takes elements, and names that the kernel has a use for.
FUNCTIONS = """
tl = sin(g) + cos(g) + tanh(g) + atan(g) + erf(g) + exp(g) + expm1(g) + log(abs(p)) + log1p(abs(g)) + sigmoid(g)
tl += asinh(g) + erfc(g)
chunk = round(g) + floor(p) + nan_to_num(g) + sqrt(abs(g)) + abs(p)^0.3 + p % 3 + p^5 + bf16(p) + f32(g)
element = chunk if isfinite(tl) and not (p > 1 or g < 0) else min(tl, 2, -inf)
p -= 0.1*sign(element)/(1 + p^2)
"""
NAMES = """
tl = p + 0.1*g
start = max(tl, -1)/3
chunk = 0.25 if start > 0.1 and p < 2 else 0.1
element = 0.9*element + chunk*start
whole = 0.5*whole + sign(element)*(p > 0.3) + 0.1*floor(3*g)
place = nan_to_num(min(p/(g > 0.5), 1/(abs(g) < 2)))/1e30
row = 1 if isfinite(sqrt(g)) or not isfinite(max(sqrt(p), 1)) else -2
p -= 0.01*element*abs(whole) + row/(3 + p^4) + 0.1*sign(place)
"""

#: Every reduction, numbers that a tensor keeps, formulas of numbers, and a sum that waits for another.
REDUCTIONS = """
state longest: scalar = 0.5
state seen: scalar
sums = sum(g)
longest = max(max(g), 0.9*longest) - min(p*g)
p_1 = mean(p^2 + sums/(1 + sums^2))
finish_1 = norm(p - p_1)/(1 + longest)
seen += finish_1
p -= 0.01*g/(1 + abs(finish_1)) + 0.001*longest*sign(p)/(1 + seen)
"""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
#: Triton 3.6 turns arrays of one number into numbers, which NumPy no longer does.
needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
    reason="Triton's interpreter is not there, or does not work with this NumPy",
)


@cache
def variant_of(rule: str) -> Variant:
    return example_variant(optimizer_class(rule)._compiled)


def text_of(rule: str) -> str:
    """Return the Triton module of a rule whose step is one kernel."""
    (kernel,) = kernels_of(rule)
    return kernel.text("triton_source")


def elementwise() -> list[str]:
    """Return the elementwise rules of the library; one that routes has nothing to run itself."""
    found = {name: variant_of(name) for name in optlang.rules.names()}
    return [name for name, variant in found.items() if variant.elementwise and variant.written]


def kernels_of(rule: str) -> tuple[Kernel, ...]:
    """Return everything that a step of a rule runs."""
    return variant_of(rule).schedule.kernels


def reducing() -> list[str]:
    """Return the rules of the library that Triton runs whole, and that reduce or keep numbers of tensors."""
    found = {name: kernels_of(name) for name in optlang.rules.names()}
    found = {name: made for name, made in found.items() if all(kernel.text("triton_source") for kernel in made)}
    return [name for name, made in found.items() if not all(kernel.elementwise for kernel in made)]


def check(command: str, rules: list[str], dtypes: tuple[str, ...]) -> dict[tuple[str, str], Any]:
    """Return what triton_check.py finds for each pair of a rule and a type."""
    pairs = [(rule, dtype) for rule in rules for dtype in dtypes]
    return dict(zip(pairs, checked(command, pairs), strict=True))


def checked(command: str, pairs: list[tuple[str, Any]]) -> list[Any]:
    """Return what triton_check.py finds for some pairs of a rule and a type, or formats."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_check.py")), command],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


# Text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "novograd"])
def test_the_kernels_are_as_recorded(name: str, golden: Callable[[Path, str], None]) -> None:
    golden(Path(__file__).with_name(f"{name}_triton.expected"), text_of(name))


def test_kernels_on_codes_are_as_recorded(golden: Callable[[Path, str], None]) -> None:
    (kernel,) = kernels_of("adamw")
    text = triton_source.emit(kernel, [(0, WAYS["bf16+8"]), (2, Fp8()), (3, Log8(64))])
    golden(Path(__file__).with_name("adamw_triton_codes.expected"), text)


def test_every_format_is_in_triton() -> None:
    """Whatever Triton is there: its functions are there under their names, and are Python."""
    for format in (*(kind() for kind in CODES.values()), *WAYS.values()):
        names = {node.name for node in ast.parse(format.triton).body if isinstance(node, ast.FunctionDef)}
        asked = ["decoded", "encoded", *(["scale"] if isinstance(format, Blocks) else [])]
        assert {f"{format.name}_{what}" for what in asked} <= names


def test_what_reduces_along_dimensions_has_no_kernel() -> None:
    assert text_of("adafactor") == ""
    assert all(text_of(name) for name in elementwise())
    assert {"AdamWClip", "Prodigy", "DoG", "DAdaptAdam", "LAMB", "LARS", "NovoGrad"} <= set(reducing())


def test_numbers_of_a_tensor_are_finished_between_sweeps() -> None:
    def launched(kernel: Kernel) -> str:
        return kernel.text("triton_source").splitlines()[-1]

    clip, adam = kernels_of("adamwclip")
    assert launched(clip) == 'LAUNCHES = (("chunks", sweep_1), ("tensors", finish_1))'
    assert launched(adam) == 'LAUNCHES = (("chunks", update),)'
    assert launched(*kernels_of("lamb")).endswith('("tensors", finish_1), ("chunks", sweep_2))')
    assert launched(*kernels_of("novograd")).endswith('("chunks", sweep_2), ("tensors", finish_3))')


def test_elements_are_written_by_the_last_sweep_alone() -> None:
    first, last = text_of("lamb").split("def sweep_1")
    assert "tl.store" not in first.partition("def element_1")[2]
    assert last.partition("def element_2")[2].count("tl.store") == 3


# Tables -----------------------------------------------------------------------------------------------------


def test_every_element_is_in_one_chunk() -> None:
    sizes = [1, CHUNK, CHUNK + 1, 3 * CHUNK - 5]
    table = AddressTable([16 * i for i in range(8)], sizes, [0] * 4, CPU, [0, 1])
    assert table.chunks == 1 + 1 + 2 + 3
    assert table.places.dtype is torch.int32
    assert table.places.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]
    assert table.rows.tolist() == [
        [n, k, 32 * i, 32 * i + 16] for i, (n, k) in enumerate(zip(sizes, [0, 1, 2, 4], strict=True))
    ]


@pytest.mark.parametrize(("addresses", "gradient", "whole"), [((32, 48), 64, 2), ((32, 44), 64, 0), ((32, 48), 68, 0)])
def test_only_whole_blocks_of_aligned_tensors_are_read_in_vectors(
    addresses: tuple[int, int], gradient: int, whole: int
) -> None:
    table = AddressTable(addresses, [2 * BLOCK + 5], [gradient], CPU, [0, 1])
    assert table.gradients.tolist() == [[whole * BLOCK, gradient]]


def test_rows_are_filled_up_to_whole_blocks() -> None:
    columns, sizes = [BLOCK, 200, 5000], [8 * BLOCK, 3000, 5000]
    table = AddressTable([16 * i for i in range(6)], sizes, [0] * 3, CPU, [0, 1], columns, 256)
    extents = [8 * BLOCK, 15 * 256, 5120]
    assert table.rows[:, -2:].tolist() == [list(pair) for pair in zip(columns, extents, strict=True)]
    assert table.gradients[:, 0].tolist() == [8 * BLOCK, 0, 4 * BLOCK]  # a row that begins within a block is no vector
    assert table.chunks == sum(-(-extent // CHUNK) for extent in extents)


def launcher() -> Launch:
    signature = Signature(("float32",) * 3, ((0,),) * 3, "cpu", 1)

    class Types:
        float32 = "fp32"

    return Launch({"LAUNCHES": (), "SUMS": 0, "tl": Types}, signature)


def test_numbers_of_a_tensor_need_not_be_aligned() -> None:
    table = AddressTable((32, 20, 48), [BLOCK], [64], CPU, [0, 2])
    assert table.gradients.tolist() == [[BLOCK, 64]]
    signature = Signature(("float32",) * 4, ((0,),) * 4, "cpu", 1)

    class Types:
        float32 = "fp32"

    assert Launch({"LAUNCHES": (), "SUMS": 0, "tl": Types}, signature, [2]).wide == [0, 2]


def test_a_table_is_kept_and_takes_new_gradients() -> None:
    launched = launcher()
    p, m, g, h = (torch.zeros(10) for _ in range(4))
    q, n, i = (torch.zeros(20) for _ in range(3))
    table = launched.table([p, g, m, q, i, n])
    rows = table.rows.data_ptr()
    assert table.rows.tolist() == [[10, 0, p.data_ptr(), m.data_ptr()], [20, 1, q.data_ptr(), n.data_ptr()]]
    again = launched.table([p, h, m, q, i, n])
    assert again is table
    assert table.rows.data_ptr() == rows
    assert table.gradients[:, 1].tolist() == [h.data_ptr(), i.data_ptr()]
    assert launched.table([p, g, m]) is not table
    assert launched.table([p[:5], g, m]) is not launched.table([p, g, m])


def test_tables_that_were_not_used_for_long_are_forgotten() -> None:
    launched = launcher()
    p, g, m = (torch.zeros(2 * KEPT) for _ in range(3))
    often = launched.table([p, g, m])
    for k in range(1, 2 * KEPT):
        launched.table([p[k:], g[k:], m[k:]])
        assert launched.table([p, g, m]) is often
    assert len(launched.tables) == KEPT


# Which way a kernel is made ---------------------------------------------------------------------------------


def on_cuda(rule: str) -> Signature:
    tensors = variant_of(rule).tensors
    return Signature(("float32",) * len(tensors), ((0,),) * len(tensors), "cuda", 8)


def loaded(rule: str) -> LoadedKernel:
    """Return what is loaded for the one kernel of a rule on CUDA."""
    (kernel,) = kernels_of(rule)
    return registry.loader(registry.find("auto"))(kernel, on_cuda(rule))


def test_what_triton_can_do_goes_to_triton_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    made = LoadedKernel(print, "triton", many=True)
    monkeypatch.setattr(launch, "load", lambda kernel, signature: made)
    assert loaded("adamw") is made
    assert loaded("lamb") is made
    assert loaded("adafactor").origin == "jit"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert loaded("adamw").origin == "jit"


def test_what_triton_cannot_compile_goes_to_torch_compile_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kernel: Kernel, signature: Signature) -> LoadedKernel:
        raise RuntimeError("no ptxas\nmore of it")

    monkeypatch.setattr(triton, "accepts", lambda kernel, device: True)
    monkeypatch.setattr(launch, "load", refuse)
    monkeypatch.setattr(jit, "load", lambda kernel, signature: LoadedKernel(print, "jit"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert loaded("adamw").origin == "jit"
    (warning,) = seen
    assert str(warning.message).startswith(
        "Triton could not compile AdamW; torch.compile is used: RuntimeError: no ptxas"
    )


# Steps and machine code -------------------------------------------------------------------------------------


@needs_interpreter
@pytest.mark.parametrize("which", ["elementwise", "reducing"])
def test_steps_in_the_interpreter_are_those_of_the_eager_backend(which: str) -> None:
    """Many tensors, empty and odd sizes, no dimensions, many chunks, unaligned ones, and one without a gradient.

    The interpreter cuts to bfloat16 where a GPU rounds, so that rounding points are compared in float16.
    """
    rules = [*elementwise(), NAMES] if which == "elementwise" else [*reducing(), REDUCTIONS]
    limits = {"float32": (1e-6, 1.0), "float64": (1e-14, 1e-9), "float16": (1e-4, 1.0)}
    found = check("steps", [name for name in rules if name not in NOT_INTERPRETED], tuple(limits))
    far = {
        pair: errors
        for pair, errors in found.items()
        if not all(error <= limit for error, limit in zip(errors, limits[pair[1]], strict=True))
    }
    assert far == {}


#: Rules that call functions which Triton itself fuses or approximates: libdevice's, and the exponential.
OWN_STEPS = (FUNCTIONS, "ExponentiatedGradient")


#: Steps whose products are exact, so that codes are equal to the bit; and one with a reduction between two sweeps.
EXACT = """
hyper lr = 0.5
state m, v
m = 0.5*m + g
v = 0.5*v + abs(g)
p -= lr*m
"""
SWEPT = EXACT.replace("p -= lr*m", "p -= lr*m*(0.5 if max(abs(m)) > 8 else 1)")
STAGED = EXACT.replace("p -=", "n = total(max(v))\np -=").replace("lr*m", "lr*m*(0.5 if n > 8 else 1)")
#: Each format once. None is rounded to bfloat16 as torch does it, which the interpreter does not.
FORMATS = [
    (EXACT, {"store": {"m": "fp8(least=1)", "v": "log8(least=1)"}}),
    (EXACT, {"store": {"m": "int8(block=64, least=1)", "v": "sqrt8(least=1)"}}),
    (SWEPT, {"store": {"m": "softsign8(least=1)", "v": "log8(block=1024, least=1)"}}),
    (STAGED, {"store": {"m": "fp8(least=1)", "v": "log8(least=1)"}}),
    (EXACT, {"store": {"m": "bf16 stochastic", "v": "fp32"}, "rounding": "bf16+8"}),
    *((EXACT, {"store": {"m": "fp8(least=1)", "v": "fp32"}, "rounding": way}) for way in WAYS if way != "bf16+8"),
]


@needs_interpreter
def test_codes_in_the_interpreter_are_those_of_the_eager_backend() -> None:
    assert checked("codes", FORMATS) == [0] * len(FORMATS)


@needs_triton
@pytest.mark.slow
def test_kernels_on_codes_compile_for_an_h100() -> None:
    pairs = [("AdamW", {"p": way, "m": "fp8", "v": "log8"}) for way in WAYS]
    pairs += [("LAMB", {"m": "int8", "v": "sqrt8"}), ("AdamW", {"m": "softsign8", "v": "log8"})]
    for pair, kernels in zip(pairs, checked("compile", pairs), strict=True):
        for made in kernels:
            assert not made["fused"] and not made["approximate"], pair
            assert max(made["spills"], default=0) <= 160, pair
            if made["name"].startswith(("update", "sweep")):
                assert any(name.startswith("ld.global.v4") for name in made["vectors"]), pair


@needs_triton
@pytest.mark.slow
def test_rules_compile_for_an_h100() -> None:
    rules = [*elementwise(), *reducing(), NAMES, FUNCTIONS, REDUCTIONS]
    found = check("compile", rules, ("float32", "bfloat16", "float64"))
    for (rule, dtype), kernels in found.items():
        wide = "v2.b64" if dtype == "float64" else "v4.b32"
        sweeps = [made for made in kernels if not made["name"].startswith("finish")]
        assert all(f"ld.global.{wide}" in made["vectors"] for made in sweeps), (rule, dtype)
        seen = {name for made in sweeps for name in made["vectors"]}
        assert seen <= {f"ld.global.{wide}", f"st.global.{wide}"}, (rule, dtype)
        assert f"st.global.{wide}" in seen, (rule, dtype)
        for made in kernels:
            if rule not in (*NOT_INTERPRETED, *OWN_STEPS):
                assert not made["fused"], (rule, dtype)
                assert not made["approximate"], rule
                # Many float64 values may need more registers than there are; newer assemblers spill a few bytes (16).
                if dtype != "float64" and rule != REDUCTIONS:
                    assert max(made["spills"], default=0) <= 160, (rule, dtype)
    roundings = found["AdamW", "bfloat16"][0]["roundings"]
    assert roundings and all(name.startswith("cvt.rn.") for name in roundings)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", optlang.rules.names())
def test_steps_on_a_gpu_are_those_of_the_eager_backend(name: str, dtype: torch.dtype) -> None:
    if name not in (*elementwise(), *reducing()):
        pytest.skip("has no kernel")
    results = []
    for backend in ("eager", "triton"):
        made = optlang.compile(name, backend=backend)
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(n).to("cuda", dtype)) for n in (0, 1, 7, 1000, 5000, 200_000)]
        parameters.append(torch.nn.Parameter(torch.randn(3001).to("cuda", dtype)[1:]))
        optimizer = made(parameters)
        for _ in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape).to("cuda", dtype)
            optimizer.step()
        if backend == "triton":
            loaded = [kernel for part in made._parts.parts for kernel in part.kernels.loaded.values()]
            assert {kernel.origin for kernel in loaded} == {"triton"}
        results.append([p.detach().double() for p in parameters])
    limit = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["LAMB", "NovoGrad"])
def test_a_step_of_a_tensor_does_not_depend_on_its_batch(name: str) -> None:
    made, results = optlang.compile(name), []
    for others in (0, 3):
        torch.manual_seed(0)
        p, gradients = torch.nn.Parameter(torch.randn(300_001, device="cuda")), torch.randn(3, 300_001, device="cuda")
        more = [torch.nn.Parameter(torch.randn(40_000 + i, device="cuda")) for i in range(others)]
        optimizer = made([*more, p])
        for g in gradients:
            p.grad = g.clone()
            for other in more:
                other.grad = torch.ones_like(other)
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
