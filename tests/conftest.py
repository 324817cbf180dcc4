"""Options and fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from other_bases import other_bases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the expected outputs of golden tests; look at the difference before you keep it",
    )


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
