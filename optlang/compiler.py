"""The driver: from text to a compiled rule. :func:`compile_source` and :meth:`CompiledRule.build` run the stages.

    text -> tree -> rule              (syntax, expand, checker)
    rule -> statements -> programs    (core.specialise, ir.lower)
    programs -> passes -> source      (ir.passes, ir.stages, codegen, backends)

A rule is checked once; its variants are compiled when the runtime first needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from optlang.artifact import ShapeInfo, Variant, VariantKey
from optlang.backends.loading import variants
from optlang.checker.check import check_text
from optlang.checker.samples import ordinary_value
from optlang.core.core import Core
from optlang.core.evaluate import evaluate, truth
from optlang.core.limits import too_large, too_many_paths
from optlang.core.needs import needs
from optlang.core.sizes import Unfit
from optlang.core.specialise import specialise
from optlang.core.texts import rule_text
from optlang.diagnostics import Diagnostic, OptlangError, raise_errors
from optlang.identity import GivenName, GroupKey
from optlang.rule import Hyper, HyperType, OneOf, Range, Rule, Value, Values
from optlang.source import Source
from optlang.syntax.tree import Expr, StateScope

if TYPE_CHECKING:
    from optlang.ir.lower import Lowered
    from optlang.ir.program import Program


def example_facts(ndim: int) -> ShapeInfo:
    """Return the facts of an example tensor (``optlang emit``): 2 by 3, or similar sizes."""
    shape = (2, 3)[-ndim:] if ndim < 3 else (*((2,) * (ndim - 2)), 2, 3)
    shape = shape if ndim else ()
    rows, cols = shape[-2] if ndim > 1 else 1, shape[-1] if ndim else 1
    return ShapeInfo(ndim=ndim, numel=math.prod(shape), rows=rows, cols=cols, eps_of=2.0**-23, shape=shape)


def compile_source(source: Source, name: str | None = None) -> CompiledRule:
    """Check a rule and prepare it for compilation.

    Raises:
        OptlangError: If the rule has errors; lists all of them.
    """
    rule, diagnostics = check_text(source)
    raise_errors(diagnostics)
    assert rule is not None
    return CompiledRule(rule, name or rule.name or "Rule", tuple(diagnostics))


class CompiledRule:
    """A checked rule and its variants; implements :class:`optlang.artifact.Compiled`.

    Attributes:
        rule: The checked rule.
        name: The class name.
        warnings: The warnings of the checker.
        routes: For a rule with routes: the rules and their conditions.
    """

    def __init__(self, rule: Rule, name: str, warnings: tuple[Diagnostic, ...] = ()) -> None:
        self.rule, self.name, self.warnings = rule, name, warnings
        self.static_names, self.group_keys = needs(rule).choosing, needs(rule).group_keys
        self.routes: tuple[tuple[CompiledRule, Expr | None], ...] = ()
        self._variants: dict[VariantKey, Variant] = {}
        self._rebuilt: dict[VariantKey, Variant] = {}  # variants loaded from disk whose programs were needed
        self._kept: dict[VariantKey, int] = {}  # number of kernel texts on disk, by variant

    # Hyperparameters ----------------------------------------------------------------------------------------

    def defaults(self) -> dict[GivenName, Value]:
        """Return a value for every hyperparameter: its default, or a valid value if it is required."""
        return {h.name: _placeholder(h) if h.required else h.default for h in self.rule.hypers}

    def problems(self, values: Values) -> list[str]:
        """Return the errors in these hyperparameters, one sentence each; empty if there are none."""
        found = [p for h in self.rule.hypers if (p := _problem(h, values[h.name])) is not None]
        if not found:
            for requirement in self.rule.requirements:
                if not requirement.of_tensors and not truth(evaluate(requirement.condition, values)):
                    found.append(requirement.message)
        return found

    def shape_error(self, values: Values, facts: ShapeInfo) -> Diagnostic | None:
        """Return a diagnostic if a tensor does not suit the rule, None if it does."""
        source, help = self.rule.tree.source, "choose another number of dimensions (`--ndim`, in Python `ndim=`)"
        message = f"a tensor of shape {facts.shape} does not suit the rule"
        for requirement in self.rule.requirements:
            if requirement.of_tensors and not truth(evaluate(requirement.condition, {**values, **facts.named()})):
                span = requirement.condition.span
                return Diagnostic("E802", f"{message}: {requirement.message}", source, span, "does not hold", help)
        try:
            self._specialise(values, facts)
        except Unfit as unfit:
            return Diagnostic(
                "E802", f"{message}: {unfit.message}", source, unfit.span, None, f"{unfit.help}; or {help}"
            )
        return None

    def unfit(self, values: Values, facts: ShapeInfo) -> str | None:
        """Return why a tensor does not suit the rule; None if it does."""
        for requirement in self.rule.requirements:
            if requirement.of_tensors and not truth(evaluate(requirement.condition, {**values, **facts.named()})):
                return requirement.message
        try:
            self._specialise(values, facts)
        except Unfit as unfit:
            own = self.rule.tree.source
            source = unfit.span.source or own
            line = f"line {source.position(unfit.span.start)[0]}" + ("" if source is own else f" of {source.name}")
            return f"`{source.excerpt(unfit.span)}` ({line}): {unfit.message}; {unfit.help}"
        return None

    def group_initial(self, values: Values) -> dict[str, float]:
        """Return the initial values of group and shared states, by key."""
        initial = {}
        for state in self.rule.states:
            if state.scope is not StateScope.TENSOR:
                value = 0.0 if state.initial is None else evaluate(state.initial, values)
                assert isinstance(value, (int, float))
                initial[state.key] = float(value)
        return initial

    # Variants -----------------------------------------------------------------------------------------------

    def variant_key(self, values: Values, facts: ShapeInfo, event: str | None = None) -> VariantKey:
        """Return the key of the variant that these values select."""
        return self._specialise(values, facts, event)[1]

    def variant(self, values: Values, facts: ShapeInfo, event: str | None = None) -> Variant:
        """Return the variant that these values select, compiled on first use."""
        core, key = self._specialise(values, facts, event)
        if key not in self._variants:
            found = variants.find(rule_text(self.rule), self.name, key)
            if found is not None:
                self._kept[key] = _texts(found)
                for kernel in found.schedule.kernels:
                    kernel.restore = partial(self._restored, kernel.digest, core, key, facts.ndim)
            self._variants[key] = found or self.build(core, key, facts.ndim)
        return self._variants[key]

    def keep(self, variant: Variant) -> None:
        """Cache a variant on disk for other processes, with the kernel texts generated so far."""
        count = _texts(variant)
        if count > self._kept.get(variant.key, -1):
            self._kept[variant.key] = count
            variants.keep(rule_text(self.rule), variant)

    def _restored(self, digest: str, core: Core, key: VariantKey, ndim: int) -> Program:
        """Return the program of a kernel that was loaded from disk without it."""
        if key not in self._rebuilt:
            self._rebuilt[key] = self.build(core, key, ndim)
        return next(k.program for k in self._rebuilt[key].schedule.kernels if k.digest == digest)

    def _specialise(self, values: Values, facts: ShapeInfo, event: str | None = None) -> tuple[Core, VariantKey]:
        """Return the specialised rule and the key of its variant."""
        try:
            core = specialise(self.rule, {**values, **facts.named()}, facts.shape, event)
        except RecursionError:
            raise OptlangError([too_large(self.rule)]) from None
        return core, VariantKey.of(core, facts.ndim)

    def build(self, core: Core, key: VariantKey, ndim: int) -> Variant:
        """Compile one variant: lowering, passes, code generation."""
        from optlang.codegen.build_variant import assembled  # variants loaded from disk need no SymPy

        return assembled(self.rule, self.name, core, self.lowered(core), key, ndim)

    def lowered(self, core: Core, watch: Callable[[str, Program], None] | None = None) -> Lowered:
        """Return the optimised programs of a variant; ``watch`` is called with the step after each pass."""
        from optlang.ir.lower import TooManyPaths, lower
        from optlang.ir.passes import optimise

        try:
            raw = lower(self.rule, core)
            if raw.staged:  # its paths are split into stages first
                return raw
            if watch is not None:
                watch("lower", raw.step)
            (path,) = raw.paths
            return replace(
                raw,
                paths=(replace(path, program=optimise(raw.step, watch)),),
                start=optimise(raw.start),
                group=optimise(raw.group) if raw.group else None,
            )
        except RecursionError:
            raise OptlangError([too_large(self.rule)]) from None
        except TooManyPaths:
            raise OptlangError([too_many_paths(self.rule)]) from None


def _texts(variant: Variant) -> int:
    """Return the number of texts of a variant's kernels, besides their modules."""
    return sum(len(kernel.texts) for kernel in variant.schedule.kernels)


def _example(compiled: CompiledRule, values: Values | None) -> dict[GivenName, Value]:
    """Return values that select a variant: the defaults, overridden by ``values``."""
    group: Values = {GroupKey(key): 1.0 for key in compiled.group_keys}
    return {**compiled.defaults(), **group, **(values or {})}


def example_variant(
    compiled: CompiledRule, values: Values | None = None, ndim: int = 2, event: str | None = None
) -> Variant:
    """Return the variant of the defaults (overridden by ``values``) for a tensor of ``ndim`` dimensions."""
    chosen, facts = _example(compiled, values), example_facts(ndim)
    try:
        return compiled.variant(chosen, facts, event)
    except Unfit:
        raise _unsuited(compiled, chosen, facts) from None


def program_text(compiled: CompiledRule, values: Values | None = None, ndim: int = 2) -> str:
    """Return the optimised step of that variant as text."""
    return passes_of(compiled, values, ndim)[-1][1]


def passes_of(compiled: CompiledRule, values: Values | None = None, ndim: int = 2) -> list[tuple[str, str]]:
    """Return the step of a rule after lowering and after each pass: pairs of the pass's name and the text."""
    seen: list[tuple[str, str]] = []
    facts = example_facts(ndim)
    chosen = _example(compiled, values)
    try:
        core = specialise(compiled.rule, {**chosen, **facts.named()}, facts.shape)
    except Unfit:
        raise _unsuited(compiled, chosen, facts) from None
    lowered = compiled.lowered(core, lambda name, program: seen.append((name, program.text())))
    if lowered.staged:
        from optlang.codegen.build_variant import staged_text

        seen.append(("stages", staged_text(lowered)))
    return seen


def _unsuited(compiled: CompiledRule, values: Values, facts: ShapeInfo) -> OptlangError:
    """Return the error for a tensor that does not suit a rule."""
    found = compiled.shape_error(values, facts)
    assert found is not None
    return OptlangError([found])


def _placeholder(hyper: Hyper) -> Value:
    """Return a value for a required hyperparameter: 1 if that is valid, otherwise another valid value."""
    if isinstance(hyper.domain, OneOf):
        return hyper.domain.values[0]
    if hyper.domain is None or 1.0 in hyper.domain:
        return 1.0
    value = ordinary_value(hyper)
    return float(math.ceil(value)) if hyper.count and math.ceil(value) in hyper.domain else value


def _problem(hyper: Hyper, value: Value) -> str | None:
    """Return the error in a hyperparameter's value, if any."""
    name = hyper.name if hyper.part is None else f"{hyper.name} ({hyper.key}[{hyper.part}])"
    wanted = {
        HyperType.NUMBER: "a number",
        HyperType.OPTIONAL: "a number or None",
        HyperType.FLAG: "True or False",
        HyperType.TEXT: "a string",
        HyperType.OPTIONAL_TEXT: "a string or None",
    }[hyper.type]
    fits = {
        HyperType.NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool),
        HyperType.OPTIONAL: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)),
        HyperType.FLAG: isinstance(value, bool),
        HyperType.TEXT: isinstance(value, str),
        HyperType.OPTIONAL_TEXT: isinstance(value, str | None),
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
    """Return a value as the user most likely wrote it, an integer without ``.0``."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else repr(value)


__all__ = [
    "CompiledRule",
    "OptlangError",
    "compile_source",
    "example_variant",
    "passes_of",
    "program_text",
]
