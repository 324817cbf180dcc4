"""First steps in new processes: with every cache empty, as for a new user, and again with the caches filled."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlang.bench.shapes import TOUCHED

if TYPE_CHECKING:
    from optlang.bench.plan import Comparison

CACHES = ("OPTLANG_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@dataclass(frozen=True)
class FirstSteps:
    """The results of two consecutive processes.

    Attributes:
        cold: Seconds from after ``import torch`` to the end of the first step, with every cache empty.
        warm: The same in a second process.
        memory: The second process's peak memory during its first steps, in bytes, beyond its memory after them
            (parameters, gradients, state); None if the system does not report it.
    """

    cold: float
    warm: float
    memory: int | None


def first_steps(plan: Comparison) -> FirstSteps:
    """Measure the first step in two new processes that share temporary caches.

    Raises:
        RuntimeError: If a process fails; carries its output.
    """
    with tempfile.TemporaryDirectory(prefix="optlang-cold-") as folder:
        rule = Path(folder, "rule.opt")
        rule.write_text(plan.source.text, encoding="utf-8")
        environment = dict(os.environ, OPTLANG_QUIET="1")
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages come with bytecode
        environment.update({name: str(Path(folder, name.lower())) for name in CACHES})
        work = {
            "shapes": plan.members,
            "touched": TOUCHED.get(plan.shapes),
            "dtype": plan.dtype,
            "device": plan.device,
            "arguments": plan.arguments,
            "backend": plan.backend,
            "closure": "hvp" if "hvp" in plan.asked else "grad" if plan.calls else None,
        }
        arguments = [str(rule), json.dumps(work)]
        found = []
        for _ in range(2):
            command = [sys.executable, "-m", "optlang.bench.cold", *arguments]
            finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise RuntimeError(f"the first step in a new process failed:\n{finished.stderr}")
            found.append(json.loads(finished.stdout.splitlines()[-1]))
    cold, warm = found
    return FirstSteps(cold["seconds"], warm["seconds"], warm["memory"])


def main(rule: str, described: str) -> None:
    """Compile a rule, make a first step and a few more, and print the measurements."""
    import torch

    from optlang.bench import objective
    from optlang.bench.rows import gradient

    work = json.loads(described)
    dtype, device, touched = getattr(torch, work["dtype"]), work["device"], work["touched"]
    parameters = []
    for shape in work["shapes"]:
        parameter = torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=device))
        if touched is not None:
            parameter.grad = gradient(parameter.detach(), touched, torch.Generator().manual_seed(0))
        else:
            parameter.grad = torch.ones_like(parameter)
        parameters.append(parameter)
    closure: Any = objective.closure(parameters, work["closure"] == "hvp") if work["closure"] else None
    on_cuda = device.startswith("cuda")
    start = time.perf_counter()
    import optlang

    optimizer = optlang.compile(Path(rule), backend=work["backend"])(parameters, **work["arguments"])
    optimizer.warmup()  # type: ignore[attr-defined]  # a part of the wait, but no step: memory is the steps'
    _forget_peak(on_cuda)
    optimizer.step(closure)
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for _ in range(3):
        optimizer.step(closure)
    print(json.dumps({"seconds": seconds, "memory": _beyond(on_cuda)}))


def _forget_peak(on_cuda: bool) -> None:
    """Reset the peak of memory."""
    import torch

    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _beyond(on_cuda: bool) -> int | None:
    """Return by how many bytes the peak exceeds the current memory."""
    import torch

    if on_cuda:
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", status, flags=re.MULTILINE))
    return 1024 * (int(found["VmHWM"]) - int(found["VmRSS"])) if len(found) == 2 else None


if __name__ == "__main__":
    main(*sys.argv[1:])
