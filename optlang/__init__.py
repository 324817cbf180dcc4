"""Write an optimizer as its paper prints it; train with it.

    import optlang

    Momentum = optlang.compile("v = beta*v + g; p -= lr*v")
    optimizer = Momentum(model.parameters(), lr=0.1, beta=0.9)

Public names are loaded on first use: importing optlang imports neither torch nor SymPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: The module that defines each public name.
_HOMES = {
    "compile": "optlang.api",
    "check": "optlang.api",
    "emit": "optlang.api",
    "export": "optlang.api",
    "groups": "optlang.groups_by_name",
    "chain": "optlang.chaining",
    "rules": "optlang.rules",
    "transforms": "optlang.transforms",
    "Diagnostic": "optlang.diagnostics",
    "OptlangError": "optlang.diagnostics",
}

__all__ = [
    "Diagnostic",
    "OptlangError",
    "__version__",
    "chain",
    "check",
    "compile",
    "emit",
    "export",
    "groups",
    "rules",
    "transforms",
]

if TYPE_CHECKING:
    from optlang import rules, transforms
    from optlang.api import check, compile, emit, export
    from optlang.chaining import chain
    from optlang.diagnostics import Diagnostic, OptlangError
    from optlang.groups_by_name import groups


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optlang' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    value = module if name in ("rules", "transforms") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
