"""Compiled kernels: ahead of time and just in time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import ADAMW, against, difference, optimizer_class, parameter, twins

from optlang.backends.loading import cache, shell, toolchain
from optlang.runtime.kernels import compiled_count

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler"),
]

#: A rule with reductions over dimensions and over the whole tensor, and a number on the device.
ROWS = """
optimizer Rows
hyper lr = 0.1 >= 0
state r = 0*mean(g, dim=-1) when ndim > 1
state size: scalar = 1
state m

m = 0.5*m + g
size = 0.5*size + norm(g)
if ndim > 1:
    r = 0.5*r + mean(g^2, dim=-1)
    p -= lr*m/(sqrt(r) + 1)/size
else:
    p -= lr*m/size
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the kernels of these tests in a folder of their own."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTLANG_CACHE", str(folder))
        yield folder


def origins(cls: Any) -> list[str]:
    return [kernel.origin for kernel in cls._parts.parts[0].kernels.loaded.values()]


def test_ahead_of_time_one_kernel_serves_all_sizes(kernels: Path) -> None:
    cls = optimizer_class(ADAMW, backend="inductor", name="Ahead")
    shapes = [(), (1,), (0,), (3,), (1, 7), (64, 33), (2, 3, 4, 5), (70000,)]
    ours, theirs = twins(*(parameter(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)))
    optimizer, reference = cls(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for lr in (0.1, 0.0, 0.5):
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] = lr
            o.step()
    for o, extra in ((optimizer, ours[5:6]), (reference, theirs[5:6])):
        for p in extra:
            p.grad = None
        o.param_groups[0]["betas"] = (0.5, 0.5)
        o.step()
    assert difference(ours, theirs) < 2e-6
    assert compiled_count(cls) == 1
    assert origins(cls) == ["built"]
    assert len(list(kernels.glob("Ahead-*.so"))) == 1


@pytest.mark.thorough
def test_a_library_is_found_again_and_a_damaged_one_is_rebuilt(kernels: Path) -> None:
    def used(name: str) -> Any:
        cls = optimizer_class("p -= lr*g", backend="inductor", name=name)
        p = parameter(5, dtype=torch.float32)
        expected = p.detach() - 0.5 * p.grad
        cls([p], lr=0.5).step()
        assert torch.allclose(p, expected)
        return cls

    first = used("Again")
    assert origins(first) == ["built"]
    (library,) = kernels.glob("Again-*.so")
    second = type(first)(first.__name__, (first,), {})
    second._parts = type(first._parts).of(first._compiled, "inductor", None)
    p = parameter(5, dtype=torch.float32)
    second([p], lr=0.5).step()
    assert origins(second) == ["cached"]
    content = library.read_bytes()
    library.unlink()  # it is mapped into this process
    library.write_bytes(content[:1000])
    library.chmod(0o700)
    second._parts = type(first._parts).of(first._compiled, "inductor", None)
    second([p], lr=0.5).step()
    assert origins(second) == ["built"]
    assert cache.read(library.name) is not None


@pytest.mark.parametrize("ahead_of_time", [True, False])
def test_reductions_over_dimensions(kernels: Path, ahead_of_time: bool) -> None:
    shapes = [(), (5,), (3, 4), (1, 6), (6, 1), (2, 3, 4), (2, 1, 3, 4)]
    ours, theirs = twins(*(parameter(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)))
    cls = optimizer_class(ROWS, backend="inductor", ahead_of_time=ahead_of_time)
    optimizer, reference = cls(ours), optimizer_class(ROWS)(theirs)
    for _ in range(3):
        optimizer.step()
        reference.step()
    assert difference(ours, theirs) < 1e-6
    for p, q in zip(ours, theirs, strict=True):
        for key in reference.state[q]:
            assert torch.allclose(optimizer.state[p][key], reference.state[q][key], rtol=1e-5)
            assert optimizer.state[p][key].shape == reference.state[q][key].shape
    assert compiled_count(cls) == 2


@pytest.mark.parametrize(("ahead_of_time", "shape"), [(True, (300, 1001)), (False, (3, 4))])
def test_compiled_with_one_thread_and_run_with_two(kernels: Path, ahead_of_time: bool, shape: tuple[int, ...]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ours, theirs = twins(parameter(*shape, dtype=torch.float32), parameter(30_000, dtype=torch.float32))
            cls = optimizer_class(ROWS, backend="inductor", ahead_of_time=ahead_of_time)
            optimizer, reference = cls(ours), optimizer_class(ROWS)(theirs)
            for _ in range(3):
                optimizer.step()
                reference.step()
            for p, q in zip(ours, theirs, strict=True):  # a state that every thread updates is updated too often
                assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)
                for key in reference.state[q]:
                    assert torch.allclose(optimizer.state[p][key], reference.state[q][key], rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(kernels: Path, dtype: torch.dtype) -> None:
    ours, theirs = twins(parameter(3, 50, dtype=dtype), parameter(7, dtype=dtype, seed=1))
    cls = optimizer_class(ADAMW, backend="inductor", name="Typed")
    optimizer, reference = cls(ours, lr=0.1), optimizer_class(ADAMW)(theirs, lr=0.1)
    for _ in range(3):
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-14, atol=1e-14)  # 16-bit storage rounds where eager does


def test_memory_formats_and_complex_numbers(kernels: Path) -> None:
    torch.manual_seed(0)
    starts = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6)[:, ::2],
        torch.randn(3, 4).t(),
        torch.randn(3, 2, dtype=torch.complex64),
    ]
    ours, theirs = [torch.nn.Parameter(s) for s in starts], [torch.nn.Parameter(s.clone()) for s in starts]
    cls = optimizer_class(ADAMW, backend="inductor", name="Ahead")
    optimizer, reference = cls(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.contiguous()
        optimizer.step()
        reference.step()
    assert difference(ours, theirs) < 2e-6
    assert compiled_count(cls) == 1


def test_small_tensors_side_by_side_and_shared_memory_one_after_the_other(kernels: Path) -> None:
    shapes = [(500 + i,) for i in range(150)] + [(40000,), (0,), (3, 700)]
    ours, theirs = twins(*(parameter(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)))
    for parameters in (ours, theirs):
        shared = torch.nn.Parameter(parameters[3].data[10:])
        shared.grad = torch.ones_like(shared)
        parameters.append(shared)
    cls = optimizer_class(ADAMW, backend="inductor", name="Ahead")
    optimizer, reference = cls(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(4):
        for parameters in (ours, theirs):
            parameters[7].requires_grad_(step != 2)
            parameters[7].grad = None if step == 2 else torch.ones_like(parameters[7])
        optimizer.step()
        reference.step()
    assert difference(ours, theirs) < 1e-5
    assert all(float(optimizer.state[p]["step"]) == (3 if p is ours[7] else 4) for p in ours)
    assert compiled_count(cls) == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_inductors_own_container_serves_where_the_light_shell_does_not(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> str:
        raise shell.Unsuitable("anything")

    monkeypatch.setattr(shell, "assemble", refuse)
    ours, theirs = twins(parameter(3, 5, dtype=torch.float32), parameter(4, dtype=torch.float32, seed=1))
    cls = optimizer_class(ADAMW, backend="inductor", name="Full")
    optimizer, reference = cls(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    with pytest.warns(RuntimeWarning, match=r"Full is compiled into Inductor's own container.*Unsuitable: anything"):
        optimizer.step()
    reference.step()
    optimizer.step()
    reference.step()
    assert difference(ours, theirs) < 1e-6
    assert origins(cls) == ["built"]
    assert [path.name.endswith("-full.so") for path in kernels.glob("Full-*.so")] == [True]
    again = type(cls)(cls.__name__, (cls,), {})
    again._parts = type(cls._parts).of(cls._compiled, "inductor", None)
    (log,) = kernels.glob("Full-*.log")
    with pytest.warns(RuntimeWarning, match=f"own container.*more in {log}"):  # as any later process would say
        again([parameter(3, dtype=torch.float32)]).step()
    assert origins(again) == ["cached"]


def test_the_light_shell_suits_all_of_the_above(kernels: Path) -> None:
    full = [path.name for path in kernels.glob("*-full.so") if not path.name.startswith("Full-")]
    assert full == []


def test_autograd_notices(kernels: Path) -> None:
    p = parameter(3, dtype=torch.float32)
    loss = (p * p).sum()
    optimizer_class(ADAMW, backend="inductor", name="Ahead")([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_just_in_time_compiles_once(kernels: Path) -> None:
    counters = torch._dynamo.utils.counters
    counters.clear()
    cls = optimizer_class(ADAMW, backend="inductor", ahead_of_time=False, name="Jit")
    shapes = [(8,), (16, 3), (), (1,), (0,), (5,), (2, 3, 4)]
    ours, theirs = twins(*(parameter(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)))
    optimizer, reference = cls(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for lr in (0.1, 0.0, 0.5):
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] = lr
            o.step()
    assert difference(ours, theirs) < 2e-6
    assert origins(cls) == ["jit"]
    assert counters["stats"]["unique_graphs"] == 1


def test_a_long_compile_is_announced(
    kernels: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optlang.runtime import progress

    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.delenv("OPTLANG_QUIET", raising=False)
    with caplog.at_level(logging.WARNING, logger="optlang"):
        optimizer_class("p -= 2*lr*g", backend="inductor", name="Slow")(
            [parameter(3, dtype=torch.float32)], lr=0.1
        ).step()
    assert caplog.messages[0] == f"compiling Slow for float32 on cpu; once, then kept in {kernels}"
    assert caplog.messages[1].startswith("compiled Slow for float32 on cpu in ")
    caplog.clear()
    monkeypatch.setenv("OPTLANG_QUIET", "1")
    with caplog.at_level(logging.WARNING, logger="optlang"):
        optimizer_class("p -= 3*lr*g", backend="inductor", name="Slow", ahead_of_time=False)(
            [parameter(3, dtype=torch.float32)], lr=0.1
        ).step()
    assert not caplog.messages


WARM = """
import sys, warnings
warnings.simplefilter("error")
import torch
import optlang
cls = optlang.compile("adamw", name="Ahead", backend=sys.argv[1])
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
cls([p]).step()
assert [k.origin for k in cls._parts.parts[0].kernels.loaded.values()] == ["cached"]
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


@pytest.mark.parametrize("backend", ["inductor", "cpp"])
def test_a_warm_start_imports_no_compiler(kernels: Path, backend: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer_class(ADAMW, backend=backend, name="Ahead")([parameter(3, dtype=torch.float32)]).step()
    environment = {**os.environ, "OPTLANG_CACHE": str(kernels)}
    result = subprocess.run([sys.executable, "-c", WARM, backend], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_both_ways_agree_with_torch_in_float64(kernels: Path) -> None:
    for ahead_of_time in (True, False):
        cls = optimizer_class(ADAMW, backend="inductor", name="Typed", ahead_of_time=ahead_of_time)
        assert against(cls, torch.optim.AdamW) < 1e-14


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
    for variant in tmp_path.glob("*.variant"):  # what is not sound is made anew
        variant.write_bytes(variant.read_bytes()[:-1])
    again = subprocess.run([sys.executable, "-c", code, "step"], env=environment, capture_output=True, text=True)
    assert again.stdout.split(" ", 1)[0] == printed[1][0]
    assert "[True, False, False]" in again.stdout
