"""Names: which spellings denote the same name, and which are rejected.

Unicode spellings map to one canonical name. Compatibility forms are folded (``β₁`` to ``β1``, bold and italic letters
to plain ones) and Greek letters are spelt out, so that a paper's ``β₁`` and Python's ``beta1=`` agree.
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

#: Letters whose Unicode names differ from the usual spelling.
SPELLINGS = {"lamda": "lambda", "final sigma": "sigma"}


@cache
def _greek(letter: str) -> str:
    """Return the name of a plain Greek letter (capitals as ``Delta``); other characters are unchanged."""
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
    """Return the superscript digits in ``text`` (``2`` for ``g²``), or None."""
    raised = [c for c in text if unicodedata.decomposition(c).startswith("<super>")]
    return unicodedata.normalize("NFKC", "".join(raised)) if raised else None
