"""Contexts of expressions, and the names that may be read in each."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = frozenset(
    ("hyper", "state", "group state", "local", "static", "tensor", "gradient", "time", "fact", "key", "total", "random")
)


@dataclass(frozen=True)
class Place:
    """The context of an expression: which roles it may read, and the error for others.

    Attributes:
        roles: The roles that may be read.
        code: The error code for other roles.
        what: The start of the message, before "may not depend on `x`".
        label: The label of the error.
        help: The help of the error.
    """

    roles: frozenset[str]
    code: str
    what: str
    label: str
    help: str


BODY = Place(ROLES, "", "", "", "")
FUNCTION = Place(
    ROLES - {"local"},
    "E210",
    "a function",
    "a local variable of the rule",
    "pass it as an argument; a function sees its parameters, hyperparameters, states, p, g and t",
)
REQUIRE = Place(
    frozenset({"hyper", "fact", "key"}),
    "E311",
    "a requirement",
    "expected hyperparameters, or the tensor's shape, such as ndim",
    "requirements are checked when the optimizer is created; values that change from step to step cannot be required",
)
WHEN = Place(
    frozenset({"hyper", "fact", "key", "static"}),
    "E303",
    "whether a state exists",
    "not known before the first step",
    "after `when`, use hyperparameters and the tensor's shape (ndim, numel, rows, cols)",
)
STORED = Place(
    frozenset({"fact"}),
    "E413",
    "how a state is stored",
    "expected the tensor's shape",
    "use ndim, numel, rows and cols: `when numel >= 4096`",
)
INITIAL = Place(
    frozenset({"hyper", "fact", "key", "static", "tensor", "gradient"}),
    "E312",
    "an initial value",
    "not known when the state is created",
    "use hyperparameters, the tensor's shape, and the p and g of its first step",
)
GROUP_INITIAL = Place(
    frozenset({"hyper"}),
    "E312",
    "the initial value of a group state",
    "not one number for the whole parameter group",
    "use numbers and hyperparameters",
)
SHARED_INITIAL = Place(
    frozenset({"hyper"}),
    "E312",
    "the initial value of a shared state",
    "not one number for the whole optimizer",
    "use numbers and hyperparameters",
)
EVENT = Place(
    frozenset({"hyper", "state", "group state", "fact", "key", "tensor"}),
    "E315",
    "an `on` block",
    "not available between steps",
    "it runs between steps: use p, states, hyperparameters, the tensor's shape, and local variables",
)
ROUTE = Place(
    frozenset({"fact", "key"}),
    "E412",
    "a route",
    "expected the tensor's shape, or keys of its parameter group",
    "a tensor is routed when it is added to the optimizer: use ndim, numel, rows, cols and `group.NAME`",
)
DEFAULT = Place(
    frozenset({"hyper"}),
    "E312",
    "the default of a parameter",
    "expected numbers and hyperparameters",
    "remove the default and pass the value in each call",
)
