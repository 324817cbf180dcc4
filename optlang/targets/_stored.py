"""Storage of states in emitted files, as requested by ``store``: types, as if in the rule; codes are rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from optlang.artifact import ShapeInfo, Variant
from optlang.checker.state_behavior import slow_averages
from optlang.codegen.build_variant import FIXED
from optlang.compiler import CompiledRule, example_variant
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.kinds import Level
from optlang.rule import State, Values
from optlang.storage import Fixed, Format, choice
from optlang.syntax import tree as ast
from optlang.syntax.tree import StateScope
from optlang.targets import refusal

#: The functions that round to a type, by type.
_FUNCTIONS = {name: function for function, name in FIXED.items()}
#: Tensor sizes for which presets are evaluated.
_SHAPE = (4096, 4096)


class _Retyped(CompiledRule):
    """A rule whose states have other initial values than its source: the disk cache for the source does not apply."""

    def variant(self, values: Values, facts: ShapeInfo, event: str | None = None) -> Variant:
        """Return the variant that these values select."""
        core, key = self._specialise(values, facts, event)
        if key not in self._variants:
            self._variants[key] = self.build(core, key, facts.ndim)
        return self._variants[key]

    def keep(self, variant: Variant) -> None:
        """Cache nothing."""


def kept_as(compiled: CompiledRule, store: Any, target: str) -> CompiledRule:
    """Return a rule whose states are initialized in their storage types.

    Args:
        compiled: The rule.
        store: A preset, or formats by the keys of states; the rule decides about all others.
        target: Name of the target, for messages.

    Raises:
        OptlangError: If quantized states are requested, or the rule requests a format for some tensors only.
        ValueError: If the preset, a state or a format is unknown.
    """
    if store is None and not compiled.rule.stored:
        return compiled
    states = [state for state in compiled.rule.states if state.scope is StateScope.TENSOR]
    checked = choice.checked(compiled.name, store, [state.key for state in states])
    asked = _asked(compiled, checked, states)
    refused = [*_refused(compiled, checked, target), *_in_codes(compiled, asked, target)]
    if refused:
        raise OptlangError(refused)
    found = tuple(_starting(state, asked.get(state.key)) for state in compiled.rule.states)
    return _Retyped(replace(compiled.rule, states=found, stored=()), compiled.name, compiled.warnings)


def _asked(compiled: CompiledRule, store: Any, states: Sequence[State]) -> dict[str, Format]:
    """Return the formats of the states for which one is requested, by key."""
    rule = compiled.rule
    elements = [state.key for state in states if state.kind.level is Level.ELEMENT]
    if store == choice.OFF:
        return {}
    if store == "fp32":  # also for states that do not exist with the defaults
        return {key: choice.named(compiled.name, store) for key in elements}
    ruled = {each.key: each.format for each in rule.stored if each.when is None}
    slots, slow = example_variant(compiled, ndim=len(_SHAPE)).slots, slow_averages(rule)
    asked = choice.formats(compiled.name, store, slots, _SHAPE, ruled, slow)
    if choice.preset_of(store) is None:
        named = store if isinstance(store, Mapping) else {}
        asked = {**ruled, **asked, **{key: choice.named(compiled.name, text) for key, text in named.items()}}
    return {key: format for key, format in asked.items() if key in elements}


def _refused(compiled: CompiledRule, store: Any, target: str) -> Iterator[Diagnostic]:
    """Yield the errors for what the rule requests for some tensors only, and for parameters."""
    for each in () if store == choice.OFF else compiled.rule.stored:
        if each.name == "p":
            help = "files round parameters to nearest; remove the line, or ignore all such lines with --store off"
            yield refusal(compiled, target, "`store p`", each.span, help)
        elif each.when is not None and choice.preset_of(store) is None and each.key not in (store or ()):
            help = f"give --store {each.key}=bf16 or fp32, which applies to all tensors"
            yield refusal(compiled, target, f"`store {each.name}` with `when`", each.span, help)


def _in_codes(compiled: CompiledRule, asked: Mapping[str, Format], target: str) -> Iterator[Diagnostic]:
    """Yield the errors for states that are quantized or stochastically rounded, at the lines that request this."""
    help = (
        "this format needs kernels that the file does not contain; keep it in bf16 or fp32 (--store KEY=fp32), "
        "or use the class that `optlang.compile` returns"
    )
    spans = {each.key: each.span for each in compiled.rule.stored if asked.get(each.key) == each.format}
    for state in compiled.rule.states:
        format = asked.get(state.key)
        if format is not None and _function(format) is None:
            label = format.name if isinstance(format, Fixed) else format.label("float32")
            yield refusal(
                compiled, target, f"state `{state.name}` kept in {label}", spans.get(state.key, state.span), help
            )


def _function(format: Format) -> str | None:
    """Return the function that rounds to a format, or None."""
    return _FUNCTIONS.get(format.name) if isinstance(format, Fixed) else None


def _starting(state: State, format: Format | None) -> State:
    """Return a state whose initial value has the type of a format."""
    name = None if format is None else _function(format)
    if name is None:
        return state
    zero = ast.Number(state.span, "0", Fraction(0))
    argument = ast.Argument(state.span, None, zero if state.initial is None else state.initial)
    return replace(state, initial=ast.Call(state.span, ast.Name(state.span, name, name), (argument,)))
