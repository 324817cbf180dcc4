"""Functions, and transforms, of a file that several rules use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optlang
from optlang.checker.check import check_file, check_text
from optlang.cli.app import main
from optlang.source import Source

FUNCTIONS = '''"""What our rules share."""
def size_of(x) = norm(x) if ndim < 2 else norm(x, dim=1:)
def damped(x, k = 0.5) = x/(1 + k*size_of(x))
def other(x) = x*lr
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "functions.opt").write_text(FUNCTIONS)
    return tmp_path


def moved(folder: Path, text: str) -> float:
    """Return how far the rule in a file moves one number, whose gradient is 2."""
    (folder / "rule.opt").write_text(text)
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.full_like(p, 2)
    optlang.compile(folder / "rule.opt", backend="eager")([p]).step()
    return -p.item()


def test_functions_are_called_under_their_names(folder: Path) -> None:
    assert moved(folder, 'optimizer A\nuse "functions.opt"\nhyper lr = 1\np -= lr*damped(g)\n') == 1.0


def test_what_a_rule_does_not_call_is_not_there(folder: Path) -> None:
    """`other` reads a hyperparameter that this rule has not."""
    text = 'optimizer A\nuse "functions.opt"\nhyper rate = 1\np -= rate*damped(g)\n'
    (folder / "rule.opt").write_text(text)
    rule, found = check_text(Source(text, str(folder / "rule.opt")))
    assert rule is not None and not found and set(rule.functions) == {"size_of", "damped"}


def test_a_function_of_the_rule_replaces_one_of_the_file(folder: Path) -> None:
    text = 'optimizer A\nuse "functions.opt"\nhyper lr = 1\ndef size_of(x) = 2*abs(x)\np -= lr*damped(g)\n'
    assert moved(folder, text) == 2 / 3


def test_an_inner_rule_keeps_its_own(folder: Path) -> None:
    (folder / "inside.opt").write_text('optimizer B\nuse "functions.opt"\nhyper lr = 1\np -= lr*damped(g)\n')
    text = 'optimizer A\nuse "functions.opt"\ninner B = "inside.opt"\ndef size_of(x) = 2*abs(x)\nB(p, damped(g))\n'
    assert moved(folder, text) == (2 / 3) / (1 + 0.5 * 2 / 3)


def test_transforms_of_the_file_are_known(folder: Path) -> None:
    (folder / "functions.opt").write_text(FUNCTIONS + "transform twice(u, k = 2):\n    return k*damped(u)\n")
    for stage in ("twice", "twice(2)"):
        text = f'optimizer A\nuse "functions.opt"\nhyper lr = 1\np -= lr*(g |> {stage})\n'
        assert moved(folder, text) == 2.0
    # A transform that is not called changes nothing.
    assert moved(folder, 'optimizer A\nuse "functions.opt"\nhyper lr = 1\np -= lr*damped(g)\n') == 1.0


def test_a_file_of_functions_can_be_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["check", str(folder / "functions.opt")])
    assert done.value.code in (0, None)
    assert capsys.readouterr().out == f"{folder / 'functions.opt'}: ok\n"
    rule, found = check_file(Source("def f(x) = unknown(x)\n"))
    assert rule is None and [d.code for d in found] == ["E202"]
    with pytest.raises(optlang.OptlangError, match="never changes the parameter"):
        optlang.compile(folder / "functions.opt", backend="eager")
