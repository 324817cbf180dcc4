"""Compiled rules under Lightning, next to torch.optim.AdamW under the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CLASSES, OPTIONS, apart, batches, classifier, moved

pytestmark = pytest.mark.slow  # importing Lightning takes seconds, so it is not done before a test asks for it


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch")


def module(lightning: Any, which: str, manual: bool = False) -> Any:
    """Return a module around the network; a ``manual`` one does itself what stands around a step."""

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.hooked = classifier(), []
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            loss = torch.nn.functional.cross_entropy(self.net(x), y)
            if self.automatic_optimization:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.lr_schedulers().step()
            return None

        def configure_optimizers(self) -> Any:
            optimizer = CLASSES[which](self.net.named_parameters(), **OPTIONS)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.hooked.append(type(optimizer))

    return Classifier()


def fit(lightning: Any, trained: Any, epochs: int, resume: Path | None = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(trained, batches(), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("manual", [False, True])
def test_training_is_that_of_torch_optim(lightning: Any, manual: bool) -> None:
    ours, theirs = (module(lightning, which, manual) for which in CLASSES)
    fit(lightning, ours, 4)
    fit(lightning, theirs, 4)
    assert moved(ours.net)
    assert apart(ours, theirs) < 1e-6
    assert ours.hooked == [CLASSES["ours"]] * 24


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_accumulation_and_precision(lightning: Any, precision: str) -> None:
    ours, theirs = (module(lightning, which) for which in CLASSES)
    for each in (ours, theirs):
        fit(lightning, each, 4, gradient_clip_val=0.1, accumulate_grad_batches=2, precision=precision)
    assert moved(ours.net)
    assert apart(ours, theirs) < (1e-6 if precision == "32-true" else 1e-3)


def test_a_module_in_bfloat16_is_trained(lightning: Any) -> None:
    ours = module(lightning, "ours")
    fit(lightning, ours, 2, precision="bf16-true")
    assert next(ours.parameters()).dtype == torch.bfloat16
    assert moved(ours.net)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_run_resumed_from_its_checkpoint_is_the_run_that_went_on(lightning: Any, first: str, tmp_path: Path) -> None:
    straight, half, resumed = (module(lightning, which) for which in (first, first, "ours"))
    fit(lightning, straight, 4)
    fit(lightning, half, 2).save_checkpoint(tmp_path / "half.ckpt")
    trainer = fit(lightning, resumed, 4, resume=tmp_path / "half.ckpt")
    assert apart(straight, resumed) <= (0 if first == "ours" else 1e-6)
    optimizer = trainer.optimizers[0]
    assert {float(state["step"]) for state in optimizer.state.values()} == {24.0}
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
