"""Cached files: installed atomically, sealed, and verified on load.

The seal of a file covers its name, so a file moved to another name is as invalid as a damaged one. The verified bytes
are the bytes used: a file is opened once, then read and loaded through that descriptor.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from optlang.cache import folders

#: Version of how kernels are built and called; kernels of other versions are not found.
FORMAT = 2

#: Maximum number of characters of a rule's name in a file name, which file systems limit.
SHOWN = 40

#: How many seconds a process waits for another one that builds the same kernel.
WAIT = 600.0

#: Flags for opening a file: do not follow links, do not block on pipes. Not every system has all of them.
READING = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):
    READING |= getattr(os, _flag, 0)

T = TypeVar("T")

_loads = itertools.count()


def key(*parts: str) -> str:
    """Return a file name stem that differs if any of ``parts`` does."""
    digest = hashlib.sha256()
    for part in (str(FORMAT), *parts):
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def file_name(rule: str, key: str, suffix: str) -> str:
    """Return the name of a file: the rule's name for readability, then the key."""
    return f"{rule[:SHOWN]}-{key}{suffix}"


def read(name: str) -> bytes | None:
    """Return the content of a file, or None if it is missing or invalid."""
    return _use(name, lambda _, content: content)


def load(name: str, loader: Callable[[str], T]) -> T | None:
    """Return the result of ``loader`` on the path of a library, or None if it is missing or invalid."""

    def take(descriptor: int, content: bytes) -> T:
        with _path_of(descriptor, content) as path:
            return loader(path)

    return _use(name, take)


def install(built: Path, name: str) -> Path:
    """Install a built file atomically and sealed, so that no process ever loads part of it.

    Returns:
        Its path.
    """
    content, target = built.read_bytes(), folders.folder() / name
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + _seal(name, content))
        os.chmod(part, 0o700)
        if target.is_dir():
            folders.remove(target)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return target


def keep(name: str, content: bytes, again: bool = False) -> None:
    """Cache some bytes for other processes; failures are ignored.

    Args:
        name: The file's name.
        content: The bytes.
        again: Whether to overwrite an existing file.
    """
    with contextlib.suppress(OSError):
        if not again and read(name) is not None:
            return
        with tempfile.NamedTemporaryFile(dir=folders.folder(), prefix=".kept-") as file:
            file.write(content)
            file.flush()
            install(Path(file.name), name)


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process at a time build a file, so that the others find it; without locks, each builds."""
    import filelock

    path = folders.folder() / f".{name}.lock"
    lock = filelock.FileLock(path, timeout=WAIT, mode=0o600)
    with contextlib.suppress(OSError, NotImplementedError):  # a timeout is an OSError too
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        folders.remove(path)  # waiting processes still get it, and then find the file


def _use(name: str, take: Callable[[int, bytes], T]) -> T | None:
    """Return the result of ``take`` on an open file and its content; invalid files are removed."""
    for folder in folders.places():
        path = folder / name
        try:
            descriptor = os.open(path, READING)
        except FileNotFoundError:
            continue
        except OSError:
            folders.remove(path)
            continue
        try:
            content = _content(descriptor, name)
            if content is not None:
                return take(descriptor, content)
        finally:
            os.close(descriptor)
        folders.remove(path)
    return None


def _content(descriptor: int, name: str) -> bytes | None:
    """Return the content of an open file if it is intact, has its own name, and was written by us."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    if hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022):
        return None
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        whole = file.read()
    size = len(_seal(name, b""))
    content, seal = whole[:-size], whole[-size:]
    return content if seal == _seal(name, content) else None


@contextlib.contextmanager
def _path_of(descriptor: int, content: bytes) -> Iterator[str]:
    """Yield a path to an open file, even if its name now refers to another one; otherwise the path of a copy.

    The library loader identifies libraries by path, and descriptor numbers are reused after they are closed. So the
    path is spelled differently each time.
    """
    if os.path.exists(f"/proc/self/fd/{descriptor}"):
        spelling = "".join("./" if bit == "0" else ".//" for bit in f"{next(_loads):b}")
        yield f"/proc/self/fd/{spelling}{descriptor}"
        return
    handle, copy = tempfile.mkstemp(dir=folders.folder(), prefix=".load-", suffix=".so")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(copy, 0o700)
        yield copy
    finally:
        with contextlib.suppress(OSError):
            os.unlink(copy)


def _seal(name: str, content: bytes) -> bytes:
    """Return the seal, which is appended to a file to verify it; library loaders ignore it."""
    digest = hashlib.sha256(name.encode())
    digest.update(b"\0")
    digest.update(content)
    return b"optlang:" + digest.digest()
