"""Checks ``store m: FORMAT``: the states, the formats, and the values that a format must hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from optlang.checker.places import STORED
from optlang.checker.resolve import Resolver
from optlang.checker.samples import Sample, facts
from optlang.checker.shape_errors import ShapeErrors
from optlang.checker.state_behavior import StateBehavior, behavior_of
from optlang.checker.statements import StatementReader
from optlang.declarations.constants import NotConstant, fold
from optlang.declarations.findings import Findings
from optlang.declarations.scope import Scope
from optlang.kinds import STATIC, Kind, Level
from optlang.rule import Rule, Stored
from optlang.source import Span
from optlang.storage import Format
from optlang.storage.blocks import Blocks
from optlang.storage.named import AT_RANDOM, CODES, LARGEST_BLOCK, TYPES, Wrong, format_of
from optlang.storage.parameters import KEY, WAYS
from optlang.syntax.suggest import did_you_mean
from optlang.syntax.tree import Argument, Name, StateScope, StoreDecl, StoreFormat, Word

#: The sample shape for conditions.
SHAPE = (5, 7)
#: The number of hyperparameter samples to run a rule with.
MAX_RUNS = 4
BLOCK = f"the block size is a power of 2 from 16 to {1 << LARGEST_BLOCK:,}"


def check_stores(stores: Iterable[StoreDecl], resolver: Resolver, vector: str) -> tuple[Stored, ...]:
    """Check the ``store`` statements of a rule, except for the shapes of states, which are not known yet.

    Args:
        stores: The statements.
        resolver: The name resolver, which reports errors.
        vector: The declaration that excludes per-tensor states: ``flat`` or ``sparse``; empty without one.
    """
    checker = _Stores(resolver.scope)
    for statement in stores:
        if vector:
            resolver.findings.add(
                "E414",
                f"a `{vector}` rule cannot choose formats for its states",
                statement.span,
                label=f"the rule is `{vector}`",
                help=f"remove this line, or `{vector}`",
            )
            return ()
        checker.statement(statement, resolver)
    return tuple(checker.found.values())


class _Stores:
    """The ``store`` statements of one rule, in source order."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.findings = scope, scope.findings
        self.found: dict[str, Stored] = {}

    def statement(self, node: StoreDecl, resolver: Resolver) -> None:
        """Check a ``store`` statement."""
        if node.when is not None:
            resolver.expression(node.when, STORED)
            if not self.findings.error_inside(node.when.span):  # all its names have values
                sample = Sample(facts(SHAPE), SHAPE)
                StatementReader(self.scope, sample, self.findings, {}, {}, ShapeErrors()).condition(node.when)
        for name in node.names:
            if name.name != "p" and not self.is_state(name):
                continue
            format = self.rounding(node.format) if name.name == "p" else self.format(node.format)
            if format is None or not self.is_first(name):
                continue
            if isinstance(format, Blocks) and node.when is not None:
                format = replace(format, least=0)  # the condition takes its place
            key = KEY if name.name == "p" else self.scope.states[name.name].key
            self.found[name.name] = Stored(name.name, key, format, node.when, name.span)

    def is_state(self, name: Name) -> bool:
        """Return whether a name is a state of tensors; report it if not."""
        scope = self.scope
        state = scope.states.get(name.name)
        if name.name in scope.excused:
            return False
        if state is not None and state.scope is StateScope.TENSOR:
            return True
        role = f"a {state.scope.value} state" if state is not None else scope.role(name.name)
        if role is None:
            known = [s.item.name.text for s in scope.states.values()]
            near = did_you_mean(name.name, known)
            listed = (
                f"states of this rule: {', '.join(f'`{x}`' for x in known)}" if known else "this rule has no states"
            )
            self.findings.add(
                "E201", f"unknown state `{name.text}`", name.span, label="not declared", help=near or listed
            )
        else:
            self.findings.add(
                "E414",
                f"`{name.text}` is not a state of each tensor",
                name.span,
                label=f"{role}, not a state of tensors",
                help="name a state that is shaped like p, or `p` for the rounding of the parameter",
            )
        return False

    def is_first(self, name: Name) -> bool:
        """Return whether a name has no format yet; report it if it has."""
        before = self.found.get(name.name)
        if before is None:
            return True
        self.findings.add(
            "E205",
            f"`{name.text}` has two formats",
            name.span,
            label="second format",
            help="remove one of the two",
            related=(("first format", before.span),),
        )
        return False

    # Formats ------------------------------------------------------------------------------------------------

    def wrong(self, message: str, span: Span, label: str, help: str) -> None:
        """Report an invalid format."""
        self.findings.add("E413", message, span, label=label, help=help)

    def format(self, node: StoreFormat) -> Format | None:
        """Return the format of a state; report it and return None if it is invalid."""
        name = node.name.text
        if name not in CODES and name not in TYPES:
            self.unknown(node.name, node)
            return None
        if node.bits is not None:
            self.of_parameters(node, f"{name}+{node.bits.text}")
            return None
        if node.rounding is not None and node.rounding.text != AT_RANDOM:
            message = f"unknown rounding `{node.rounding.text}`"
            self.wrong(message, node.rounding.span, f"expected `{AT_RANDOM}`", "write `bf16 stochastic`, or `bf16`")
            return None
        sizes = [self.option(name, option) for option in node.options]
        if not all(sizes):
            return None
        if len(sizes) > 1:
            self.wrong("the block size is given twice", node.options[1].span, "second size", "remove one of the two")
            return None
        try:
            return format_of(name, {"block": sizes[0]} if sizes else {}, node.rounding is not None)
        except Wrong as wrong:  # the only error left is the rounding
            assert node.rounding is not None
            self.wrong(str(wrong), node.rounding.span, "not for this format", f"write `{name}`, or `bf16 stochastic`")
            return None

    def option(self, format: str, option: Argument) -> int:
        """Return the size of a block; report it and return 0 if it is invalid."""
        if format not in CODES or option.name != "block":
            text = f"`{option.name}`" if option.name else "a positional value"
            help = f"write `{format}(block = 128)`" if format in CODES else f"write `{format}`"
            if option.name == "least":
                help = f"write `store m: {format} when numel >= 1024`"
            self.wrong(
                f"{format} takes no {text}" if option.name else f"{format} takes {text}",
                option.span,
                "expected `block = SIZE`" if format in CODES else "expected nothing in brackets",
                help,
            )
            return 0
        try:
            size = fold(option.value)
            if isinstance(size, float):
                format_of(format, {"block": int(size) if size == int(size) else 0})
                return int(size)
        except (NotConstant, Wrong, OverflowError):
            pass
        self.wrong("this is not a block size", option.value.span, "expected 16, 32, 64, ...", BLOCK)
        return 0

    def unknown(self, word: Word, node: StoreFormat) -> None:
        """Report an unknown format."""
        known = ", ".join(f"`{name}`" for name in (*TYPES, *CODES))
        if word.text in WAYS:
            self.of_parameters(node, word.text)
            return
        near = did_you_mean(word.text, [*TYPES, *CODES])
        self.wrong(f"unknown format `{word.text}`", word.span, "not a format", near or f"there are {known}")

    def of_parameters(self, node: StoreFormat, way: str) -> None:
        """Report a rounding mode for the parameter that is given for a state."""
        help = "write `bf16 stochastic`" if way == AT_RANDOM else f"for the parameter: `store p: {way}`"
        self.wrong(f"`{way}` is a rounding for the parameter, not a format for states", node.span, "for `p` only", help)

    def rounding(self, node: StoreFormat) -> Format | None:
        """Return the rounding mode of the parameter; report it and return None if it is invalid."""
        bits = "" if node.bits is None else f"+{node.bits.text}"
        way = WAYS.get(f"{node.name.text}{bits}")
        if way is not None and not node.options and node.rounding is None:
            return way
        known = ", ".join(f"`{name}`" for name in WAYS)
        plain = node.name.text == "bf16" and node.rounding is not None and node.rounding.text == AT_RANDOM
        help = "write `store p: stochastic`" if plain else f"there are {known}, for bfloat16 parameters"
        text = "the parameter keeps the type that it has in the model"
        self.wrong(text, node.span, "expected a rounding", help)
        return None


# Shapes and numbers ---------------------------------------------------------------------------------------------


def check_shapes(stored: Sequence[Stored], kinds: Mapping[str, Kind], findings: Findings) -> None:
    """Report states with a format that are not shaped like the parameter."""
    for each in stored:
        kind = kinds.get(each.name, STATIC)
        if each.name == "p" or kind.level is Level.ELEMENT:
            continue
        matrix = kind.level is Level.MATRIX
        what = "a tensor of another shape" if matrix else "few numbers" if kind.level is Level.REDUCED else "one number"
        findings.add(
            "E414",
            f"`{each.name}` is not shaped like the parameter",
            each.span,
            label=f"{what}, stored as it is",
            help="remove it here: formats are for states with as many elements as p",
        )


def check_kept(rule: Rule, samples: Sequence[Sample], findings: Findings) -> None:
    """Check the values of states against their formats: no lost signs, no division by values rounded to 0."""
    stored = [each for each in rule.stored if each.name != "p"]
    seen = [behavior_of(rule, sample) for sample in (samples[:MAX_RUNS] if stored else ())]
    for each in stored:
        known = [found[each.name] for found in seen if each.name in found]
        if known:
            _check_numbers(each, known, findings)


def _check_numbers(stored: Stored, known: Sequence[StateBehavior], findings: Findings) -> None:
    """Report how a format affects the values of a state."""
    format, name = stored.format, stored.name
    signs = [remark for behavior in known if (remark := behavior.sign(name, format))]
    remark = signs[0] if signs else known[0].remark(name, format)
    if remark is not None:
        help = f"`store {name}: {remark.instead}` {remark.reason}"
        findings.add(remark.code, remark.message, stored.span, label=remark.label, help=help)
