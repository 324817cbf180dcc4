"""The target ``torchscript``: a module with its hyperparameters and states, for ``torch.jit.load`` and libtorch.

The functions that compute are written from the programs of the compiled class, in a dialect of their own
(:mod:`optlang.targets.torchscript.dialect`, :mod:`optlang.targets.torchscript.chunks`). What is around them is the same
for every rule: :mod:`optlang.targets.torchscript.runtime`, a module that runs as it stands.
"""

from __future__ import annotations

import ast
import io
import linecache
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optlang.artifact import DIMENSION_SIZES, FACTS, Storage, Variant
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.inputs import New, Total, ValueName
from optlang.language.identity import Count, DimensionSize, GivenName, GroupKey
from optlang.language.quoting import docstring, literal, visible
from optlang.language.rule import Hyper, HyperType, OneOf, Range
from optlang.language.tree import StateScope
from optlang.targets import Order, _refusals, refusal
from optlang.targets._conditions import Conditions
from optlang.targets._variants import Carried, carried, chosen
from optlang.targets.torchscript.dialect import helper_texts, number
from optlang.targets.torchscript.steps import Functions, States, leveled, test_of

SUFFIX = ".pt"
NAME = "torchscript"

_RUNTIME = Path(__file__).with_name("runtime.py")
#: Its methods of rules with other parameters for evaluation than for training.
_OF_EVENTS = ("eval_params", "train_params", "_event")

#: The facts of a tensor, as TorchScript.
FACT_TEXTS: dict[str | DimensionSize, str] = {
    "ndim": "float(p.dim())",
    "numel": "float(p.numel())",
    "rows": "_size(p, -2) if p.dim() > 1 else 1.0",
    "cols": "_size(p, -1)",
    "eps_of": "_eps_of(p)",
    **{size: f"_size(p, {size.dim})" for size in DIMENSION_SIZES},
}


def refused(order: Order) -> list[Diagnostic]:
    """Return what the target cannot carry of a rule."""
    return _refusals.outside_python(order, NAME)


def emit(order: Order) -> bytes:
    """Return the content of the file."""
    found = refused(order)
    if found:
        raise OptlangError(found)
    return saved(scripted(text(order), order.compiled.name))


def scripted(source: str, name: str) -> Any:
    """Return the module of a text."""
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
    """Return the module as TorchScript text."""
    return _Script(order).text()


def _literal(text: str) -> str:
    """Return a text that is only shown as TorchScript, which cannot hold every character."""
    return literal(visible(text))


class _Script:
    """Writes the module of a rule."""

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
        """Return the hyperparameters and keys of the group that are numbers and may change."""
        found: list[GivenName] = []
        for hyper in self.rule.hypers:
            number_now = isinstance(self.values[hyper.name], int | float)
            if hyper.type is HyperType.NUMBER or (hyper.type is HyperType.OPTIONAL and number_now):
                found.append(hyper.name)
        return [*found, *map(GroupKey, self.compiled.group_keys)]

    def _gives_sizes(self, hyper: Hyper) -> bool:
        """Whether a hyperparameter may be the size of a state, such as a rank: it cannot change then."""
        matrices = any(v.schedule.matrices for v in self.variants)
        return matrices and hyper.type is HyperType.OPTIONAL and hyper.name in self.compiled.static_names

    def _named_totals(self) -> set[Total]:
        """Return the sums that something reads."""
        names = set[ValueName]()
        for variant in self.variants:
            names |= variant.schedule.arguments()
        return {name for name in names if isinstance(name, Total)}

    def _places(self) -> dict[ValueName, int]:
        """Return the place of each name in the list of known values."""
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
        """Return the hyperparameters that are chosen for good, with their values as ``--set`` takes them."""
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
        self._variant()
        self._starting()
        self._elementwise()
        self._paths()
        self._running()
        self._advancing()
        self._grouped()
        self._late()
        functions.texts += [self._problem(), self._unmet(), self._unsuited(), self._fill()]
        helpers = helper_texts(functions.helpers | self.conditions.helpers | {"host_max", "host_min", "_power"})
        return "\n\n".join(_runtime(self._constants(), [*helpers, *functions.texts], len(self.events) > 1))

    def _constants(self) -> dict[str, str]:
        """Return what stands for the constants of the runtime."""
        states, rule = self.states, self.rule
        defaults = [float("nan") if self._is_required(name) else self._value(name) for name in self.hypers]
        parts = {
            key: ", ".join(h.name for h in hypers) for key, hypers in rule.keys.items() if hypers[0].part is not None
        }
        return {
            "NAME": _literal(self.compiled.name),
            "HYPERS": _listed(map(_literal, map(str, self.hypers))),
            "DEFAULTS": _listed(map(number, defaults)),
            "ASKED": _listed(str(name in self.conditions.read) for name in self.hypers),
            "FIXED": _table(self._fixed()),
            "PARTS": _table(parts),
            "TENSORS": _listed(_literal(states.keys[n]) for n in states.tensors),
            "NUMBERS": _listed(_literal(states.keys[n]) for n in states.numbers),
            "KNOWN": str(len(self.places)),
            "GROUP": str(len(self.hypers)),
            "SHARED": str(len(self.hypers) + 2 * len(states.group)),
            "TOTALS": str(self.places[Count.GROUP] - len(self.totals)),
            "GROUP_TIME": str(self.places[Count.GROUP]),
            "TIME": str(self.places["t"]),
            "HOSTED": str(len(self.places) - len(states.numbers)),
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

    def _variant(self) -> None:
        """Write ``_variant``: which variant is for a tensor."""
        choices: dict[str, list[str]] = {}
        index = 0
        for event, each in self.events.items():
            number_of = {None: 0, "eval": 1, "train": 2}[event]
            for one in each:
                self.conditions.known = one.known
                test = test_of(one, self.conditions)
                choices[f"event == {number_of} and {test}"] = [f"return {index}"]
                index += 1
        if len(self.events) == 2:  # an event without statements
            choices["event != 0"] = ["return -2"]
        choices[""] = ["return -1"]
        self.conditions.known = {}
        lost = [h for h in self.rule.hypers if h.name in self.conditions.lost and h.name in self.hypers]
        if lost:
            construct, help = f"a choice between formulas by `{lost[0].name}`", "make it a flag or a text"
            raise OptlangError([refusal(self.compiled, NAME, construct, lost[0].span, help)])
        self.functions.dispatch(
            "_variant",
            "event: int, dim: int, _known: List[float]",
            "int",
            choices,
            "Which formulas are for a tensor; -1 if there are none.",
        )

    def _by_variant(self, name: str, arguments: str, result: str, bodies: Sequence[Sequence[str]], doc: str) -> None:
        """Write a function that does something for each variant."""
        default = {"int": "return 0", "None": "pass", "List[int]": "return _none"}.get(result, "return [0.0]")
        choices: dict[str, Sequence[str]] = {}
        for i, body in enumerate(bodies):
            if body:
                choices[f"variant == {i}"] = body
        last = ["_none: List[int] = []", default] if result == "List[int]" else [default]
        choices[""] = last
        self.functions.dispatch(name, arguments, result, choices, doc)

    def _starting(self) -> None:
        bodies = [self.functions.start(one) for one in self.carried]
        arguments = "variant: int, p: Tensor, g: Tensor, known: List[float], s: List[Tensor], n: List[float]"
        self._by_variant("_start", arguments, "None", bodies, "Put initial values where a tensor has no states yet.")
        states = self.states
        for name, held, hosted in (("_tensors_of", states.tensors, False), ("_numbers_of", states.numbers, True)):
            of = [
                [held.index(s.name) for s in variant.slots if (s.storage is Storage.HOST) is hosted]
                for variant in self.variants
            ]
            lists = [[f"return {places}"] if places else [] for places in of]
            self._by_variant(name, "variant: int", "List[int]", lists, "Places of the states of a variant.")

    def _elementwise(self) -> None:
        """Write ``_elementwise``: which variants update every element from itself alone."""
        alone = {
            f"variant == {i}": ["return True"]
            for i, variant in enumerate(self.variants)
            if variant.elementwise and all(s.storage is Storage.ELEMENT for s in variant.slots if s.storage is not Storage.HOST)
        }
        said = "Whether a step updates every element from itself alone."
        self.functions.dispatch("_elementwise", "variant: int", "bool", {**alone, "": ["return False"]}, said)

    def _codes(self) -> list[tuple[int, int, Any]]:
        """Return every way with its number and that of its variant."""
        found: list[tuple[int, int, Any]] = []
        for variant, ways in enumerate(self.ways):
            found += [(len(found) + i, variant, way) for i, way in enumerate(ways)]
        return found

    def _paths(self) -> None:
        first, bodies = 0, []
        for one, ways in zip(self.carried, self.ways, strict=True):
            bodies.append(self.functions.path(one, first))
            first += len(ways)
        self._by_variant("_path", "variant: int, known: List[float]", "int", bodies, "Number of the way of a step.")

    def _running(self) -> None:
        """Write ``_numbers`` and ``_run``, by level and way."""
        numbers: dict[str, Sequence[str]] = {}
        runs: dict[str, Sequence[str]] = {}
        for code, _, way in self._codes():
            for level in range(len(way.levels)):
                some, lines = self.functions.run(way, level)
                condition = f"level == {level} and way == {code}"
                if some:
                    numbers[condition] = some
                if lines:
                    runs[condition] = [*lines, "return"]
        numbers[""] = ["_none: List[List[float]] = []", "return _none"]
        runs[""] = ["return"]
        self.functions.dispatch(
            "_numbers",
            "level: int, way: int, known: List[float]",
            "List[List[float]]",
            numbers,
            "Coefficients of the passes of a level.",
        )
        arguments = (
            "level: int, way: int, p: Tensor, g: Tensor, s: List[Tensor], carry: List[Tensor], sums: List[float], "
            "v: List[List[float]], c: List[Tensor]"
        )
        self.functions.dispatch("_run", arguments, "None", runs, "Run the stages of a level on one tensor.")
        matrices = {
            f"level == {level} and way == {code}": ["return True"]
            for code, _, way in self._codes()
            for level, stages in enumerate(way.levels)
            if any(one.kernel.matrices for one in stages)
        }
        said = "Whether the stages of a level use all threads for one tensor."
        self.functions.dispatch("_alone", "level: int, way: int", "bool", {**matrices, "": ["return False"]}, said)

    def _advancing(self) -> None:
        choices: dict[str, Sequence[str]] = {}
        for code, _, way in self._codes():
            body = self.functions.advance(way)
            if body:
                choices[f"way == {code}"] = [*body, "return"]
        choices[""] = ["return"]
        arguments = "way: int, known: List[float], n: List[float]"
        self.functions.dispatch("_advance", arguments, "None", choices, "Compute what states on the host become.")

    def _grouped(self) -> None:
        """Write ``_group``, and the initial values of what does not belong to a tensor."""
        bodies = []
        for one in self.carried:
            body: list[str] = []
            if one.variant.group_slots:
                order = [s.name for s in one.variant.group_slots]
                body = [f"x = {self.functions.group(one)}(known)"]
                kept = {g: f"known[{self.places[g]}]" for g in self.states.group}
                kept |= {g: f"x[{order.index(g)}]" for g in self.states.group if g in order}
                body.append(f"return [{', '.join(kept[g] for g in self.states.group)}]")
            bodies.append(body)
        arguments = "variant: int, known: List[float]"
        self._by_variant("_group", arguments, "List[float]", bodies, "New values of the states of a group.")
        for scope in (StateScope.GROUP, StateScope.SHARED):
            texts = []
            for state in (s for s in self.rule.states if s.scope is scope):
                texts.append("0.0" if state.initial is None else self.conditions.number(state.initial))
            none = "torch.jit.annotate(List[float], [])"
            self.functions.dispatch(
                f"_start_{scope.value}",
                "_known: List[float]",
                "List[float]",
                {"": [f"return [{', '.join(texts)}]" if texts else f"return {none}"]},
                "Initial values.",
            )

    def _late(self) -> None:
        """Write ``_late``: sums that are complete, and states of the whole optimizer."""
        choices: dict[str, Sequence[str]] = {}
        for level in range(self.levels + 1):
            lines = [
                f"known[{self.places[total]}] = sums[{i}]"
                for i, total in enumerate(self.totals)
                if self.there.get(total, 0) == level
            ]
            for i, one in enumerate(self.carried):
                lines += self._shared(i, one, level)
            if lines:
                choices[f"level == {level}"] = lines
        choices[""] = ["return"]
        arguments = "level: int, variant: int, known: List[float], sums: List[float]"
        self.functions.dispatch("_late", arguments, "None", choices, "Compute what there is once a level is done.")

    def _shared(self, index: int, one: Carried, level: int) -> list[str]:
        """Return the lines that compute the shared states of a variant at a level."""
        lines = []
        for slot, _ in one.variant.schedule.shared:
            if self.there.get(slot.new, 0) == level:
                name = self.functions.shared(one, slot.name)
                lines.append(f"    known[{self.places[slot.new]}] = {name}(known)[0]")
        return [f"if variant == {index}:", *lines] if lines else []

    # Checks -------------------------------------------------------------------------------------------------

    def _problem(self) -> str:
        """Return ``_problem``: what is wrong with the value of a hyperparameter."""
        lines = ["def _problem(place: int, x: float) -> str:", f"    {docstring('What is wrong with a value.')}"]
        hypers = {h.name: h for h in self.rule.hypers}
        for i, name in enumerate(self.hypers):
            if not isinstance(name, str):
                continue  # a key of the param group may hold any number
            if name in hypers and self._gives_sizes(hypers[name]):
                told = f"{name} is fixed in this file; emit the rule anew with --set {name}=VALUE"
                lines += [f"    if place == {i}:", f"        return {_literal(told)}"]
            elif name in hypers:
                lines += [f"    if place == {i}:", *(f"        {line}" for line in _tests(hypers[name]))]
        return "\n".join([*lines, '    return ""']) + "\n"

    def _unmet(self) -> str:
        """Return ``_unmet``: the first requirement that hyperparameters do not meet."""
        return self._required("_unmet", False)

    def _unsuited(self) -> str:
        """Return ``_unsuited``: the first requirement that a tensor does not meet."""
        return self._required("_unsuited", True)

    def _required(self, name: str, of_tensors: bool) -> str:
        lines = [f"def {name}(_known: List[float]) -> str:", f"    {docstring('What is required and does not hold.')}"]
        for requirement in self.rule.requirements:
            if requirement.of_tensors is of_tensors:
                test = self.conditions.truth(requirement.condition)
                lines += [f"    if not {test}:", f"        return {_literal(requirement.message)}"]
        return "\n".join([*lines, '    return ""']) + "\n"

    def _fill(self) -> str:
        """Return ``_fill``: the facts of a tensor."""
        read = {name for variant in self.variants for name in _asked(variant)} | self.conditions.read
        lines = [
            "def _fill(known: List[float], p: Tensor) -> None:",
            f"    {docstring('Put down the facts of a tensor that are asked for.')}",
        ]
        lines += [f"    known[{self.places[name]}] = {FACT_TEXTS[name]}" for name in FACTS if name in read]
        return "\n".join([*lines, "    return"]) + "\n"


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


def _runtime(constants: Mapping[str, str], functions: Sequence[str], events: bool) -> Iterator[str]:
    """Yield the parts of the runtime, with constants and functions of a rule in their places.

    Args:
        constants: What stands for its constants.
        functions: The functions of the rule; those that stand in the runtime are left out.
        events: Whether the rule has other parameters for evaluation.
    """
    source = _RUNTIME.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    written = {text.partition("(")[0].removeprefix("def ") for text in functions}
    yield "from typing import Dict, List, Tuple\n"
    for node in ast.parse(source).body:
        text = "".join(lines[node.lineno - 1 : node.end_lineno])
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield f"{name} = {constants[name]}\n"
            case ast.FunctionDef(name=name) if name in written:
                pass
            case ast.ClassDef(body=body):
                yield from functions
                left = [m for m in body if not events and isinstance(m, ast.FunctionDef) and m.name in _OF_EVENTS]
                gone = {i for m in left for i in range(m.decorator_list[0].lineno - 1 if m.decorator_list else m.lineno - 1, m.end_lineno or 0)}
                yield "".join(lines[i] for i in range(node.lineno - 1, node.end_lineno or 0) if i not in gone)
            case _:
                yield text


__all__ = ["SUFFIX", "emit", "refused", "saved", "scripted", "text"]
