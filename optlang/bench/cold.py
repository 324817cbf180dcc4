"""The first step of a rule in a new process in which every cache is empty: what a new user waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optlang.source import Source

CACHES = ("OPTLANG_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def first_step(source: Source, dtype: str, device: str, values: Mapping[str, Any], backend: str) -> float:
    """Return the seconds from starting Python to the end of the first step, imports and compiler included.

    Raises:
        RuntimeError: If the process fails; carries what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="optlang-cold-") as folder:
        rule = Path(folder, "rule.opt")
        rule.write_text(source.text, encoding="utf-8")
        environment = dict(os.environ, OPTLANG_QUIET="1")
        environment.update({name: str(Path(folder, name.lower())) for name in CACHES})
        arguments = [str(rule), dtype, device, json.dumps(dict(values)), backend]
        command = [sys.executable, "-m", "optlang.bench.cold", *arguments]
        start = time.perf_counter()
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if finished.returncode:
        raise RuntimeError(f"the first step in a new process failed:\n{finished.stderr}")
    return seconds


def main(rule: str, dtype: str, device: str, values: str, backend: str) -> None:
    """Compile a rule and make one step on the tensors of a small perceptron."""
    import torch

    import optlang
    from optlang.bench.shapes import mlp

    parameters = []
    for shape in mlp():
        parameter = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype), device=device))
        parameter.grad = torch.ones_like(parameter)
        parameters.append(parameter)
    optlang.compile(Path(rule), backend=backend)(parameters, **json.loads(values)).step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
