"""L-BFGS with the two-loop recursion, on a logistic regression that is solved to machine precision.

The two loops run over past steps, and a line search calls the closure as often as it needs; `iterate` makes all
iterations in one step. The results are compared with gradient descent, and with torch.optim.LBFGS, which takes the same
steps.
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

import optlang

RULE = """
optimizer TwoLoops
hyper lr = 1 >= 0, history_size = 10 >= 1, most = 40
flat                                      # all parameters are one vector p, their gradients one vector g
state g0, d
state step: scalar = 0
state H: scalar = 1
history s, y: size history_size
history rho: scalar size history_size
state last: scalar

iterate most until iteration() > 1 and abs(loss - last) < 1e-9
last = loss
if not first:
    y_new = g - g0
    s_new = step*d
    ys = dot(y_new, s_new)
    if ys > 1e-10:
        push s <- s_new, y <- y_new, rho <- 1/ys
        H = ys/dot(y_new, y_new)
q = -g
for i in reversed(s):
    a[i] = rho[i]*dot(s[i], q)
    q -= a[i]*y[i]
q *= H
for i in s:
    q += s[i]*(a[i] - rho[i]*dot(y[i], q))
d = q
g0 = g
step = strong_wolfe(d, min(1, 1/sum(abs(g)))*lr if first else lr)
p += step*d
"""


def problem() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Return a model and its loss."""
    data = load_breast_cancer()
    features = torch.tensor(StandardScaler().fit_transform(data.data))  # in float64
    malignant = torch.tensor(data.target == 0, dtype=torch.float64)
    model = nn.Linear(features.shape[1], 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def loss() -> torch.Tensor:
        misfit = nn.functional.binary_cross_entropy_with_logits(model(features)[:, 0], malignant)
        return misfit + 1e-3 * model.weight.square().sum()

    return model, loss


def train(make: Callable[..., torch.optim.Optimizer], steps: int, **options: object) -> nn.Module:
    """Train a model, and print the number of evaluations and the result."""
    model, loss = problem()
    optimizer, calls = make(model.parameters(), **options), 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    calls_made = calls
    value = closure()
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    name = type(optimizer).__name__
    print(f"{name:9} {calls_made:5} evaluations: loss {value:.12f}, largest gradient {largest:.1e}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()

    train(torch.optim.SGD, 2000, lr=1.0)
    ours = train(optlang.compile(RULE, backend=options.backend), 1)
    theirs = train(torch.optim.LBFGS, 1, max_iter=40, max_eval=1000, history_size=10, line_search_fn="strong_wolfe")
    with torch.no_grad():
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        print(f"largest difference between the two: {max(float((p - q).abs().max()) for p, q in pairs):.1e}")


if __name__ == "__main__":
    main()
