"""Train a network on scikit-learn's digits with the AdamW of adamw.opt, next to torch.optim.AdamW.

Both start from the same weights and use the same batches, so their curves should coincide. The script prints a
table and plots the curves to digits.png. Run it with `make demo`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import optlang

HERE = Path(__file__).parent
HYPERPARAMETERS = {"lr": 2e-3, "weight_decay": 1e-2}
console = Console()


@dataclass
class Run:
    """Losses and accuracies of one training run, per epoch."""

    name: str
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    weights: Tensor = field(default_factory=lambda: torch.empty(0))


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, test images, training labels, test labels."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16.0, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    labels, test_labels = (torch.tensor(part) for part in parts[2:])
    return images, test_images, labels, test_labels


def make_network() -> nn.Module:
    """Return a perceptron, always with the same weights; it is smooth, so rounding errors stay small."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10))


def train(name: str, optimizer_class: type, data: tuple[Tensor, ...], epochs: int, tick: Callable[[], None]) -> Run:
    """Train a new network with mini-batches of 64, and return the losses and accuracies."""
    images, test_images, labels, test_labels = data
    network, run = make_network(), Run(name)
    optimizer = optimizer_class(network.parameters(), **HYPERPARAMETERS)
    shuffle = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images), generator=shuffle).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        run.losses.append(total / len(images))
        with torch.no_grad():
            guesses = network(test_images).argmax(1)
        run.accuracies.append((guesses == test_labels).float().mean().item())
        tick()
    run.seconds = time.perf_counter() - start
    run.weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    return run


def compile_rule(backend: str) -> type:
    """Return the class for adamw.opt; compile its kernel now, so that the training time does not include it."""
    start = time.perf_counter()
    with console.status("compiling examples/adamw.opt (only once: the kernel is cached)"):
        rule = optlang.compile(HERE / "adamw.opt", backend=backend)
        parameter = nn.Parameter(torch.zeros(2, 2))
        parameter.grad = torch.zeros_like(parameter)
        rule([parameter]).step()
    console.print(f"examples/adamw.opt is ready after {time.perf_counter() - start:.1f} s")
    return rule


def print_table(runs: list[Run]) -> None:
    """Print the results of both runs side by side."""
    table = Table("optimizer", box=None, pad_edge=False, header_style="bold")
    for heading in ("test accuracy", "training loss", "seconds"):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(run.name, f"{run.accuracies[-1]:.1%}", f"{run.losses[-1]:.4f}", f"{run.seconds:.1f}")
    console.print(table)
    apart = (runs[0].weights - runs[1].weights).abs().max().item()
    console.print(f"largest difference between the two networks' weights: {apart:.1e}", highlight=False)


def draw(runs: list[Run], path: Path) -> None:
    """Plot loss and accuracy per epoch, ours on top of a wider line for torch's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ({"color": "#f0a35e", "linewidth": 6, "alpha": 0.7}, {"color": "#1f4e79", "linewidth": 1.6})
    for run, style in zip(reversed(runs), styles, strict=True):
        epochs = range(1, len(run.losses) + 1)
        left.plot(epochs, run.losses, label=run.name, **style)
        right.plot(epochs, [100 * a for a in run.accuracies], label=run.name, **style)
    left.set(title="training loss", xlabel="epoch", yscale="log")
    right.set(title="test accuracy (%)", xlabel="epoch")
    right.axhline(95, color="grey", linewidth=0.8, linestyle=":")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    right.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    parser.add_argument("--plot", type=Path, default=HERE / "digits.png", help="file for the plot")
    options = parser.parse_args()

    torch.set_num_threads(1)  # the network is too small for more threads to help
    ours = compile_rule(options.backend)
    data = load_data()
    train("warm-up", torch.optim.SGD, data, 1, lambda: None)  # so that neither run includes torch's initialization
    runs = []
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for name, optimizer_class in (
            ("examples/adamw.opt, compiled", ours),
            ("torch.optim.AdamW", torch.optim.AdamW),
        ):
            task = progress.add_task(name, total=options.epochs, note="")
            run = train(name, optimizer_class, data, options.epochs, lambda task=task: progress.advance(task))
            progress.update(task, note=f"{run.accuracies[-1]:.1%}")
            runs.append(run)
    print_table(runs)
    draw(runs, options.plot)
    console.print(f"curves: {options.plot}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
