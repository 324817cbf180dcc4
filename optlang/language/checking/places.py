"""Places where expressions stand, and which names may be read there."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = frozenset(
    ("hyper", "state", "group state", "local", "static", "tensor", "gradient", "time", "fact", "key", "total", "random")
)


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
    frozenset({"hyper", "fact", "key"}),
    "E311",
    "a requirement",
    "expected hyperparameters, and facts of the tensor such as ndim",
    "requirements are looked at when the optimizer is made; what changes with the steps cannot be required",
)
WHEN = Place(
    frozenset({"hyper", "fact", "key", "static"}),
    "E303",
    "whether a state exists",
    "not known before the first step",
    "after `when`, use hyperparameters and facts of the tensor (ndim, numel, rows, cols)",
)
STORED = Place(
    frozenset({"fact"}),
    "E413",
    "how a state is kept",
    "expected facts of the tensor",
    "use ndim, numel, rows and cols: `when numel >= 4096`",
)
INITIAL = Place(
    frozenset({"hyper", "fact", "key", "static", "tensor", "gradient"}),
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
    "there is no step here",
    "it runs between the steps: use p, states, hyperparameters, facts, and names of its own",
)
ROUTE = Place(
    frozenset({"fact", "key"}),
    "E412",
    "a route",
    "expected facts of the tensor, or keys of its group",
    "a tensor is sent to its rule when it is given to the optimizer: use ndim, numel, rows, cols and `group.NAME`",
)
DEFAULT = Place(
    frozenset({"hyper"}),
    "E312",
    "the default of a parameter",
    "expected numbers and hyperparameters",
    "remove the default and pass the value in each call",
)
