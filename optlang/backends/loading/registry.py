"""The backends there are: the files of :mod:`optlang.backends` that define ``load``, and which are asked in turn.

``load(variant, signature)`` returns a kernel, or None if the backend has none for it; then the next one is asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant

FOLDER = Path(__file__).parent.parent

#: Who is asked in turn, by the name that is given. Other names stand for the backend of that name alone.
CHAINS = {"auto": ("cpp", "inductor"), "cpp": ("cpp", "inductor")}


def names() -> list[str]:
    """Return the names that may be given, found by the files of the backends, without importing them."""
    found = (path for path in FOLDER.glob("*.py") if "\ndef load(" in path.read_text(encoding="utf-8"))
    return sorted({*CHAINS, *(path.stem for path in found)})


def find(name: str) -> list[ModuleType]:
    """Return the modules of the backends that a name stands for, in the order in which they are asked.

    Raises:
        ValueError: If there is no such backend.
    """
    known = names()
    if name not in known:
        raise ValueError(f"there is no backend {name!r}; there are: {', '.join(known)}")
    return [importlib.import_module(f"optlang.backends.{each}") for each in CHAINS.get(name, (name,))]


def loader(name: str) -> Callable[[Variant, Signature], Kernel]:
    """Return a function that loads kernels, by the first of the backends of a name that has one.

    Raises:
        ValueError: If there is no such backend.
    """
    backends = find(name)

    def load(variant: Variant, signature: Signature) -> Kernel:
        found: Iterator[Kernel | None] = (each.load(variant, signature) for each in backends)
        return next(kernel for kernel in found if kernel is not None)

    return load
