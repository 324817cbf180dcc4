"""The effect of 8-bit states on steps: the largest update of an element, and the mean displacement.

Gradients are random, with four distributions of magnitudes over the elements. In the difficult ones, a block of codes
has small values next to large ones. A format that rounds the small ones to 0 then divides by eps alone, which makes
steps very long. If torchao is installed, its optimizer is compared, too.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

import optlang

SIZES: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "all equal": lambda n, _: torch.ones(n),
    "lognormal, s = 1": lambda n, g: torch.exp(torch.randn(n, generator=g)),
    "lognormal, s = 2": lambda n, g: torch.exp(2 * torch.randn(n, generator=g)),
    "one in 32 is 1000 x": lambda n, _: torch.where(torch.arange(n) % 32 == 0, 1000.0, 1.0),
}
ELEMENTS, LR = 8192, 1e-3


def measured(make: Callable[..., Any], sizes: str, steps: int) -> tuple[float, float]:
    """Return the largest update in units of lr, and the mean displacement after some steps."""
    generator = torch.Generator().manual_seed(1)
    size = 1e-3 * SIZES[sizes](ELEMENTS, generator)
    p = torch.nn.Parameter(torch.zeros(1, ELEMENTS))  # a row, as small vectors stay in float32
    optimizer, largest = make([p]), 0.0
    for _ in range(steps):
        p.grad = size * (0.3 + torch.randn(1, ELEMENTS, generator=generator))
        before = p.detach().clone()
        optimizer.step()
        largest = max(largest, float((p.detach() - before).abs().max()) / LR)
    return largest, float(p.detach().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rules", nargs="+", default=["AdamW", "AdEMAMix", "Adan"])
    steps, rules = parser.parse_known_args()[0].steps, parser.parse_known_args()[0].rules
    makers: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
    for name in rules:
        cls = getattr(optlang.rules, name)
        makers[f"{name}, 8 bits"] = (
            lambda ps, cls=cls: cls(ps, lr=LR, weight_decay=0.0, store="8bit"),
            lambda ps, cls=cls: cls(ps, lr=LR, weight_decay=0.0),
        )
    try:
        from torchao.optim import AdamW8bit

        makers["torchao's AdamW8bit"] = (
            lambda ps: AdamW8bit(ps, lr=LR, weight_decay=0.0),
            lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=0.0),
        )
    except ImportError:
        print("torchao is not installed; run pip install torchao to include it")
    print(f"{'':22}  {'sizes':20}  largest update / lr     mean displacement")
    for name, (narrow, wide) in makers.items():
        for sizes in SIZES:
            largest, end = measured(narrow, sizes, steps)
            usual, expected = measured(wide, sizes, steps)
            print(f"{name:22}  {sizes:20}  {largest:9.2f} of {usual:5.2f}      {end / expected - 1:+.2%} of float32's")


if __name__ == "__main__":
    main()
