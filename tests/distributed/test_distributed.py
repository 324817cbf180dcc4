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
import store_checks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]

IN_FOUR = ["store_checks.check_squares", "store_checks.check_shards_within_tensor_parallel"]
LATER = ["check_saving", "check_loading", "check_kernels", *(name.partition(".")[2] for name in IN_FOUR)]
CHECKS = [
    f"{module.__name__}.{name}"
    for module in (checks, store_checks)
    for name in sorted(vars(module))
    if name.startswith("check_") and name not in LATER
]
STAGED = [f"staged_checks.{name}" for name in vars(staged_checks) if name.startswith("check_")]
SAVING, LOADING = (
    [f"{module}.check_{word}" for module in ("checks", "store_checks")] for word in ("saving", "loading")
)
#: What two processes do, after one has saved what they load, and before one loads what they have saved.
IN_TWO = [*CHECKS, *SAVING, *LOADING, *STAGED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def failures(folder: str) -> dict[str, list[str]]:
    found = {}
    for names, world, word in ((SAVING, 1, "one"), (IN_TWO, 2, "two"), (LOADING, 1, "one"), (IN_FOUR, 4, "four")):
        found |= {f"{name} in {word}": v for name, v in processes.run(names, world, folder).items()}
    return found


@pytest.mark.parametrize(
    "name",
    [
        *(f"{name} in two" for name in IN_TWO),
        *(f"{name} in one" for name in (*SAVING, *LOADING)),
        *(f"{name} in four" for name in IN_FOUR),
    ],
)
def test_processes(name: str, failures: dict[str, list[str]]) -> None:
    assert name in failures, "the processes did not get so far"
    assert not failures[name], "\n".join(failures[name])


@pytest.mark.compiler
def test_compiled_kernels(folder: str) -> None:
    names = ["checks.check_kernels", "store_checks.check_kernels"]
    assert processes.run(names, 2, folder) == {name: [] for name in names}
