"""Train on scikit-learn's digits with Hugging Face accelerate: accumulation, clipping, schedule and saved state."""

import argparse
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optlang

try:
    from accelerate import Accelerator
except ImportError:
    raise SystemExit("this example needs accelerate: pip install accelerate") from None


class Run:
    """A network and everything that accelerate prepares."""

    def __init__(self, optimizer_class: type[torch.optim.Optimizer], data: TensorDataset) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        network = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        optimizer = optimizer_class(network.parameters(), lr=5e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=140)
        loader = DataLoader(data, batch_size=50)
        self.network, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            network, optimizer, loader, schedule
        )

    def train(self, epochs: int) -> float:
        """Train, and return the loss of the last batch."""
        for _ in range(epochs):
            for images, labels in self.loader:
                with self.accelerator.accumulate(self.network):
                    loss = nn.functional.cross_entropy(self.network(images), labels)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
        return loss.item()


def apart(a: Run, b: Run) -> float:
    """Return the largest difference between the weights of two networks."""
    pairs = zip(a.network.parameters(), b.network.parameters(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    train, test = TensorDataset(images[:1400], labels[:1400]), slice(1400, None)

    AdamW = optlang.compile(optlang.rules.path("adamw"), backend=options.backend)
    ours, theirs, resumed = Run(AdamW, train), Run(torch.optim.AdamW, train), Run(AdamW, train)
    with tempfile.TemporaryDirectory() as folder:
        ours.train(5)
        ours.accelerator.save_state(folder)
        resumed.accelerator.load_state(folder)
    for name, run, epochs in (("optlang", ours, 5), ("torch.optim", theirs, 10), ("resumed", resumed, 5)):
        loss = run.train(epochs)
        with torch.no_grad():
            right = (run.network(images[test]).argmax(1) == labels[test]).float().mean().item()
        print(f"{name:11}  loss {loss:.4f}  test accuracy {right:.1%}")
    print(f"largest difference between optlang and torch.optim: {apart(ours, theirs):.1e}")
    print(f"the same between optlang and the run resumed after 5 epochs: {apart(ours, resumed):.1e}")


if __name__ == "__main__":
    main()
