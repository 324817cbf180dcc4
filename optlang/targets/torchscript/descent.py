"""What is written for each rule in a TorchScript module: gradient descent here, in the place of all others.

Constants are replaced, and so are the bodies of functions; what is given to them is what
:mod:`optlang.targets.torchscript.runtime` gives them.
"""

import math

from torch import Tensor

#: Its name.
NAME: str = "Descent"
#: The hyperparameters that may be set, their defaults, and which of them choose between formulas.
HYPERS: list[str] = ["lr"]
DEFAULTS: list[float] = [0.1]
ASKED: list[bool] = [False]
#: The hyperparameters that are chosen for good, with their values, and the parts of those that have parts.
FIXED: dict[str, str] = {}
PARTS: dict[str, str] = {}
#: The states of a parameter: tensors, and numbers.
TENSORS: list[str] = []
NUMBERS: list[str] = []
#: The places of those of each variant among them, and whether its steps update every element from itself alone.
TENSORS_OF: list[list[int]] = [[]]
NUMBERS_OF: list[list[int]] = [[]]
ELEMENTWISE: list[bool] = [True]
#: Whether the stages of each way use all threads for one tensor.
ALONE: list[bool] = [False]
#: How many values are known of a tensor.
KNOWN: int = 12
#: How many states groups have, and the whole optimizer; how many sums there are, and how many levels of stages.
GROUPS: int = 0
SHARES: int = 0
SUMS: int = 0
LEVELS: int = 1


def _problem(place: int, x: float) -> str:
    """What is wrong with the value of a hyperparameter."""
    return "lr must not be NaN" if math.isnan(x) else ""


def _unmet(_known: list[float]) -> str:
    """What is required of hyperparameters and does not hold."""
    return ""


def _unsuited(_known: list[float]) -> str:
    """What is required of a tensor and does not hold."""
    return ""


def _fill(known: list[float], p: Tensor) -> None:
    """Put down the facts of a tensor that are asked for."""
    known[4] = float(p.dim())


def _variant(event: int, dim: int, _known: list[float]) -> int:
    """Which formulas are for a tensor; -1 if there are none, -2 if an event has none."""
    return 0


def _start(variant: int, p: Tensor, g: Tensor, known: list[float], s: list[Tensor], n: list[float]) -> None:
    """Put initial values where a tensor has no states yet."""
    return


def _path(variant: int, known: list[float]) -> int:
    """Number of the way of a step."""
    return 0


def _numbers(level: int, way: int, known: list[float]) -> list[list[float]]:
    """Coefficients of the stages of a level."""
    return [[known[0]]]


def _run(
    level: int,
    way: int,
    p: Tensor,
    g: Tensor,
    s: list[Tensor],
    carry: list[Tensor],
    sums: list[float],
    v: list[list[float]],
    c: list[Tensor],
) -> None:
    """Run the stages of a level on one tensor."""
    p.sub_(c[0][0] * g)


def _advance(way: int, known: list[float], n: list[float]) -> None:
    """Compute what states that are numbers become."""
    return


def _group(variant: int, known: list[float]) -> list[float]:
    """New values of the states of a group."""
    return [0.0]


def _start_group(_known: list[float]) -> list[float]:
    """Initial values of the states of a group."""
    none: list[float] = []
    return none


def _start_shared(_known: list[float]) -> list[float]:
    """Initial values of the states of the whole optimizer."""
    none: list[float] = []
    return none


def _late(level: int, variant: int, known: list[float], sums: list[float]) -> None:
    """Put down sums over the model and states of the whole optimizer that are known once a level is done."""
    return
