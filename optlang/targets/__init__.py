"""Rules for use outside of this package: one file a target, found by its name.

A target's module holds

``SUFFIX``       what its files end in
``emit(order)``  the file's content, ``str`` or ``bytes``; raises :class:`optlang.diagnostics.OptlangError` with one
                 :func:`refusal` for each construct of the rule that the target cannot carry
``refused(order)``  the same errors without making the file, where that takes long (optional)
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
    """What is asked of a target.

    Attributes:
        compiled: The rule.
        values: Hyperparameters that are chosen now: other defaults, and which variant where only one can be carried.
        ndim: Dimensions of the tensors, where the target carries one kind of them.
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
        ValueError: If there is none of this name.
    """
    if name not in names():
        close = nearest(name, names())
        hint = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"unknown target {name!r}; {hint}the targets are {', '.join(names())}")
    return import_module(f"optlang.targets.{name}")


def refusals(order: Order, name: str) -> list[Diagnostic]:
    """Return what a target cannot carry of a rule; empty if it carries the rule.

    Args:
        order: What is asked of it.
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
    """Return the error of a construct that a target cannot carry.

    Args:
        compiled: The rule.
        target: Name of the target.
        construct: What it is, as the beginning of a sentence: "the closure", "`eigh`".
        span: Where the rule uses it.
        help: What to do instead.
    """
    source = compiled.rule.tree.source
    message = f"the target `{target}` does not support {construct}"
    return Diagnostic("E801", message, source, span, label="used here", help=help)
