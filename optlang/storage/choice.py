"""The format of each state, as selected by ``store``, with the presets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from optlang.storage.blocks import Blocks, is_large
from optlang.storage.formats import Fixed, Format
from optlang.storage.fp8 import Fp8
from optlang.storage.log8 import Log8
from optlang.storage.named import CODES, LARGEST_BLOCK, TYPES, Wrong, format_of, written
from optlang.storage.parameters import Stochastic

if TYPE_CHECKING:
    import torch

#: The values of ``store`` that apply to all states at once.
PRESETS = ("fp32", "bf16", "8bit", "off")
#: The preset that leaves every state in its own type, whatever the rule specifies.
OFF = "off"


class StoredState(Protocol):
    """The properties of a state on which the choice depends."""

    @property
    def key(self) -> str:
        """Its key in ``optimizer.state[p]``."""

    @property
    def of_elements(self) -> bool:
        """Whether it is shaped like its parameter."""

    @property
    def signed(self) -> bool:
        """Whether some of its values may be negative."""

    @property
    def divides(self) -> bool:
        """Whether the rule divides by them."""

    @property
    def zero(self) -> bool:
        """Whether they are 0 before the first step."""

    @property
    def averages(self) -> bool:
        """Whether the weight of past values decreases with every step."""

    @property
    def cancels(self) -> bool:
        """Whether the rule divides by a difference that contains it, or takes a root of one."""

    @property
    def mixed(self) -> bool:
        """Whether it is passed to operations on matrices, so that elements are not updated independently."""

    @property
    def format(self) -> Format:
        """The format that the rule uses without ``store``."""


def checked(who: str, store: Any, keys: Sequence[str]) -> Any:
    """Validate the argument ``store``.

    Args:
        who: The class, for messages.
        store: A preset, or formats by the keys of states; None for the rule's own formats.
        keys: The keys of the rule's states.

    Raises:
        ValueError: If the preset, a state or a format is unknown.
    """
    if store is None or preset_of(store) is not None:
        return store
    if not isinstance(store, Mapping):
        raise ValueError(
            f"{who}: store must be one of {', '.join(map(repr, PRESETS))}, or a dict of formats; got {store!r}"
        )
    for key, asked in store.items():
        if key not in keys:
            states = ", ".join(map(repr, keys)) or "none"
            raise ValueError(f"{who}: store names a state {key!r}, but the rule has {states}")
        named(who, asked)
    return dict(store)


def preset_of(store: object) -> tuple[str, int | None] | None:
    """Return the name of a preset and the fewest elements of a tensor that it quantizes; None if it is not a preset."""
    found = written(store)
    if found is None or found.name not in PRESETS or found.at_random:
        return None
    allowed = {"least"} if found.name == "8bit" else set()
    return (found.name, found.options.get("least")) if found.options.keys() <= allowed else None


def named(who: str, text: Any) -> Format:
    """Return the format with a name such as ``bf16``, ``fp8`` or ``int8(block=128)``.

    Raises:
        ValueError: If there is none.
    """
    parts = written(text)
    try:
        return format_of(*(parts or (str(text),)))
    except Wrong as wrong:
        raise ValueError(f"{who}: {wrong}") from None


def formats(
    who: str,
    store: Any,
    slots: Sequence[StoredState],
    shape: Sequence[int],
    ruled: Mapping[str, Format] | None = None,
    slow: Collection[str] = (),
) -> dict[str, Format]:
    """Return the formats of a tensor's states that are not stored in their own type, by key.

    Args:
        who: The class, for messages.
        store: The result of :func:`checked`.
        slots: The states.
        shape: The shape of the parameter.
        ruled: The formats that the rule itself specifies, by key.
        slow: The keys of averages that change by less in a step than the rounding error of 8-bit formats.

    Raises:
        ValueError: If a state cannot be stored in the requested format.
    """
    preset = preset_of(store)
    found: dict[str, Format] = {}
    for slot in slots:
        asked = store.get(slot.key) if isinstance(store, Mapping) else None
        if asked is not None and not slot.of_elements:
            raise ValueError(
                f"{who}: state {slot.key!r} cannot be kept in {asked}, because it is not shaped like its parameter"
            )
        if asked is not None:
            format: Format | None = named(who, asked)
        elif preset is None:
            format = (ruled or {}).get(slot.key)
        else:
            format = _preset(*preset, slot, slot.key in slow)
        if format is not None and slot.of_elements:
            found[slot.key] = format
    return {key: each for key, each in found.items() if not isinstance(each, Blocks) or is_large(shape, each.least)}


def found(codes: torch.Tensor, scales: torch.Tensor) -> Blocks | None:
    """Return the format of codes and scales: their types determine the kind, their shapes the block size."""
    sizes = [1 << n for n in range(LARGEST_BLOCK, 3, -1)]
    fitting = (kind(size) for kind in CODES.values() for size in (kind().block, *sizes))  # a row may have one block
    return next((each for each in fitting if each.fits(codes, scales)), None)


def _preset(preset: str, least: int | None, slot: StoredState, slow: bool) -> Format | None:
    """Return the format of a state in a preset; None if it stays unchanged."""
    if preset == OFF:
        return slot.format
    if slot.cancels:  # an error may be as large as the difference
        return None if preset != "fp32" else Fixed(TYPES[preset])
    if preset == "bf16":
        if slot.signed and not slot.zero:  # close to a parameter: the next parameter value, or a difference
            return None
        # Rounding to the nearest would not do for nonnegative states or sums: they stop changing, and a slow average
        # never decreases.
        return Stochastic() if slow or not (slot.signed and slot.averages) else Fixed(TYPES[preset])
    if preset != "8bit":
        return Fixed(TYPES[preset])
    if not (slot.averages and slot.zero):  # sums, and values close to a parameter: errors would accumulate
        return None
    if not slot.signed:
        return Log8(least=least)
    if slow:
        return Stochastic()
    # A signed state that the rule divides by must not become 0 next to large elements. In states that form matrices,
    # small elements matter relative to the errors of large ones.
    return Fixed(TYPES["bf16"]) if slot.divides or slot.mixed else Fp8(least=least)
