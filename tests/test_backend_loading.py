"""Backends without a compiler: their listing, generated modules, signatures and the cache."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import ADAMW, optimizer_class, parameter

from optlang.backends import inductor
from optlang.backends.loading import registry, shell, toolchain
from optlang.backends.loading.modules import load_module
from optlang.backends.loading.signature import Kernel, Signature


def test_backends_are_the_files_that_load() -> None:
    assert registry.names() == ["auto", "cpp", "eager", "inductor"]
    assert all(module.load for name in registry.names() for module in registry.find(name))
    with pytest.raises(ValueError, match="there is no backend 'loading'"):
        registry.find("loading")


def test_generated_modules_show_their_lines() -> None:
    names = load_module("def update(p):\n    return p / 0\n", "Broken")
    try:
        names["update"](1)
    except ZeroDivisionError as error:
        assert "return p / 0" in "".join(traceback.format_exception(error))
    assert "return p / 0" in inspect.getsource(names["update"])
    assert load_module("x = 1\n", "A")["__name__"] != load_module("x = 2\n", "A")["__name__"]


@pytest.mark.parametrize(
    ("dtypes", "narrow", "coefficients"),
    [
        (("float32", "float32"), False, "float32"),
        (("bfloat16", "bfloat16"), True, "float32"),
        (("float32", "bfloat16"), True, "float32"),
        (("float64", "float64"), False, "float64"),
        (("float64", "bfloat16"), True, "float64"),
    ],
)
def test_signatures(dtypes: tuple[str, ...], narrow: bool, coefficients: str) -> None:
    signature = Signature(dtypes, ((0,), (0,)), "cpu", 1)
    assert signature.narrow is narrow
    assert signature.coefficient_dtype == coefficients


def test_without_a_compiler_rules_run_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert toolchain.compiler() is None
    p, q = parameter(3), parameter(3)
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler was found.*install") as caught:
        optimizer = optimizer_class(ADAMW, backend="inductor", name="Uncompiled")([p])
        optimizer.step()
        optimizer.step()
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    optimizer = optimizer_class(ADAMW)([q])
    optimizer.step()
    optimizer.step()
    assert torch.equal(p, q)


def test_whatever_fails_the_next_best_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(inductor.aot, "load", broken)
    monkeypatch.setattr(inductor.aot, "build", broken)
    monkeypatch.setattr(inductor.jit, "load", broken)
    monkeypatch.setattr(inductor.toolchain, "compiler", lambda: "/usr/bin/c++")
    p = parameter(3)
    with pytest.warns(RuntimeWarning) as caught:
        optimizer_class(ADAMW, backend="inductor", name="Unlucky")([p]).step()
    messages = [str(w.message) for w in caught]
    assert any("ahead of time; torch.compile is used: OSError: disk full" in m for m in messages)
    assert any("runs uncompiled: OSError: disk full" in m for m in messages)


@pytest.mark.parametrize("version", ["2.99.0", "2.1.0", "3.0.0a0+git1234", "2.140.1"])
def test_on_a_torch_that_was_never_tried_nothing_private_is_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def private(*_: Any) -> Any:
        raise AssertionError("not to be called")

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(inductor.aot, "load", private)
    monkeypatch.setattr(inductor.aot, "build", private)
    monkeypatch.setattr(inductor.jit, "load", lambda v, s: Kernel(inductor.plain.load(v, s).run, "jit"))
    monkeypatch.setattr(inductor.toolchain, "compiler", lambda: "/usr/bin/c++")
    p, q = parameter(3), parameter(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        cls = optimizer_class(ADAMW, backend="inductor", name=f"Tomorrow{len(version)}")
        for optimizer in (cls([p]), cls([parameter(2, 3, dtype=torch.float64)])):
            optimizer.step()
            optimizer.step()
    (message,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert f"torch {version}" in message and "torch.compile" in message
    assert {kernel.origin for kernel in cls._parts.parts[0].kernels.loaded.values()} == {"jit"}
    other = optimizer_class(ADAMW)([q])
    other.step()
    other.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.0", "2.14.1+cu130", "2.14.0a0+git1234"])
def test_versions_of_torch_that_were_tried(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert shell.is_tried()


def test_the_shell_leaves_no_handle_that_it_took() -> None:
    """Since 2.14 torch deletes the handles that are left; whatever is taken out of the array has to be exchanged."""
    for text in (shell.WHOLE, shell.SLICED, shell.TAIL):
        taken = [line for line in text.splitlines() if "inputs[" in line and re.search(r"RAII|own\[i\] =", line)]
        assert taken and all("std::exchange(inputs[" in line for line in taken)


def test_the_light_shell_refuses_what_it_does_not_know() -> None:
    with pytest.raises(shell.Unsuitable):
        shell.assemble("int main() {}", "", 4, False)
    known = "using namespace torch::aot_inductor;\nvoid AOTInductorModel::run_impl(\n) {\n%s\n}\n"
    assert "run_impl" in shell.assemble(known % "kernel();", "", 4, False)
    gradient = "auto arg1_1 = std::move(inputs[1]);\nkernel((const float*)(arg1_1.data_ptr()));\n"
    assert "kernel(" in shell.assemble(known % f"{gradient}arg1_1.reset();", "", 4, False)
    for line in (
        "this->constants_[0];",
        "aoti_torch_proxy_executor_call_function(proxy_executor, 1);",
        f"{gradient}auto arg1_1_size = arg1_1.sizes();",
        "other(inputs[1]);",
    ):
        with pytest.raises(shell.Unsuitable):
            shell.assemble(known % line, "", 4, False)


def test_tensors_are_sliced_only_where_a_body_hands_addresses_to_kernels() -> None:
    known = "using namespace torch::aot_inductor;\nvoid AOTInductorModel::run_impl(\n) {\n%s\n}\n"
    inputs = "auto inputs = steal_from_raw_handles_to_raii_handles(input_handles, 5);\n"
    text = shell.assemble(known % f"{inputs}kernel();", "", 4, True)
    assert "auto inputs = parts_of(input_handles);" in text and "steal_from" not in text.partition("run_impl(")[2]
    for line in ("kernel();", f"{inputs}aoti_torch_empty_strided(1);", f"{inputs}#pragma omp parallel"):
        with pytest.raises(shell.Unsuitable):
            shell.assemble(known % line, "", 4, True)


def test_loops_over_one_dimension_prefetch_what_they_read() -> None:
    kernel = """
for(int64_t x0=0; x0<n; x0+=16)
{
    auto tmp0 = Vectorized<float>::loadu(in_ptr0 + static_cast<int64_t>(x0), 16);
    auto tmp1 = Vectorized<float>::loadu(in_ptr0 + static_cast<int64_t>(x0), 16);
    auto tmp2 = in_ptr1[static_cast<int64_t>(0L)];
    tmp0.store(out_ptr0 + static_cast<int64_t>(x0));
}
"""
    known = "using namespace torch::aot_inductor;\nvoid AOTInductorModel::run_impl(\n) {\nkernel();\n}\n"
    text = shell.assemble(known, kernel, 4, False)
    assert text.count("__builtin_prefetch") == 1
    assert "__builtin_prefetch(reinterpret_cast<const char*>(in_ptr0 + x0)" in text
