"""Storage of states: formats, one file each, and the choice among them."""

from optlang.storage.formats import NARROW, ON_HOST, Fixed, Format, HostNumber, Own, Wide

__all__ = ["NARROW", "ON_HOST", "Fixed", "Format", "HostNumber", "Own", "Wide"]
