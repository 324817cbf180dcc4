"""How a file keeps states that ``store`` asks for: types of numbers, as if the rule said so; codes are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from optlang.assembly import FIXED
from optlang.compiled import Facts, Variant
from optlang.compiler import CompiledRule, example_variant
from optlang.diagnostics import OptlangError
from optlang.language import tree as ast
from optlang.language.kinds import Level
from optlang.language.rule import State, Values
from optlang.language.tree import StateScope
from optlang.storage import Fixed, Format, choice
from optlang.targets import refusal

#: The functions that round to types, by type.
_FUNCTIONS = {name: function for function, name in FIXED.items()}
#: Sizes of a tensor for which presets choose.
_SHAPE = (4096, 4096)


class _Retyped(CompiledRule):
    """A rule whose states start otherwise than its text says: what is on disk for the text is not for it."""

    def variant(self, values: Values, facts: Facts, event: str | None = None) -> Variant:
        """Return the variant that these values select."""
        special, key = self._specialise(values, facts, event)
        if key not in self._variants:
            self._variants[key] = self.build(special, key, facts.ndim)
        return self._variants[key]

    def keep(self, variant: Variant) -> None:
        """Keep nothing."""


def kept_as(compiled: CompiledRule, store: Any, target: str) -> CompiledRule:
    """Return a rule whose states start in the types that they are to be kept in.

    Args:
        compiled: The rule.
        store: A preset, or formats by the keys of states.
        target: Name of the target, for messages.

    Raises:
        OptlangError: If states are asked for in codes.
        ValueError: If there is no such preset, state or format.
    """
    if store is None:
        return compiled
    states = [state for state in compiled.rule.states if state.scope is StateScope.TENSOR]
    checked = choice.checked(compiled.name, store, [state.key for state in states])
    asked = _asked(compiled, checked, states)
    help = (
        "codes are read and written by kernels, which the file has not; keep it in bf16 or fp32, "
        "or use the class that `optlang.compile` gives"
    )
    refused = [
        refusal(compiled, target, f"state `{state.name}` kept in {_label(asked[state.key])}", state.span, help)
        for state in states
        if state.key in asked and _function(asked[state.key]) is None
    ]
    if refused:
        raise OptlangError(refused)
    found = tuple(_starting(state, asked.get(state.key)) for state in compiled.rule.states)
    return _Retyped(replace(compiled.rule, states=found), compiled.name, compiled.warnings)


def _asked(compiled: CompiledRule, store: Any, states: list[State]) -> dict[str, Format]:
    """Return the formats of the states that are asked for in some, by key."""
    elements = [state.key for state in states if state.kind.level is Level.ELEMENT]
    if isinstance(store, str) and store in choice.TYPES:
        return {key: choice.named(compiled.name, store) for key in elements}
    asked = choice.formats(compiled.name, store, example_variant(compiled, ndim=len(_SHAPE)).slots, _SHAPE)
    if isinstance(store, Mapping):  # of states that the defaults do not have, too
        asked |= {key: choice.named(compiled.name, text) for key, text in store.items() if key in elements}
    return asked


def _function(format: Format) -> str | None:
    """Return the function that rounds to a format; None if there is none."""
    return _FUNCTIONS.get(format.name) if isinstance(format, Fixed) else None


def _label(format: Format) -> str:
    return format.name if isinstance(format, Fixed) else format.label("float32")


def _starting(state: State, format: Format | None) -> State:
    """Return a state whose initial value has the type of a format."""
    name = None if format is None else _function(format)
    if name is None:
        return state
    zero = ast.Number(state.span, "0", Fraction(0))
    argument = ast.Argument(state.span, None, zero if state.initial is None else state.initial)
    return replace(state, initial=ast.Call(state.span, ast.Name(state.span, name, name), (argument,)))
