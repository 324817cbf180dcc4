"""Identities of values without names in a rule: param-group keys, counts, sizes, calls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from zlib import crc32


@dataclass(frozen=True)
class GroupKey:
    """A user key in the param group, ``group.NAME``."""

    name: str

    def __str__(self) -> str:
        return f"group.{self.name}"


class Count(Enum):
    """A count of steps, from 1. In rules, that of a tensor is ``t``."""

    GROUP = "group.t"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class DimensionSize:
    """The size of a dimension of the parameter, counted from the first; 1 if the dimension does not exist."""

    dim: int

    def __str__(self) -> str:
        return f"_size{self.dim}" if self.dim else "_lead"


#: The identity of a value known before a step: a name in the rule (a hyperparameter, a fact) or a record.
GivenName = str | GroupKey | Count | DimensionSize


@dataclass(frozen=True)
class Site:
    """The identity of a call: its ordinal, with those of the enclosing calls and loops and the loops' iterations."""

    calls: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.calls))

    def seed(self) -> int:
        """Return a seed that distinguishes the random numbers of this call from those of others."""
        return crc32(str(self).encode())


@dataclass(frozen=True)
class NamedPoint:
    """The identity shared by all calls at the point with this name."""

    name: str

    def __str__(self) -> str:
        return f"at {self.name}"
