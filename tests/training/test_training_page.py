"""The recipes of docs/training.md run, and do what the page says of them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import difference, optimizer_class

import optlang

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
Names = dict[str, Any]


def recipes() -> tuple[str, dict[str, str]]:
    """Return the code that all recipes begin with, and the code of each section."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    code = ["\n".join(re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)) for part in parts]
    return code[0], dict(zip(parts[1::2], code[2::2], strict=True))


def counts(optimizer: torch.optim.Optimizer) -> set[float]:
    """Return how often the parameters of an optimizer have been updated."""
    return {float(state["step"]) for state in optimizer.state.values()}


def check_schedulers(names: Names) -> None:
    group = names["optimizer"].param_groups[0]
    assert group["lr"] < 1e-3
    assert 0.94 < group["betas"][0] <= 0.95  # 0.9 is the rule's; OneCycleLR goes from 0.95 to 0.85 and back
    assert counts(names["optimizer"]) == {20.0}


def check_routes(names: Names) -> None:
    optimizer, model = names["optimizer"], names["model"]
    for group in optimizer.param_groups:
        assert group["lr"] == group["adamw_lr"] == pytest.approx(1e-3)
    by = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert by["0.weight"] == {"momentum_buffer"}
    assert by["0.bias"] == by["2.weight"] == by["2.bias"] == {"step", "exp_avg", "exp_avg_sq"}


def check_schedule_free(names: Names) -> None:
    optimizer = names["optimizer"]
    assert optimizer.param_groups[0]["train_mode"] is False
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
        optimizer.step()
    model = copy.deepcopy(names["model"])
    resumed = type(optimizer)(model.parameters(), lr=1e-2)
    resumed.load_state_dict(names["checkpoint"]["optimizer"])
    resumed.train()
    optimizer.train()
    assert difference(list(model.parameters()), list(names["model"].parameters())) == 0
    optimizer.eval()


def check_precision(names: Names) -> None:
    optimizer = names["optimizer"]
    assert counts(optimizer) == {1.0}
    for p in names["model"].parameters():
        assert (p.dtype, p.grad.dtype) == (torch.bfloat16, torch.float32)
        assert optimizer.state[p]["exp_avg"].dtype == torch.bfloat16
    assert names["scaler"].get_scale() == 1024.0


def check_averages(names: Names) -> None:
    assert int(names["averaged"].n_averaged) == 10
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(1e-3)
    assert difference(list(names["averaged"].parameters()), list(names["model"].parameters())) > 0


def check_in_backward(names: Names) -> None:
    for p, optimizer in names["optimizers"].items():
        assert counts(optimizer) == {20.0}
        assert p.grad is None


def check_names(names: Names) -> None:
    resumed, optimizer = names["resumed"], names["optimizer"]
    assert resumed.param_groups[0]["param_names"] == ["2.bias", "2.weight", "0.bias", "0.weight"]
    for (_, p), (_, q) in zip(names["turned"], list(names["model"].named_parameters())[::-1], strict=True):
        assert torch.equal(resumed.state[p]["exp_avg"], names["saved"]["state"][index_of(q, names["model"])]["exp_avg"])
    assert counts(optimizer) == {20.0}
    with pytest.raises(ValueError, match=r"'module\.0\.bias'.*nothing was loaded"):
        resumed.load_state_dict(names["theirs"].state_dict())


def index_of(p: torch.Tensor, model: torch.nn.Module) -> int:
    return next(i for i, q in enumerate(model.parameters()) if q is p)


def check_lightning(names: Names) -> None:
    assert counts(names["trainer"].optimizers[0]) == {20.0}


def check_trainer(names: Names) -> None:
    trainer = names["trainer"]
    assert isinstance(trainer.optimizer, optlang.rules.AdamW) or trainer.optimizer.optimizer
    assert len(trainer.optimizer.param_groups) == 2
    assert counts(trainer.optimizer) == {40.0}


def stepped(times: float) -> Callable[[Names], None]:
    """Return a check that the optimizer has made so many steps."""

    def check(names: Names) -> None:
        assert counts(names["optimizer"]) == {times}

    return check


def check_keywords(names: Names) -> None:
    assert type(names["optimizer"]) is optlang.rules.AdamW


CHECKS: dict[str, Callable[[Names], None]] = {
    "Schedulers": check_schedulers,
    "Muon for matrices, AdamW for the rest": check_routes,
    "Schedule-free rules": check_schedule_free,
    "Gradient accumulation and clipping": stepped(5),
    "Mixed precision": check_precision,
    "Averaged weights": check_averages,
    "Optimizer step in the backward pass": check_in_backward,
    "torch.compile": stepped(20),
    "Names and checkpoints": check_names,
    "foreach and fused": check_keywords,
    "Lightning": check_lightning,
    "Hugging Face Trainer": check_trainer,
    "accelerate": stepped(20),
}
NEEDS = {"Lightning": "lightning", "Hugging Face Trainer": "transformers", "accelerate": "accelerate"}
#: Recipes that import a framework or compile something.
SLOW = {*NEEDS, "torch.compile"}


@pytest.fixture(autouse=True)
def _as_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run without compiling, on which no recipe depends, and in a folder where files may be left."""
    for name in ("AdamW", "MuonWithAdamW", "ScheduleFreeAdamW"):
        monkeypatch.setattr(optlang.rules, name, optimizer_class(name.lower()), raising=False)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_every_recipe_is_checked() -> None:
    assert list(recipes()[1]) == list(CHECKS)


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=[pytest.mark.slow, *([pytest.mark.compiler] if title == "torch.compile" else [])])
        if title in SLOW
        else title
        for title in CHECKS
    ],
)
def test_a_recipe_does_what_the_page_says(title: str) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    names: Names = {"__name__": "recipe"}

    def loss() -> float:
        model = names["model"]
        dtype = next(model.parameters()).dtype
        return sum(float((model(x.to(dtype)) - y).square().mean().detach()) for x, y in names["batches"])

    beginning, sections = recipes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks
        exec(compile(beginning, f"{PAGE.name}, {title}", "exec"), names)
        before = loss()
        exec(compile(sections[title], f"{PAGE.name}, {title}", "exec"), names)
    CHECKS[title](names)
    if title != "foreach and fused":
        assert loss() < before
