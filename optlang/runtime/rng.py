"""Random numbers that depend only on a seed, the tensor, its update count and the call's position in the rule.

No generator state is carried from step to step: each draw has a seed derived from these. So batches may run in any
order, a checkpoint needs only the seed and the step counts, and every backend reads the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optlang.artifact import Draw

#: Key of the seed in the parameter groups.
SEED = "seed"
#: The number of seeds.
SEEDS = 2**64
_MASK = SEEDS - 1


def mixed(*numbers: int) -> int:
    """Hash integers to 64 pseudorandom bits.

    Applies the finalizer of SplitMix64 (Steele, Lea & Flood, 2014, https://doi.org/10.1145/2660193.2660195) once per
    integer.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def mixed_on_device(number: int, other: torch.Tensor) -> torch.Tensor:
    """Return what :func:`mixed` returns for two numbers, one of them on a device, as a 0-d tensor there.

    The bits are those of an unsigned integer.
    """
    state = other.to(torch.int64) + _signed(mixed(number) + 0x9E3779B97F4A7C15)
    state = (state ^ ((state >> 30) & _MASK >> 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ ((state >> 27) & _MASK >> 27)) * _signed(0x94D049BB133111EB)
    return state ^ ((state >> 31) & _MASK >> 31)


def _signed(number: int) -> int:
    """Return the signed integer with the same 64 bits."""
    number &= _MASK
    return number - SEEDS if number >= SEEDS // 2 else number


def checked(name: str, seed: Any) -> int:
    """Return a seed as an integer; torch draws one for None. ``name`` is the class, for messages."""
    if seed is None:
        return int(torch.randint(2**31, ()).item())
    try:
        whole = -1 if isinstance(seed, bool) else int(seed)
        fits = whole == seed and 0 <= whole < SEEDS
    except (TypeError, ValueError, OverflowError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(f"{name}: seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    return whole


class Seed:
    """Draws random numbers for the parameters of an optimizer.

    Args:
        groups: The optimizer's parameter groups; the first one holds the seed.

    Raises:
        ValueError: If the seed is invalid.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.groups = groups
        self.value = checked("parameter group 0", groups[0].get(SEED, 0))
        self._places: dict[int, int] | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def fill(self, memory: torch.Tensor, draw: Draw, p: torch.Tensor, t: int) -> None:
        """Fill a tensor with the random numbers of one draw, for a parameter's update ``t``."""
        generator = self._generators.get(memory.device)
        if generator is None:
            generator = self._generators[memory.device] = torch.Generator(memory.device)
        if self._places is None:
            members = (q for group in self.groups for q in group["params"])
            self._places = {id(q): i for i, q in enumerate(members)}
        place = self._places.get(id(p), 0)
        generator.manual_seed(mixed(self.value, place, t, draw.seed) >> 1)
        # Tensors with another memory order get the same numbers at the same indices.
        drawn = (
            memory if memory.is_contiguous() else torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
        )
        if draw.kind == "randn":
            drawn.normal_(generator=generator)
        else:
            drawn.uniform_(generator=generator)
        if drawn is not memory:
            memory.copy_(drawn)
