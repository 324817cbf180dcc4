"""Compiled rules under the Trainer of transformers, next to torch.optim.AdamW under the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CLASSES, OPTIONS, apart, classifier, data, moved

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


class WithLoss(torch.nn.Module):
    """What the Trainer expects of a model: it returns its loss first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = classifier()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.net(x)
        return torch.nn.functional.cross_entropy(out, labels), out


def trainer(which: str, folder: Path, epochs: int = 4, way: str = "class", **arguments: Any) -> Any:
    model = WithLoss()
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=OPTIONS["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="epoch",
        logging_strategy="no",
        seed=3,
        **arguments,
    )
    examples = [{"x": x, "labels": y} for x, y in data()]
    given: dict[str, Any] = {"optimizer_cls_and_kwargs": (CLASSES[which], OPTIONS)}
    if way == "instance":
        given = {"optimizers": (CLASSES[which](model.parameters(), **OPTIONS), None)}
    return transformers.Trainer(model=model, args=settings, train_dataset=examples, **given)


def trained(*args: Any, resume: Any = None, **kwargs: Any) -> Any:
    runner = trainer(*args, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.train(resume_from_checkpoint=resume)
    return runner


@pytest.mark.parametrize("way", ["class", "instance"])
def test_training_is_that_of_torch_optim(way: str, tmp_path: Path) -> None:
    ours, theirs = (trained(which, tmp_path / which, way=way) for which in CLASSES)
    assert moved(ours.model.net)
    assert apart(ours.model, theirs.model) < 1e-6
    assert {float(state["step"]) for state in ours.optimizer.state.values()} == {24.0}
    if way == "class":  # the Trainer makes two groups, one without weight decay
        assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [
            group["weight_decay"] for group in theirs.optimizer.param_groups
        ]


def test_accumulation_clipping_and_bfloat16(tmp_path: Path) -> None:
    arguments = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "bf16": True}
    ours, theirs = (trained(which, tmp_path / which, **arguments) for which in CLASSES)
    assert moved(ours.model.net)
    assert apart(ours.model, theirs.model) < 1e-3


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_run_resumed_from_its_checkpoint_is_the_run_that_went_on(first: str, tmp_path: Path) -> None:
    straight = trained(first, tmp_path)
    checkpoint = min(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = trained("ours", tmp_path / "again", resume=str(checkpoint))
    assert apart(straight.model, resumed.model) <= (0 if first == "ours" else 1e-6)
    assert {float(state["step"]) for state in resumed.optimizer.state.values()} == {24.0}
