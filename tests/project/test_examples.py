"""The examples run and show what they say they show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process each

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Examples that take a backend run on the eager one here: what they show does not depend on it.
WITH_BACKEND = sorted(path.name for path in EXAMPLES.glob("*.py") if "--backend" in path.read_text(encoding="utf-8"))


def run(name: str, *arguments: str) -> str:
    """Run an example in a process of its own and return what it prints."""
    backend = ["--backend", "eager"] if name in WITH_BACKEND else []
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *backend, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def number_after(words: str, text: str) -> float:
    """Return the number that follows some words in a text."""
    found = re.search(re.escape(words) + r"\D*?(-?\d[\d.e+-]*)", text)
    assert found, f"{words!r} is not in:\n{text}"
    return float(found[1])


def test_every_example_is_tested() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    missing = [path.name for path in EXAMPLES.glob("[0-9]*.py") if f'"{path.name}"' not in tests]
    assert missing == []


def test_digits(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    out = run("01_digits.py", "--plot", str(picture))
    assert picture.stat().st_size > 20_000
    accuracies = [float(share) for share in re.findall(r"(\d+\.\d)%", out)][-2:]
    assert min(accuracies) > 95
    assert number_after("largest difference between the two networks' weights:", out) < 1e-4


def test_one_line() -> None:
    out = run("02_one_line.py")
    assert number_after("largest difference:", out) < 1e-5
    assert "TypeError" in out and "beta" in out


def test_groups_and_schedules() -> None:
    out = run("03_groups_and_schedules.py")
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", out)]
    assert losses[-1] < 0.2 * losses[0]
    assert "weight_decay: 0.05" in out and "weight_decay: 0.0\n" in out


def test_mistakes() -> None:
    out = run("04_mistakes.py")
    assert out.count("error[") >= 5
    assert "did you mean" in out


def test_checkpoints() -> None:
    out = run("05_checkpoints.py")
    assert number_after("largest difference from 30 steps of torch.optim.Adam:", out) < 1e-5
    assert "exp_avg" in out


def test_generated_code() -> None:
    out = run("06_generated_code.py")
    assert out.count("def update(") == 2


@pytest.mark.thorough
def test_lightning() -> None:
    pytest.importorskip("lightning.pytorch")
    out = run("07_lightning.py")
    assert number_after("test accuracy after 10 epochs:", out) > 90
    assert number_after("largest difference between the two networks:", out) < 1e-4
    assert number_after("resumed by optlang:", out) < 1e-4


@pytest.mark.thorough
def test_trainer() -> None:
    pytest.importorskip("transformers")
    out = run("08_trainer.py")
    losses = [float(loss) for loss in re.findall(r"steps: (\d+\.\d+)", out)]
    assert max(losses) < 1.0 < number_after("guessing:", out)
    assert abs(losses[0] - losses[1]) < 0.01


@pytest.mark.thorough
def test_accelerate() -> None:
    pytest.importorskip("accelerate")
    out = run("09_accelerate.py")
    assert min(float(share) for share in re.findall(r"(\d+\.\d)%", out)) > 90
    assert number_after("largest difference between optlang and torch.optim:", out) < 1e-4
    assert number_after("resumed after 5 epochs:", out) == 0


@pytest.mark.thorough
def test_muon_and_adamw(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    out = run("10_muon_and_adamw.py", "--epochs", "8", "--plot", str(picture))
    assert picture.stat().st_size > 20_000
    assert "(128, 128) Muon" in out and "(10, 128) AdamW" in out
    muon, adamw = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", out)][-2:]
    assert muon < 0.5 * adamw
    assert min(float(share) for share in re.findall(r"(\d+\.\d)%", out)[-2:]) > 94


@pytest.mark.thorough
def test_schedule_free() -> None:
    out = run("11_schedule_free.py")
    assert min(float(share) for share in re.findall(r"(\d+\.\d)%", out)[-2:]) > 95
    assert number_after("largest difference between the two networks:", out) == 0
    assert "RuntimeError" in out and "call optimizer.train() before step()" in out


@pytest.mark.thorough
def test_own_matrix_rule() -> None:
    out = run("12_own_matrix_rule.py")
    assert "findings: 0" in out and out.count("over matrices") == 2
    assert "error[E301]: `C` is a" in out and "OneSided is for matrices" in out
    assert number_after("of OneSided:", out) > 95


@pytest.mark.thorough
def test_nonnegative_least_squares() -> None:
    out = run("13_nonnegative_least_squares.py")
    assert number_after("largest difference from scipy:", out) < 1e-9
    assert number_after("weights that are positive:", out) < 1e-9
    assert number_after("that are 0:", out) > 0


@pytest.mark.thorough
def test_sparse_logistic_regression() -> None:
    out = run("14_sparse_logistic_regression.py")
    counts = [int(count) for count in re.findall(r"(\d+) of 30 measurements", out)]
    assert len(counts) == 3 and 0 < counts[0] < counts[1] < counts[2] < 15
    assert max(map(float, re.findall(r"penalty of nonzero weights: (\S+)", out))) < 1e-9
    assert max(map(float, re.findall(r"zero weights / penalty: (\S+)", out))) < 1
    assert max(map(float, re.findall(r"([\d.]+)% of tumours", out))) > 97


@pytest.mark.thorough
def test_mixture_on_the_simplex() -> None:
    out = run("15_mixture_on_the_simplex.py")
    assert number_after("sum of the weights:", out) == 1
    assert number_after("nonzero weights:", out) < 1e-9
    assert number_after("relative to these:", out) > 0
    assert out.count("0.0000") == 5


def test_pipeline() -> None:
    out = run("16_pipeline.py", "--rounds", "3")
    assert number_after("largest difference of pipeline from formulas after 10 steps:", out) == 0
    assert number_after("largest difference of chain from formulas after 10 steps:", out) == 0
    assert "momentum_b = beta*momentum_b" in out
    assert 0.2 < number_after("time of chain relative to formulas:", out) < 5


@pytest.mark.thorough
def test_lbfgs() -> None:
    out = run("17_lbfgs.py")
    assert number_after("largest difference between the two:", out) < 1e-9
    descent, ours, theirs = (float(loss) for loss in re.findall(r"loss (0\.\d+)", out))
    assert abs(ours - theirs) < 1e-11 and ours < descent


def test_states_in_8_bits() -> None:
    out = run("18_states_in_8_bits.py", "--rules", "AdamW")
    rows = re.findall(r"AdamW, 8 bits .* (\d+\.\d+) of +(\d+\.\d+) +([+-]\d+\.\d+)%", out)
    assert len(rows) == 4
    for largest, usual, bias in rows:
        assert float(largest) <= 1.5 * float(usual)
        assert abs(float(bias)) <= 3


@pytest.mark.parametrize("rule", ["Lion", pytest.param("AdamW", marks=pytest.mark.thorough)])  # nine kernels
def test_training_in_fewer_bits(rule: str) -> None:
    out = run("19_training_in_fewer_bits.py", "--steps", "60", "--seeds", "1", "--rules", rule)
    lines = [line for line in out.splitlines() if line.startswith(f"│ {rule}")]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    found = {row[1]: float(row[4]) for row in rows}
    assert "states 8bit" in found
    assert all(abs(apart) < 0.1 for apart in found.values())
