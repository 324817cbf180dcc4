"""Checkpoints load in both directions: start with torch.optim, continue with optlang, finish with torch.optim."""

import argparse
import io

import torch
from torch import nn

import optlang


def train(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Make steps on batches that depend only on the index of the step."""
    for step in range(first, last):
        batch = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


def through_a_file(optimizer: torch.optim.Optimizer) -> dict:
    """Return the optimizer's state after saving it and loading it with `weights_only`."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    Adam = optlang.compile(optlang.rules.path("adam"), backend=options.backend)

    straight, network = make_network(), make_network()
    train(straight, torch.optim.Adam(straight.parameters(), lr=1e-2), 0, 30)

    one = torch.optim.Adam(network.parameters(), lr=1e-2)
    train(network, one, 0, 10)
    two = Adam(network.parameters(), lr=1e-2)
    two.load_state_dict(through_a_file(one))
    train(network, two, 10, 20)
    three = torch.optim.Adam(network.parameters(), lr=1e-2)
    three.load_state_dict(through_a_file(two))
    train(network, three, 20, 30)

    pairs = zip(straight.parameters(), network.parameters(), strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    print("10 steps torch.optim.Adam, 10 steps optlang, 10 steps torch.optim.Adam")
    print(f"largest difference from 30 steps of torch.optim.Adam: {apart:.1e}")
    print(
        "state of the first parameter:",
        {key: tuple(value.shape) for key, value in three.state_dict()["state"][0].items()},
    )


if __name__ == "__main__":
    main()
