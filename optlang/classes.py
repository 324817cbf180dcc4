"""A rule's text -> an optimizer class: the compiler and the runtime put together.

Classes are kept: the same text asked for in the same way gives the same class, which is also how a pickled optimizer
finds its class again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from optlang.language.library import rule_files
from optlang.source import Source

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from optlang.compiler import CompiledRule


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


@lru_cache(maxsize=1024)
def _class(source: Source, name: str | None, backend: str, ahead_of_time: bool | None, module: str) -> type[Optimizer]:
    """Make a class; with its arguments in one form, so that each class is made once."""
    # Here and not above: checking a rule needs neither SymPy nor torch.
    from optlang.compiler import compile_source
    from optlang.runtime.optimizer import make_class

    compiled = compile_source(source, name)
    compiled.routes = tuple((_routed(route.rule.name), route.when) for route in compiled.rule.routes)
    return make_class(
        compiled,
        backend=backend,
        ahead_of_time=ahead_of_time,
        module=module,
        qualname=compiled.name,
        rebuild=(class_of, (source, name, backend, ahead_of_time, module)),
    )
