"""How large the statements of a variant may grow, and what is said of a rule that grows beyond."""

from __future__ import annotations

from optlang.diagnostics import Diagnostic
from optlang.rule import Rule
from optlang.source import Span

#: How many nodes the statements of one variant may have: far above any optimizer, far below what takes seconds.
MAX_NODES = 20_000

#: How often a ``repeat`` may run: each time is written out.
MAX_REPEATS = 100


def too_large(rule: Rule) -> Diagnostic:
    """Return the error of a rule that grows too large when its functions are written out."""
    return Diagnostic(
        "E511",
        f"the rule grows beyond {MAX_NODES:,} operations when its functions are inlined",
        rule.tree.source,
        None,
        help="call functions fewer times, or assign their result to a name and use the name",
    )


def too_many_paths(rule: Rule) -> Diagnostic:
    """Return the error of a rule whose steps can go too many ways."""
    return Diagnostic(
        "E511",
        "a step of this rule has more than 32 possible paths: too many `every` blocks and conditions around matrices",
        rule.tree.source,
        None,
        help="merge blocks that run at the same time",
    )


def constant_sum(rule: Rule, span: Span | None) -> Diagnostic:
    """Return the error of a rule that sums what is one number after all over dimensions of unknown sizes."""
    return Diagnostic(
        "E310",
        "this sum over inner dimensions does not depend on the tensor",
        rule.tree.source,
        span,
        help="multiply the number by how many there are",
    )
