"""Rules that evaluate at other parameters than they train at, where frameworks say when which is meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import optimizer_class
from small import apart, batches, classifier, data

NAMES = {"schedulefreeadamw": {}, "adamwema": {"decay": 0.5}}


def by_hand(name: str, epochs: int) -> torch.nn.Module:
    """Return a network after training and a last ``eval()``."""
    net = classifier()
    optimizer = optimizer_class(name)(net.parameters(), lr=0.02, **NAMES[name])
    for _ in range(epochs):
        for x, y in batches():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    optimizer.eval()
    return net


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_hands_the_modes_on(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    net = classifier()
    net, optimizer, loader = accelerator.prepare(
        net, optimizer_class(name)(net.parameters(), lr=0.02, **NAMES[name]), batches()
    )
    for _ in range(2):
        optimizer.train()
        for x, y in loader:
            accelerator.backward(torch.nn.functional.cross_entropy(net(x), y))
            optimizer.step()
            optimizer.zero_grad()
        optimizer.eval()
    assert apart(accelerator.unwrap_model(net), by_hand(name, 2)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_evaluates_and_goes_on(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from test_training_trainer import WithLoss

    model: Any = WithLoss()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        report_to="none",
        disable_tqdm=True,
        save_strategy="epoch",
        eval_strategy="epoch",
        logging_strategy="no",
        seed=3,
    )
    examples = [{"x": x, "labels": y} for x, y in data()]
    optimizer = optimizer_class(name)(model.parameters(), lr=0.02, **NAMES[name])
    runner = transformers.Trainer(
        model=model, args=settings, train_dataset=examples, eval_dataset=examples, optimizers=(optimizer, None)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.train()
        first = runner.evaluate()["eval_loss"]
    assert optimizer.param_groups[0]["train_mode"] is False
    assert first < 1.0 and float(optimizer.state[next(model.parameters())]["step"]) == 12
