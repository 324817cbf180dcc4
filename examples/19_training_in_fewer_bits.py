"""Train with states and parameters in fewer bits, and compare the final loss with float32.

There are two tasks: scikit-learn's digits, and a small transformer that predicts the next character of Python's `help`
texts. Every configuration uses the same seeds. The table shows the loss on held-out data, its standard deviation over
the seeds, and the difference from float32.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pydoc_data.topics import topics
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import optlang

CONTEXT, WIDTH, LETTERS = 32, 64, 128
console = Console()


@dataclass(frozen=True, eq=False)
class Way:
    """A rule and its precision; other configurations of the rule are compared with its first one."""

    rule: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    half: bool = False  # parameters in bfloat16


HALVES = (None, "stochastic", "kahan", "bf16+8", "bf16+16")
WAYS = [
    Way("AdamW", "float32"),
    Way("AdamW", "states 8bit", {"store": "8bit"}),
    Way("AdamW", "states bf16", {"store": "bf16"}),
    *(
        Way("AdamW", f"parameters bf16, {way or 'nearest'}", {"store": "fp32", "rounding": way}, half=True)
        for way in HALVES
    ),
    Way("Lion", "float32"),
    Way("Lion", "states 8bit", {"store": "8bit"}),
    Way("MuonWithAdamW", "float32"),
    Way("MuonWithAdamW", "states 8bit", {"store": "8bit"}),
]
RATES = {"AdamW": 2e-3, "Lion": 3e-4, "MuonWithAdamW": 5e-3}


class Layer(nn.Module):
    """Causal attention, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.joined = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for an input of shape (batch, position, width)."""
        heads = self.attention(self.first(x)).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.joined(seen.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class Transformer(nn.Module):
    """A transformer with two layers, which returns logits of the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers, self.last = nn.Sequential(Layer(), Layer()), nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for characters of shape (batch, position), one row per position."""
        found: Tensor = self.out(self.last(self.layers(self.letters(x) + self.places.weight)))
        return found.flatten(0, 1)


class Text:
    """Characters of Python's `help` texts."""

    def __init__(self) -> None:
        letters = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
        self.letters = torch.tensor(list(letters))
        self.cut = len(self.letters) * 9 // 10

    def network(self) -> nn.Module:
        """Return an untrained network."""
        return Transformer()

    def batch(self, generator: torch.Generator, size: int = 8, kept: bool = False) -> tuple[Tensor, Tensor]:
        """Return a batch of inputs and targets, of training or held-out data."""
        low, high = (self.cut, len(self.letters)) if kept else (0, self.cut)
        starts = torch.randint(low, high - CONTEXT - 1, (size, 1), generator=generator)
        found = self.letters[starts + torch.arange(CONTEXT + 1)]
        return found[:, :-1], found[:, 1:].flatten()


class Digits:
    """Scikit-learn's digits."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
        self.images = torch.tensor(data.data / 16, dtype=torch.float32)[order]
        self.labels, self.cut = torch.tensor(data.target)[order], 1400

    def network(self) -> nn.Module:
        """Return an untrained network."""
        return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10))

    def batch(self, generator: torch.Generator, size: int = 64, kept: bool = False) -> tuple[Tensor, Tensor]:
        """Return a batch of inputs and targets, of training or held-out data."""
        low, high = (self.cut, len(self.labels)) if kept else (0, self.cut)
        chosen = torch.randint(low, high, (size,), generator=generator)
        return self.images[chosen], self.labels[chosen]


def trained(way: Way, task: Text | Digits, seed: int, steps: int, tick: Callable[[], None]) -> float:
    """Train, and return the loss on held-out data."""
    torch.manual_seed(seed)
    network = task.network()
    if way.half:
        network.bfloat16()
    rate = RATES[way.rule]
    optimizer = getattr(optlang.rules, way.rule)(network.parameters(), lr=rate, **way.options)
    generator = torch.Generator().manual_seed(seed)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if not way.half:
            return F.cross_entropy(network(x), y)
        exact = {name: p.float() for name, p in network.named_parameters()}  # arithmetic stays in float32
        return F.cross_entropy(torch.func.functional_call(network, exact, (x,)), y)

    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - number / steps)
        optimizer.zero_grad()
        loss(*task.batch(generator)).backward()
        optimizer.step()
        tick()
    with torch.no_grad():
        apart = torch.Generator().manual_seed(0)
        return statistics.mean(float(loss(*task.batch(apart, 256, kept=True))) for _ in range(4))


def rows(ways: list[Way], losses: dict[Way, list[float]]) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    for way in ways:
        usual = losses[next(other for other in ways if other.rule == way.rule)]
        own = losses[way]
        spread = statistics.stdev(own) if len(own) > 1 else 0.0
        apart = statistics.mean(own) - statistics.mean(usual)
        yield [way.rule, way.name, f"{statistics.mean(own):.4f}", f"{spread:.4f}", f"{apart:+.4f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["text", "digits"], default="digits")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rules", nargs="+", choices=list(RATES), default=list(RATES))
    options = parser.parse_known_args()[0]
    task = Text() if options.task == "text" else Digits()
    ways = [way for way in WAYS if way.rule in options.rules]
    losses: dict[Way, list[float]] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=len(ways) * options.seeds * options.steps)
        for way in ways:
            seeds = range(options.seeds)
            losses[way] = [trained(way, task, s, options.steps, lambda: progress.advance(bar)) for s in seeds]
    table = Table("rule", "precision", "loss", "std", "vs. float32", title=f"{options.task}, {options.steps} steps")
    for row in rows(ways, losses):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
