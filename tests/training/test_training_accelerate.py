"""Compiled rules under Hugging Face accelerate, next to torch.optim.AdamW under the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import CLASSES, OPTIONS, apart, batches, classifier, moved

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> None:
    """Let each test choose its precision: accelerate takes the first choice for that of the process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(which: str, accumulate: int = 1, precision: str = "no") -> tuple[Any, ...]:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    net = classifier()
    optimizer = CLASSES[which](net.parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
    return accelerator, *accelerator.prepare(net, optimizer, batches(), schedule)


def run(accelerator: Any, net: Any, optimizer: Any, loader: Any, schedule: Any, epochs: int) -> Any:
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(net):
                loss = torch.nn.functional.cross_entropy(net(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(net)


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "no"), (3, "no"), (1, "bf16")])
def test_training_is_that_of_torch_optim(accumulate: int, precision: str) -> None:
    nets = [run(*prepared(which, accumulate, precision), epochs=3) for which in CLASSES]
    assert moved(nets[0])
    assert apart(*nets) < (1e-6 if precision == "no" else 1e-3)


def test_a_run_resumed_from_its_checkpoint_is_the_run_that_went_on(tmp_path: Path) -> None:
    everything = prepared("ours")
    run(*everything, epochs=2)
    everything[0].save_state(str(tmp_path))
    straight = run(*everything, epochs=2)

    again = prepared("ours")
    again[0].load_state(str(tmp_path))
    resumed = run(*again, epochs=2)
    assert apart(straight, resumed) == 0
    steps = {float(state["step"]) for state in again[2].state.values()}
    assert steps == {24.0}


def test_a_checkpoint_of_torch_optim_is_gone_on_with(tmp_path: Path) -> None:
    theirs = prepared("theirs")
    run(*theirs, epochs=2)
    theirs[0].save_state(str(tmp_path))
    ours = prepared("ours")
    ours[0].load_state(str(tmp_path))
    assert apart(run(*theirs, epochs=2), run(*ours, epochs=2)) < 1e-6
