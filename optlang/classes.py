"""A rule's text -> an optimizer class: the compiler and the runtime put together.

Classes are kept: the same text asked for in the same way gives the same class, which is also how a pickled optimizer
finds its class again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from optlang.diagnostics import Diagnostic, OptlangError
from optlang.language.builtins import HALT
from optlang.language.library import rule_files
from optlang.language.questions import evaluations
from optlang.language.suggest import listing
from optlang.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from optlang.compiler import CompiledRule
    from optlang.language.rule import Rule


def class_of(
    source: Source,
    name: str | None = None,
    backend: str = "inductor",
    ahead_of_time: bool | None = None,
    module: str = "optlang.classes",
) -> type[Optimizer]:
    """Return the optimizer class of a rule.

    Args:
        source: The rule's text and the name it is reported under.
        name: Class name; None for the one that the rule declares.
        backend: ``inductor`` or ``eager``.
        ahead_of_time: For ``inductor``: compile to a library kept on disk (True), just in time (False), or
            what is best on the device (None).
        module: Where the class says it lives.

    Raises:
        OptlangError: If the rule has errors.
        ValueError: If there is no such backend.
    """
    return _class(source, name, backend, ahead_of_time, module)


def _routed(name: str) -> CompiledRule:
    """Return a rule of the library that another routes to."""
    from optlang.compiler import compile_source

    file = rule_files()[name]
    return compile_source(Source(file.read_text(encoding="utf-8"), file.name))


def two_callers(rule: Rule, names: Sequence[str]) -> Diagnostic:
    """Return the error of a rule that routes to several rules of which each has the closure called in its step."""
    second = [route for route in rule.routes if route.rule.name in names][1]
    return Diagnostic(
        "E412",
        f"{listing(names)} call the closure, and each would see what the other has moved",
        rule.tree.source,
        second.rule.span,
        "the second such rule",
        "route to one rule that calls the closure, and others that do not",
    )


def iterating(rule: Rule, name: str) -> Diagnostic:
    """Return the error of a rule that routes to one whose step may be several."""
    route = next(route for route in rule.routes if route.rule.name == name)
    return Diagnostic(
        "E412",
        f"{name} makes several steps in one (`iterate`), and the other parameters do not",
        rule.tree.source,
        route.rule.span,
        "cannot be routed to",
        f"give the parameters of {name} to an optimizer of their own",
    )


@lru_cache(maxsize=1024)
def _class(source: Source, name: str | None, backend: str, ahead_of_time: bool | None, module: str) -> type[Optimizer]:
    """Make a class; with its arguments in one form, so that each class is made once."""
    # Here and not above: checking a rule needs neither SymPy nor torch.
    from optlang.compiler import compile_source
    from optlang.runtime.optimizer import make_class

    compiled = compile_source(source, name)
    compiled.routes = tuple((_routed(route.rule.name), route.when) for route in compiled.rule.routes)
    callers = [inner for inner, _ in compiled.routes if evaluations(inner.rule)]
    if len({id(inner.rule) for inner in callers}) > 1:
        raise OptlangError([two_callers(compiled.rule, [inner.name for inner in callers])])
    for inner in callers:
        if HALT in evaluations(inner.rule):
            raise OptlangError([iterating(compiled.rule, inner.name)])
    return make_class(
        compiled,
        backend=backend,
        ahead_of_time=ahead_of_time,
        module=module,
        qualname=compiled.name,
        rebuild=(class_of, (source, name, backend, ahead_of_time, module)),
    )
