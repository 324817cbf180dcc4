"""Which format each state is kept in: what ``store`` asks for, with the presets."""

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

#: What may be given for all states at once.
PRESETS = ("fp32", "bf16", "8bit", "off")
#: The one that leaves every state in its own type, whatever the rule says.
OFF = "off"


class StoredState(Protocol):
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

    @property
    def cancels(self) -> bool:
        """Whether something is divided by a difference in which it stands, or a root is taken of one."""

    @property
    def mixed(self) -> bool:
        """Whether it is given to operations on matrices, so that no element is updated from itself alone."""

    @property
    def format(self) -> Format:
        """How the rule keeps it without any ``store``."""


def checked(who: str, store: Any, keys: Sequence[str]) -> Any:
    """Return what was given for ``store``.

    Args:
        who: The class, for messages.
        store: A preset, or formats by the keys of states; None for what the rule says.
        keys: Those of the rule's states.

    Raises:
        ValueError: If there is no such preset, state or format.
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
    """Return the name of a preset and the fewest elements that it keeps in codes; None if it is no preset."""
    found = written(store)
    if found is None or found.name not in PRESETS or found.at_random:
        return None
    allowed = {"least"} if found.name == "8bit" else set()
    return (found.name, found.options.get("least")) if found.options.keys() <= allowed else None


def named(who: str, text: Any) -> Format:
    """Return the format of a name, such as ``bf16``, ``fp8`` or ``int8(block=128)``.

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
    """Return the formats of those states of a tensor that are not kept in their own type, by key.

    Args:
        who: The class, for messages.
        store: What :func:`checked` returned.
        slots: The states.
        shape: That of the parameter.
        ruled: The formats that the rule itself asks for, by key.
        slow: The keys of averages that move by less in a step than is rounded off in eight bits.

    Raises:
        ValueError: If a state cannot be kept in the format that is asked for it.
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
    """Return the format that codes and scales are of: their types say which, and their shapes how large a block is."""
    sizes = [1 << n for n in range(LARGEST_BLOCK, 3, -1)]
    fitting = (kind(size) for kind in CODES.values() for size in (kind().block, *sizes))  # a row may have one block
    return next((each for each in fitting if each.fits(codes, scales)), None)


def _preset(preset: str, least: int | None, slot: StoredState, slow: bool) -> Format | None:
    """Return the format of a state in a preset; None if it stays as it is."""
    if preset == OFF:
        return slot.format
    if slot.cancels:  # an error may be as large as the difference
        return None if preset != "fp32" else Fixed(TYPES[preset])
    if preset == "bf16":
        if slot.signed and not slot.zero:  # near a parameter: the next one is it, or their difference
            return None
        # The nearest number would not do for what is never negative, or a sum: it stops, and a slow average never comes
        # down.
        return Stochastic() if slow or not (slot.signed and slot.averages) else Fixed(TYPES[preset])
    if preset != "8bit":
        return Fixed(TYPES[preset])
    if not (slot.averages and slot.zero):  # sums, and what is near a parameter: errors would stay
        return None
    if not slot.signed:
        return Log8(least=least)
    if slow:
        return Stochastic()
    # A signed state that something is divided by must not become 0 beside large ones. Of what matrices are made of,
    # small numbers count beside what is lost of large ones.
    return Fixed(TYPES["bf16"]) if slot.divides or slot.mixed else Fp8(least=least)
