"""Weights of a mixture: how many wines are about how strong, as the sum of some bell curves.

Weights are not negative and add up to 1: the rule ends each step in the nearest such point, so some of them may be
exactly 0. For the optimum, all curves that are used have the same gradient, and none has a smaller one.
"""

import argparse
import math

import torch
from sklearn.datasets import load_wine
from torch import nn

import optlang

RULE = """
optimizer SimplexSGD
hyper lr > 0, momentum = 0.9 in [0, 1)
state last = p

here = p
p = project_simplex(p + momentum*(p - last) - lr*g)
last = here
"""
WIDTH = 0.35


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    SimplexSGD = optlang.compile(RULE, backend=options.backend)

    strengths = torch.tensor(load_wine().data[:, 0])  # percent of alcohol, in float64
    centres = torch.linspace(11, 15, 12, dtype=torch.float64)
    curves = torch.exp(-(((strengths[:, None] - centres) / WIDTH) ** 2) / 2) / (WIDTH * math.sqrt(2 * math.pi))

    weights = nn.Parameter(torch.full_like(centres, 1 / len(centres)))
    optimizer = SimplexSGD([weights], lr=0.03)

    def loss() -> torch.Tensor:
        return -(curves @ weights).log().mean()

    print(f"minus log-likelihood with equal weights: {loss().item():.6f}")
    for _ in range(2000):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    print(f"minus log-likelihood: {loss().item():.6f}\n")
    for centre, weight in zip(centres.tolist(), weights.tolist(), strict=True):
        print(f"{centre:5.2f} %  {weight:.4f}  {'#' * round(100 * weight)}")

    optimizer.zero_grad()
    loss().backward()
    used, gradient = weights.detach() > 0, weights.grad
    print(f"\nsum of the weights: {weights.sum().item():.12f}")
    print(
        f"spread of the gradients of the {used.sum()} that are used: {gradient[used].max() - gradient[used].min():.1e}"
    )
    print(f"least gradient of the others, above these: {gradient[~used].min() - gradient[used].max():.4f}")


if __name__ == "__main__":
    main()
