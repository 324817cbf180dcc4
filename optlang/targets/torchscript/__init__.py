"""The target ``torchscript``: a module with its hyperparameters and states, for ``torch.jit.load`` and libtorch.

The functions that compute are generated from the programs of the compiled class, in a TorchScript dialect
(:mod:`optlang.targets.torchscript.dialect`, :mod:`optlang.targets.torchscript.chunks`). The rest is the same for every
rule: :mod:`optlang.targets.torchscript.runtime`, which is itself a working module.
"""

from __future__ import annotations

import ast
import io
import itertools
import linecache
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optlang.artifact import DIMENSION_SIZES, FACTS, Storage, Variant
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.identity import Count, DimensionSize, GivenName, GroupKey
from optlang.inputs import New, Total, ValueName
from optlang.rule import Hyper, HyperType, OneOf, Range
from optlang.syntax.quoting import literal, visible
from optlang.syntax.tree import StateScope
from optlang.targets import Order, _refusals, refusal
from optlang.targets._conditions import Conditions, number
from optlang.targets._variants import Carried, carried, chosen
from optlang.targets.torchscript.dialect import helper_texts
from optlang.targets.torchscript.steps import Functions, ScriptedWay, States, leveled, test_of

SUFFIX = ".pt"
NAME = "torchscript"

#: The files that make up a module, in order: the rule's functions, and the common runtime.
_FILES = ("descent", "tensors", "runtime")
_HEAD = "import math\nfrom typing import Final, List, Tuple\n\nimport torch\nfrom torch import Tensor\n"

#: The facts about a tensor, as TorchScript.
FACT_TEXTS: dict[str | DimensionSize, str] = {
    "ndim": "float(p.dim())",
    "numel": "float(p.numel())",
    "rows": "_size(p, -2) if p.dim() > 1 else 1.0",
    "cols": "_size(p, -1)",
    "eps_of": "_eps_of(p)",
    **{size: f"_size(p, {size.dim})" for size in DIMENSION_SIZES},
}


def refused(order: Order) -> list[Diagnostic]:
    """Return the constructs of a rule that the target does not support, as errors."""
    return _refusals.outside_python(order, NAME)


def emit(order: Order) -> bytes:
    """Return the content of the file."""
    found = refused(order)
    if found:
        raise OptlangError(found)
    return saved(scripted(text(order), order.compiled.name))


def scripted(source: str, name: str) -> Any:
    """Compile the source of a module with TorchScript."""
    import torch

    filename = f"<optlang torchscript {name} {hash(source) & 0xFFFFFFFF:08x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    names: dict[str, Any] = {"__name__": "optlang_emitted"}
    exec(compile(source, filename, "exec", dont_inherit=True), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        rule = names["ScriptedRule"]
        rule.__name__ = rule.__qualname__ = name if name.isascii() and name.isidentifier() else "ScriptedRule"
        return torch.jit.script(rule())


def saved(module: Any) -> bytes:
    """Return a scripted module as a file."""
    import torch

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, content)
    return content.getvalue()


def text(order: Order) -> str:
    """Return the module as TorchScript source."""
    return _Script(order).text()


def _literal(text: str) -> str:
    """Return a string that is only displayed, as a TorchScript literal, which cannot contain every character."""
    return literal(visible(text))


class _Script:
    """Generates the module of a rule."""

    def __init__(self, order: Order) -> None:
        self.order, self.compiled, self.rule = order, order.compiled, order.compiled.rule
        self.values = chosen(order)
        kinds = [None, *(event for event in ("eval", "train") if event in self.rule.events)]
        self.events: dict[str | None, list[Carried]] = {event: carried(order, event) for event in kinds}
        self.carried = [one for each in self.events.values() for one in each]
        self.variants = [one.variant for one in self.carried]
        if not self.events[None]:
            raise OptlangError([_refusals.no_shape(self.compiled, NAME)])
        self.ways, self.there = leveled(self.carried)
        self.states = States.of(self.rule, self.variants)
        self.hypers = self._free_hypers()
        totals = {n for n in self.there if isinstance(n, Total)} | self._named_totals()
        self.totals = sorted(totals, key=str)
        self.places = self._places()
        self.functions = Functions(self.places, self.states, self.totals)
        self.conditions = Conditions(self.places, self.values)
        self.levels = max(len(way.levels) for each in self.ways for way in each)

    # Names --------------------------------------------------------------------------------------------------

    def _free_hypers(self) -> list[GivenName]:
        """Return the hyperparameters and group keys that are numbers and may change."""
        found: list[GivenName] = []
        for hyper in self.rule.hypers:
            number_now = isinstance(self.values[hyper.name], int | float)
            if hyper.type is HyperType.NUMBER or (hyper.type is HyperType.OPTIONAL and number_now):
                found.append(hyper.name)
        return [*found, *map(GroupKey, self.compiled.group_keys)]

    def _gives_sizes(self, hyper: Hyper) -> bool:
        """Return whether a hyperparameter may be the size of a state, such as a rank, so that it cannot change."""
        matrices = any(v.schedule.matrices for v in self.variants)
        return matrices and hyper.type is HyperType.OPTIONAL and hyper.name in self.compiled.static_names

    def _named_totals(self) -> set[Total]:
        """Return the sums that are read."""
        names = set[ValueName]()
        for variant in self.variants:
            names |= variant.schedule.arguments()
        return {name for name in names if isinstance(name, Total)}

    def _places(self) -> dict[ValueName, int]:
        """Return the index of each name in the list of known values."""
        states = self.states
        order: list[ValueName] = [
            *self.hypers,
            *states.group,
            *map(New, states.group),
            *states.shared,
            *map(New, states.shared),
            *self.totals,
            Count.GROUP,
            "t",
            "first",
            *FACTS,
            *states.numbers,
        ]
        return {name: i for i, name in enumerate(order)}

    def _fixed(self) -> dict[str, str]:
        """Return the hyperparameters that are fixed, with their values as ``--set`` takes them."""
        shown = {}
        for hyper in self.rule.hypers:
            if hyper.name not in self.hypers:
                value = self.values[hyper.name]
                shown[hyper.name] = str(value).lower() if isinstance(value, bool) or value is None else str(value)
        return shown

    # Text ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """Return the whole text."""
        functions = self.functions
        numbers, runs = self._stages()
        advances = {f"way == {i}": functions.advance(way) for i, way in enumerate(self._ways())}
        bodies = {
            "_variant": self._variant(),
            "_start": self._by_variant(functions.start, "return"),
            "_path": self._paths(),
            "_numbers": _choice(numbers, "return [[0.0] for _ in range(0)]"),
            "_run": _choice(runs, "return"),
            "_advance": _choice(advances, "return"),
            "_group": self._by_variant(self._group, "return [0.0]"),
            "_start_group": self._initial(StateScope.GROUP),
            "_start_shared": self._initial(StateScope.SHARED),
            "_late": self._late(),
            "_problem": self._problem(),
            "_unmet": self._required(False),
            "_unsuited": self._required(True),
            "_fill": self._fill(),
        }
        helpers = helper_texts(functions.helpers | self.conditions.helpers | {"host_max", "host_min", "_power"})
        written = [*helpers, *functions.texts]
        return "\n\n".join(_runtime(self._constants(), bodies, written, len(self.events) > 1))

    def _constants(self) -> dict[str, str]:
        """Return the replacements of the runtime's constants."""
        states, rule, variants = self.states, self.rule, self.variants
        defaults = [float("nan") if self._is_required(name) else self._value(name) for name in self.hypers]
        of_variants = [[s for s in v.slots if s.storage is not Storage.HOST] for v in variants]
        hosted = [[s for s in v.slots if s.storage is Storage.HOST] for v in variants]
        return {
            "NAME": _literal(self.compiled.name),
            "HYPERS": _listed(map(_literal, map(str, self.hypers))),
            "DEFAULTS": _listed(map(number, defaults)),
            "ASKED": str([name in self.conditions.read for name in self.hypers]),
            "FIXED": _table(self._fixed()),
            "PARTS": _table(
                {k: ", ".join(h.name for h in of) for k, of in rule.keys.items() if of[0].part is not None}
            ),
            "TENSORS": _listed(_literal(states.keys[n]) for n in states.tensors),
            "NUMBERS": _listed(_literal(states.keys[n]) for n in states.numbers),
            "TENSORS_OF": str([[states.tensors.index(s.name) for s in of] for of in of_variants]),
            "NUMBERS_OF": str([[states.numbers.index(s.name) for s in of] for of in hosted]),
            "ELEMENTWISE": str(
                [
                    variant.elementwise and all(s.storage is Storage.ELEMENT for s in of)
                    for variant, of in zip(variants, of_variants, strict=True)
                ]
            ),
            "ALONE": str([any(one.kernel.matrices for of in way.levels for one in of) for way in self._ways()]),
            "KNOWN": str(len(self.places)),
            "GROUPS": str(len(states.group)),
            "SHARES": str(len(states.shared)),
            "SUMS": str(len(self.totals)),
            "LEVELS": str(self.levels),
        }

    def _is_required(self, name: GivenName) -> bool:
        hyper = next((h for h in self.rule.hypers if h.name == name), None)
        return hyper is not None and hyper.required and name not in self.order.values

    def _value(self, name: GivenName) -> float:
        value = self.values[name]
        assert isinstance(value, int | float)
        return float(value)

    # Functions ----------------------------------------------------------------------------------------------

    def _ways(self) -> list[ScriptedWay]:
        """Return the paths of all variants; a path's number is its index."""
        return [way for each in self.ways for way in each]

    def _by_variant(self, body: Callable[[Carried], Sequence[str]], default: str) -> list[str]:
        """Return the body of a function with one branch per variant."""
        return _choice({f"variant == {i}": body(one) for i, one in enumerate(self.carried)}, default)

    def _variant(self) -> list[str]:
        """Return the body of ``_variant``."""
        choices: dict[str, list[str]] = {}
        for number_of, each in enumerate(self.events.get(event, []) for event in (None, "eval", "train")):
            for one in each:
                self.conditions.known = one.known
                choices[f"event == {number_of} and {test_of(one, self.conditions)}"] = [f"return {len(choices)}"]
        if len(self.events) == 2:  # an event without statements
            choices["event != 0"] = ["return -2"]
        self.conditions.known = {}
        lost = [h for h in self.rule.hypers if h.name in self.conditions.lost and h.name in self.hypers]
        if lost:
            construct, help = f"a choice between formulas by `{lost[0].name}`", "make it a flag or a text"
            raise OptlangError([refusal(self.compiled, NAME, construct, lost[0].span, help)])
        return _choice(choices, "return -1")

    def _paths(self) -> list[str]:
        """Return the body of ``_path``."""
        first = list(itertools.accumulate(map(len, self.ways), initial=0))
        return self._by_variant(lambda one: self.functions.path(one, first[self.carried.index(one)]), "return 0")

    def _stages(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return the code of ``_numbers`` and ``_run``, by level and path."""
        numbers, runs = dict[str, list[str]](), dict[str, list[str]]()
        for i, way in enumerate(self._ways()):
            for level in range(len(way.levels)):
                condition = f"level == {level} and way == {i}"
                numbers[condition], runs[condition] = self.functions.run(way, level)
        return numbers, runs

    def _group(self, one: Carried) -> list[str]:
        """Return the lines that compute the states of a group, for a variant."""
        order = [s.name for s in one.variant.group_slots]
        if not order:
            return []
        kept = [f"x[{order.index(g)}]" if g in order else f"known[{self.places[g]}]" for g in self.states.group]
        return [f"x = {self.functions.group(one)}(known)", f"return [{', '.join(kept)}]"]

    def _initial(self, scope: StateScope) -> list[str]:
        """Return the body of a function that initializes the states of a group, or of the whole optimizer."""
        states = [s for s in self.rule.states if s.scope is scope]
        texts = ("0.0" if s.initial is None else self.conditions.number(s.initial) for s in states)
        return [f"initial: list[float] = [{', '.join(texts)}]", "return initial"]

    def _late(self) -> list[str]:
        """Return the body of ``_late``."""
        choices: dict[str, list[str]] = {}
        for level in range(self.levels + 1):
            choices[f"level == {level}"] = lines = [
                f"known[{self.places[total]}] = sums[{i}]"
                for i, total in enumerate(self.totals)
                if self.there.get(total, 0) == level
            ]
            for i, one in enumerate(self.carried):
                slots = [s for s, _ in one.variant.schedule.shared if self.there.get(s.new, 0) == level]
                lines += [f"if variant == {i}:"] * bool(slots)
                for slot in slots:
                    lines.append(
                        f"    known[{self.places[slot.new]}] = {self.functions.shared(one, slot.name)}(known)[0]"
                    )
        return _choice(choices, "return")

    # Checks -------------------------------------------------------------------------------------------------

    def _problem(self) -> list[str]:
        """Return the body of ``_problem``."""
        choices: dict[str, list[str]] = {}
        hypers = {h.name: h for h in self.rule.hypers}  # a parameter-group key may hold any number
        for i, name in enumerate(self.hypers):
            if name in hypers and self._gives_sizes(hypers[name]):
                told = f"{name} is fixed in this file; emit the rule anew with --set {name}=VALUE"
                choices[f"place == {i}"] = [f"return {_literal(told)}"]
            elif name in hypers:
                choices[f"place == {i}"] = _tests(hypers[name])
        return _choice(choices, 'return ""')

    def _required(self, of_tensors: bool) -> list[str]:
        """Return the body of ``_unmet`` or ``_unsuited``."""
        required = [r for r in self.rule.requirements if r.of_tensors is of_tensors]
        tests = {f"not {self.conditions.truth(r.condition)}": [f"return {_literal(r.message)}"] for r in required[::-1]}
        return _choice(dict(reversed(tests.items())), 'return ""')

    def _fill(self) -> list[str]:
        """Return the body of ``_fill``."""
        read = {name for variant in self.variants for name in _asked(variant)} | self.conditions.read
        return [*(f"known[{self.places[name]}] = {FACT_TEXTS[name]}" for name in FACTS if name in read), "return"]


def _choice(choices: Mapping[str, Sequence[str]], default: str) -> list[str]:
    """Return a sequence of if statements from conditions to lines; each body may fall through to what follows."""
    return [
        line
        for condition, body in choices.items()
        for line in ([f"if {condition}:", *(f"    {line}" for line in body)] if body else [])
    ] + [default]


def _asked(variant: Variant) -> set[ValueName]:
    """Return the names of all values that a variant's functions take."""
    names: set[ValueName] = {*variant.start_arguments, *variant.group_arguments}
    return names | variant.schedule.arguments()


def _tests(hyper: Hyper) -> list[str]:
    """Return the lines that check the value ``x`` of a hyperparameter."""
    name = hyper.name
    lines = ["if math.isnan(x):", f"    return {_literal(f'{name} must not be NaN')}"]
    if isinstance(hyper.domain, Range):
        domain = hyper.domain
        if domain.high == math.inf:
            lines += ["if x == math.inf:", f"    return {_literal(f'{name} must be finite')}"]
        above = f"x {'>=' if domain.low_closed else '>'} {number(domain.low)}"
        below = f"x {'<=' if domain.high_closed else '<'} {number(domain.high)}"
        said = _literal(f"{name} must be {domain.text}, got ")
        lines += [f"if not ({above} and {below}):", f"    return {said} + str(x)"]
    elif isinstance(hyper.domain, OneOf):
        values = [float(v) for v in hyper.domain.values if isinstance(v, int | float)]
        shown = ", ".join(map(repr, values))
        tests = " or ".join(f"x == {number(v)}" for v in values) or "False"
        said = _literal(f"{name} must be one of {shown}, got ")
        lines += [f"if not ({tests}):", f"    return {said} + str(x)"]
    return lines


def _listed(texts: Iterable[str]) -> str:
    return f"[{', '.join(texts)}]"


def _table(entries: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_literal(key)}: {_literal(value)}" for key, value in entries.items()) + "}"


def _runtime(
    constants: Mapping[str, str], bodies: Mapping[str, Sequence[str]], functions: Sequence[str], events: bool
) -> Iterator[str]:
    """Yield the parts of the runtime, adapted to a rule.

    Args:
        constants: Replacements of its constants.
        bodies: Replacements of the bodies of its functions, by name.
        functions: The functions that these call.
        events: Whether the rule's parameters differ between training and evaluation.
    """
    yield _HEAD
    sources = [Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8") for file in _FILES]
    for source, node in ((text, node) for text in sources for node in ast.parse(text).body):
        lines = source.splitlines()[: node.end_lineno]
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr():
                pass
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield f"{name} = {constants[name]}\n"
            case ast.FunctionDef(name=name) if name in bodies:
                head = lines[node.lineno - 1 : node.body[0].end_lineno]
                yield "\n".join([*head, *(f"    {line}" for line in bodies[name]), ""])
            case ast.ClassDef():
                yield from functions
                last = next((i for i, line in enumerate(lines) if line.startswith("    # Events ---")), None)
                own = lines[node.lineno - 1 : None if events else last]
                yield "\n".join(own).replace("descent.", "") + "\n"
            case _:
                yield "\n".join(lines[node.lineno - 1 :]) + "\n"


__all__ = ["SUFFIX", "emit", "refused", "saved", "scripted", "text"]
