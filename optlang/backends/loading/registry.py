"""The backends there are: the files of :mod:`optlang.backends` that define ``load``."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent.parent


def names() -> list[str]:
    """Return the names of the backends, found by their files, without importing them."""
    found = (path for path in FOLDER.glob("*.py") if "\ndef load(" in path.read_text(encoding="utf-8"))
    return sorted(path.stem for path in found)


def find(name: str) -> ModuleType:
    """Return the module of a backend.

    Raises:
        ValueError: If there is no such backend.
    """
    known = names()
    if name not in known:
        raise ValueError(f"there is no backend {name!r}; there are: {', '.join(known)}")
    return importlib.import_module(f"optlang.backends.{name}")
