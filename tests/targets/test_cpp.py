"""The example in C++: built once, it makes the steps that Python makes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import optlang

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
RULE = EXAMPLE.parent / "adamw.opt"
STEPS = 30

#: Building against libtorch takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.compiler, pytest.mark.thorough]


def missing() -> str | None:
    """Return why the example cannot be built here."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    headers = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "api" / "include" / "torch" / "torch.h"
    return None if headers.exists() else "this PyTorch comes without the headers of libtorch"


def finished(command: list[str], cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(folder: Path) -> Path:
    """Build the example and return the program."""
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    # Not optimized, which would take longer than it saves.
    finished(["cmake", "-S", str(EXAMPLE), "-B", ".", prefix, "-DCMAKE_BUILD_TYPE=Debug"], folder)
    finished(["cmake", "--build", "."], folder)
    return folder / "train"


def example() -> Any:
    """Return examples/cpp/train.py as a module."""
    spec = importlib.util.spec_from_file_location("cpp_train", EXAMPLE / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpp_train"] = module
    spec.loader.exec_module(module)
    return module


def steps_of(output: str) -> list[tuple[float, float]]:
    """Return the loss and the checksum of each step that the program printed."""
    lines = [line.split() for line in output.splitlines()]
    assert [int(line[0]) for line in lines] == list(range(STEPS))
    return [(float(loss), float(checksum)) for _, loss, checksum in lines]


def apart(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> float:
    """Return the largest relative difference of any step."""
    return max(abs(a - b) / abs(b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def test_steps_in_cpp_are_those_in_python(tmp_path: Path) -> None:
    """One test, as the program is to be built once."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    program = str(build(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _module(program, tmp_path)
        _package(program, tmp_path)
    finally:
        torch.set_num_threads(threads)
    result = subprocess.run([program, "no.pt", "1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "no.pt" in result.stderr


def _module(program: str, folder: Path) -> None:
    optlang.export(RULE, "torchscript", folder / "adamw.pt")
    ours = steps_of(finished([program, "adamw.pt", str(STEPS)], folder))
    assert ours[-1][0] < 0.1 * ours[0][0]
    assert apart(ours, list(example().train(STEPS))) < 1e-6
    # The same operations of the same library: equal to the last bit, unless another compiler has built one of them.
    assert apart(ours, list(example().train(STEPS, torch.jit.load(str(folder / "adamw.pt"))))) < 1e-7
    resumed = steps_of(finished([program, "adamw.pt", str(STEPS), "state.pt"], folder))
    assert resumed == ours


def _package(program: str, folder: Path) -> None:
    optlang.export(RULE, "aoti", folder / "adamw.pt2")
    ours = steps_of(finished([program, "adamw.pt2", str(STEPS)], folder))
    # The smallest losses are differences of rounded numbers: they differ by a little more than the parameters do.
    assert apart(ours, list(example().train(STEPS, scheduled=False))) < 2e-6
