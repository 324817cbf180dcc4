"""What test_triton.py runs in separate processes: Triton's interpreter or its compiler.

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

COMPILED = "compile"
os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1:2] != [COMPILED] else "0"  # before triton is imported

import torch  # noqa: E402

import optlang  # noqa: E402
from optlang.api import load  # noqa: E402
from optlang.artifact import Kernel  # noqa: E402
from optlang.backends import triton  # noqa: E402
from optlang.backends.loading import launch  # noqa: E402
from optlang.backends.loading.modules import load_module  # noqa: E402
from optlang.codegen import triton_source  # noqa: E402
from optlang.compiler import compile_source, example_variant  # noqa: E402
from optlang.inputs import Handed, Total  # noqa: E402
from optlang.storage import choice  # noqa: E402
from optlang.storage.coded import Coded  # noqa: E402
from optlang.storage.parameters import WAYS  # noqa: E402

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
    for name, launched in (("Plain", False), ("Launched", True)):
        made = optlang.compile(rule, name=name, backend="eager")
        if launched:
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
        if launched:
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


#: Rows that are shorter than a block, that are whole blocks, and that begin within one; a vector; several chunks.
CODED_SHAPES = [(0,), (7,), (3, 350), (2, 1024), (3, 1100), (1500,), (launch.CHUNK + 1,), (10, 3, 3)]


def codes(rule: str, asked: dict[str, Any]) -> int:
    """Return in how many numbers the steps of a rule, and its states, differ from those of the eager backend.

    Args:
        rule: A rule whose arithmetic is exact, so that they need not.
        asked: ``store``, and ``rounding`` for parameters in bfloat16.
    """
    dtype = torch.bfloat16 if "rounding" in asked else torch.float32
    results = []
    for name in ("Plain", "Launched"):
        made = optlang.compile(rule, name=name, backend="eager")
        kernels = made._parts.parts[0].kernels
        if name == "Launched":
            kernels._load, kernels._backends = launch.load, [Launched]
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in CODED_SHAPES]
        parameters.append(torch.nn.Parameter(torch.randn(1101).to(dtype)[1:]))  # not aligned
        optimizer = made(parameters, **asked)
        for step in range(3):
            for p in parameters:
                p.grad = (torch.randn(p.shape) * 10 ** torch.randn(p.shape)).to(dtype)
            if step == 1:
                parameters[3].grad[1, 5] = float("inf")
            if step == 2:  # some have none
                parameters[2].grad = None
            optimizer.step()
        assert name == "Plain" or any(kernel.coded for kernel in kernels.loaded.values())
        states = [v for p in parameters for v in optimizer.state[p].values() if torch.is_tensor(v)]
        results.append([t.detach().double() for t in (*parameters, *states)])
    return sum(int(((a != b) & ~(a.isnan() & b.isnan())).sum()) for a, b in zip(*results, strict=True))


class Launched:
    """The backend ``triton``, wherever tensors are."""

    load, accepts_codes = staticmethod(launch.load), staticmethod(triton.accepts_codes)

    @staticmethod
    def accepts(kernel: Kernel, device: str) -> bool:
        """Return whether there is a text."""
        return bool(kernel.text("triton_source"))


def _difference(a: torch.Tensor, b: torch.Tensor, least: float = 1.0) -> float:
    """Return how much two tensors differ, for their size; what is not a number in both does not."""
    if not a.numel() or (torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())):
        return 0.0
    same = a.isnan() & b.isnan()
    return float((a - b)[~same].abs().max() / (least + b[~same].abs().max()))


def compiled(rule: str, dtype: str | dict[str, str]) -> list[dict[str, object]]:
    """Return what Triton makes of each kernel of a rule for an H100, and what its assembler says of it.

    Args:
        rule: The rule.
        dtype: The type of its tensors, or the formats of some by their names, where the others are in float32.
    """
    found = []
    for kernel in kernels_of(rule):
        asked = {} if isinstance(dtype, str) else dtype
        formats = {
            kernel.tensors.index(name): WAYS[text] if name == "p" else choice.named("", text)
            for name, text in asked.items()
            if name in kernel.tensors
        }
        names = load_module(triton_source.emit(kernel, list(formats.items())), "test")
        own = dtype if isinstance(dtype, str) else "float32"
        found += [for_an_h100(kernel, own, formats, function, names["tl"]) for _, function in names["LAUNCHES"]]
    return found


def for_an_h100(kernel: Kernel, dtype: str, formats: dict[int, Any], function: Any, tl: Any) -> dict[str, object]:
    """Return what Triton makes of one kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    real, short = ("float64", "fp64") if dtype == "float64" else ("float32", "fp32")
    types = [real if isinstance(name, Handed | Total) else dtype for name in kernel.tensors]
    types = [formats[i].held[0] if i in formats else name for i, name in enumerate(types)]
    constants = {f"type_{i}": getattr(tl, name) for i, name in enumerate(types)}
    seconds: dict[int, Coded] = {i: each for i, each in enumerate(formats.values()) if not each.alone}
    constants |= {f"more_{i}": getattr(tl, each.held[1]) for i, each in seconds.items()}
    constants |= {"chunk": launch.CHUNK, "block": launch.BLOCK}
    arguments = [name for name in function.arg_names if name not in constants]
    tables = dict(zip(arguments, ["*i32", "*i64", "*i64", f"*{short}", "*fp64", f"*{short}"], strict=False))
    tables |= {"draw": "*i64"} if "draw" in arguments else {}
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
    """Run a command on every pair of a rule and a type, or formats, given as JSON."""
    warnings.simplefilter("ignore")
    result: list[Any] = []
    for rule, dtype in json.loads(sys.stdin.read()):
        match sys.argv[1]:
            case "steps":
                result.append(steps(rule, getattr(torch, dtype)))
            case "codes":
                result.append(codes(rule, dtype))
            case _:
                result.append(compiled(rule, dtype))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
