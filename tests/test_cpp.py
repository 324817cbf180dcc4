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

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
RULE = EXAMPLE.parent / "adamw.opt"
STEPS = 30

pytestmark = [pytest.mark.slow, pytest.mark.compiler, pytest.mark.xdist_group("cpp")]


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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the example."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cpp")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    # Not optimized, which would take longer than it saves.
    finished(["cmake", "-S", str(EXAMPLE), "-B", ".", prefix, "-DCMAKE_BUILD_TYPE=Debug"], folder)
    finished(["cmake", "--build", "."], folder)
    return folder


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


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_steps_in_cpp_are_those_in_python(built: Path, tmp_path: Path) -> None:
    optlang.export(RULE, "torchscript", tmp_path / "adamw.pt")
    ours = steps_of(finished([str(built / "train"), "adamw.pt", str(STEPS)], tmp_path))
    assert apart(ours, list(example().train(STEPS))) < 1e-6
    module = torch.jit.load(str(tmp_path / "adamw.pt"))
    assert apart(ours, list(example().train(STEPS, module))) < 1e-7
    assert ours[-1][0] < 0.1 * ours[0][0]
    resumed = steps_of(finished([str(built / "train"), "adamw.pt", str(STEPS), "state.pt"], tmp_path))
    assert resumed == ours


@pytest.mark.usefixtures("one_thread")
def test_steps_of_the_package_are_those_in_python(built: Path, tmp_path: Path) -> None:
    optlang.export(RULE, "aoti", tmp_path / "adamw.pt2")
    ours = steps_of(finished([str(built / "train"), "adamw.pt2", str(STEPS)], tmp_path))
    assert apart(ours, list(example().train(STEPS, scheduled=False))) < 2e-6


def test_a_file_that_is_not_there_is_told(built: Path, tmp_path: Path) -> None:
    result = subprocess.run([str(built / "train"), "no.pt", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "no.pt" in result.stderr
