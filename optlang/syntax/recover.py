"""Error recovery: replaces a faulty statement by a harmless one of the same length."""

from __future__ import annotations

import re

#: An assignment that is valid wherever a statement is.
HARMLESS = "g=g"

PIECES = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|\'[^\'\n]*\'|#[^\n]*|[(\[{]|[)\]}]|\n')
CONTINUES = re.compile(r"(?:elif|else)(?!\w)")


def without_statement(text: str, start: int) -> str | None:
    """Return ``text`` without the statement (and its block) that begins at ``start``, with all offsets unchanged.

    Returns None if the end of the statement is unclear, or if it is too short to be replaced.
    """
    end = _logical_end(text, start)
    if end is None:
        return None
    indent = start - (text.rfind("\n", 0, start) + 1)
    while end < len(text):
        following = _next_line(text, end)
        line = text[end + 1 : following]
        content = line.strip()
        deeper = len(line) - len(line.lstrip()) > indent
        if content and not deeper and not CONTINUES.match(content):
            break
        end = following
    if len(text[start:end].split("\n")[0]) < len(HARMLESS):
        return None
    blank = "".join(c if c == "\n" else " " for c in text[start:end])
    return text[:start] + HARMLESS + blank[len(HARMLESS) :] + text[end:]


def _logical_end(text: str, start: int) -> int | None:
    """Return where the line that begins at ``start`` ends; inside brackets it continues."""
    depth = 0
    for match in PIECES.finditer(text, start):
        piece = match[0]
        if piece in ("(", "[", "{"):
            depth += 1
        elif piece in (")", "]", "}"):
            depth = max(0, depth - 1)
        elif piece == "\n" and depth == 0:
            return match.start()
    return None if depth else len(text)


def _next_line(text: str, newline: int) -> int:
    """Return where the line after the line end at ``newline`` ends."""
    found = text.find("\n", newline + 1)
    return len(text) if found < 0 else found
