"""Create the optimizer class of a compiled rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from optlang.artifact import Compiled
from optlang.core.needs import needs
from optlang.runtime import documentation
from optlang.runtime.optimizer import RuleOptimizer
from optlang.runtime.records import STEP
from optlang.runtime.routing import Parts


def make_class(
    compiled: Compiled,
    *,
    backend: str = "auto",
    module: str = "optlang",
    qualname: str | None = None,
    rebuild: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
) -> type[Optimizer]:
    """Return the optimizer class of a compiled rule.

    Args:
        compiled: The compiled rule.
        backend: Name of the backend.
        module: Module name of the class.
        qualname: Qualified name of the class; by default its name.
        rebuild: A function and its arguments that return this class in another process, for pickling.

    Raises:
        ValueError: If the backend does not exist.
    """
    parts = Parts.of(compiled, backend)
    signature = documentation.signature(parts)

    def __init__(self: RuleOptimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        RuleOptimizer.__init__(self, params, *args, **kwargs)

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([first, *signature.parameters.values()])  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{qualname or compiled.name}.__init__"
    return type(
        compiled.name,
        (RuleOptimizer,),
        {
            "__doc__": documentation.docstring(compiled, parts),
            "__module__": module,
            "__qualname__": qualname or compiled.name,
            "__signature__": signature,
            "__init__": __init__,
            "_compiled": compiled,
            "_parts": parts,
            "_counting": any(part.keeps_numbers for part in parts.parts),
            "_random": parts.random,
            "_calling": frozenset(part.kernels for part in parts.parts if needs(part.compiled.rule).calls),
            "_asked": frozenset().union(*(needs(part.compiled.rule).calls for part in parts.parts)),
            "_events": parts.has_events,
            "_rebuild": rebuild,
            **({"share_memory": share_memory} if parts.counterpart.early else {}),
        },
    )


def share_memory(optimizer: RuleOptimizer) -> None:
    """Move the states to shared memory, for processes that train one model; each counts its own steps."""
    for held in optimizer.state.values():
        for key, value in held.items():
            if key != STEP and isinstance(value, torch.Tensor):
                value.share_memory_()
    optimizer._plans = []  # plans hold the old addresses of the states
