"""Kernels of our own in C++."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import ADAMW, difference, optimizer_class, parameter, same_with_any_threads, twins

import optlang
from optlang.backends import cpp, inductor
from optlang.backends.loading import library, plain, toolchain
from optlang.backends.loading.signature import Signature
from optlang.codegen.cpp_writer import OWN
from optlang.compiler import example_variant
from optlang.functions.table import BUILTINS, ELEMENTWISE, TYPES
from optlang.runtime.kernels import compiled_count

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler"),
]

#: Reductions in two sweeps, numbers of a tensor that depend on them, conditions.
SWEEPS = """
optimizer Sweeps
hyper lr = 0.1 >= 0
state size: scalar = 1
state count: scalar = 0
state m

m = 0.5*m + g/(norm(g) + 1)
size = max(0.5*size, max(abs(m)))
count += 1 if size > 0.6 else 0
far = mean(m) < 0 and not isfinite(size)
p -= lr*m/size if not far else 0
p -= lr*min(p, m)*count
"""

#: Every function of elements, where it is smooth.
FUNCTION = {
    "pow": "(abs(g) + 0.1)^(0.3 + abs(p))",
    "mod": "mod(p, 0.7) + mod(p, -0.7)",
    "where": "where(g > 0, p, g)",
    "max": "max(p, g, 0.1)",
    "min": "min(p, g, 0.1)",
    "isfinite": "p if isfinite(g/(g - g)) else g",
    "nan_to_num": "nan_to_num((p - p)/(p - p)) + nan_to_num(g)",
    "sqrt": "sqrt(abs(g))",
    "log": "log(abs(g))",
    "log1p": "log1p(abs(g))",
    "f32": "f32(g)",
    "bf16": "bf16(g)",
}


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a folder with blanks and odd characters in its name."""
    place = tmp_path / 'it\'s a "cache" $HOME;é'
    monkeypatch.setenv("OPTLANG_CACHE", str(place))
    return place


def origins(cls: Any) -> list[str]:
    return [kernel.origin for kernel in cls._parts.parts[0].kernels.loaded.values()]


def stepped(rule: str, *params: torch.Tensor, steps: int = 3, **values: Any) -> tuple[Any, Any, Any, Any]:
    """Return parameters and optimizers after some steps, of C++ kernels and of torch's operations."""
    ours, theirs = twins(*params)
    optimizer = optimizer_class(rule, backend="cpp")(ours, **values)
    reference = optimizer_class(rule)(theirs, **values)
    for _ in range(steps):
        optimizer.step()
        reference.step()
    assert all(kernel.at for kernel in type(optimizer)._parts.parts[0].kernels.loaded.values())  # type: ignore[attr-defined]
    return ours, theirs, optimizer, reference


def test_one_kernel_serves_all_sizes_and_is_kept(kernels: Path) -> None:
    shapes = [(), (1,), (0,), (3,), (1, 7), (64, 33), (2, 3, 4, 5), (70000,)]
    ours, theirs, optimizer, _ = stepped(ADAMW, *(parameter(*s, seed=i) for i, s in enumerate(shapes)), lr=0.1)
    assert difference(ours, theirs) < 1e-13
    assert compiled_count(type(optimizer)) == 1
    assert len(list(kernels.glob("AdamW-*.so"))) == 1


def test_found_again_and_a_damaged_library_is_built_anew(kernels: Path) -> None:
    def used(expected: str) -> None:
        cls = optlang.compile("p -= lr*g", name=f"Again{expected.title()}", backend="cpp")
        p = parameter(5)
        right = p.detach() - 0.5 * p.grad
        cls([p], lr=0.5).step()
        assert torch.equal(p, right)
        assert origins(cls) == [expected]

    used("built")
    (built,) = kernels.glob("AgainBuilt-*.so")
    content = built.read_bytes()
    kernel = example_variant(optlang.compile("p -= lr*g", name="AgainBuilt", backend="cpp")._compiled).kernel  # type: ignore[attr-defined]
    assert kernel is not None
    signature = Signature(("float64",) * 2, ((0,),) * 2, "cpu", 1)
    assert library.load(kernel, signature) is not None
    built.unlink()  # it is mapped into this process
    built.write_bytes(content[:1000])
    built.chmod(0o700)
    assert library.load(kernel, signature) is None
    assert library.build(kernel, signature).origin == "built"
    assert library.load(kernel, signature) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [ADAMW, SWEEPS])
def test_types(rule: str, dtype: torch.dtype) -> None:
    ours, theirs, optimizer, reference = stepped(
        rule, parameter(3, 50, dtype=dtype), parameter(7, dtype=dtype, seed=1), lr=0.1
    )
    limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    assert difference(ours, theirs) < limit
    for p, q in zip(ours, theirs, strict=True):
        for key, value in reference.state[q].items():
            assert optimizer.state[p][key].dtype is value.dtype
            assert torch.allclose(optimizer.state[p][key].double(), value.double(), rtol=10 * limit, atol=limit)


def test_memory_formats_and_complex_numbers() -> None:
    starts = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6)[:, ::2],
        torch.randn(3, 4).t(),
        torch.randn(3, 2, dtype=torch.complex64),
    ]
    params = [torch.nn.Parameter(s) for s in starts]
    for p in params:
        p.grad = torch.randn_like(p)
    ours, theirs, *_ = stepped(ADAMW, *params, lr=0.1)
    assert max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-6


def test_sums_do_not_depend_on_the_threads() -> None:
    def run() -> list[torch.nn.Parameter]:
        starts = parameter(300, 1001, dtype=torch.float32), parameter(40_000, dtype=torch.float32)
        ours, theirs, *_ = stepped(SWEEPS, *starts)
        assert difference(ours, theirs) < 1e-5
        return list(ours)

    assert same_with_any_threads(run)


def test_what_is_not_a_number_stays_so() -> None:
    p = parameter(40)
    assert p.grad is not None
    p.grad[3], p.grad[5] = float("nan"), float("inf")
    for rule in (
        "p -= lr*max(g, 0)",
        "p -= lr*min(g, 0)",
        "p -= lr*sign(g)",
        "p -= lr*g/max(abs(g))",
        "p -= lr*clamp(g, -1, 1)",
    ):
        ours, theirs, *_ = stepped(rule, p, steps=1, lr=0.5)
        assert torch.equal(ours[0].isnan(), theirs[0].isnan())
        assert torch.allclose(ours[0], theirs[0], rtol=1e-12, equal_nan=True)


def test_every_function_of_elements() -> None:
    names = sorted(
        name
        for name, row in BUILTINS.items()
        if row.definition is None and (row.group in (ELEMENTWISE, TYPES) or name in FUNCTION)
    )
    formulas = [FUNCTION.get(name, f"{name}(g)") for name in names]
    states = "".join(f"state s{i} as s{i}\n" for i in range(len(names)))
    body = "".join(f"s{i} = {formula}\n" for i, formula in enumerate(formulas))
    rule = f"optimizer Functions\nhyper lr = 0.1\n{states}\n{body}p -= lr*g\n"
    _, (q,), optimizer, reference = stepped(rule, parameter(500), steps=1)
    (p,) = optimizer.state
    for i, name in enumerate(names):
        assert torch.allclose(optimizer.state[p][f"s{i}"], reference.state[q][f"s{i}"], rtol=1e-12, atol=1e-13), name


def test_which_functions_have_no_spelling() -> None:
    elementwise = {
        name
        for name, row in BUILTINS.items()
        if row.definition is None and row.group == ELEMENTWISE and row.cpp is None
    }
    assert elementwise - OWN == set()


def test_names_and_comments_that_mean_something_in_cpp() -> None:
    rule = (
        "optimizer Hostile\nhyper lr = 0.1, double = 0.5, β = 0.25\nstate new, int, real, at_0, v_m, row\n\n"
        "new = double*new + g  # ends in a backslash \\\n"
        "int = β*int + g  # */ #include <nothing> ??/\n"
        "real = new + int\nat_0 = real\nv_m = at_0 + 1\nrow = v_m\n"
        "p -= lr*(new + int + row)\n"
    )
    ours, theirs, *_ = stepped(rule, parameter(20))
    assert difference(ours, theirs) < 1e-13


def test_what_has_no_kernel_of_this_kind_says_so() -> None:
    variant = example_variant(optlang.compile("muon")._compiled)  # type: ignore[attr-defined]
    kernels = variant.schedule.kernels
    assert [cpp.accepts(kernel, "cpu") for kernel in kernels] == [not kernel.matrices for kernel in kernels]
    assert not any(cpp.accepts(kernel, "cuda") for kernel in kernels)
    assert variant.cpp_text().count("Not in C++") == sum(kernel.matrices for kernel in kernels) == 1


def test_a_compiler_that_fails_is_said_and_the_next_way_taken(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the C++ compiler failed")

    monkeypatch.setattr(library, "compiled", broken)
    monkeypatch.setattr(inductor, "load", plain.load)
    p, q = parameter(3), parameter(3)
    with pytest.warns(RuntimeWarning, match="could not be compiled to C\\+\\+; TorchInductor is used"):
        optimizer_class(ADAMW, backend="cpp", name="Unlucky")([p], lr=0.1).step()
    optimizer_class(ADAMW)([q], lr=0.1).step()
    assert torch.equal(p, q)


def test_the_text_is_the_same_in_every_process() -> None:
    """Otherwise kernels that have been compiled would not be found."""
    code = "import optlang; print(*(optlang.emit(name, 'cpp') for name in ('LBFGS', 'LDoG', 'RACS')))"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert texts[0] and len(set(texts)) == 1


WARM = """
import sys, warnings
warnings.simplefilter("error")
import torch
import optlang
cls = optlang.compile("adamw", name="Warm", backend="cpp")
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
cls([p]).step()
assert [k.origin for k in cls._parts.parts[0].kernels.loaded.values()] == ["cached"]
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_a_warm_start_imports_no_compiler(kernels: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer_class(ADAMW, backend="cpp", name="Warm")([parameter(3, dtype=torch.float32)]).step()
    environment = {**os.environ, "OPTLANG_CACHE": str(kernels)}
    result = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.thorough
def test_the_next_process_needs_no_compiler_of_ours(tmp_path: Path) -> None:
    code = """
import sys, torch, optlang
cls = optlang.compile("adamw")
p = torch.nn.Parameter(torch.ones(8))
p.grad = torch.ones(8)
optimizer = cls([p])
if sys.argv[1] == "warm":
    optimizer.warmup()
else:
    optimizer.step()
print(p.sum().item(), [name in sys.modules for name in ("sympy", "torch._inductor", "torch._dynamo")])
"""
    environment = dict(os.environ, OPTLANG_CACHE=str(tmp_path))
    printed = [
        subprocess.run(
            [sys.executable, "-c", code, word], env=environment, capture_output=True, text=True, check=True
        ).stdout.split(" ", 1)
        for word in ("warm", "step", "step")
    ]
    assert printed[0][0] == "8.0"
    assert printed[1] == printed[2] and float(printed[1][0]) < 8
    assert printed[1][1].strip() == "[False, False, False]"
    for variant in tmp_path.glob("*.variant"):  # damaged files are rebuilt
        variant.write_bytes(variant.read_bytes()[:-1])
    again = subprocess.run([sys.executable, "-c", code, "step"], env=environment, capture_output=True, text=True)
    assert again.stdout.split(" ", 1)[0] == printed[1][0]
    assert "[True, False, False]" in again.stdout
