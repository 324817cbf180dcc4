"""Records for what a rule computes with and gives no name: keys of param groups, counts, sizes, places of calls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from zlib import crc32


@dataclass(frozen=True)
class GroupKey:
    """A key of the user's own in the param group, ``group.NAME``."""

    name: str

    def __str__(self) -> str:
        return f"group.{self.name}"


class Count(Enum):
    """How many steps have been made, from 1. That of a tensor has a name in rules, ``t``."""

    GROUP = "group.t"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class DimensionSize:
    """The size of a dimension of the parameter, counted from the first; 1 if there is none."""

    dim: int

    def __str__(self) -> str:
        return f"_size{self.dim}" if self.dim else "_lead"


#: What a value is called that is known before a step: a name of the rule's (a hyperparameter, a fact) or a record.
GivenName = str | GroupKey | Count | DimensionSize


@dataclass(frozen=True)
class Site:
    """A call of a rule's: the ordinals of the calls and loops around it, and of itself, with the turns of the loops."""

    calls: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.calls))

    def seed(self) -> int:
        """Return the number by which random numbers of this call differ from those of others."""
        return crc32(str(self).encode())


@dataclass(frozen=True)
class NamedPoint:
    """What all calls have in common that are about the point with this name."""

    name: str

    def __str__(self) -> str:
        return f"at {self.name}"
