"""Every diagnostic code: its title, why it exists, and a smallest rule that gets it.

``optlang explain CODE`` prints a row, the docs page of diagnostics is generated from the table, and a test checks that
each example gets exactly its code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What there is to say about one code.

    Attributes:
        code: ``E...`` for errors, ``W...`` for warnings. E1 syntax, E2 names, E3 kinds of values, E4 declarations,
            E5 limits, E9 not supported yet, W6 warnings.
        title: A few words.
        explanation: Why this is refused and what to do, in a short paragraph.
        example: A smallest rule that gets the code.
        instead: The same rule written well, if there is one.
    """

    code: str
    title: str
    explanation: str
    example: str
    instead: str | None = None


# E1 syntax, E5 limits ---------------------------------------------------------------------------------------

SYNTAX: tuple[Entry, ...] = ()

# E2 names, E3 kinds, E4 declarations ------------------------------------------------------------------------

SEMANTICS: tuple[Entry, ...] = ()

# E9 not supported yet, W6 warnings --------------------------------------------------------------------------

OTHERS: tuple[Entry, ...] = ()

CATALOGUE: dict[str, Entry] = {entry.code: entry for entry in (*SYNTAX, *SEMANTICS, *OTHERS)}
