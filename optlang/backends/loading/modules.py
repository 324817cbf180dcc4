"""Generated source as a module that tracebacks and torch's tools can read."""

from __future__ import annotations

import hashlib
import linecache
from typing import Any

from optlang.artifact import Kernel
from optlang.backends.loading.signature import Signature


def load_module(source: str, name: str) -> dict[str, Any]:
    """Execute generated source and return its globals.

    The source is registered in :mod:`linecache`, so that a traceback shows its lines and ``inspect.getsource`` finds
    them.
    """
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    filename = f"<optlang {name} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    names: dict[str, Any] = {"__name__": f"optlang_generated_{digest}", "__file__": filename}
    exec(compile(source, filename, "exec"), names)  # our compiler's output, never user input
    return names


def source_for(kernel: Kernel, signature: Signature) -> str:
    """Return the source of a kernel that fits a signature."""
    return kernel.narrow_source if signature.narrow else kernel.source
