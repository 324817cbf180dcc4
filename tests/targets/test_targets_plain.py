"""Rules as short functions that read like their papers: they do what the compiled class does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from targets_made import flat, module_of, text_of
from trajectories import cases, difference, gradients, library_class, library_text, run, start

import optlang
import optlang.rules
from optlang.diagnostics import OptlangError

pytestmark = pytest.mark.slow

#: Matrices whose Gram matrices have at most one eigenvalue of 0: eigenvectors of several are arbitrary.
SHAPES = ((4, 5), (5, 4))


def is_carried(name: str) -> bool:
    try:
        text_of(name, "plain", exact=True)
    except OptlangError as refused:
        assert all(d.code == "E801" and d.span is not None for d in refused.diagnostics)
        return False
    return True


@pytest.mark.parametrize("name", optlang.rules.names())
def test_goes_where_the_class_goes(name: str) -> None:
    if not is_carried(name):
        pytest.skip("the rule cannot be carried")
    for case in (cases(name)[0], cases(name)[-1]):
        made = module_of(name, "plain", tuple(flat(name, case).items()), exact=True)
        begin, history = start(SHAPES), gradients(SHAPES, steps=6)
        params, states = [torch.tensor(x) for x in begin], [{} for _ in begin]
        for step in history:
            try:
                getattr(made, name.lower())(params, [torch.tensor(g) for g in step], states)
            except ValueError as refused:  # one form of the rule is carried, and this case has others
                pytest.skip(str(refused))
        expected = run(library_class(name, exact=True), begin, history, torch.float64, **case)
        assert difference([p.numpy() for p in params], expected, moved_from=begin) < 1e-11, case


def test_what_is_made_of_most_of_the_library_is_formatted_and_free_of_lint(tmp_path: Path) -> None:
    carried = [name for name in optlang.rules.names() if is_carried(name)]
    assert len(carried) >= 50
    pytest.importorskip("ruff")
    for name in carried:
        (tmp_path / f"{name.lower()}.py").write_text(text_of(name, "plain", exact=True), encoding="utf-8")
    for arguments in (["check"], ["format", "--diff"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_adamw_is_short() -> None:
    lines = text_of("AdamW", "plain").partition('    """\n    for ')[2].splitlines()
    assert len(lines) < 20
    assert "        m = beta1 * m + (1 - beta1) * g" in lines


def test_a_tensor_of_another_shape_is_refused() -> None:
    made = module_of("Muon", "plain")
    with pytest.raises(ValueError, match="2 dimensions"):
        made.muon([torch.ones(3)], [torch.ones(3)], [{}])
    with pytest.raises(ValueError, match=r"not shape\[0\] > shape\[1\]"):
        made.muon([torch.ones(4, 3)], [torch.ones(4, 3)], [{}])


def test_names_every_construct_with_its_line() -> None:
    with pytest.raises(OptlangError) as raised:
        optlang.export(library_text("Prodigy"), "plain")
    said = str(raised.value)
    assert all(d.code == "E801" for d in raised.value.diagnostics) and len(raised.value.diagnostics) > 3
    assert "`shared state`" in said and ":27:" in said and "a sum over the whole model" in said
