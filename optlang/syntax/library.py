"""The rules of the library by name, read from their files, for routes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from optlang.source import Source
from optlang.syntax.tree import Name, Text

FOLDER = Path(__file__).parents[1] / "rules"


@cache
def rule_files() -> dict[str, Path]:
    """Return the files of the library's rules by rule name, in alphabetical order (ignoring case)."""
    found = {}
    for file in FOLDER.glob("*.opt"):
        declared = re.search(r"^optimizer\s+(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        found[declared[1] if declared else file.stem] = file
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


@cache
def rule_names() -> dict[str, bool]:
    """Return the names of the library's rules, and whether each only routes to others."""
    texts = ((name, file.read_text(encoding="utf-8")) for name, file in rule_files().items())
    return {name: re.search(r"^route\s", text, re.MULTILINE) is not None for name, text in texts}


def rule_of(rule: Name | Text, beside: Source) -> Source:
    """Return the source of a rule of the library or of a file.

    Args:
        rule: The name of the rule or of its file; a file is looked up next to the rule that names it.
        beside: The rule that names it.

    Raises:
        OSError: If the file cannot be read.
        UnicodeDecodeError: If it is not UTF-8.
    """
    if isinstance(rule, Name):
        file = rule_files()[rule.name]
        return Source(file.read_text(encoding="utf-8"), file.name)
    file = Path(beside.name).parent / rule.value
    return Source(file.read_text(encoding="utf-8"), str(file))


TRANSFORMS = Path(__file__).parents[1] / "transforms"


@cache
def transform_files() -> dict[str, Path]:
    """Return the files of the library's transforms by name, in alphabetical order."""
    return {file.stem: file for file in sorted(TRANSFORMS.glob("*.opt"))}
