"""Weights of a mixture: the distribution of the alcohol content of wines, as a sum of normal densities.

Weights are nonnegative and sum to 1: the rule projects each step to the nearest such point, so some weights can be
exactly 0. At the optimum, all nonzero weights have the same gradient, and no gradient is smaller.
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

    print(f"negative log-likelihood with equal weights: {loss().item():.6f}")
    for _ in range(2000):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    print(f"negative log-likelihood: {loss().item():.6f}\n")
    for centre, weight in zip(centres.tolist(), weights.tolist(), strict=True):
        print(f"{centre:5.2f} %  {weight:.4f}  {'#' * round(100 * weight)}")

    optimizer.zero_grad()
    loss().backward()
    used, gradient = weights.detach() > 0, weights.grad
    print(f"\nsum of the weights: {weights.sum().item():.12f}")
    print(f"spread of the gradients of {used.sum()} nonzero weights: {gradient[used].max() - gradient[used].min():.1e}")
    print(f"smallest gradient of the others, relative to these: {gradient[~used].min() - gradient[used].max():.4f}")


if __name__ == "__main__":
    main()
