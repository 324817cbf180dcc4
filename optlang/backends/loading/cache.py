"""The folder where built kernels are kept: ``OPTLANG_CACHE``, or ``optlang`` in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
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
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def is_sound(path: Path) -> bool:
    """Whether a cached file may be loaded: whole, and writable by nobody but its owner (it is machine code)."""
    try:
        status, content = path.stat(), path.read_bytes()
    except OSError:
        return False
    if hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022):
        return False
    return content[-len(_seal(b"")) :] == _seal(content[: -len(_seal(b""))])


def install(built: Path, target: Path) -> None:
    """Put a built file in its place in one step, sealed, so that no process ever loads half of it."""
    content = built.read_bytes()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + _seal(content))
        os.chmod(name, 0o700)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _seal(content: bytes) -> bytes:
    """Return what is appended to a file to recognise it as whole; loaders of libraries do not look there."""
    return b"optlang:" + hashlib.sha256(content).digest()
