"""TorchInductor's ahead-of-time compiler, as used by the target ``aoti``."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from optlang.backends.loading import toolchain

#: Sizes of the example tensors, last dimension first: all different, because equal ones would share a symbol.
EXAMPLE_SIZES = (251, 263, 17, 13, 11, 7, 5, 3)

#: Inductor's settings. Threads are counted at run time, the roundings in the source are kept, and nothing is compiled
#: for this particular processor or precompiled.
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

#: Loggers of the compilers, whose warnings are not meant for callers of a step.
CHATTER = ("torch._export", "torch.export", "torch._inductor", "torch.utils.cpp_extension")


def is_option(key: str) -> bool:
    """Return whether this version of Inductor has a setting."""
    import torch._inductor.config as config

    place: Any = config
    for part in key.split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


@contextlib.contextmanager
def trusted_processor() -> Iterator[None]:
    """Let Inductor trust torch's information about the processor instead of compiling test programs for ten seconds.

    If the compiler does not support the instructions after all, the build fails, and the information is discarded.
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
    """Suppress the messages of the export machinery for a user who only called ``step``."""
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
