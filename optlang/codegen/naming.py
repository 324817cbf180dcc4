"""Names of a program's symbols in generated Python."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Container, Iterable
from itertools import count

import sympy as sp

from optlang.codegen.helpers import HELPERS
from optlang.inputs import ValueName, text
from optlang.ir.program import Program

#: Names that generated functions use or may use for something else: Python's own.
RESERVED = frozenset({"math", "torch", "shape", *dir(builtins), *HELPERS})


def python_name(name: ValueName, taken: Container[str] = ()) -> str:
    """Return a valid Python name (``lambda_`` for ``lambda``) that is not taken."""
    chosen = re.sub(r"\W", "_", text(name))
    while keyword.iskeyword(chosen) or chosen in RESERVED or chosen in taken:
        chosen += "_"
    return chosen


def spelled(program: Program, others: Iterable[ValueName] = ()) -> tuple[Program, dict[ValueName, str]]:
    """Return a program whose symbols are valid in Python, and the names of its inputs.

    Args:
        program: The program.
        others: Further arguments, which the program does not read.

    Returns:
        The program, and the Python name of each input and of each of ``others``.
    """
    taken: set[str] = set()

    def name(wanted: ValueName) -> str:
        chosen = python_name(wanted, taken)
        taken.add(chosen)
        return chosen

    def next_version(wanted: str) -> str:
        """Return a name like ``m_3`` with the first free number: passes leave gaps."""
        stem, _, number = wanted.rpartition("_")
        if stem and number.isdigit():
            wanted = next(f"{stem}_{n}" for n in count(1) if f"{stem}_{n}" not in taken)
        return name(wanted)

    arguments: dict[ValueName, str] = {i.name: name(i.symbol.name) for i in program.inputs}
    arguments.update({other: name(other) for other in others if other not in arguments})
    symbols = {i.symbol: sp.Symbol(arguments[i.name]) for i in program.inputs}
    symbols.update({v.symbol: sp.Symbol(next_version(v.symbol.name)) for v in program.values})
    return program.renamed({old: new for old, new in symbols.items() if old != new}), arguments


def all_names(program: Program, arguments: Iterable[str]) -> set[str]:
    """Return every name used by a program and by the arguments of its function."""
    return {s.name for s in program.kinds()} | set(arguments)
