"""Functions that are written into generated code where it calls them.

They stand in the other files of this folder as any code does. These are never imported, only read: what they import
need not be installed, and a function is copied verbatim.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path


@cache
def texts(file: str) -> dict[str, str]:
    """Return the functions of a file of this folder as text, by name, without decorators."""
    source = Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {node.name: "".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}


#: The functions that generated Python may call, in the order in which they are written.
HELPERS: dict[str, str] = {**texts("tensors"), **texts("host")}


def called(spelling: str) -> set[str]:
    """Return the names of the helpers that a piece of generated Python calls."""
    return {name for name in re.findall(r"(?<![.\w])\w+(?=\()", spelling) if name in HELPERS}
