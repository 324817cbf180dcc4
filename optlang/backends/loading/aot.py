"""Ahead-of-time kernels: a variant's ``update`` as a library that the next process loads in milliseconds.

``torch.export`` traces the update over tensors of symbolic size and Inductor writes C++ for it. Calling the library
through torch's own runner costs about 2 microseconds, a tenth of what a call through ``torch.compile`` does, and
neither Inductor nor Dynamo is imported when the library is already there.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from optlang.backends.loading import cache, folders, shell, slow, toolchain
from optlang.backends.loading.modules import load_module, source_for
from optlang.backends.loading.signature import Kernel, Signature
from optlang.compiled import Variant

#: Sizes of the example tensors, last dimension first: all different, as equal ones would be taken for one symbol.
EXAMPLE_SIZES = (251, 263, 17, 13, 11, 7, 5, 3)

#: Inductor's settings. Threads are counted at run time, roundings that the source asks for are done, and nothing is
#: compiled for this very processor or precompiled.
OPTIONS: dict[str, Any] = {
    **toolchain.PARALLEL,
    "emulate_precision_casts": True,
    "cpp.march": "",
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.enable_line_tables": False,
}

#: Loggers of what compiles a step, whose warnings are not for those who only called it.
CHATTER = ("torch._export", "torch.export", "torch._inductor", "torch.utils.cpp_extension")
#: How the functions of a generated module begin that are run by Python, and not compiled.
HOST_SIDE = ("def start(", "def host(", "def group(")

logger = logging.getLogger("optlang")

_one_at_a_time = threading.Lock()  # the compiler is patched while it runs


def library_name(variant: Variant, signature: Signature, light: bool = True) -> str:
    """Return the name under which the library of a variant is kept.

    Args:
        variant: The variant.
        signature: The types it is built for.
        light: Whether it is in the light shell, or in Inductor's own container.
    """
    source = kernel_text(source_for(variant, signature))
    how = repr((OPTIONS, shell.fingerprint()))
    key = cache.key(source, repr(signature), how, torch.__version__, toolchain.processor())
    return cache.file_name(variant.name, key, ".so" if light else "-full.so")


def kernel_text(source: str) -> str:
    """Return what the kernel of a module is made of: ``update`` and helpers, without what the host does and comments.

    Variants that differ in nothing else, as those for vectors and matrices often do, have one library.
    """
    parts = [part for part in re.split(r"\n(?=def )", source) if not part.startswith(HOST_SIDE)]
    return "\n".join(line for part in parts for line in part.split("\n") if not line.lstrip().startswith("#"))


def load(variant: Variant, signature: Signature) -> Kernel | None:
    """Return the kernel of a variant from the cache, or None if it is not there or not sound."""
    for light in (True, False):
        name = library_name(variant, signature, light)
        run = cache.load(name, _open)
        if run is not None:
            if not light:
                slow.warn_again(_log(name))
            return Kernel(run, "cached", light)
    return None


def build(variant: Variant, signature: Signature) -> Kernel:
    """Compile a variant, keep the library in the cache and return its kernel."""
    with _one_at_a_time, cache.alone(library_name(variant, signature)):
        found = load(variant, signature)  # another process may just have built it
        if found is not None:
            return found
        with tempfile.TemporaryDirectory(dir=folders.folder(), prefix=".build-") as folder:
            library = _compile(variant, signature, Path(folder))
            light = library.parent == Path(folder)
            name = library_name(variant, signature, light)
            cache.install(library, name)
            run = cache.load(name, _open) or _open(str(library))  # somebody may empty the cache at this moment
            return Kernel(run, "built", light)


def _open(path: str) -> Any:
    """Return the function that runs a library."""
    return torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1).run


def _log(library: str) -> Path:
    """Return where it is written why a library is in Inductor's own container."""
    return (folders.location() / library).with_suffix(".log")


def _compile(variant: Variant, signature: Signature, folder: Path) -> Path:
    """Compile a variant in the quickest way that works and return the library."""
    exported, example = _export(variant, signature)
    ways = [(True, True), (False, True), (False, False)]
    failed: Exception | None = None
    for light, trusting in ways:
        try:
            with quiet(), toolchain.plain_paths(), trusted_processor() if trusting else contextlib.nullcontext():
                library = _inductor(exported, example, folder if light else None, light and variant.elementwise)
                if library.parent != folder:  # Inductor's own folder may be gone with `plain_paths`
                    whole = folder / "full"
                    whole.mkdir(exist_ok=True)
                    library = Path(shutil.copy(library, whole))
                _open(str(library))
        except Exception as error:
            logger.debug("compiling %s failed (%s, %s)", variant.name, light, trusting, exc_info=error)
            failed = failed or error
            if (light, trusting) == ways[-1]:
                raise
            continue
        if failed is not None:
            instead = f"{variant.name} is compiled into Inductor's own container, which has slower steps"
            slow.warn(instead, failed, _log(library_name(variant, signature, False)))
        return library
    raise AssertionError("unreachable")


def _export(variant: Variant, signature: Signature) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """Trace ``update`` over tensors of symbolic sizes."""
    update = load_module(source_for(variant, signature), variant.name)["update"]

    class Update(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> None:
            update(*tensors)

    rank = len(signature.dims[0])
    sizes = EXAMPLE_SIZES[:rank][::-1] if rank > 1 else (EXAMPLE_SIZES[0] * EXAMPLE_SIZES[1],)
    symbols = [torch.export.Dim(f"n{i}", min=2) for i in range(rank)]
    tensors = [
        torch.zeros([1 if i is None else sizes[i] for i in dims], dtype=getattr(torch, dtype))
        for dims, dtype in zip(signature.dims, signature.dtypes, strict=True)
    ]
    shapes: list[Any] = [{k: symbols[i] for k, i in enumerate(dims) if i is not None} for dims in signature.dims]
    tensors.append(torch.zeros(signature.coefficients, dtype=getattr(torch, signature.coefficient_dtype)))
    shapes.append(None)
    with quiet(), torch.no_grad():
        exported = torch.export.export(Update(), tuple(tensors), dynamic_shapes=(tuple(shapes),))
        return exported.module(), tuple(tensors)


def _inductor(module: Any, example: tuple[torch.Tensor, ...], folder: Path | None, sliced: bool) -> Path:
    """Compile a traced update: with the light shell into ``folder``, or as Inductor does it by itself."""
    import torch._inductor

    options = {key: value for key, value in OPTIONS.items() if is_option(key)}
    if sliced:  # the shell's threads each run kernels of their own
        options |= {"cpp.dynamic_threads": False, "cpp.threads": 1}
    with torch.no_grad(), _light_shell(folder, len(example) - 1, sliced) if folder else contextlib.nullcontext():
        return Path(str(torch._inductor.aot_compile(module, example, options=options)))


@contextlib.contextmanager
def _light_shell(folder: Path, tensors: int, sliced: bool) -> Iterator[None]:
    """Let Inductor hand the code it generates to :mod:`shell`."""
    from torch._inductor import codecache

    original = codecache.AotCodeCompiler

    class Light(original):  # type: ignore[misc, valid-type]
        @classmethod
        def compile(cls, graph: Any, wrapper: str, kernels: str, nodes: Any, **rest: Any) -> Any:
            if nodes or graph.constants:
                return super().compile(graph, wrapper, kernels, nodes, **rest)
            return str(shell.build(wrapper, kernels, tensors, sliced, folder))

    codecache.AotCodeCompiler = Light  # type: ignore[misc]
    try:
        yield
    finally:
        codecache.AotCodeCompiler = original  # type: ignore[misc]


def is_option(key: str) -> bool:
    """Whether this version of Inductor has a setting."""
    import torch._inductor.config as config

    place: Any = config
    for part in key.split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


@contextlib.contextmanager
def trusted_processor() -> Iterator[None]:
    """Let Inductor believe what torch knows of the processor, instead of compiling test programs for ten seconds.

    If the compiler does not know the instructions after all, the build fails, and what was believed is forgotten.
    """
    from torch._inductor import cpu_vec_isa

    probe = cpu_vec_isa.VecISA.check_build
    cpu_vec_isa.VecISA.check_build = lambda self, code: True  # type: ignore[method-assign]
    try:
        yield
    except BaseException:
        for place in (cpu_vec_isa, *(kind for kind in vars(cpu_vec_isa).values() if isinstance(kind, type))):
            for value in list(vars(place).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
        raise
    finally:
        cpu_vec_isa.VecISA.check_build = probe  # type: ignore[method-assign]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of the export machinery from a user who only called ``step``."""
    loggers = [logging.getLogger(name) for name in CHATTER]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
