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

INTERPRETED, COMPILED = "steps", "compile"
os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1:2] == [INTERPRETED] else "0"  # before triton is imported

import torch  # noqa: E402

import optlang  # noqa: E402
from optlang.api import load  # noqa: E402
from optlang.backends.loading import launch  # noqa: E402
from optlang.backends.loading.modules import load_module  # noqa: E402
from optlang.compiler import compile_source, example_variant  # noqa: E402

SHAPES = [(0,), (1,), (7,), (1000,), (100, 50), (9000,)]


def steps(rule: str, dtype: torch.dtype) -> float:
    """Return how far a rule's parameters and states are from the eager backend's after four steps, largest first."""
    results = []
    for name, triton in (("Plain", False), ("Launched", True)):
        made = optlang.compile(rule, name=name, backend="eager")
        if triton:
            made._parts.parts[0].kernels._load = launch.load
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
        parameters.append(torch.nn.Parameter(torch.randn(3001).to(dtype)[1:]))  # not aligned
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
        states = [v for p in parameters for v in optimizer.state[p].values() if torch.is_tensor(v)]
        results.append([t.detach().double() for t in (*parameters, *states) if t.numel()])
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*results, strict=True))


def compiled(rule: str, dtype: str) -> dict[str, object]:
    """Return what Triton makes of a rule for an H100, and what its assembler says of it."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    variant = example_variant(compile_source(load(rule)))
    update = load_module(variant.triton_source, "test")["update"]
    real = "fp64" if dtype == "float64" else "fp32"
    constants = {f"type_{i}": getattr(tl, dtype) for i in range(len(variant.tensors))}
    constants |= {"chunk": launch.CHUNK, "block": launch.BLOCK}
    tables = dict(zip(update.arg_names[:4], ["*i32", "*i64", "*i64", f"*{real}"], strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    source = ASTSource(update, tables | dict.fromkeys(constants, "constexpr"), constants, aligned)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(launch.OPTIONS))
    ptx = made.asm["ptx"]
    vectors = re.findall(r"(?:ld|st)\.global\.v[248]\.\w+", ptx)
    return {
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
