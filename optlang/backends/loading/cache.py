"""The folder where built kernels are kept: ``OPTLANG_CACHE``, or ``optlang`` in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

#: Counts the changes of how kernels are built and called; kernels of another format are not found.
FORMAT = 1


def folder() -> Path:
    """Return the folder, made if need be and readable by its owner only (it holds machine code that we load)."""
    path = location()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def location() -> Path:
    """Return where the folder is or would be."""
    chosen = os.environ.get("OPTLANG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optlang"


def key(*parts: str) -> str:
    """Return a file name stem that differs whenever any of ``parts`` does."""
    digest = hashlib.sha256()
    for part in (str(FORMAT), *parts):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def is_safe(path: Path) -> bool:
    """Whether a cached file may be loaded: it is machine code, so nobody else may have been able to write it."""
    if not hasattr(os, "getuid"):
        return True
    owner, mode = path.stat().st_uid, path.stat().st_mode
    return owner in (os.getuid(), 0) and not mode & 0o022


def install(built: Path, target: Path) -> None:
    """Move a built file to its place in one step, so that no process ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".part")
    os.close(handle)
    try:
        shutil.copyfile(built, name)
        os.chmod(name, 0o700)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
