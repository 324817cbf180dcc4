"""Generates Python on tensors alone: for sums that stay on a device, for CUDA graphs and for autograd.

Host numbers are 0-d float64 tensors on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

from optlang.artifact import AnySlot, Kernel
from optlang.codegen import schedule_source
from optlang.codegen.python_source import PythonModule
from optlang.codegen.spelling import NumberWriter
from optlang.ir.lower import Lowered


def emit(kernel: Kernel) -> str:
    """Return ``host`` of a kernel, and ``updated``, which returns as a tuple what ``update`` writes.

    A matrix kernel has no ``updated``.
    """
    module = PythonModule(None, kernel.slots, kernel.tensors, writer=NumberWriter)
    functions = [module.host(kernel.program)]
    if not kernel.matrices:
        functions.append(module.updated(kernel.program))
    return module.assembled(kernel.title, functions)


def common(lowered: Lowered, slots: Sequence[AnySlot], title: str) -> str:
    """Return ``group`` and ``shared_NAME``: the new values of group and shared states.

    Args:
        lowered: The optimised programs of the variant.
        slots: The states that exist.
        title: The first line of the module's docstring.
    """
    module, shared = PythonModule(lowered, slots, (), writer=NumberWriter), lowered.shared
    functions = [module.group(lowered.group)] if lowered.group is not None else []
    functions += [schedule_source.shared(module, shared, s.target) for s in (shared.stores if shared else ())]
    return module.assembled(title, functions)
