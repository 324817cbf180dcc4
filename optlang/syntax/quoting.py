"""A rule's texts in files of other languages: what is written between quotes, and cannot get out of them.

Help texts, docstrings, choices, messages and file names are anything that a person, or somebody else, wrote. Whatever
generates Python writes them with these functions, so that a text stays a text: no quote or backslash ends it early, no
line separator splits it, and nothing invisible hides what a file says.
"""

from __future__ import annotations

import math
import re
from typing import Any

#: Quotes that would end a docstring, alone or together with those that do.
_ENDING = re.compile(r'"{3,}|"+(?=\s*\Z)')


def visible(text: str, kept: str = "") -> str:
    """Return a text whose characters can all be seen: others as the escapes that Python's strings have for them.

    Args:
        text: The text.
        kept: Characters that stay as they are though they cannot be seen, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def literal(value: Any) -> str:
    """Return a value of a rule as Python, strings in double quotes."""
    if isinstance(value, str):
        return '"' + visible(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    if isinstance(value, float) and math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(value)


def docstring(text: str, indent: str = "", apart: bool = False) -> str:
    """Return a text between triple quotes, laid out as it is.

    Args:
        text: The text, in lines.
        indent: What stands before every line but the first.
        apart: Whether the closing quotes have a line of their own.
    """
    quoted = visible(_ENDING.sub(lambda found: '\\"' * len(found[0]), text.replace("\\", "\\\\")), kept="\n\t")
    lines = "\n".join(f"{indent}{line}".rstrip() for line in quoted.split("\n")).removeprefix(indent)
    return f'"""{lines}\n{indent}"""' if apart else f'"""{lines}"""'


def remark(text: str, mark: str = "#") -> str:
    """Return a text as a comment of one line; in C++ a backslash at its end would make two lines of it."""
    line = f"{mark} {visible(' '.join(text.splitlines()))}"
    return f"{line}." if line.endswith("\\") else line
