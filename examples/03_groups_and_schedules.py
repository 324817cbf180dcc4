"""A library rule with two parameter groups and a learning rate schedule; it is compiled only once."""

import argparse

import torch
from torch import nn

import optlang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    inputs = torch.randn(256, 20)
    targets = inputs[:, :3].prod(dim=1, keepdim=True)

    # No weight decay for biases: they have a separate group, as with any torch.optim.Optimizer.
    weights = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim <= 1]
    LAMB = optlang.compile(optlang.rules.path("lamb"), backend=options.backend)
    optimizer = LAMB([{"params": weights, "weight_decay": 0.05}, {"params": biases, "weight_decay": 0.0}], lr=2e-2)

    steps = 200
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = (network(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 40 == 0 or step == steps - 1:
            print(f"step {step:3}  lr {schedule.get_last_lr()[0]:.5f}  loss {loss.item():.4f}")
    print()
    print(optimizer)


if __name__ == "__main__":
    main()
