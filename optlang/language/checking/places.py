"""Places where expressions stand, and which names may be read there."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = frozenset({"hyper", "state", "local", "tensor", "time", "fact", "key"})


@dataclass(frozen=True)
class Place:
    """Where an expression stands: which roles it may read, and what to say if it reads another.

    Attributes:
        roles: Roles that may be read.
        code: Code of the error for other roles.
        what: Start of the error's message, before "may not depend on `x`".
        label: What is expected.
        help: What to do.
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
    "a local name of the rule",
    "pass it as an argument; a function sees its parameters, hyperparameters, states, p, g and t",
)
REQUIRE = Place(
    frozenset({"hyper"}),
    "E311",
    "a requirement",
    "expected hyperparameters only",
    "requirements are looked at when the optimizer is made; what changes with the steps cannot be required",
)
WHEN = Place(
    frozenset({"hyper", "fact", "key"}),
    "E303",
    "whether a state exists",
    "not known before the first step",
    "after `when`, use hyperparameters and facts of the tensor (ndim, numel, rows, cols)",
)
INITIAL = Place(
    frozenset({"hyper", "fact", "key", "tensor"}),
    "E312",
    "an initial value",
    "not known when the state is created",
    "use hyperparameters, facts of the tensor, and the p and g of its first step",
)
GROUP_INITIAL = Place(
    frozenset({"hyper"}),
    "E312",
    "the initial value of a group state",
    "not one number for the whole group",
    "use numbers and hyperparameters",
)
DEFAULT = Place(
    frozenset({"hyper"}),
    "E312",
    "the default of a parameter",
    "expected numbers and hyperparameters",
    "leave the default away and pass the value in each call",
)
