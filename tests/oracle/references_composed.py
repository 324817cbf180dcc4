"""References of rules around other rules, and the options under which they are compared."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from references_row import DECAYED, UP, Row, options


class Grafting(torch.optim.Optimizer):
    """Adam's direction with the length of a step of gradient descent, tensor by tensor: no package has it alone."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        course_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        members = [p for group in self.param_groups for p in group["params"]]
        self.copies = [torch.nn.Parameter(p.detach().clone()) for p in members]
        self.course = torch.optim.Adam(self.copies, course_lr, betas, foreach=False)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for p, copy in zip(group["params"], self.copies, strict=True):
            copy.data.copy_(p.data)
            copy.grad = p.grad
        self.course.step()
        with torch.no_grad():
            for p, copy in zip(group["params"], self.copies, strict=True):
                if p.grad is not None:
                    along = copy - p
                    length = (group["lr"] * (p.grad + group["weight_decay"] * p)).norm()
                    p += length / (along.norm() + 1e-16) * along


def orthograd(params: Any, **hypers: Any) -> Any:
    """pytorch_optimizer's OrthoGrad around torch's SGD."""
    return import_module("pytorch_optimizer").OrthoGrad(torch.optim.SGD(params, **hypers))


ROWS: dict[str, Row] = {
    "Grafting": Row(
        options({"course_lr": 0.1, "betas": (0.5, 0.9)}, DECAYED),
        make=Grafting,
        plain={},
        rosenbrock={"lr": 1e-3},
        tolerance32=5e-5,  # the reference takes its direction from a difference of positions
    ),
    # A gradient is never turned towards zero: only weight decay leads inwards.
    "OrthoGrad": Row(
        options({"momentum": 0.9}, UP),
        make=orthograd,
        plain={},
        shapes=((4, 6), (5,), (3, 2, 1, 4)),
        rosenbrock={"lr": 5e-4, "momentum": 0.9, "weight_decay": 3.0},
    ),
}
