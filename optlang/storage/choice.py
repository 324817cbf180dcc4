"""Which format each state is kept in: what ``store`` asks for, with the presets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from optlang.storage.blocks import Blocks, is_large
from optlang.storage.formats import Fixed, Format
from optlang.storage.fp8 import Fp8
from optlang.storage.int8 import Int8
from optlang.storage.log8 import Log8

if TYPE_CHECKING:
    import torch

#: The formats of codes, by name.
CODES: dict[str, type[Blocks]] = {kind.name: kind for kind in (Fp8, Log8, Int8)}
#: Other types of numbers, by name.
TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: The logarithm of the largest block.
LARGEST_BLOCK = 16
#: What may be given for all states at once.
PRESETS = ("fp32", "bf16", "8bit")


class State(Protocol):
    """What the choice goes by."""

    @property
    def key(self) -> str:
        """Its key in ``optimizer.state[p]``."""

    @property
    def of_elements(self) -> bool:
        """Whether it is shaped like its parameter."""

    @property
    def signed(self) -> bool:
        """Whether some of its numbers may be negative."""

    @property
    def divides(self) -> bool:
        """Whether something is divided by them."""

    @property
    def zero(self) -> bool:
        """Whether they are 0 before the first step."""

    @property
    def averages(self) -> bool:
        """Whether what was kept has less weight with every step."""


def checked(who: str, store: Any, keys: Sequence[str]) -> Any:
    """Return what was given for ``store``.

    Args:
        who: The class, for messages.
        store: A preset, or formats by the keys of states; None for what the rule says.
        keys: Those of the rule's states.

    Raises:
        ValueError: If there is no such preset, state or format.
    """
    if store is None or store in PRESETS:
        return store
    if not isinstance(store, Mapping):
        raise ValueError(
            f"{who}: store must be one of {', '.join(map(repr, PRESETS))}, or a dict of formats; got {store!r}"
        )
    for key, asked in store.items():
        if key not in keys:
            states = ", ".join(map(repr, keys)) or "none"
            raise ValueError(f"{who}: store names a state {key!r}, and the rule has {states}")
        named(who, asked)
    return dict(store)


def named(who: str, text: Any) -> Format:
    """Return the format of a name, such as ``bf16``, ``fp8`` or ``int8(block=128)``.

    Raises:
        ValueError: If there is none.
    """
    found = re.fullmatch(r"(\w+)(?:\(block\s*=\s*(\d+)\))?", text) if isinstance(text, str) else None
    if found is not None:
        name, block = found.groups()
        if name in TYPES and block is None:
            return Fixed(TYPES[name])
        if name in CODES and (block is None or _is_size(int(block))):
            return CODES[name](int(block)) if block else CODES[name]()
        if name in CODES:
            raise ValueError(
                f"{who}: a block of {name} must be a power of 2 from 16 to {1 << LARGEST_BLOCK}, got {block}"
            )
    known = ", ".join((*TYPES, *CODES))
    raise ValueError(f"{who}: there is no format {text!r} to keep states in; there are: {known}")


def _is_size(block: int) -> bool:
    """Whether a block may be of some size."""
    return 16 <= block <= 1 << LARGEST_BLOCK and not block & (block - 1)


def formats(who: str, store: Any, slots: Sequence[State], shape: Sequence[int]) -> dict[str, Format]:
    """Return the formats of those states of a tensor that are kept otherwise than the rule says, by key.

    Args:
        who: The class, for messages.
        store: What :func:`checked` returned.
        slots: The states.
        shape: That of the parameter.

    Raises:
        ValueError: If a state cannot be kept in the format that is asked for it.
    """
    found: dict[str, Format] = {}
    for slot in slots:
        asked = store.get(slot.key) if isinstance(store, Mapping) else None
        preset = _preset(store, slot) if isinstance(store, str) and slot.of_elements else None
        if preset is not None:
            found[slot.key] = preset
        elif asked is not None and not slot.of_elements:
            raise ValueError(
                f"{who}: state {slot.key!r} cannot be kept in {asked}, as it is not shaped like its parameter"
            )
        elif asked is not None:
            found[slot.key] = named(who, asked)
    return {key: each for key, each in found.items() if not isinstance(each, Blocks) or is_large(shape)}


def found(codes: torch.Tensor, scales: torch.Tensor) -> Blocks | None:
    """Return the format that codes and scales are of: their types say which, and their shapes how large a block is."""
    types = str(codes.dtype)[6:], str(scales.dtype)[6:]
    kind = next((kind for kind in CODES.values() if (kind.codes, kind.second) == types), None)
    if kind is None:
        return None
    shape = tuple(codes.shape)
    sizes = [kind().block, *(1 << n for n in range(LARGEST_BLOCK, 3, -1))]  # where several fit, a row has one block
    fitting = (kind(size) for size in sizes)
    return next((each for each in fitting if each.scales_shape(shape) == tuple(scales.shape)), None)


def _preset(preset: str, slot: State) -> Format | None:
    """Return the format of a state in a preset; None if it stays as it is."""
    if preset != "8bit":
        return Fixed(TYPES[preset])
    if not (slot.averages and slot.zero):  # sums, and what is near a parameter: errors would stay
        return None
    if not slot.signed:
        return Log8()
    # A signed state that something is divided by must not become 0 beside large neighbours.
    return Fixed(TYPES["bf16"]) if slot.divides else Fp8()
