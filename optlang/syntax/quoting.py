"""Quoting of a rule's strings in generated files.

Help texts, docstrings, choices, messages and file names may contain anything. Code that generates Python quotes them
with these functions, so that no quote or backslash ends a string early, no line separator splits it, and no invisible
character hides what a file says.
"""

from __future__ import annotations

import math
import re
from typing import Any

#: Quotes that would end a docstring, alone or together with its closing quotes.
_ENDING = re.compile(r'"{3,}|"+(?=\s*\Z)')


def visible(text: str, kept: str = "") -> str:
    """Return a text with nonprintable characters replaced by Python escapes.

    Args:
        text: The text.
        kept: Nonprintable characters to keep, such as line ends.
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
    """Return a value of a rule as a Python literal; strings get double quotes."""
    if isinstance(value, str):
        return '"' + visible(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    if isinstance(value, float) and math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(value)


def docstring(text: str, indent: str = "", apart: bool = False) -> str:
    """Return a text in triple quotes, with its layout preserved.

    Args:
        text: The text.
        indent: Indentation of every line but the first.
        apart: Whether the closing quotes go on a separate line.
    """
    quoted = visible(_ENDING.sub(lambda found: '\\"' * len(found[0]), text.replace("\\", "\\\\")), kept="\n\t")
    lines = "\n".join(f"{indent}{line}".rstrip() for line in quoted.split("\n")).removeprefix(indent)
    return f'"""{lines}\n{indent}"""' if apart else f'"""{lines}"""'


def remark(text: str, mark: str = "#") -> str:
    """Return a text as a one-line comment; in C++ a trailing backslash would continue the comment on the next line."""
    line = f"{mark} {visible(' '.join(text.splitlines()))}"
    return f"{line}." if line.endswith("\\") else line
