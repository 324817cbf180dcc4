"""Names: which spellings are the same name, and which are refused.

Unicode spellings meet in one canonical name: compatibility forms are folded (``β₁`` to ``β1``, bold and italic
letters to plain ones) and Greek letters are spelt out, so that a paper's ``β₁`` and Python's ``beta1=`` agree.
"""

from __future__ import annotations

import unicodedata
from functools import cache

RESERVED = frozenset(
    (
        "def",
        "return",
        "if",
        "elif",
        "else",
        "and",
        "or",
        "not",
        "in",
        "inf",
        "pi",
        "true",
        "false",
        "none",
        "True",
        "False",
        "None",
    )
)

#: Unicode's own names for letters that everybody else spells otherwise.
SPELLINGS = {"lamda": "lambda", "final sigma": "sigma"}


@cache
def _greek(letter: str) -> str:
    """Return a letter spelt out if it is a plain Greek one (capital as ``Delta``), else unchanged."""
    words = unicodedata.name(letter, "").lower()
    for size in ("small", "capital"):
        prefix = f"greek {size} letter "
        if words.startswith(prefix) and " with " not in words:
            spelt = words.removeprefix(prefix)
            spelt = SPELLINGS.get(spelt, spelt)
            if spelt.isalpha():
                return spelt.capitalize() if size == "capital" else spelt
    return letter


def canonical_name(text: str) -> str:
    """Return the canonical form of a name as written in a rule."""
    if text.isascii():
        return text
    return "".join(map(_greek, unicodedata.normalize("NFKC", text)))


def superscript(text: str) -> str | None:
    """Return the digits that are written raised in ``text`` (``2`` for ``g²``), or None if none are."""
    raised = [c for c in text if unicodedata.decomposition(c).startswith("<super>")]
    return unicodedata.normalize("NFKC", "".join(raised)) if raised else None
