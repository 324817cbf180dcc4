"""Creates the optimizer class for the text of a rule: combines the compiler and the runtime.

Classes are cached: the same arguments return the same class. A pickled optimizer relies on this to find its class.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from optlang.core.needs import needs
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.functions.table import HALT
from optlang.source import Source
from optlang.syntax.library import rule_of
from optlang.syntax.suggest import listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from optlang.compiler import CompiledRule
    from optlang.rule import Rule
    from optlang.syntax.tree import Route


def class_of(
    source: Source,
    name: str | None = None,
    backend: str = "auto",
    module: str = "optlang.classes",
) -> type[Optimizer]:
    """Return the optimizer class of a rule.

    Args:
        source: The text of the rule, with a name for diagnostics.
        name: Class name; None for the name that the rule declares.
        backend: ``auto``, ``cpp``, ``triton``, ``inductor`` or ``eager``.
        module: Module name of the class.

    Raises:
        OptlangError: If the rule has errors.
        ValueError: If there is no such backend.
    """
    return _class(source, name, backend, module)


def _routed(route: Route, source: Source) -> CompiledRule:
    """Return a compiled rule that another routes to; without a declared name it gets the name of its file."""
    from optlang.compiler import compile_source

    compiled = compile_source(rule_of(route.rule, source))
    if compiled.rule.name is None:
        compiled.name = re.sub(r"\W", "_", Path(route.title).stem)
    return compiled


def two_callers(rule: Rule, callers: Sequence[CompiledRule], routes: Sequence[CompiledRule]) -> Diagnostic:
    """Return the error for a rule that routes to several rules that evaluate the closure in their steps."""
    second = [route for route, inner in zip(rule.routes, routes, strict=True) if inner in callers][1]
    names = [inner.name for inner in callers]
    return Diagnostic(
        "E412",
        f"{listing(names)} call the closure, and each would see the updates of the other",
        rule.tree.source,
        second.rule.span,
        "the second such rule",
        "route to one rule that calls the closure, and others that do not",
    )


def iterating(rule: Rule, name: str, route: Route) -> Diagnostic:
    """Return the error for a rule that routes to one with ``iterate``."""
    return Diagnostic(
        "E412",
        f"{name} makes several steps in one (`iterate`), but the other parameters make only one",
        rule.tree.source,
        route.rule.span,
        "cannot be routed to",
        f"give the parameters of {name} to a separate optimizer",
    )


@lru_cache(maxsize=1024)
def _class(source: Source, name: str | None, backend: str, module: str) -> type[Optimizer]:
    """Create a class; arguments are normalised, so that each class is created once."""
    # Imported here, because checking a rule needs neither SymPy nor torch.
    from optlang.compiler import compile_source
    from optlang.runtime.optimizer_class import make_class

    compiled = compile_source(source, name)
    compiled.routes = tuple((_routed(route, source), route.when) for route in compiled.rule.routes)
    routes = [inner for inner, _ in compiled.routes]
    callers = [inner for inner in routes if needs(inner.rule).calls]
    if len({id(inner.rule) for inner in callers}) > 1:
        raise OptlangError([two_callers(compiled.rule, callers, routes)])
    for number, inner in enumerate(routes):
        if HALT in needs(inner.rule).calls:
            raise OptlangError([iterating(compiled.rule, inner.name, compiled.rule.routes[number])])
    return make_class(
        compiled,
        backend=backend,
        module=module,
        qualname=compiled.name,
        rebuild=(class_of, (source, name, backend, module)),
    )
