"""Every diagnostic code: its title, why it exists, and a smallest rule that gets it.

Each code has a page in this folder: the title, the explanation, the rule, and the rule written well if there is a way.
``optlang explain CODE`` prints a page, the reference of diagnostics is generated from them, and a test checks that each
rule gets exactly its code. E1 is syntax, E2 names, E3 kinds of values, E4 declarations, E5 limits, E8 targets, and W6
warnings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PAGE = re.compile(r"# (?P<title>[^\n]+)\n\n(?P<explanation>.+?)\n\n```opt\n(?P<first>.+?)```\n(?P<rest>.*)", re.DOTALL)
_INSTEAD = re.compile(r"\nInstead:\n\n```opt\n(.+)```\n", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """What there is to say about one code.

    Attributes:
        code: ``E...`` for errors, ``W...`` for warnings.
        title: A few words.
        explanation: Why this is refused and what to do, in a short paragraph or a few.
        example: A smallest rule that gets the code.
        instead: The same rule written well, if there is one.
    """

    code: str
    title: str
    explanation: str
    example: str
    instead: str | None = None


@cache
def entries() -> dict[str, Entry]:
    """Return the pages by their codes, in order."""
    return {path.stem: _read(path) for path in sorted(Path(__file__).parent.glob("*.md"))}


def _read(path: Path) -> Entry:
    """Return one page.

    Raises:
        ValueError: If it is not written like the others.
    """
    page = _PAGE.fullmatch(path.read_text(encoding="utf-8"))
    instead = _INSTEAD.fullmatch(page["rest"]) if page is not None and page["rest"] else None
    if page is None or (page["rest"] and instead is None):
        raise ValueError(f"{path.name}: a page has a title, an explanation, a rule, and perhaps `Instead:` and another")
    return Entry(path.stem, page["title"], page["explanation"], page["first"], instead and instead[1])
