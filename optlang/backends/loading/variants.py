"""Compiled variants on disk: a second process that runs a rule needs neither SymPy nor the passes."""

from __future__ import annotations

import pickle
from functools import cache as once
from pathlib import Path

from optlang.artifact import Variant, VariantKey
from optlang.cache import sealed

PACKAGE = Path(__file__).parents[2]


def find(text: str, name: str, key: VariantKey) -> Variant | None:
    """Return a cached variant, or None.

    Args:
        text: The rule.
        name: The class name.
        key: The variant's key.
    """
    content = sealed.read(_file_name(text, name, key))
    if content is None:
        return None
    try:
        found = pickle.loads(content)  # only we write there, as for the machine code next to it
    except Exception:  # written by another version of Python, or of a class
        return None
    return found if isinstance(found, Variant) and found.key == key else None


def keep(text: str, variant: Variant) -> None:
    """Cache a variant for other processes."""
    sealed.keep(_file_name(text, variant.name, variant.key), pickle.dumps(variant), again=True)


def _file_name(text: str, name: str, key: VariantKey) -> str:
    return sealed.file_name(name, sealed.key(text, name, repr(key), _compiler()), ".variant")


@once
def _compiler() -> str:
    """Return a string that changes whenever the compiler does."""
    files = sorted(PACKAGE.rglob("*.py"))
    return repr([(str(file), status.st_size, status.st_mtime_ns) for file in files if (status := file.stat())])
