"""Warnings that a slower path is taken, with the reason and a file with the details."""

from __future__ import annotations

import hashlib
import re
import traceback
import warnings
from pathlib import Path

from optlang.cache import folders

#: The maximum length of the cause in a warning, in characters.
LONGEST = 300


def warn(message: str, error: BaseException | None = None) -> None:
    """Warn that kernels will be slower than they could be.

    Args:
        message: The slower path, and what it replaces.
        error: The error that caused it; its traceback is saved to a file that the warning names.
    """
    if error is not None:
        message = f"{message}: {cause(error)}"
        kept = _keep(message, error)
        if kept is not None:
            message += f" (more in {kept})"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def cause(error: BaseException) -> str:
    """Return the first line of an error, and the first error line of a compiler's output."""
    text = str(error).strip()
    first = text.partition("\n")[0]
    found = re.search(r"^.*\berror: .*$", text, flags=re.MULTILINE)
    lines = dict.fromkeys([first, found.group(0).strip() if found else first])
    return f"{type(error).__name__}: {'; '.join(lines)}".rstrip(": ")[:LONGEST]


def _keep(message: str, error: BaseException) -> Path | None:
    """Write the details to a file; return its path, or None if it cannot be written."""
    name = hashlib.sha256(message.encode(errors="replace")).hexdigest()[:16]
    story = "".join(traceback.format_exception(error))
    try:
        path = folders.folder() / f"slow-{name}.log"
        path.write_text(f"{message}\n\n{story}", encoding="utf-8", errors="replace")
    except OSError:
        return None
    return path
