"""Backends without a compiler: their listing, generated modules, signatures and the cache."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import numpy_backend
import pytest
import torch
from optimizing import ADAMW, optimizer_class, parameter

from optlang.backends import eager, inductor
from optlang.backends.loading import registry, toolchain
from optlang.backends.loading.modules import load_module
from optlang.backends.loading.signature import Signature


def test_backends_are_the_files_that_load() -> None:
    assert registry.names() == ["auto", "cpp", "eager", "inductor", "triton"]
    assert all(module.load for name in registry.names() for module in registry.find(name))
    with pytest.raises(ValueError, match="there is no backend 'loading'"):
        registry.find("loading")


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "adafactor", "novograd", "sm3", "adamwclip"])
def test_a_backend_is_one_file(name: str) -> None:
    ours: Any = optimizer_class(name, name=f"Numpy{name}")
    kernels = ours._parts.parts[0].kernels
    kernels._load = registry.loader([numpy_backend, eager])
    ps, qs = ([parameter(*shape) for shape in ((3, 4), (5,), (2, 3, 4))] for _ in range(2))
    for optimizer in (ours(ps), optimizer_class(name)(qs)):
        for _ in range(3):
            optimizer.step()
    assert {kernel.origin for kernel in kernels.loaded.values()} == {"numpy"}
    for p, q in zip(ps, qs, strict=True):
        assert torch.allclose(p, q, rtol=1e-11, atol=1e-13)


def test_what_a_backend_does_not_accept_goes_to_the_next() -> None:
    muon: Any = optimizer_class("muon", name="NumpyMuon")
    kernels = muon._parts.parts[0].kernels
    kernels._load = registry.loader([numpy_backend, eager])
    muon([parameter(4, 3)]).step()
    assert {kernel.origin for kernel in kernels.loaded.values()} <= {"numpy", "eager"}
    p = parameter(3, dtype=torch.float32)
    kernels = (cls := optimizer_class("sgd", name="NumpySGD"))._parts.parts[0].kernels  # type: ignore[attr-defined]
    kernels._load = registry.loader([numpy_backend, eager])
    cls([p], lr=0.1).step()
    assert [kernel.origin for kernel in kernels.loaded.values()] == ["eager"]


def test_what_a_backend_that_is_in_no_chain_does_not_take_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.CHAINS, "triton")
    cls: Any = optimizer_class("sgd", backend="triton", name="Unchained")
    cls([parameter(3)], lr=0.1).step()  # on the CPU
    assert [kernel.origin for kernel in cls._parts.parts[0].kernels.loaded.values()] == ["eager"]


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

    monkeypatch.setattr(inductor.jit, "load", broken)
    monkeypatch.setattr(inductor.toolchain, "compiler", lambda: "/usr/bin/c++")
    p = parameter(3)
    with pytest.warns(RuntimeWarning) as caught:
        optimizer_class(ADAMW, backend="inductor", name="Unlucky")([p]).step()
    messages = [str(w.message) for w in caught]
    assert any("runs uncompiled: OSError: disk full" in m for m in messages)
