"""Nonnegative least squares: a digit as a sum of other digits.

A constraint is a function applied to the step. The result is compared with scipy, and with the optimality conditions:
the gradient is 0 where a weight is positive, and nowhere negative.
"""

import argparse

import torch
from scipy.optimize import nnls
from sklearn.datasets import load_digits
from torch import nn

import optlang

RULE = """
optimizer NonnegativeSGD
hyper lr > 0, momentum = 0.9 in [0, 1)
state last = p

here = p
p = project_nonnegative(p + momentum*(p - last) - lr*g)
last = here
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    NonnegativeSGD = optlang.compile(RULE, backend=options.backend)

    digits = load_digits()
    pixels = torch.tensor(digits.data / 16)  # in float64
    images, target = pixels[:40], pixels[496]
    curvature = torch.linalg.matrix_norm(images, ord=2).item() ** 2

    weights = nn.Parameter(torch.zeros(len(images), dtype=torch.float64))
    optimizer = NonnegativeSGD([weights], lr=1 / curvature)
    for _ in range(2000):
        optimizer.zero_grad()
        loss = (weights @ images - target).square().sum() / 2
        loss.backward()
        optimizer.step()

    parts = [f"{w:.2f} of a {digits.target[i]}" for i, w in enumerate(weights.tolist()) if w > 0]
    print(f"A {digits.target[496]} is, with a loss of {loss.item():.2f}, {', '.join(parts)}.\n")
    expected, _ = nnls(images.T.numpy(), target.numpy())
    gradient = images @ (weights.detach() @ images - target)
    used = weights.detach() > 0
    print(f"largest difference from scipy: {(weights.detach() - torch.tensor(expected)).abs().max():.1e}")
    print(f"largest gradient of the {used.sum()} weights that are positive: {gradient[used].abs().max():.1e}")
    print(f"smallest gradient of the {(~used).sum()} that are 0: {gradient[~used].min():.3f}")


if __name__ == "__main__":
    main()
