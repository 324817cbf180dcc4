"""Gradient clipping, momentum and weight decay: as formulas, as a pipeline, and as a chain in Python.

All three are the same optimizer: they compute the same weights, bit for bit, and are equally fast, because pipelines
are expanded to formulas before compilation.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

import optlang
from optlang.transforms import add_decayed_weights, clip_by_global_norm, momentum

HERE = Path(__file__).parent
#: Shapes of the parameters: about as many numbers as in a small convolutional network.
SHAPES = [(256, 256)] * 40 + [(256,)] * 40
HYPERPARAMETERS = {"lr": 0.1, "max_norm": 5.0, "beta": 0.9, "weight_decay": 1e-4}


def make_classes(backend: str) -> dict[str, type[torch.optim.Optimizer]]:
    """Return the same optimizer, written in three ways."""
    return {
        "formulas": optlang.compile(HERE / "16_plain.opt", backend=backend),
        "pipeline": optlang.compile(HERE / "16_pipeline.opt", backend=backend),
        "chain": optlang.chain(
            clip_by_global_norm(max_norm=1.0),
            momentum(beta=0.9),
            add_decayed_weights(weight_decay=1e-4),
            lr=0.1,
            backend=backend,
        ),
    }


def make_parameters() -> list[nn.Parameter]:
    """Return parameters with gradients, always the same."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    for p in parameters:
        p.grad = 0.1 * torch.randn(p.shape, generator=generator)
    return parameters


def largest_difference(a: list[nn.Parameter], b: list[nn.Parameter]) -> float:
    """Return the largest difference between two lists of parameters."""
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


def milliseconds(optimizer: torch.optim.Optimizer, steps: int = 5) -> float:
    """Return the time of a step."""
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    return 1e3 * (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    parser.add_argument("--rounds", type=int, default=41, help="number of timings of each")
    options = parser.parse_args()

    torch.set_num_threads(1)
    print("the pipeline, expanded:\n")
    print(optlang.emit(HERE / "16_pipeline.opt", stage="plain"))

    parameters: dict[str, list[nn.Parameter]] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, cls in make_classes(options.backend).items():
        parameters[name] = make_parameters()
        optimizers[name] = cls(parameters[name], **HYPERPARAMETERS)
    for optimizer in optimizers.values():
        for _ in range(10):
            optimizer.step()
    for name in ("pipeline", "chain"):
        apart = largest_difference(parameters[name], parameters["formulas"])
        print(f"largest difference of {name} from formulas after 10 steps: {apart:g}")

    times: dict[str, list[float]] = {name: [] for name in optimizers}
    names = list(optimizers)
    for i in range(options.rounds):  # interleaved; each goes first equally often
        for name in names[i % 3 :] + names[: i % 3]:
            times[name].append(milliseconds(optimizers[name]))
    print(f"a step of formulas: {median(times['formulas']):.2f} ms")
    for name in ("pipeline", "chain"):
        ratio = median(a / b for a, b in zip(times[name], times["formulas"], strict=True))
        print(f"time of {name} relative to formulas: {ratio:.3f}")


if __name__ == "__main__":
    main()
