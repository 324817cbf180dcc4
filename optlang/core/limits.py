"""Limits on the size of a variant, and the diagnostics for rules that exceed them."""

from __future__ import annotations

from optlang.diagnostics import Diagnostic
from optlang.rule import Rule
from optlang.source import Span

#: Maximum number of nodes in one variant: far above any real optimizer, far below what takes seconds to process.
MAX_NODES = 20_000

#: Maximum count of a ``repeat``, which is unrolled.
MAX_REPEATS = 100


def too_large(rule: Rule) -> Diagnostic:
    """Return the error for a rule that grows too large when its functions are inlined."""
    return Diagnostic(
        "E511",
        f"the rule grows beyond {MAX_NODES:,} operations when its functions are inlined",
        rule.tree.source,
        None,
        help="call functions fewer times, or assign their result to a name and use the name",
    )


def too_many_paths(rule: Rule) -> Diagnostic:
    """Return the error for a rule whose steps have too many possible paths."""
    return Diagnostic(
        "E511",
        "a step of this rule has more than 32 possible paths: too many `every` blocks and conditions around matrices",
        rule.tree.source,
        None,
        help="merge blocks that run at the same time",
    )


def constant_sum(rule: Rule, span: Span | None) -> Diagnostic:
    """Return the error for a sum of a constant over dimensions whose sizes are unknown."""
    return Diagnostic(
        "E310",
        "this sum over inner dimensions does not depend on the tensor",
        rule.tree.source,
        span,
        help="multiply the number by how many there are",
    )
