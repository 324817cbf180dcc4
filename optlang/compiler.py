"""The driver: text -> compiled rule. The lines of :func:`compile_source` and :meth:`CompiledRule.build` are the stages.

    text -> tree -> rule              (language: parse, check)
    rule -> statements -> programs    (language.specialise, ir.lower)
    programs -> passes -> source      (ir.passes, backends.python_source)

A rule is checked once; its variants are compiled when the runtime first needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from optlang.backends.loading import variants
from optlang.compiled import Facts, Layout, Slot, Variant
from optlang.diagnostics import Diagnostic, OptlangError, raise_errors
from optlang.language.check import check_text
from optlang.language.evaluate import evaluate, truth
from optlang.language.kinds import ELEMENT, SCALAR
from optlang.language.questions import group_keys, reads_group_time, reads_time, static_names
from optlang.language.rule import Hyper, HyperType, OneOf, Range, Rule, Value
from optlang.language.specialise import Special, specialise, too_large
from optlang.source import Source

if TYPE_CHECKING:
    from optlang.ir.lower import Lowered
    from optlang.ir.program import Program

#: What a tensor is taken to be where none is at hand (``optlang emit``).
EXAMPLE = Facts(ndim=2, numel=6, rows=2, cols=3, eps_of=2.0**-23)


def compile_source(source: Source, name: str | None = None) -> CompiledRule:
    """Check a rule and return it ready to be compiled.

    Raises:
        OptlangError: With every diagnostic, if the rule has errors.
    """
    rule, diagnostics = check_text(source)
    raise_errors(diagnostics)
    assert rule is not None
    return CompiledRule(rule, name or rule.name or "Rule", tuple(diagnostics))


class CompiledRule:
    """A checked rule and its variants; implements :class:`optlang.compiled.Compiled`.

    Attributes:
        rule: The checked rule.
        name: The class name.
        warnings: What the checker found that is no error.
    """

    def __init__(self, rule: Rule, name: str, warnings: tuple[Diagnostic, ...] = ()) -> None:
        self.rule, self.name, self.warnings = rule, name, warnings
        self.static_names, self.group_keys = static_names(rule), group_keys(rule)
        self._variants: dict[tuple[Value, ...], Variant] = {}

    # Hyperparameters ----------------------------------------------------------------------------------------

    def defaults(self) -> dict[str, Value]:
        """Return a value for every hyperparameter: its default, or 1 for one that must be passed."""
        return {h.name: 1.0 if h.required else h.default for h in self.rule.hypers}

    def problems(self, values: Mapping[str, Value]) -> list[str]:
        """Return what is wrong with these hyperparameters, one sentence each; empty if nothing."""
        found = [p for h in self.rule.hypers if (p := _problem(h, values[h.name])) is not None]
        if not found:
            for requirement in self.rule.requirements:
                if not truth(evaluate(requirement.condition, values)):
                    found.append(requirement.message)
        return found

    def group_initial(self, values: Mapping[str, Value]) -> dict[str, float]:
        """Return the initial value of each group state, by key."""
        initial = {}
        for state in self.rule.states:
            if state.scope == "group":
                value = 0.0 if state.initial is None else evaluate(state.initial, values)
                assert isinstance(value, (int, float))
                initial[state.key] = float(value)
        return initial

    # Variants -----------------------------------------------------------------------------------------------

    def variant_key(self, values: Mapping[str, Value], facts: Facts) -> tuple[Value, ...]:
        """Return the key of the variant that these values select."""
        return self._specialise(values, facts)[1]

    def variant(self, values: Mapping[str, Value], facts: Facts) -> Variant:
        """Return the variant that these values select, compiled on first use."""
        special, key = self._specialise(values, facts)
        if key not in self._variants:
            text = self.rule.tree.source.text
            self._variants[key] = variants.find(text, self.name, key) or self.build(special, key, facts.ndim)
        return self._variants[key]

    def keep(self, variant: Variant) -> None:
        """Keep a variant on disk for other processes."""
        variants.keep(self.rule.tree.source.text, variant)

    def _specialise(self, values: Mapping[str, Value], facts: Facts) -> tuple[Special, tuple[Value, ...]]:
        """Return the statements of a variant and its key (with ndim, where layouts depend on it)."""
        try:
            special = specialise(self.rule, {**values, **facts._asdict()})
        except RecursionError:
            raise OptlangError([too_large(self.rule)]) from None
        exact = _layout(special, facts.ndim).exact
        return special, (*special.key, f"ndim {facts.ndim}") if exact else special.key

    def build(self, special: Special, key: tuple[Value, ...], ndim: int) -> Variant:
        """Compile one variant: statements -> programs -> passes -> source."""
        from optlang.backends import python_source, triton_source  # here, as a variant found on disk needs no SymPy

        lowered = self.lowered(special)
        slots = _slots(special, lowered)
        device = tuple(s.name for s in slots if s.place != "host")
        tensors = _tensors(lowered.step, device)
        title = f"{self.name}: generated by optlang."
        plain, narrow = (python_source.emit(lowered, slots, tensors, title, n) for n in (False, True))
        group = lowered.group
        arguments = python_source.host_arguments(lowered.step, slots)
        elementwise = _is_elementwise(lowered.step, slots)
        groups = python_source.host_names(group) if group else ()
        return Variant(
            name=self.name,
            key=key,
            source=plain,
            narrow_source=narrow,
            traced_source=python_source.emit_traced(lowered, slots, tensors, title),
            start_arguments=python_source.host_names(lowered.start),
            group_arguments=groups,
            host_arguments=arguments,
            coefficients=tuple(map(str, lowered.step.coefficients())),
            slots=slots,
            group_slots=tuple(
                Slot(s.name, s.key, "host")
                for store in (group.stores if group else ())
                for s in special.states
                if s.name == store.target
            ),
            tensors=tensors,
            written=tuple(s.target for s in lowered.step.stores if s.kind.on_device),
            layout=_layout(special, ndim),
            min_ndim=max((d + 1 if d >= 0 else -d for d in special.dims), default=0),
            counts_steps="t" in arguments or (bool(self.static_names) and reads_time(self.rule)),
            counts_group="group.t" in groups or reads_group_time(self.rule),
            elementwise=elementwise,
            triton_source=triton_source.emit(lowered.step, tensors, title) if elementwise else "",
        )

    def lowered(self, special: Special, watch: Callable[[str, Program], None] | None = None) -> Lowered:
        """Return the programs of a variant after the passes; ``watch`` sees the step after each."""
        from optlang.ir.lower import lower
        from optlang.ir.passes import optimise

        try:
            raw = lower(self.rule, special)
            if watch is not None:
                watch("lower", raw.step)
            return replace(
                raw,
                step=optimise(raw.step, watch),
                start=optimise(raw.start),
                group=optimise(raw.group) if raw.group else None,
            )
        except RecursionError:
            raise OptlangError([too_large(self.rule)]) from None


def _example(compiled: CompiledRule, values: Mapping[str, Value] | None) -> dict[str, Value]:
    """Return values that choose a variant: the defaults, overridden by ``values``."""
    group: dict[str, Value] = {f"group.{key}": 1.0 for key in compiled.group_keys}
    return {**compiled.defaults(), **group, **(values or {})}


def example_variant(compiled: CompiledRule, values: Mapping[str, Value] | None = None, ndim: int = 2) -> Variant:
    """Return the variant of the defaults (overridden by ``values``) for a tensor of ``ndim`` dimensions."""
    return compiled.variant(_example(compiled, values), EXAMPLE._replace(ndim=ndim))


def program_text(compiled: CompiledRule, values: Mapping[str, Value] | None = None, ndim: int = 2) -> str:
    """Return the optimised step of that variant as text."""
    return passes_of(compiled, values, ndim)[-1][1]


def passes_of(
    compiled: CompiledRule, values: Mapping[str, Value] | None = None, ndim: int = 2
) -> list[tuple[str, str]]:
    """Return the step of a rule after lowering and after each pass: pairs of the pass's name and the text."""
    seen: list[tuple[str, str]] = []
    facts = EXAMPLE._replace(ndim=ndim)
    special = specialise(compiled.rule, {**_example(compiled, values), **facts._asdict()})
    compiled.lowered(special, lambda name, program: seen.append((name, program.text())))
    return seen


def _layout(special: Special, ndim: int) -> Layout:
    """Return how tensors of ``ndim`` dimensions are viewed: dimensions that reductions name stay apart."""
    front = max((d + 1 for d in special.dims if d >= 0), default=0)
    back = max((-d for d in special.dims if d < 0), default=0)
    if ndim < front + back:
        return Layout(exact=True)
    return Layout(front, back)


def _is_elementwise(step: Program, slots: tuple[Slot, ...]) -> bool:
    """Return whether no element's update depends on another element."""
    return all(s.place in ("element", "host") for s in slots) and not any(v.reduces for v in step.tensor)


def _slots(special: Special, lowered: Lowered) -> tuple[Slot, ...]:
    """Return the states of tensors that exist, with the places they live in."""
    places = {ELEMENT: "element", SCALAR: "scalar"}
    return tuple(
        Slot(s.name, s.key, "host" if s.name in lowered.on_host else places.get(s.kind, "reduced"))
        for s in special.states
        if s.scope == "tensor"
    )


def _tensors(program: Program, states: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tensors that a step reads or writes: p first, then g, then states as declared."""
    used = {i.name for i in program.inputs if i.kind.on_device}
    used |= {s.target for s in program.stores if s.kind.on_device}
    return ("p", "g", *(name for name in states if name in used))


def _problem(hyper: Hyper, value: Value) -> str | None:
    """Return what is wrong with the value of a hyperparameter."""
    name = hyper.name if hyper.part is None else f"{hyper.name} ({hyper.key}[{hyper.part}])"
    wanted = {
        HyperType.NUMBER: "a number",
        HyperType.OPTIONAL: "a number or None",
        HyperType.FLAG: "True or False",
        HyperType.TEXT: "a string",
    }[hyper.type]
    fits = {
        HyperType.NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool),
        HyperType.OPTIONAL: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)),
        HyperType.FLAG: isinstance(value, bool),
        HyperType.TEXT: isinstance(value, str),
    }[hyper.type]
    if not fits:
        return f"{name} must be {wanted}, got {_shown(value)}"
    if isinstance(value, float) and value != value:
        return f"{name} must not be NaN"
    if value == math.inf and isinstance(hyper.domain, Range) and hyper.domain.high == math.inf:
        return f"{name} must be finite"
    if value is None or hyper.domain is None:
        return None
    if isinstance(hyper.domain, Range):
        inside = isinstance(value, (int, float)) and float(value) in hyper.domain
    else:
        inside = value in hyper.domain
    if inside:
        return None
    if isinstance(hyper.domain, OneOf):
        choices = ", ".join(repr(v) for v in hyper.domain.values)
        return f"{name} must be one of {choices}, got {_shown(value)}"
    return f"{name} must be {hyper.domain.text}, got {_shown(value)}"


def _shown(value: Value) -> str:
    """Return a value as the user most likely wrote it: a whole number without its ``.0``."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else repr(value)


__all__ = [
    "CompiledRule",
    "OptlangError",
    "compile_source",
    "example_variant",
    "passes_of",
    "program_text",
]
