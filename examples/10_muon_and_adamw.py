"""Muon for the hidden layers, AdamW for the rest, next to AdamW alone, on scikit-learn's digits.

`MuonWithAdamW` routes each parameter to one of two rules: matrices to Muon, all others to AdamW. The last layer is a
matrix too, but a key of its parameter group routes it to AdamW. The script prints the results of both and plots the
curves to muon.png.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import optlang

HERE = Path(__file__).parent
SEEDS = range(3)


@dataclass
class Run:
    """Losses and accuracies of one training run, per epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, test images, training labels, test labels."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16.0, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    labels, test_labels = (torch.tensor(part) for part in parts[2:])
    return images, test_images, labels, test_labels


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))


def train(make: Callable[[nn.Sequential], torch.optim.Optimizer], data: tuple[Tensor, ...], epochs: int) -> list[Run]:
    """Train networks that differ in their initial weights and in the order of batches."""
    images, test_images, labels, test_labels = data
    runs = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        network, run = make_network(), Run()
        optimizer = make(network)
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            run.losses.append(total / len(images))
            with torch.no_grad():
                run.accuracies.append((network(test_images).argmax(1) == test_labels).float().mean().item())
        runs.append(run)
    return runs


def draw(found: dict[str, list[Run]], path: Path) -> None:
    """Plot loss and accuracy per epoch: a thin line per network, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, runs), color in zip(found.items(), ("#1f4e79", "#e07b1a"), strict=True):
        epochs = range(1, len(runs[0].losses) + 1)
        for axes, series in (
            (left, [r.losses for r in runs]),
            (right, [[100 * a for a in r.accuracies] for r in runs]),
        ):
            for values in series:
                axes.plot(epochs, values, color=color, linewidth=0.7, alpha=0.5)
            means = [fmean(values) for values in zip(*series, strict=True)]
            axes.plot(epochs, means, color=color, linewidth=2, label=name)
    left.set(title="training loss", xlabel="epoch", yscale="log")
    right.set(title="test accuracy (%)", xlabel="epoch", ylim=(80, 100))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    parser.add_argument("--plot", type=Path, default=HERE / "muon.png", help="file for the plot")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more threads to help

    MuonWithAdamW = optlang.compile(optlang.rules.path("muonwithadamw"), backend=options.backend)
    AdamW = optlang.compile(optlang.rules.path("adamw"), backend=options.backend)

    def both(network: nn.Sequential) -> torch.optim.Optimizer:
        groups = [
            {"params": network[:-1].parameters()},
            {"params": network[-1].parameters(), "adam": True},  # the key that the rule tests
        ]
        return MuonWithAdamW(groups, lr=0.02, adamw_lr=5e-3, weight_decay=0.01)

    def alone(network: nn.Sequential) -> torch.optim.Optimizer:
        return AdamW(network.parameters(), lr=5e-3, weight_decay=0.01)  # the best of 1e-3, 2e-3, 5e-3 and 1e-2

    optimizer = both(make_network())
    for place, group in enumerate(optimizer.param_groups):
        by = ["Muon" if p.ndim == 2 and not group.get("adam") else "AdamW" for p in group["params"]]
        print(
            f"group {place}:",
            ", ".join(f"{tuple(p.shape)} {rule}" for p, rule in zip(group["params"], by, strict=True)),
        )

    data = load_data()
    found = {"Muon and AdamW": train(both, data, options.epochs), "AdamW alone": train(alone, data, options.epochs)}
    print(f"\nmeans of {len(SEEDS)} networks; loss on the training images, accuracy on the test images")
    for epoch in sorted({e for e in (1, 2, 5, 10) if e < options.epochs} | {options.epochs}):
        line = [f"epoch {epoch:2}"]
        for name, runs in found.items():
            loss = fmean(run.losses[epoch - 1] for run in runs)
            accuracy = fmean(run.accuracies[epoch - 1] for run in runs)
            line.append(f"{name}: loss {loss:.4f}, accuracy {accuracy:.1%}")
        print("   ".join(line))
    draw(found, options.plot)
    print(f"curves: {options.plot}")


if __name__ == "__main__":
    main()
