"""Formats by name: quantized formats, other number types, and their options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from optlang.storage.blocks import Blocks
from optlang.storage.formats import Fixed, Format
from optlang.storage.fp8 import Fp8
from optlang.storage.int8 import Int8
from optlang.storage.log8 import Log8
from optlang.storage.parameters import Stochastic
from optlang.storage.softsign8 import Softsign8
from optlang.storage.sqrt8 import Sqrt8

#: The quantized formats, by name.
CODES: dict[str, type[Blocks]] = {kind.name: kind for kind in (Fp8, Log8, Int8, Softsign8, Sqrt8)}
#: Other number types, by name.
TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: The suffix of a format that rounds stochastically on request.
AT_RANDOM = "stochastic"
#: The logarithm of the largest block size.
LARGEST_BLOCK = 16
#: Options of a quantized format: the block size, and the fewest elements of a tensor that is quantized.
OPTIONS = ("block", "least")

_WRITTEN = re.compile(rf"(\w+)(?:\(([^()]*)\)| ({AT_RANDOM}))?")
_OPTION = re.compile(r"\s*(\w+)\s*=\s*(\d+)\s*")


class Wrong(ValueError):
    """There is no such format.

    Attributes:
        part: The invalid part: an option, ``stochastic``, or the empty string for the name.
    """

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.part = part


class Written(NamedTuple):
    """The parts of ``int8(block=128, least=1024)`` or ``bf16 stochastic``."""

    name: str
    options: Mapping[str, int]
    at_random: bool


def written(text: object) -> Written | None:
    """Parse the name of a format or preset, as passed in Python; None if it does not have the right syntax."""
    found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    options = [_OPTION.fullmatch(part) for part in found[2].split(",")] if found[2] is not None else []
    numbers = {option[1]: int(option[2]) for option in options if option is not None}
    if len(numbers) < len(options):  # one is malformed, or is given twice
        return None
    return Written(found[1], numbers, found[3] is not None)


def format_of(name: str, options: Mapping[str, int] | None = None, at_random: bool = False) -> Format:
    """Return a format.

    Args:
        name: Its name.
        options: The options in parentheses.
        at_random: Whether it is requested to round stochastically.

    Raises:
        Wrong: If there is none.
    """
    if name not in TYPES and name not in CODES:
        raise Wrong(f"unknown format {name!r}; the formats are: {', '.join((*TYPES, *CODES))}")
    if at_random and name != "bf16":
        raise Wrong(f"{name} has no stochastic rounding; bf16 has, and log8 always rounds at random", AT_RANDOM)
    for option, number in (options or {}).items():
        if name not in CODES or option not in OPTIONS:
            takes = " and ".join(OPTIONS) if name in CODES else "nothing"
            raise Wrong(f"{name} takes {takes} in brackets, not {option}", option)
        if option == "block" and not is_block(number):
            limits = f"a power of 2 from 16 to {1 << LARGEST_BLOCK}"
            raise Wrong(f"a block of {name} must be {limits}, got {number}", option)
    if name in CODES:
        return CODES[name](**(options or {}))
    return Stochastic() if at_random else Fixed(TYPES[name])


def is_block(size: int) -> bool:
    """Return whether a block size is valid."""
    return 16 <= size <= 1 << LARGEST_BLOCK and not size & (size - 1)
