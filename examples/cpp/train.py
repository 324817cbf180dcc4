"""train.cpp in Python: the same network, data and steps, with the compiled class of the rule.

python examples/cpp/train.py 30              the compiled class
python examples/cpp/train.py 30 adamw.pt     the module that C++ loads
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import optlang

RULE = Path(__file__).parents[1] / "adamw.opt"


class Net(torch.nn.Module):
    """Two layers, initialized by a formula instead of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_((torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.71 + k) * 0.3).view(p.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output."""
        return self.second(torch.tanh(self.first(x)))


def train(steps: int, module: Any = None, scheduled: bool = True) -> Iterator[tuple[float, float]]:
    """Yield the loss and the sum of the absolute parameters after each step.

    Args:
        steps: How many steps to make.
        module: A TorchScript module of the rule; by default the compiled class.
        scheduled: Whether the learning rate of the weights is reduced half-way.
    """
    net = Net()
    weights, biases = [net.first.weight, net.second.weight], [net.first.bias, net.second.bias]
    inputs = torch.sin(torch.arange(64 * 8, dtype=torch.float64) * 0.37).to(torch.float32).view(64, 8)
    targets = (inputs[:, 0] * inputs[:, 3]).unsqueeze(1)
    optimizer: Any = None
    if module is None:
        groups = [{"params": weights, "lr": 0.02}, {"params": biases, "lr": 0.01, "weight_decay": 0.0}]
        optimizer = optlang.compile(RULE, backend="eager")(groups)
    else:
        module.set_groups([2, 2])
        module.set_hyper("lr", 0.02, 0)
        module.set_hyper("lr", 0.01, 1)
        module.set_hyper("weight_decay", 0.0, 1)
    for i in range(steps):
        net.zero_grad()
        loss = torch.nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        if i % 5 == 4:
            net.second.bias.grad = None
        if module is None:
            if i == steps // 2 and scheduled:
                optimizer.param_groups[0]["lr"] = 0.005
            optimizer.step()
        else:
            if i == steps // 2 and scheduled:
                module.set_hyper("lr", 0.005, 0)
            params = weights + biases
            module.step(params, [torch.empty(0) if p.grad is None else p.grad for p in params])
        yield float(loss.detach()), sum(float(p.detach().double().abs().sum()) for p in net.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = torch.jit.load(sys.argv[2]) if len(sys.argv) > 2 else None
    for number, (value, checksum) in enumerate(train(int(sys.argv[1]), loaded)):
        print(f"{number} {value:.17g} {checksum:.17g}")
