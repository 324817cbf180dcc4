"""Write down what the project makes of every rule, to be compared before and after a change.

    python tests/project/record.py before        # writes a folder; then change something
    python tests/project/record.py after --compare before

For every rule of the library: the text of each stage for vectors, matrices and filters, the files of the targets, where
the interpreter and the eager backend get in a few steps. For every bad rule of the tests: what is said of it. With
``--times``: the time of a step on small and on large tensors (these are shown, and never compared to the byte).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import json
import sys
import time
import traceback
import zipfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import optlang.rules
from optlang.artifact import Kernel

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("support", "oracle")]

NDIMS = (1, 2, 4)
TARGETS = ("module", "plain", "torchscript")
TIMES = "times.json"


def texts(name: str) -> Iterator[tuple[str, str]]:
    """Yield what is recorded of a rule of the library: pairs of a file name and its content."""
    import torch
    from trajectories import gradients, library_class, library_rule, run, run_interpreter, shapes, start

    from optlang.api import emit, export

    path = optlang.rules.path(name)
    for stage in ("tree", "plain", "rule"):
        yield f"{stage}.txt", emit(path, stage)
    for ndim in NDIMS:
        yield f"program-{ndim}.txt", attempt(lambda ndim=ndim: emit(path, "program", ndim=ndim))
        yield f"variant-{ndim}.txt", attempt(lambda ndim=ndim: variant_text(name, ndim))
    for target in TARGETS:
        yield f"{target}.py", attempt(lambda target=target: exported(export(path, target)))
    begin, history = start(shapes(name)), gradients(shapes(name), steps=5)
    yield "interpreter.txt", attempt(lambda: shown(run_interpreter(library_rule(name), begin, history, {})))
    torch.manual_seed(0)  # rules that draw are seeded by torch
    yield "eager.txt", attempt(lambda: shown(run(library_class(name), begin, history, torch.float64)))


def exported(content: str | bytes) -> str:
    """Return the code of a file; that of an archive is what stands in it, but for what differs from run to run."""
    if isinstance(content, str):
        return content
    archive = zipfile.ZipFile(io.BytesIO(content))
    return "\n".join(archive.read(name).decode() for name in sorted(archive.namelist()) if name.endswith(".py"))


def attempt(make: Any) -> str:
    """Return a text, or the error that comes instead."""
    try:
        return str(make())
    except Exception:
        return f"error: {traceback.format_exc(limit=0)}"


def shown(values: Any) -> str:
    """Return arrays as text, to the last bit."""
    return "\n".join(" ".join(float(x).hex() for x in value.ravel()) for value in values)


def variant_text(name: str, ndim: int) -> str:
    """Return everything that is known of a rule's variant."""
    from trajectories import library_compiled

    from optlang.compiler import example_variant

    return "\n".join(record_lines(example_variant(library_compiled(name), ndim=ndim), ""))


def kernel_lines(kernel: Kernel, indent: str) -> Iterator[str]:
    """Yield what is known of a kernel, with its text in each language."""
    named = {name: value for name, value in vars(kernel).items() if name not in ("texts", "restore", "_program")}
    texts = {module: kernel.text(module) for module in ("traced_source", "triton_source", "cpp_source")}
    for name, value in (named | texts).items():
        if isinstance(value, str) and "\n" in value:
            yield f"{indent}{name}:"
            yield from (f"{indent}    {line}" for line in value.splitlines())
        else:
            yield f"{indent}{name}: {value!r}"


def record_lines(record: Any, indent: str) -> Iterator[str]:
    """Yield a record field by field, texts as they are."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Kernel):
            yield f"{indent}{field.name}:"
            yield from kernel_lines(value, f"{indent}    ")
        elif isinstance(value, str) and "\n" in value:
            yield f"{indent}{field.name}:"
            yield from (f"{indent}    {line}" for line in value.splitlines())
        elif (
            isinstance(value, tuple) and value and isinstance(value[0], tuple) and dataclasses.is_dataclass(value[0][0])
        ):
            for i, each in enumerate(value):
                for k, one in enumerate(each):
                    if dataclasses.is_dataclass(one):
                        yield f"{indent}{field.name} {i} {k}:"
                        yield from record_lines(one, f"{indent}    ")
                    else:
                        yield f"{indent}{field.name} {i} {k}: {one!r}"
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield f"{indent}{field.name}:"
            yield from record_lines(value, f"{indent}    ")
        else:
            yield f"{indent}{field.name}: {value!r}"


def holds_records(values: tuple[Any, ...]) -> bool:
    """Return whether the first of some values is a record."""
    return bool(values) and dataclasses.is_dataclass(values[0])


def record(work: tuple[str, Path]) -> str:
    """Write what is recorded of a rule."""
    name, folder = work
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for file, text in texts(name):
        (place / file).write_text(f"{text}\n", encoding="utf-8")
    return name


def findings(folder: Path) -> None:
    """Write what is said of bad rules."""
    from optlang.checker.check import check_text
    from optlang.source import Source

    place = folder / "findings"
    place.mkdir(parents=True, exist_ok=True)
    tests = Path(__file__).parents[1] / "checker"
    for path in sorted(tests.glob("bad/**/*.opt")):
        said = check_text(Source(path.read_text(encoding="utf-8"), path.name))[1]
        file = place / "-".join(path.relative_to(tests).with_suffix(".txt").parts)
        file.write_text("\n\n".join(d.render() for d in said), encoding="utf-8")


def times(folder: Path) -> None:
    """Write the time of a step of some rules, in microseconds: medians."""
    import torch

    found = {}
    for name in ("AdamW", "LAMB", "Adafactor", "SGD"):
        for what, shapes in (("small", [(40,)] * 6), ("many", [(16,)] * 1000), ("large", [(1000, 1000)] * 8)):
            params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer = getattr(optlang.rules, name)(params, lr=1e-3)
            runs = []
            for _ in range(60):
                begin = time.perf_counter()
                optimizer.step()
                runs.append(time.perf_counter() - begin)
            found[f"{name} {what}"] = round(median(runs[10:]) * 1e6, 1)
    (folder / TIMES).write_text(json.dumps(found, indent=1), encoding="utf-8")


def compare(before: Path, after: Path, most: int) -> int:
    """Print how two recordings differ; return how many files do."""
    different = 0
    names = sorted({p.relative_to(f) for f in (before, after) for p in f.rglob("*") if p.is_file()})
    for name in names:
        old, new = ((f / name).read_text(encoding="utf-8") if (f / name).exists() else "" for f in (before, after))
        if name.name == TIMES:
            slow, fast = (json.loads(text or "{}") for text in (old, new))
            for key in slow.keys() & fast.keys():
                print(f"{key:20} {slow[key]:10} -> {fast[key]:10} us, {fast[key] / slow[key]:.2f}")
        elif old != new:
            different += 1
            lines = list(
                difflib.unified_diff(old.splitlines(), new.splitlines(), f"before/{name}", f"after/{name}", n=1)
            )
            print("\n".join(lines[:most]))
            print(f"... {len(lines) - most} more lines" if len(lines) > most else "")
    print(f"{different} of {len(names)} files differ")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="then print how it differs from this recording")
    parser.add_argument("--rules", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--lines", type=int, default=20, help="of a difference, at most (20)")
    given = parser.parse_args()
    rules = given.rules or optlang.rules.names()
    with get_context("spawn").Pool(2) as pool:
        for i, name in enumerate(pool.imap_unordered(record, [(name, given.folder) for name in rules]), 1):
            print(f"\r{i} of {len(rules)} {name:30}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    findings(given.folder)
    if given.times:
        times(given.folder)
    return 1 if given.compare and compare(given.compare, given.folder, given.lines) else 0


if __name__ == "__main__":
    sys.exit(main())
