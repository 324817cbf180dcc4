"""How one rule of the library is tested: what a row of ``references`` holds, and options that many rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Hypers = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """How one rule is tested.

    Attributes:
        options: Keyword arguments to compare under, beside ``lr``; given to the rule and to the reference.
        lr: A step size that moves unit-sized tensors visibly in 30 steps.
        make: The reference, where it is not just the class of the rule's ``# reference:`` line.
        half: Arguments for 16-bit types, in which a default may be too small to be told from 0.
        rosenbrock: Arguments with which the rule goes down Rosenbrock's valley.
        shapes: Tensors to test with, for a rule that does not take all.
        compared: Tensors on which the reference is the same algorithm, if not on all of these.
        plain: Arguments that choose the reference's plainest implementation.
        akin: Whether a reference in torch.optim has the rule's keywords and states.
        tolerance: How far the rule may be from the reference in float64.
        tolerance32: How far it may be in float32.
    """

    options: tuple[Hypers, ...] = ({},)
    lr: float = 1e-2
    make: Callable[..., Any] | None = None
    half: Hypers = field(default_factory=dict)
    rosenbrock: Hypers = field(default_factory=lambda: {"lr": 0.1})
    shapes: tuple[Shape, ...] = ((4, 6), (5,), (), (3, 2, 1, 4))
    compared: tuple[Shape, ...] | None = None
    plain: Hypers = field(default_factory=lambda: {"foreach": False})
    akin: bool = True
    tolerance: float = 1e-10
    tolerance32: float = 1e-4


def options(*rows: Hypers) -> tuple[Hypers, ...]:
    """Return the defaults and then these."""
    return ({}, *rows)


DECAYED: Hypers = {"weight_decay": 0.1}
UP: Hypers = {"maximize": True, "weight_decay": 0.1}
COUPLED: tuple[Hypers, ...] = (
    {**DECAYED, "weight_decouple": False},
    {**UP, "weight_decouple": True},
    {"weight_decay": 1e-3, "weight_decouple": True, "fixed_decay": True},
)
COUPLED_ONLY = tuple({k: v for k, v in row.items() if k != "fixed_decay"} for row in COUPLED)
