"""What tests/test_triton.py runs in processes of its own: Triton's interpreter or its compiler.

Each command prints JSON.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

INTERPRETED, COMPILED = "steps", "compile"
os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1:2] == [INTERPRETED] else "0"  # before triton is imported

import torch  # noqa: E402

import optlang  # noqa: E402
from optlang.api import load  # noqa: E402
from optlang.backends.loading import launch  # noqa: E402
from optlang.backends.loading.modules import load_module  # noqa: E402
from optlang.compiled import Kernel  # noqa: E402
from optlang.compiler import compile_source, example_variant  # noqa: E402
from optlang.inputs import Handed, Total  # noqa: E402

SHAPES = [(0,), (1,), (), (7,), (1000,), (100, 50), (2 * launch.CHUNK + 5,), (9000,)]


def kernels_of(rule: str) -> tuple[Kernel, ...]:
    """Return everything that a step of a rule runs."""
    return example_variant(compile_source(load(rule))).schedule.kernels


def steps(rule: str, dtype: torch.dtype) -> tuple[float, float]:
    """Return how far four steps of a rule are from the eager backend's: of values, and of what has changed.

    The first is relative to parameters and states; the second is relative to the largest change of a tensor, which may
    be little.
    """
    results = []
    for name, triton in (("Plain", False), ("Launched", True)):
        made = optlang.compile(rule, name=name, backend="eager")
        if triton:
            made._parts.parts[0].kernels._load = launch.load
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
        parameters.append(torch.nn.Parameter(torch.randn(3001).to(dtype)[1:]))  # not aligned
        start = [p.detach().double() for p in parameters]
        optimizer = made(parameters)
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape).to(dtype)
            if step == 2:  # a gradient that is not aligned
                parameters[-2].grad = torch.randn(9001).to(dtype)[1:]
            if step == 3:  # some have none
                parameters[3].grad = None
            optimizer.step()
        if triton:
            assert {kernel.origin for kernel in made._parts.parts[0].kernels.loaded.values()} == {"triton"}
        changes = [p.detach().double() - before for p, before in zip(parameters, start, strict=True)]
        held = [v.detach().double() for p in parameters for v in optimizer.state[p].values() if torch.is_tensor(v)]
        shared = [v for k, v in sorted(optimizer.param_groups[0].items()) if k != "params" and isinstance(v, float)]
        values = [p.detach().double() for p in parameters]
        results.append([[*values, *held], [*changes, *held, torch.tensor(shared).double()]])
    (values, changes), (others, other_changes) = results
    return (
        max(map(_difference, values, others)),
        max(map(_difference, changes, other_changes, [0.0] * len(changes))),
    )


def _difference(a: torch.Tensor, b: torch.Tensor, least: float = 1.0) -> float:
    """Return how much two tensors differ, for their size; what is not a number in both does not."""
    if not a.numel() or (torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())):
        return 0.0
    same = a.isnan() & b.isnan()
    return float((a - b)[~same].abs().max() / (least + b[~same].abs().max()))


def compiled(rule: str, dtype: str) -> list[dict[str, object]]:
    """Return what Triton makes of each kernel of a rule for an H100, and what its assembler says of it."""
    found = []
    for kernel in kernels_of(rule):
        names = load_module(kernel.text("triton_source"), "test")
        found += [for_an_h100(kernel, dtype, function, names["tl"]) for _, function in names["LAUNCHES"]]
    return found


def for_an_h100(kernel: Kernel, dtype: str, function: Any, tl: Any) -> dict[str, object]:
    """Return what Triton makes of one kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    real, short = ("float64", "fp64") if dtype == "float64" else ("float32", "fp32")
    types = [real if isinstance(name, Handed | Total) else dtype for name in kernel.tensors]
    constants = {f"type_{i}": getattr(tl, name) for i, name in enumerate(types)}
    constants |= {"chunk": launch.CHUNK, "block": launch.BLOCK}
    arguments = [name for name in function.arg_names if name not in constants]
    tables = dict(zip(arguments, ["*i32", "*i64", "*i64", f"*{short}", "*fp64", f"*{short}"], strict=False))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(tables))}
    source = ASTSource(function, tables | dict.fromkeys(constants, "constexpr"), constants, aligned)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(launch.OPTIONS))
    ptx = made.asm["ptx"]
    vectors = re.findall(r"(?:ld|st)\.global\.v[248]\.\w+", ptx)
    return {
        "name": function.fn.__name__,
        "vectors": sorted(set(vectors)),
        "roundings": sorted(set(re.findall(r"cvt\.\w+\.bf16\w*\.f32", ptx))),
        "fused": "fma.rn" in ptx,
        "approximate": bool(re.search(r"(?:div|sqrt)\.(?:full|approx)", ptx)),
        "spills": spills(ptx),
    }


def spills(ptx: str) -> list[int]:
    """Return the bytes of stack, spill stores and spill loads that the assembler reports, or nothing without one."""
    import triton

    for program in sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*")):
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(ptx)
            file.flush()
            command = [str(program), "-v", "-arch=sm_90a", file.name, "-o", os.devnull]
            said = subprocess.run(command, capture_output=True, text=True).stderr
        found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
        if found:
            return [int(n) for n in found.groups()]
    return []


def main() -> None:
    """Run a command on every pair of a rule and a type given as JSON."""
    warnings.simplefilter("ignore")
    result = []
    for rule, dtype in json.loads(sys.stdin.read()):
        result.append(steps(rule, getattr(torch, dtype)) if sys.argv[1] == INTERPRETED else compiled(rule, dtype))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
