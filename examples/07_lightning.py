"""Train on scikit-learn's digits with Lightning: optlang's AdamW, torch.optim's, and one resuming the other."""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optlang

try:
    import lightning.pytorch as pl
except ImportError:
    raise SystemExit("this example needs Lightning: pip install lightning") from None


class Digits(pl.LightningModule):
    """A small network. Only the optimizer in `configure_optimizers` differs."""

    def __init__(self, optimizer_class: type[torch.optim.Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        self.optimizer_class = optimizer_class

    def training_step(self, batch, index):
        """Return the loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        """Return the optimizer and a schedule over epochs."""
        optimizer = self.optimizer_class(self.network.named_parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(module: Digits, epochs: int, loader: DataLoader, checkpoint: Path | None = None) -> pl.Trainer:
    """Train up to a number of epochs, resuming from a checkpoint if there is one."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # advice on data workers and the like

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    train, test = slice(0, 1400), slice(1400, None)
    loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=50)

    AdamW = optlang.compile(optlang.rules.path("adamw"), backend=options.backend)
    ours, theirs = Digits(AdamW), Digits(torch.optim.AdamW)
    for name, module in (("optlang", ours), ("torch.optim", theirs)):
        fit(module, 10, loader)
        with torch.no_grad():
            right = (module.network(images[test]).argmax(1) == labels[test]).float().mean().item()
        print(f"{name:11}  test accuracy after 10 epochs: {right:.1%}")
    print(f"largest difference between the two networks: {apart(ours, theirs):.1e}")

    # Half with torch.optim, the rest with optlang, whose AdamW loads the checkpoint unchanged.
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "half.ckpt"
        fit(Digits(torch.optim.AdamW), 5, loader).save_checkpoint(checkpoint)
        resumed = Digits(AdamW)
        fit(resumed, 10, loader, checkpoint)
    print(f"the same, 5 epochs by torch.optim and 5 resumed by optlang: {apart(resumed, theirs):.1e}")


def apart(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference between the weights of two networks."""
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


if __name__ == "__main__":
    main()
