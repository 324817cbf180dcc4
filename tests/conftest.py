"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OPTLANG_VERIFY"] = "1"  # before optlang is imported: whatever is compiled in a test is checked
from other_bases import other_bases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the expected outputs of golden tests; look at the difference before you keep it",
    )


#: Rules of the library that stand for all in the tests marked `sampled`, one of each kind at least; the build server
#: runs those tests with every rule.
SAMPLE = frozenset(
    [
        "AcceleratedProximal",
        "Adafactor",
        "AdaHessian",
        "AdamW",
        "AdaShift",
        "ASGD",
        "LAMB",
        "LBFGS",
        "LDoG",
        "Lookahead",
        "MARS",
        "Muon",
        "MuonWithAdamW",
        "NAdam",
        "Prodigy",
        "Rprop",
        "SAM",
        "ScheduleFreeAdamW",
        "SGD",
        "SGLD",
        "Shampoo",
        "SM3",
        "SOAP",
        "SparseAdam",
    ]
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that are marked `sampled` to the build server, but for some rules."""
    for item in items:
        if item.get_closest_marker("sampled") and item.callspec.params["name"] not in SAMPLE:
            item.add_marker(pytest.mark.thorough)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compare a text with a file of expected output, or rewrite the file under ``--update-golden``."""

    def compare(path: Path, actual: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(actual, encoding="utf-8")
            return
        assert path.exists(), f"{path} is missing: run pytest with --update-golden"
        assert actual == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(autouse=True)
def _other_bases() -> Iterator[None]:
    """No test may rest on the basis that this machine's LAPACK chooses among several right ones."""
    with other_bases():
        yield
