"""The cache folder: one that nobody else can write to, because machine code is loaded from it.

The cache is in ``OPTLANG_CACHE``, or ``optlang`` in the user's cache folder. If others could write to that folder, or
if it does not exist and cannot be created, a folder for this user in the temporary directory is used instead, with a
warning.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import stat
import tempfile
import time
import warnings
from pathlib import Path

#: Files that killed builds leave behind. They are removed when they are older than ``DAY`` seconds.
LEFTOVERS = (".build-*", ".kept-*", ".load-*", ".*.part", ".*.lock")
DAY = 86400.0

_said: set[str] = set()
_tidied: set[Path] = set()


def chosen() -> Path | None:
    """Return the configured folder, absolute and without links; None if there is no home."""
    given, base = os.environ.get("OPTLANG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        path = Path(given).expanduser() if given else (Path(base) if base else Path.home() / ".cache") / "optlang"
        return Path(os.path.realpath(path))
    except (OSError, RuntimeError):  # no home, or a relative path in a deleted folder
        return None


def usable() -> bool:
    """Return whether the configured folder is used; never warns."""
    wanted = chosen()
    return wanted is not None and danger(wanted) is None and _could_be_written(wanted)


def location() -> Path:
    """Return the folder in use, for messages; it need not exist."""
    wanted = chosen()
    if wanted is not None and usable():
        return wanted
    try:
        return _elsewhere()
    except OSError:
        return wanted or Path("optlang")


def places() -> list[Path]:
    """Return the folders in which to look for files; they need not exist."""
    wanted, found = chosen(), []
    if wanted is not None:
        reason = danger(wanted)
        if reason is not None:
            _say(wanted, reason)
        else:
            found = [wanted]
    if not found or not _could_be_written(found[0]):
        with contextlib.suppress(OSError):
            found.append(_elsewhere())
    return found


def folder() -> Path:
    """Return the folder to write to, created if necessary, and readable by its owner only.

    Raises:
        OSError: If there is none, not even in the temporary directory.
    """
    wanted = chosen()
    problem = "there is no home folder for it" if wanted is None else _made(wanted)
    if wanted is not None and problem is None:
        return _tidy(wanted)
    _say(wanted, problem)
    instead = _elsewhere()
    return _tidy(instead if _made(instead) is None else _of_this_process())


def danger(path: Path) -> str | None:
    """Return why others could write to or replace a folder, or None. Missing folders would be created by us."""
    if not hasattr(os, "getuid"):
        return None
    for place in (path, *path.parents):
        try:
            status = place.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{place} cannot be looked at ({error.strerror})"
        trusted = (0, os.getuid()) if place == path else (0, os.getuid(), _unmapped())
        if status.st_uid not in trusted:
            return f"{place} belongs to another user"
        shared = status.st_mode & (stat.S_IWOTH if _is_own_group(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP)
        # In a sticky folder, others can add entries but not replace them.
        if shared and (place == path or not status.st_mode & stat.S_ISVTX):
            return f"others may write to {place}"
    return None


def _could_be_written(path: Path) -> bool:
    """Return whether a folder is writable, or could be created."""
    there = next((place for place in (path, *path.parents) if os.path.exists(place)), path)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _made(path: Path) -> str | None:
    """Create a folder and its parents for their owner only; return why that fails, or None."""
    reason = danger(path)
    if reason is not None:
        return reason
    try:
        for place in (*reversed(path.parents), path):
            if not os.path.exists(place):
                place.mkdir(mode=0o700, exist_ok=True)
                place.chmod(0o700)  # regardless of the umask
    except OSError as error:
        return f"{error.filename or path} cannot be made ({error.strerror})"
    return danger(path) or (None if _could_be_written(path) else f"{path} cannot be written to")


def _in_temporary() -> Path:
    """Return this user's folder in the temporary directory."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(os.path.realpath(tempfile.gettempdir())) / f"optlang-{user}"


def _elsewhere() -> Path:
    """Return the folder that replaces the configured one."""
    usual = _in_temporary()
    return usual if danger(usual) is None and _could_be_written(usual) else _of_this_process()


@functools.cache
def _of_this_process() -> Path:
    """Return a folder that is removed when this process exits."""
    made = Path(tempfile.mkdtemp(prefix="optlang-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _unmapped() -> int:
    """Return the owner shown for files of users unknown in a container; -1 outside containers."""
    try:
        if Path("/proc/self/uid_map").read_text(encoding="ascii").split() != ["0", "0", "4294967295"]:
            return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        pass
    return -1


@functools.cache
def _is_own_group(group: int) -> bool:
    """Return whether a group is the private group of a user, with the same name."""
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def _tidy(path: Path) -> Path:
    """Remove what killed processes left in a folder long ago; runs once per folder."""
    if path not in _tidied:
        _tidied.add(path)
        for pattern in LEFTOVERS:
            for left in path.glob(pattern):
                with contextlib.suppress(OSError):
                    if time.time() - left.lstat().st_mtime > DAY:
                        remove(left)
    return path


def remove(path: Path) -> None:
    """Remove a file or a folder, ignoring errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _say(wanted: Path | None, reason: str | None) -> None:
    """Warn once that the configured folder is not used."""
    about = f"the cache {wanted or ''}".rstrip() + f" is not used, because {reason}"
    if about not in _said:
        _said.add(about)
        advice = "set OPTLANG_CACHE to a folder that only you can write to"
        warnings.warn(f"{about}; kernels are kept in {location()}; {advice}", RuntimeWarning, stacklevel=3)
