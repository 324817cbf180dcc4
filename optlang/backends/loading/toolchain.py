"""The compilers and the processor of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

#: How to install a compiler, by platform.
ADVICE = {
    "linux": "install one (`apt install g++`, `dnf install gcc-c++`) or set CXX",
    "darwin": "install one (`xcode-select --install`) or set CXX",
    "win32": "install the Visual Studio build tools and set CXX",
}

#: How Inductor generates parallel code for the CPU. The code counts its threads at run time, and must be correct for
#: any number of them. If Inductor is told of one thread only (by ``OMP_NUM_THREADS=1``, which ``torchrun`` sets), it
#: omits the code that keeps the other threads from repeating the same work, and the result would be cached for
#: processes with more threads.
PARALLEL: dict[str, object] = {"cpp.dynamic_threads": True, "cpp.threads": max(2, os.cpu_count() or 1)}

#: Alternatives to the configured folder for temporary files.
PLAIN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def compiler() -> str | None:
    """Return the C++ compiler that will be used, or None if there is none."""
    return shutil.which(compile_command()[0])


def compile_command() -> list[str]:
    """Return the command that runs the C++ compiler, before its options."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shlex.split(os.environ.get("CXX") or default) or [default]


def compile_in(folder: Path, command: list[str]) -> None:
    """Run a compiler in a folder, with file names instead of paths.

    Raises:
        RuntimeError: If it fails; carries its output.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"the C++ compiler failed\n{shlex.join(command)}\n{done.stdout}{done.stderr}")


def advice() -> str:
    """Return instructions for installing a missing compiler."""
    return ADVICE.get(sys.platform, ADVICE["linux"])


@contextlib.contextmanager
def plain_paths() -> Iterator[None]:
    """Let Inductor build elsewhere if its folder's path contains a space or the like, which it does not quote."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    given = os.environ.get(variable)
    usual = os.path.abspath(given or tempfile.gettempdir())
    plain = next((folder for folder in PLAIN_FOLDERS if os.access(folder, os.W_OK)), None)
    if plain is None or re.fullmatch(r"[\w./+@%=:,-]*", usual):
        yield
        return
    with tempfile.TemporaryDirectory(dir=plain, prefix="optlang-build-") as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable)
            if given is not None:
                os.environ[variable] = given


def processor() -> str:
    """Return a string that is equal for processors that can run each other's kernels."""
    capabilities = {
        name: value
        for name, value in _capabilities().items()
        if isinstance(value, bool) or name in ("architecture", "sve_max_length")
    }
    text = repr((platform.machine(), torch.backends.cpu.get_cpu_capability(), sorted(capabilities.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _capabilities() -> dict[str, object]:
    """Return the capabilities that torch reports for the processor or, failing that, those the system reports."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return dict(ask())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        flags = platform.processor()
    return {"architecture": flags}
