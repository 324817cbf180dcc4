"""Two processes against one: data parallel, sharded, tensor parallel, checkpoints between numbers of processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import checks  # noqa: E402
import processes  # noqa: E402
import staged_checks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]

LATER = ["check_loading", "check_kernels"]
CHECKS = sorted(name for name in vars(checks) if name.startswith("check_") and name not in LATER)
STAGED = [name for name in vars(staged_checks) if name.startswith("check_")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def failures(folder: str) -> dict[str, list[str]]:
    found = {f"{name} in two": v for name, v in processes.run("checks", CHECKS, 2, folder).items()}
    one = processes.run("checks", ["check_saving", "check_loading"], 1, folder)
    found |= {f"{name} in one": v for name, v in one.items()}
    found |= {f"{name} in two": v for name, v in processes.run("checks", ["check_loading"], 2, folder).items()}
    return found


@pytest.mark.parametrize(
    "name",
    [*(f"{name} in two" for name in [*CHECKS, "check_loading"]), "check_saving in one", "check_loading in one"],
)
def test_processes(name: str, failures: dict[str, list[str]]) -> None:
    assert name in failures, "the processes did not get so far"
    assert not failures[name], "\n".join(failures[name])


@pytest.fixture(scope="module")
def staged_failures(folder: str) -> dict[str, list[str]]:
    return processes.run("staged_checks", STAGED, 2, folder)


@pytest.mark.parametrize("name", STAGED)
def test_steps_in_passes(name: str, staged_failures: dict[str, list[str]]) -> None:
    assert name in staged_failures, "the processes did not get so far"
    assert not staged_failures[name], "\n".join(staged_failures[name])


@pytest.mark.compiler
def test_compiled_kernels(folder: str) -> None:
    assert processes.run("checks", ["check_kernels"], 2, folder) == {"check_kernels": []}
