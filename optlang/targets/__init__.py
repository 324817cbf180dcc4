"""Export of rules for use outside this package: one file per target, found by its name.

A target's module contains

``SUFFIX``       the suffix of its files
``emit(order)``  returns the file's content, ``str`` or ``bytes``; raises :class:`optlang.diagnostics.OptlangError` with
                 one :func:`refusal` for each construct of the rule that the target does not support
``refused(order)``  returns the same errors without creating the file, if that takes long (optional)
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from optlang.compiler import CompiledRule
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.rule import Values
from optlang.source import Span
from optlang.syntax.suggest import nearest


@dataclass(frozen=True)
class Order:
    """The input of a target.

    Attributes:
        compiled: The rule.
        values: Hyperparameters chosen now: new defaults, which also select the variant if the target supports only one.
        ndim: The number of dimensions of the tensors, if the target supports only one.
    """

    compiled: CompiledRule
    values: Values
    ndim: int = 2


def names() -> tuple[str, ...]:
    """Return the names of the targets."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name[0] != "_"))


def target(name: str) -> Any:
    """Return the module of a target.

    Raises:
        ValueError: If the target does not exist.
    """
    if name not in names():
        close = nearest(name, names())
        hint = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"unknown target {name!r}; {hint}the targets are {', '.join(names())}")
    return import_module(f"optlang.targets.{name}")


def refusals(order: Order, name: str) -> list[Diagnostic]:
    """Return the constructs of a rule that a target does not support, as errors; empty if it supports the rule.

    Args:
        order: The input of the target.
        name: Its name.
    """
    emitting = target(name)
    quick = getattr(emitting, "refused", None)
    if quick is not None:
        return list(quick(order))
    try:
        emitting.emit(order)
    except OptlangError as error:
        return list(error.diagnostics)
    return []


def refusal(compiled: CompiledRule, target: str, construct: str, span: Span | None, help: str) -> Diagnostic:
    """Return the error for a construct that a target does not support.

    Args:
        compiled: The rule.
        target: Name of the target.
        construct: The construct, as the beginning of a sentence: "the closure", "`eigh`".
        span: Where the rule uses it.
        help: What to do instead.
    """
    source = compiled.rule.tree.source
    message = f"the target `{target}` does not support {construct}"
    return Diagnostic("E801", message, source, span, label="used here", help=help)
