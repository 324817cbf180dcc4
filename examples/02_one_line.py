"""A rule in one line: momentum with inferred declarations, next to torch.optim.SGD."""

import argparse

import torch
from torch import nn

import optlang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()

    Momentum = optlang.compile("v = beta*v + g; p -= lr*v", name="Momentum", backend=options.backend)

    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(300, 200))
    theirs = nn.Parameter(ours.detach().clone())
    sides = [
        (ours, Momentum([ours], beta=0.9, lr=0.1)),
        (theirs, torch.optim.SGD([theirs], momentum=0.9, lr=0.1)),
    ]
    for parameter, optimizer in sides:
        for _ in range(100):
            optimizer.zero_grad()
            loss = (parameter - 1).square().sum() / 2
            loss.backward()
            optimizer.step()
        print(f"{type(optimizer).__name__:8}  loss after 100 steps: {loss.item():.6f}")
    print(f"largest difference: {(ours - theirs).abs().max().item():.1e}")
    print()
    print("The error of a wrong call:")
    try:
        Momentum([ours], betta=0.9, lr=0.1)
    except TypeError as error:
        print(f"  TypeError: {error}")


if __name__ == "__main__":
    main()
