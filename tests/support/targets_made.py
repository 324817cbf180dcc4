"""Rules emitted as Python files, loaded as a user would."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from trajectories import library_class, library_compiled, library_rule

from optlang.diagnostics import OptlangError
from optlang.targets import Order
from optlang.targets import target as target_of


@cache
def text_of(name: str, target: str, values: tuple[tuple[str, Any], ...] = (), exact: bool = False) -> str:
    """Return the file of a rule of the library."""
    compiled = library_compiled(name, exact)
    content = target_of(target).emit(Order(compiled, dict(values)))
    assert isinstance(content, str)
    return content


@cache
def module_of(name: str, target: str, values: tuple[tuple[str, Any], ...] = (), exact: bool = False) -> Any:
    """Return the file of a rule, executed."""
    made = types.ModuleType(f"{target}_{name}")
    exec(compile(text_of(name, target, values, exact), f"<{target} of {name}>", "exec"), made.__dict__)
    return made


def made_class(name: str, case: Mapping[str, Any] | None = None) -> Any:
    """Return the class of a rule's module; options of a case are chosen where it would not carry them otherwise."""
    compiled = library_class(name)._compiled
    values = {k: v for k, v in flat(name, case or {}).items() if k in compiled.static_names}
    head = " ".join(text_of(name, "module").partition('"""\n\nimport')[0].split())
    settled = re.findall(r"(\w+) = ", head.partition("It was made for ")[2])
    if not set(values) & set(settled):  # one file for many cases
        values = {}
    return getattr(module_of(name, "module", tuple(sorted(values.items(), key=str))), compiled.name)


def flat(name: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments by the names that the formulas use."""
    found: dict[str, Any] = {}
    for key, hypers in library_rule(name).keys.items():
        if key in case:
            values = case[key] if hypers[0].part is not None else (case[key],)
            found.update(zip((h.name for h in hypers), values, strict=True))
    return found


def check_refused_by_line(names: Sequence[str], target: str, emit: Callable[[Order], Any]) -> None:
    """Check that a target refuses rules, each with the lines of what it cannot carry."""
    assert names
    for name in names:
        with pytest.raises(OptlangError) as caught:
            emit(Order(library_compiled(name), {}))
        for diagnostic in caught.value.diagnostics:
            assert diagnostic.code == "E801" and target in diagnostic.message
            line = re.search(r"\.opt:(\d+)", diagnostic.render())
            assert line is not None and int(line[1]) > 1, name
