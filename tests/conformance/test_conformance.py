"""The rules of the library in the place of torch.optim's, in what PyTorch's own tests ask of an optimizer."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("expecttest")  # which PyTorch's descriptions import
sys.path.insert(0, str(Path(__file__).parent))

import behaviours

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
BEHAVIOURS = list(behaviours.BEHAVIOURS)

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]

HEAD = """# Conformance with torch.optim

PyTorch describes its optimizers, and the inputs for testing them, in `torch.testing._internal.common_optimizers`. These
tests replace each optimizer by the library rule of the same name, and check every behavior that PyTorch's generic
tests require. `pytest tests/conformance --update-golden` generates this page from the results, on the CPU with the
eager backend.

"""


def outcomes() -> dict[str, dict[str, tuple[str, str]]]:
    return {f.__name__: {name: behaviours.outcome(f, name) for name in behaviours.RULES} for f in BEHAVIOURS}


@pytest.mark.parametrize("name", behaviours.RULES)
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda f: f.__name__)
def test_behaves_like_torch_optim(behaviour: Callable[[str, Any], None], name: str) -> None:
    try:
        behaviour(name, behaviours.INFOS[name])
    except behaviours.DoesNotApply as reason:
        pytest.skip(str(reason))


@pytest.mark.compiler
@pytest.mark.parametrize(
    "behaviour", ["layouts", "odd_shapes", "tied", "no_gradients", "checkpoints_of_torch", "state"]
)
def test_compiled_kernels_behave_likewise(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviours, "ours", functools.partial(behaviours.ours, backend="auto"))
    getattr(behaviours, behaviour)("AdamW", behaviours.INFOS["AdamW"])


@pytest.mark.thorough  # it asks for everything once more
def test_the_page_says_what_was_found(golden: Callable[[Path, str], None]) -> None:
    found = outcomes()
    counts = Counter(result for row in found.values() for result, _ in row.values())
    applying = sum(counts.values()) - counts["n/a"]
    assert counts["pass"] >= 0.95 * applying
    lines = [
        f"{len(behaviours.RULES)} rules: {', '.join(behaviours.RULES)}. {applying} cases apply, {counts['pass']} pass "
        f"({counts['pass'] / applying:.1%}), {counts['fail']} fail. LBFGS, which iterates within a step and stores "
        "lists, has separate tests.",
        "",
        "| behavior | PyTorch's tests | pass | exceptions |",
        "|---|---|---|---|",
    ]
    for behaviour, theirs in behaviours.BEHAVIOURS.items():
        row = found[behaviour.__name__]
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, (result, reason) in row.items():
            if result != "pass":
                reasons.setdefault((result, reason), []).append(name)
        told = "; ".join(f"{', '.join(names)}: {result}, {reason}" for (result, reason), names in reasons.items())
        passed = sum(result == "pass" for result, _ in row.values())
        title = (behaviour.__doc__ or "").strip().rstrip(".")
        lines.append(f"| {title} | {theirs} | {passed} | {told} |")
    lines += ["", "## Tests that are not run", "", "| PyTorch's tests | reason |", "|---|---|"]
    lines += [f"| {theirs} | {reason} |" for theirs, reason in behaviours.NOT_RUN.items()]
    golden(PAGE, HEAD + "\n".join(lines) + "\n")
