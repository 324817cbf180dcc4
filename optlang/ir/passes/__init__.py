"""The pipeline: which passes run, and in which order.

A pass is a module with one function ``run(program) -> program``. To add one, add the module and its name to this list.
"""

from __future__ import annotations

from collections.abc import Callable

from optlang.core.core import VERIFYING
from optlang.ir.passes import forward, hoist, inline, phases, prune, share, simplify
from optlang.ir.program import Program

Pass = Callable[[Program], Program]

#: In order. Inlining comes first, so that simplification sees whole formulas; hoisting comes next and finds whole
#: coefficients; sharing must not see what hoisting will move; forwarding and phases only tidy up.
PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("prune", prune.run),
    ("inline", inline.run),
    ("simplify", simplify.run),
    ("hoist", hoist.run),
    ("share", share.run),
    ("forward", forward.run),
    ("phases", phases.run),
)


def optimise(program: Program, watch: Callable[[str, Program], None] | None = None) -> Program:
    """Return the program after every pass; ``watch`` is called with each pass and its result."""
    if VERIFYING:
        program.verify()
    for name, run in PIPELINE:
        program = run(program)
        if VERIFYING:
            program.verify()
        if watch is not None:
            watch(name, program)
    return program
