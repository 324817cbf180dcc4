"""Sparse logistic regression: which cell measurements predict whether a tumour is malignant.

The L1 penalty sets most weights to 0. It is not part of the loss: the rule applies its proximal map after each step
(FISTA: Beck & Teboulle, 2009, https://doi.org/10.1137/080716542), so zeros are exact.
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

import optlang

RULE = """
optimizer Fista
hyper lr > 0, penalty = 0 >= 0
state x = p                 # the solution; gradients are computed at an extrapolated point
state s: scalar = 1

on eval:
    ahead = p
    p = x
    x = ahead
on train:
    solution = p
    p = x
    x = solution

y = soft_threshold(p - lr*g, lr*penalty)
if dot(p - y, y - x) > 0: s = 1     # uphill: restart without momentum
c = (1 + sqrt(1 + 4*s^2))/2
p = y + (s - 1)/c*(y - x)
x = y
s = c
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    Fista = optlang.compile(RULE, backend=options.backend)

    data = load_breast_cancer()
    features = torch.tensor(StandardScaler().fit_transform(data.data))  # in float64
    malignant = torch.tensor(data.target == 0, dtype=torch.float64)
    model = nn.Linear(features.shape[1], 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    curvature = torch.linalg.matrix_norm(features, ord=2).item() ** 2 / (4 * len(features))

    def loss() -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(features)[:, 0], malignant)

    for penalty in (0.1, 0.03, 0.01):  # each starts at the previous solution
        groups = [{"params": [model.weight], "penalty": penalty}, {"params": [model.bias]}]
        optimizer = Fista(groups, lr=1 / curvature)
        for _ in range(3000):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        optimizer.eval()

        optimizer.zero_grad()
        loss().backward()
        weight, gradient = model.weight.detach()[0], model.weight.grad[0]
        used = weight != 0
        right = ((model(features)[:, 0] > 0) == malignant).double().mean()
        print(
            f"penalty {penalty}: {used.sum()} of {len(used)} measurements, {right:.1%} of tumours classified correctly"
        )
        print(f"    {', '.join(data.feature_names[used.numpy()])}")
        # At the optimum, gradients of nonzero weights cancel the penalty, and those of the others are not larger.
        balance = (gradient[used] + penalty * weight[used].sign()).abs().max()
        print(f"    largest gradient plus penalty of nonzero weights: {balance:.1e}")
        print(f"    largest gradient of zero weights / penalty: {gradient[~used].abs().max() / penalty:.3f}")


if __name__ == "__main__":
    main()
