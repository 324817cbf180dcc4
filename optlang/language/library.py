"""The names of the library's rules, read from their files: a route leads to one of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "rules"


@cache
def rule_names() -> dict[str, bool]:
    """Return the names of the library's rules in alphabetical order, and whether each only routes to others."""
    found = {}
    for file in FOLDER.glob("*.opt"):
        text = file.read_text(encoding="utf-8")
        declared = re.search(r"^optimizer\s+(\w+)", text, re.MULTILINE)
        routes = re.search(r"^route\s", text, re.MULTILINE) is not None
        found[declared[1] if declared else file.stem] = routes
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
