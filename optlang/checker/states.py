"""Checks declarations of states: names, keys in ``state_dict``, conditions and initial values."""

from __future__ import annotations

from optlang.checker.places import GROUP_INITIAL, INITIAL, SHARED_INITIAL, WHEN
from optlang.checker.resolve import Resolver
from optlang.declarations.hypers import RESERVED_KEYS
from optlang.declarations.scope import DeclaredState, Scope
from optlang.source import Span
from optlang.syntax.tree import Expr, Name, StateDecl, StateScope
from optlang.syntax.walk import expressions

#: The contexts of initial values, by the scope of the state.
_INITIALS = {StateScope.TENSOR: INITIAL, StateScope.GROUP: GROUP_INITIAL, StateScope.SHARED: SHARED_INITIAL}


def declare_states(declaration: StateDecl, scope: Scope) -> None:
    """Check one ``state`` statement and add its states to the scope."""
    for item in declaration.items:
        if scope.declare(item.name.name, item.name.text, item.name.span):
            scope.states[item.name.name] = DeclaredState(item, declaration.scope, declaration.when)


def check_states(scope: Scope, resolver: Resolver, reads_t: Span | None) -> None:
    """Check keys, conditions and initial values of all states.

    Args:
        scope: The rule's names.
        resolver: The name resolver, which reports errors.
        reads_t: Where the rule reads the step count, if it does.
    """
    _check_keys(scope, reads_t)
    for state in scope.states.values():
        if state.when is not None:
            resolver.expression(state.when, WHEN)
        if state.item.initial is not None:
            _check_initial(state, state.item.initial, scope)
            resolver.expression(state.item.initial, _INITIALS[state.scope])


def _check_initial(state: DeclaredState, initial: Expr, scope: Scope) -> None:
    own = next((e for e in expressions(initial) if isinstance(e, Name) and e.name == state.name), None)
    if own is not None:
        scope.findings.add(
            "E312",
            f"the initial value of `{state.item.name.text}` reads `{own.text}` itself",
            own.span,
            label="has no value yet",
            help="remove the initial value to start at zero",
        )


def _check_keys(scope: Scope, reads_t: Span | None) -> None:
    """Check that keys are distinct and not reserved."""
    used: dict[tuple[bool, str], Span] = {}
    for hyper in scope.hypers.values():
        used.setdefault((True, hyper.key), hyper.span)
    for state in scope.states.values():
        grouped = state.scope is not StateScope.TENSOR
        place = state.item.span
        first = used.setdefault((grouped, state.key), place)
        if first != place:
            scope.findings.add(
                "E409",
                f"two states have the key `{state.key}`",
                place,
                label="second use of this key",
                help="give one of them another key: `state m as KEY`",
                related=(("first used here", first),),
            )
        elif grouped and state.key in RESERVED_KEYS:
            scope.findings.add(
                "E409",
                f"`{state.key}` cannot be the key of a {state.scope.value} state",
                place,
                label=f"reserved for {RESERVED_KEYS[state.key]}",
                help=f"give it another key: `{state.scope.value} state x as KEY`",
            )
        elif state.key == "step" and not grouped:
            _check_step(state, scope, reads_t)


def _check_step(state: DeclaredState, scope: Scope, reads_t: Span | None) -> None:
    """Check a state with the key ``step``, under which the count ``t`` would be kept too."""
    if state.item.type != "scalar":
        scope.findings.add(
            "E409",
            "the key `step` is reserved for a count of steps, one number for each tensor",
            state.item.span,
            label="expected `: scalar`",
            help="write `state step: scalar = 0`, or give the state another key with `as`",
        )
    elif reads_t is not None:
        scope.findings.add(
            "E409",
            "the key `step` is taken: the rule reads the step count, which is stored there",
            state.item.span,
            label="would be stored under the same key",
            help="use `t` instead of this state, or give the state another key with `as`",
            related=(("the step count is read here", reads_t),),
        )
