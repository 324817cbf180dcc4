"""Bad rules and what their authors are told: every file under ``bad/`` has its exact expected output beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optlang.checker.check import check_text
from optlang.diagnostics import render_all
from optlang.source import Source

BAD = Path(__file__).parent / "bad"
RULES = sorted(BAD.rglob("*.opt"))


def read(path: Path) -> Source:
    """Read a rule as the command line does, whatever its bytes are."""
    return Source(path.read_bytes().decode("utf-8", errors="replace"), path.name)


@pytest.mark.parametrize("path", RULES, ids=lambda path: str(path.relative_to(BAD)))
def test_diagnostics_are_as_expected(path: Path, golden: Callable[[Path, str], None]) -> None:
    rule, found = check_text(read(path))
    assert found, "a bad rule that nothing is said about"
    if path.parent.name == "warnings":
        assert rule is not None and not any(d.is_error for d in found)
    else:
        assert rule is None and any(d.is_error for d in found)
    golden(path.with_suffix(".expected"), render_all(found) + "\n")


@pytest.mark.parametrize("path", RULES, ids=lambda path: str(path.relative_to(BAD)))
def test_every_error_points_and_helps(path: Path) -> None:
    for found in check_text(read(path))[1]:
        assert found.help, f"{found.code} does not say what to do"
        assert not found.message.endswith("."), "messages are phrases without a full stop"
        if found.span is not None:
            assert 0 <= found.span.start <= found.span.end <= len(found.source.text)
