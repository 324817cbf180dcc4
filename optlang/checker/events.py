"""Checks ``on eval`` and ``on train`` blocks, which must undo each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.checker.places import EVENT
from optlang.checker.resolve import Resolver
from optlang.declarations.scope import Scope
from optlang.syntax.tree import On
from optlang.syntax.walk import assigned


def check_events(events: Sequence[On], resolver: Resolver) -> None:
    """Check the names in all ``on`` blocks, and that the events come as a pair."""
    first: dict[str, On] = {}
    for event in events:
        resolver.block(event.body, EVENT, own_names(event, resolver.scope))
        if event.event in first:
            resolver.findings.add(
                "E411",
                f"the rule has two `on {event.event}` blocks",
                event.span,
                label="second block",
                help="write all its statements in one block",
                related=(("first block", first[event.event].span),),
            )
        first.setdefault(event.event, event)
    if len(first) == 1:
        (event,) = first.values()
        other = "train" if event.event == "eval" else "eval"
        resolver.findings.add(
            "E411",
            f"`on {event.event}` without `on {other}`",
            event.span,
            label="nothing undoes this",
            help=f"write `on {other}:` with the statements that undo this; the two are called alternately",
        )


def own_names(event: On, scope: Scope) -> frozenset[str]:
    """Return the local names that a block assigns."""
    return frozenset(n.name for n in assigned(event.body)) - {"p", "g", *scope.states, *scope.hypers, *scope.tuples}


def event_scope(event: On, scope: Scope) -> Scope:
    """Return the scope of a block, which has its own locals."""
    own = own_names(event, scope)
    places = {n.name: n.span for n in reversed(list(assigned(event.body))) if n.name in own}
    return replace(scope, locals=places, static={})
