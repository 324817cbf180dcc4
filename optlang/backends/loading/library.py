"""Generated C++ kernels: built by this machine's compiler, cached on disk, called through ``ctypes``."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from optlang.artifact import Kernel
from optlang.backends.loading import slow, toolchain
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.cache import folders, sealed

#: C++ types by torch's names; these kernels support no other types.
TYPES = {"float64": "double", "float32": "float", "bfloat16": "bfloat16", "float16": "float16"}

#: Instruction sets with vectors, by torch's names.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"),
}

#: Arithmetic follows IEEE 754, operation by operation, without errno. Loops are not unswitched on loop-invariant
#: conditions (such as a NaN): one of the two copies is then often not vectorized.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-unswitch-loops",
)

_data_ptr = torch.Tensor.data_ptr

T = TypeVar("T")


def text(kernel: Kernel, signature: Signature) -> str:
    """Return the C++ source of a kernel for some types."""
    head = ["#define OPTLANG_HALF"] if "float16" in signature.dtypes else []
    head += ["#define OPTLANG_CODES"] if signature.coded else []
    head.append(f"using real = {TYPES[signature.coefficient_dtype]};")
    types = [f"using type_{i} = {TYPES[dtype]};" for i, dtype in enumerate(signature.dtypes)]
    before, lanes, codes, after = _parts()
    formats = {each.name: each.struct for _, each in signature.coded}
    kinds = [f"{each.name}, {each.block}" for _, each in signature.coded]
    table = [
        f"{{{i}, {each.block}, decode<{kind}>, encode<{kind}>}}"
        for (i, each), kind in zip(signature.coded, kinds, strict=True)
    ]
    coded = [f"constexpr int coded_count = {len(table)};"]
    coded.append(f"constexpr std::array<Coded, coded_count> coded{{{{{', '.join(table)}}}}};")
    return "\n".join(
        [*head, "", before, lanes, codes, *formats.values(), *types, kernel.text("cpp_source"), *coded, after]
    )


@functools.cache
def _parts() -> tuple[str, ...]:
    """Return the text before and after the kernels of a file."""
    folder = Path(__file__).parents[2] / "codegen"
    names = ("cpp_kernels.h", "cpp_lanes.h", "cpp_codes.h", "cpp_step.h")
    return tuple((folder / name).read_text(encoding="utf-8") for name in names)


def name_of(kernel: Kernel, signature: Signature) -> str:
    """Return the name under which a kernel's library is cached."""
    return _file_name(kernel.name, text(kernel, signature), flags())


def _file_name(name: str, source: str, flags: Sequence[str]) -> str:
    """Return the name under which the library of a C++ file is cached."""
    how = repr((flags, torch.__version__, toolchain.processor()))
    return sealed.file_name(name, sealed.key(source, how), ".so")


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return a kernel from the cache, or None if it is missing or corrupt."""
    update = sealed.load(name_of(kernel, signature), _open)
    return None if update is None else _loaded(update, signature, "cached")


def build(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Compile a kernel, and cache the library.

    Raises:
        RuntimeError: If the compiler fails; carries its output.
    """
    update, origin = _built(name_of(kernel, signature), text(kernel, signature), flags(), ("-lm",), _open)
    return _loaded(update, signature, origin)


def helper(
    name: str, source: str, flags: Sequence[str], libraries: Sequence[str], opener: Callable[[str], T], instead: str
) -> T | None:
    """Return the result of ``opener`` for the library of a C++ file that is not a kernel, cached or newly built.

    Args:
        name: A name for the library.
        source: The C++ source.
        flags: Options of the compiler.
        libraries: Options of the linker.
        opener: Takes the path of the library.
        instead: What is done without the library, for the warning if the compiler fails. The result is then None.
    """
    try:
        file = _file_name(name, source, flags)
        found = sealed.load(file, opener)
        if found is not None or toolchain.compiler() is None:
            return found
        return _built(file, source, flags, libraries, opener)[0]
    except Exception as error:
        slow.warn(f"{name} could not be compiled to C++; {instead}", error)
        return None


def _built(
    name: str, source: str, flags: Sequence[str], libraries: Sequence[str], opener: Callable[[str], T]
) -> tuple[T, str]:
    """Return the result of ``opener`` for a library, and whether it was ``built`` now or ``cached``."""
    with sealed.alone(name):
        found = sealed.load(name, opener)  # another process may just have built it
        if found is not None:
            return found, "cached"
        with tempfile.TemporaryDirectory(dir=folders.folder(), prefix=".build-") as folder:
            library = compiled(source, flags, libraries, Path(folder))
            sealed.install(library, name)
            # Another process may empty the cache at this moment.
            return sealed.load(name, opener) or opener(str(library)), "built"


def flags() -> tuple[str, ...]:
    """Return the compiler options for numerical code."""
    return (*FLAGS, *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))


def compiled(source: str, flags: Sequence[str], libraries: Sequence[str], folder: Path) -> Path:
    """Compile a file into a library in ``folder`` and return its path; the compiler sees only file names."""
    (folder / "kernel.cpp").write_text(source, encoding="utf-8")
    toolchain.compile_in(folder, [*toolchain.compile_command(), *flags, "kernel.cpp", "-o", "kernel.so", *libraries])
    return folder / "kernel.so"


def _open(path: str) -> Any:
    """Return the function of a library."""
    update = ctypes.CDLL(path).optlang_update
    update.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_uint32]
    update.restype = None
    return update


def _loaded(update: Any, signature: Signature, origin: str) -> LoadedKernel:
    """Return the kernel that calls the function of a library."""
    tensors_each = len(signature.dtypes)

    def run(tensors: Sequence[torch.Tensor]) -> None:
        addresses = array("q", map(_data_ptr, tensors))
        numbers = addresses.pop()
        first = tensors[:-1:tensors_each]
        sizes = array("q", (n for t in first for n in t.shape))
        where = sizes.buffer_info()[0], addresses.buffer_info()[0]
        update(len(first), *where, numbers, torch.get_num_threads(), 0)

    return LoadedKernel(run, origin, many=True, at=update, coded=bool(signature.coded))
