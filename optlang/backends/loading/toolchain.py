"""What this machine can build with and run."""

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

#: How to get a compiler, by platform.
ADVICE = {
    "linux": "install one (`apt install g++`, `dnf install gcc-c++`) or set CXX",
    "darwin": "install one (`xcode-select --install`) or set CXX",
    "win32": "install the Visual Studio build tools and set CXX",
}

#: How Inductor is to write parallel code for the CPU. The code counts its threads when it runs, and has to be right for
#: any number of them. If Inductor is told of one thread only (by ``OMP_NUM_THREADS=1``, which ``torchrun`` sets), it
#: leaves out what keeps the other threads from doing the same work again, and the code would be kept for processes with
#: more threads.
PARALLEL: dict[str, object] = {"cpp.dynamic_threads": True, "cpp.threads": max(2, os.cpu_count() or 1)}

#: Where temporary files may be kept besides the folder that is set for them.
PLAIN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def compiler() -> str | None:
    """Return the C++ compiler that will be used, or None if there is none."""
    return shutil.which(compile_command()[0])


def compile_command() -> list[str]:
    """Return how the C++ compiler is called, before its options."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shlex.split(os.environ.get("CXX") or default) or [default]


def compile_in(folder: Path, command: list[str]) -> None:
    """Run a compiler in a folder, where it is given file names without paths.

    Raises:
        RuntimeError: If it fails; carries what it printed.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"the C++ compiler failed\n{shlex.join(command)}\n{done.stdout}{done.stderr}")


def advice() -> str:
    """Return what to do about a missing compiler."""
    return ADVICE.get(sys.platform, ADVICE["linux"])


@contextlib.contextmanager
def plain_paths() -> Iterator[None]:
    """Let Inductor build elsewhere if its folder has a blank or the like in its path, which its commands cannot say."""
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
    """Return a text that is the same for processors that run each other's kernels."""
    capabilities = {
        name: value
        for name, value in _capabilities().items()
        if isinstance(value, bool) or name in ("architecture", "sve_max_length")
    }
    text = repr((platform.machine(), torch.backends.cpu.get_cpu_capability(), sorted(capabilities.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _capabilities() -> dict[str, object]:
    """Return what torch knows of the processor; where it cannot tell, what the system says."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return dict(ask())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        flags = platform.processor()
    return {"architecture": flags}
