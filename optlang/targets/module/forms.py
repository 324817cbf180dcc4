"""The variants of a rule as functions and tables of a Python file."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from optlang.artifact import Kernel, Slot, Stage, StageTensor, Storage, Variant, View
from optlang.codegen.build_variant import assembled
from optlang.codegen.helpers import HELPERS
from optlang.codegen.naming import python_name
from optlang.codegen.python_source import Width
from optlang.compiler import CompiledRule
from optlang.inputs import (
    Asked,
    Direction,
    EvaluationPoint,
    Gradient,
    Handed,
    HandedOn,
    HessianProduct,
    LateNumber,
    Loss,
    New,
    SearchDirection,
    Total,
    ValueName,
)
from optlang.rule import HyperType
from optlang.syntax.quoting import docstring, literal
from optlang.targets._python import INDENT, Function, Library, functions, pretty, with_loops
from optlang.targets._questions import DIMENSIONS, Trace, Way
from optlang.targets.module.implied import Known
from optlang.targets.module.merge import Unmergeable, alike
from optlang.targets.module.pairs import Half, Pairs, tidy

#: Names of the tables of a file, which forms must not use.
_HYPERS = ("HYPERPARAMETERS", "KINDS", "TUPLES", "REQUIREMENTS", "GROUP_KEYS")
TABLES = frozenset((*_HYPERS, "KEPT", "SHARED", "TOTALS", "STATES", "STAGES", "SHARED_VALUES"))


@dataclass
class Pending:
    """A function of a form that is not in the file yet.

    Attributes:
        function: The function.
        kind: What it does: the beginning of its name.
        suffix: The end of its name.
        within: The expression that contains it, as Python, with braces in its place.
        tensors: For an update, the names of its tensor arguments.
        packed: For an update, whether it takes its coefficients as one tensor.
    """

    function: Function
    kind: str
    suffix: str
    within: str = "{}"
    tensors: tuple[str, ...] = ()
    packed: bool = True


#: Fields of a record by name; a field with several values has a key for each.
Key = str | tuple[str, int]
Fields = dict[Key, str | Pending]


@dataclass
class Form:
    """One variant, as it appears in the file.

    Attributes:
        name: Name of its constant.
        variant: The variant.
        fields: The arguments of its record, as Python, in order.
        way: The questions that select it.
    """

    name: str
    variant: Variant
    way: Way
    fields: Fields = field(default_factory=dict)
    paths: list[list[Fields]] = field(default_factory=list)

    def blocks(self) -> list[Fields]:
        """Return the fields of all its records."""
        return [self.fields, *(stage for path in self.paths for stage in path)]

    def texts(self) -> dict[str, str]:
        """Return its fields as Python, except the stages."""
        return _texts(self.fields)

    def text(self, kept: Mapping[str, Collection[str]], named: Mapping[str, str]) -> str:
        """Return the constant, with only those fields of its records that are read; ``named`` are stages with names."""
        paths = {"paths": listing(self.stages(named))} if self.paths else {}
        return constant(self.name, f"Form({_arguments(self.texts() | paths)})", kept)

    def stages(self, named: Mapping[str, str]) -> list[str]:
        """Return the stages of each path, as Python; some have names."""
        found = [[f"Stage({_arguments(_texts(stage))})" for stage in path] for path in self.paths]
        return [listing(named.get(text, text) for text in path) for path in found]


def constant(name: str, code: str, kept: Mapping[str, Collection[str]]) -> str:
    """Return a constant of records, with only those of their fields that are read."""
    tree = ast.parse(f"{name} = {code}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kept:
            node.keywords = [k for k in node.keywords if k.arg in kept[node.func.id]]
    return pretty(ast.unparse(tree))


def _names(form: Form) -> str:
    """Return the names of the tensors that its update takes, as Python."""
    variant = form.variant
    return listing(literal(python_name(n)) for n in variant.tensors[2:])


def _texts(fields: Fields) -> dict[str, str]:
    """Return fields as Python, joining numbered ones."""
    found: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for key, value in fields.items():
        assert isinstance(value, str), f"{key} is not in the file"
        if isinstance(key, str):
            found[key] = value
        else:
            several.setdefault(key[0], []).append(value)
    return found | {key: listing(values) for key, values in several.items()}


def _arguments(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={text}" for key, text in texts.items())


def _structure(form: Form) -> Any:
    """Return a key that is equal for forms that may share their functions."""
    direct = not form.paths
    own = {k: v for k, v in form.fields.items() if not (direct and k in ("states", "tensors"))}
    blocks = [own, *form.blocks()[1:]]
    shapes = [[(k, v.within if isinstance(v, Pending) else v) for k, v in block.items()] for block in blocks]
    return str((shapes, [len(path) for path in form.paths]))


class Forms:
    """The variants of a rule and of its events.

    Args:
        compiled: The rule.
        library: Receives their functions.
        staged: Whether some step has more than one kernel.
    """

    def __init__(self, compiled: CompiledRule, library: Library, prefix: str = "") -> None:
        self.compiled, self.library, self.prefix = compiled, library, prefix
        self.spelling: dict[ValueName, str] = {}
        self.read: set[ValueName] = set()  # the runtime's names of all values that functions take
        self.named = {python_name(h.name) for h in compiled.rule.hypers}
        self.named |= {python_name(s.name) for s in compiled.rule.states}
        self.features: set[str] = set()
        self.totals: set[str] = set()
        self.optional = {python_name(h.name) for h in compiled.rule.hypers if h.type is not HyperType.NUMBER}
        self.handed: dict[ValueName, str] = {}  # names of the values that a form's stages pass on
        self.turn = 0  # the index of the current stage of a path
        self.pointed = False  # whether some stage determines a point for the closure
        self.hosts: list[tuple[Function, tuple[ValueName, ...]]] = []  # host functions, with the runtime's names

    def variants(self, ways: Sequence[Way]) -> list[Variant]:
        """Return the variants of some paths."""
        compiled = self.compiled
        rule, name, any_width = compiled.rule, compiled.name, (Width.ANY, Width.ANY)
        return [assembled(rule, name, w.core, compiled.lowered(w.core), w.key, len(w.shape), any_width) for w in ways]

    # Forms --------------------------------------------------------------------------------------------------

    def of(self, ways: Sequence[Way], variants: Sequence[Variant], staged: bool, event: str = "") -> list[Form]:
        """Return the forms of some variants."""
        names = words(ways)
        self.pointed |= any(stage.points for v in variants for stage in v.schedule.stages)
        forms = [
            Form(self.constant(name, event), variant, way)
            for name, variant, way in zip(names, variants, ways, strict=True)
        ]
        counted = {variant.counts_steps for variant in variants}
        for form, name in zip(forms, names, strict=True):
            suffix = "_".join(filter(None, (self.prefix, event, name)))
            self.fill(form, suffix, staged, bool(event))
            if len(counted) > 1 and not event:
                form.fields["counts"] = str(form.variant.counts_steps)
        self.unite(forms)
        return forms

    def unite(self, forms: Sequence[Form]) -> None:
        """Let forms that differ only in their formulas share functions, and give equal forms one name."""
        alike: dict[str, list[Form]] = {}
        for form in forms:
            alike.setdefault(_structure(form), []).append(form)
        for those in alike.values():
            try:
                self.merge(those)
            except Unmergeable:
                for form in those:
                    self.merge([form])
        if any(not form.paths and form.fields["tensors"] != _names(form) for form in forms):
            self.features.add("STATES_DIFFER")
        same: dict[str, str] = {}
        for form in sorted(forms, key=lambda form: len(form.name)):
            form.name = same.setdefault(str((form.fields, form.paths)), form.name)

    def merge(self, forms: Sequence[Form]) -> None:
        """Merge the functions of some forms.

        Raises:
            Unmergeable: If some cannot be merged; then nothing has changed.
        """
        traces = [form.way.trace for form in forms]
        found = []
        for owners in zip(*(form.blocks() for form in forms), strict=True):
            pending = {
                key: [one for owner in owners if isinstance(one := owner[key], Pending)]
                for key, value in owners[0].items()
                if isinstance(value, Pending)
            }
            tensors, united = self.united(traces, pending)
            found.append((owners, pending, united, tensors))
        for owners, pending, united, tensors in found:
            for key, those in pending.items():
                first = min(those, key=lambda one: len(one.suffix))
                placed = len(tensors) + first.packed if key == "update" else 2 if key == "start" else 0
                name = self.library.add(united[key], "_".join(filter(None, (first.kind, first.suffix))), placed)
                for owner in owners:
                    owner[key] = first.within.replace("{}", name)
                    if key == "update":
                        owner["tensors"] = listing(map(literal, tensors if forms[0].paths else tensors[2:]))

    def united(
        self, traces: Sequence[Trace], pending: Mapping[Key, Sequence[Pending]]
    ) -> tuple[list[str], dict[Key, Function]]:
        """Return one function for some variants under each key, and the tensors that an update takes."""
        found = {key: [one.function for one in those] for key, those in pending.items()}
        if "update" not in found:
            return [], {key: alike(traces, those) for key, those in found.items()}
        hosts, updates = found.pop("host"), found.pop("update")
        taken = [one.tensors for one in pending["update"]]
        packed = pending["update"][0].packed
        halves = [Half(*half, packed) for half in zip(traces, hosts, updates, map(len, taken), strict=True)]
        names = dict(zip(taken[0], updates[0].parameters, strict=False))
        for tensors, update in sorted(zip(taken, updates, strict=True), key=lambda pair: -len(pair[0])):
            names |= {k: v for k, v in zip(tensors, update.parameters, strict=False) if k not in names}
        united = {key: alike(traces, those) for key, those in found.items()}
        if len(halves) == 1:
            united |= {"host": hosts[0], "update": tidy(updates[0])}
        else:
            united["host"], united["update"] = Pairs(halves, self.optional).functions(list(names.values()))
        return list(names), united

    def constant(self, name: str, event: str) -> str:
        """Return the name of a form's constant."""
        whole = "_".join(filter(None, (self.prefix, event, name or "usual"))).upper()
        return whole if whole[0].isalpha() and whole not in TABLES else f"FORM_{whole}"

    def fill(self, form: Form, suffix: str, staged: bool, is_event: bool) -> None:
        """Generate the functions of a form, and its record."""
        variant, fields = form.variant, form.fields
        self.handed = {}
        own = {f.name: f for f in functions(variant.source)}
        self.helpers(own.values())
        slots = variant.slots if not is_event else self.about(variant)
        begin = own["start"]
        for slot in variant.slots:
            begin.lines = [line.replace(f'"{slot.name}":', f'"{python_name(slot.name)}":') for line in begin.lines]
        fields["start"] = self.add(begin, "start", suffix, ("p", "g", *variant.start_arguments))
        fields["states"] = mapping((python_name(s.name), literal(s.key)) for s in slots)
        hosted = [s for s in slots if s.storage is Storage.HOST]
        if staged:
            form.paths, more = self.stages(variant, own, suffix)
            fields |= more
        else:
            fields |= self.single(variant, own, suffix)
        if hosted:
            self.features.add("HOSTED")
            fields["kept"] = listing(literal(python_name(s.name)) for s in hosted)
            fields |= self.numbers(variant, own, suffix, staged)
        if variant.group_slots:
            self.features.add("GROUPED")
            fields["group"] = self.add(own["group"], "group_states", suffix, variant.group_arguments)
            pairs = ((python_name(s.name), self.spelled(s.new)) for s in variant.group_slots)
            fields["changed"] = listing(listing(map(literal, pair)) for pair in pairs)
        if not variant.layout.flat or variant.schedule.matrices:
            self.features.add("REAL")
            fields["real"] = "True"
        if variant.min_ndim and not Known.of(form.way.trace).truth(_condition(f"ndim >= {variant.min_ndim}")):
            self.features.add("LEAST")
            fields["least"] = str(variant.min_ndim)

    def about(self, variant: Variant) -> tuple[Slot, ...]:
        """Return the states that an event uses."""
        named = {*variant.tensors, *variant.written, *variant.schedule.arguments()}
        return tuple(s for s in variant.slots if s.name in named or s.storage is Storage.HOST)

    def single(self, variant: Variant, own: Mapping[str, Function], suffix: str) -> Fields:
        """Return the fields of a step with one kernel."""
        storage, kernel = variant.storage, variant.kernel
        assert kernel is not None
        tensors = tuple(map(python_name, variant.tensors))
        fields: Fields = {
            "host": self.add_part(own["host"], 0, "host", suffix, kernel.host_arguments),
            "update": Pending(own["update"], "update", suffix, tensors=tensors),
            "tensors": listing(map(literal, tensors[2:])),
        }
        if not variant.layout.flat:
            self.features.add("LAYOUTS")
            fields["view"] = _view(variant.layout)
            scalars = [n for n in variant.tensors if storage.get(n) is Storage.SCALAR]
            if scalars:
                self.features.add("SCALARS")
                fields["scalars"] = listing(literal(python_name(n)) for n in scalars)
        return fields

    def numbers(self, variant: Variant, own: Mapping[str, Function], suffix: str, staged: bool) -> Fields:
        """Return the code for the new values of host states: one function, or one per path for a staged step."""
        schedule = variant.schedule
        if variant.kernel is not None:
            one = self.add_part(own["host"], 1, "host_states", suffix, variant.kernel.host_arguments)
            return {("by_path", 0) if staged else "numbers": one}
        if len(schedule.paths) > 1:
            self.features.add("HOSTED_BY_PATH")
        return {
            ("by_path", i): self.add(own[f"numbers_{i}"], "host_states", suffix, schedule.numbers_arguments[i])
            for i in range(len(schedule.paths))
        }

    # Staged steps -------------------------------------------------------------------------------------------

    def stages(self, variant: Variant, own: Mapping[str, Function], suffix: str) -> tuple[list[list[Fields]], Fields]:
        """Return the stages of the paths of a step, and more fields."""
        schedule = variant.schedule
        paths: list[list[Fields]] = []
        for path in schedule.paths:
            paths.append([])
            for self.turn, stage in enumerate(path, 1):
                paths[-1].append(self.one(stage, suffix if len(path) == 1 else f"{suffix}_{self.turn}".strip("_")))
        fields: Fields = {}
        if len(schedule.paths) > 1:
            self.features.add("PATHS")
            fields["path"] = self.add(own["path"], "path_of", suffix, schedule.path_arguments)
        if schedule.shared:
            for place, (slot, names) in enumerate(schedule.shared):
                one = self.add(own[f"shared_{slot.name}"], f"shared_{slot.name}", suffix, names)
                one.within = f"({literal(slot.name)}, {literal(self.spelled(slot.new))}, {{}})"
                fields["shared", place] = one
        if schedule.size_arguments or "sizes" in own:
            self.features.add("SIZED")
            fields["sizes"] = self.add(own["sizes"], "sizes_of", suffix, schedule.size_arguments)
        return paths, fields

    def one(self, one: Stage, suffix: str) -> Fields:
        """Return the record of a stage."""
        kernel = one.kernel
        own = with_loops({f.name: f for f in functions(kernel.source)})
        self.helpers(own.values())
        storage = kernel.storage
        empty = one.kernel.matrices and not kernel.coefficients
        tensors = tuple(map(self.called, kernel.tensors))
        update = self.with_handed(own["update"], kernel)
        fields: Fields = {
            "host": self.add_part(own["host"], 0, "host", suffix, kernel.host_arguments, empty),
            "update": Pending(update, "update", suffix, tensors=tensors, packed=not kernel.matrices),
            "tensors": listing(map(literal, tensors)),
        }
        made = [s for s in kernel.stage_tensors if s.name in kernel.written and isinstance(s.name, HandedOn | Total)]
        if made:
            fields["makes"] = mapping((self.called(s.name), self.place(s)) for s in made)
        if one.kernel.matrices:
            self.features.add("MATRICES")
            fields["written"] = listing(literal(self.called(n)) for n in kernel.written)
        elif not kernel.layout.flat:
            self.features.add("LAYOUTS")
            fields["view"] = _view(kernel.layout)
        scalars = [n for n in kernel.tensors if storage.get(n) is Storage.SCALAR]
        if scalars and (one.kernel.matrices or not kernel.layout.flat):
            self.features.add("SCALARS")
            fields["scalars"] = listing(literal(self.called(n)) for n in scalars)
        return fields | self.waits(one)

    def called(self, name: ValueName) -> str:
        """Return the name of a tensor in the file; tensors passed between stages are numbered."""
        if isinstance(name, Handed):
            return self.handed.setdefault(name, python_name(f"handed{self.turn}", {*self.handed.values()}))
        return self.spelled(name)

    def with_handed(self, update: Function, kernel: Kernel) -> Function:
        """Return a tensor function in which the values that stages pass on have their names in the file."""
        new: dict[str, str] = {}
        text = "\n".join(update.lines)
        for name, parameter in zip(kernel.tensors, update.parameters, strict=False):
            if isinstance(name, Handed) and kernel.matrices:
                new[parameter] = self.called(name)
            elif isinstance(name, Handed):
                new[parameter] = f"{self.called(name)}_mem"
                loaded = re.search(rf"^ +(\w+) = {parameter}\.to\(", text, re.MULTILINE)
                new |= {loaded[1]: self.called(name)} if loaded else {}
        return update if update.calls & set(new.values()) else respelled(update, new)

    def waits(self, one: Stage) -> Fields:
        """Return the fields of a stage for values that come from other stages or from the closure."""
        fields: Fields = {}
        if one.needs:
            self.features.add("LATE")
            fields["needs"] = listing(literal(self.spelled(n)) for n in one.needs)
        if one.totals:
            self.features |= {"LATE"}
            self.totals |= {self.spelled(n) for n in one.totals}
            fields["totals"] = listing(literal(self.spelled(n)) for n in one.totals)
        if one.draws:
            self.features.add("DRAWS")
            fields["draws"] = listing(
                f"({literal(self.called(d.name))}, {literal(d.kind)}, {d.seed})" for d in one.draws
            )
        if one.points:
            self.features |= {"POINTS", "LATE"}
            fields["points"] = listing(map(self.point, one.points))
        if self.pointed and all(isinstance(n, HandedOn | Total) for n in one.kernel.written):
            fields["moves"] = "False"
        return fields

    def point(self, asked: Asked) -> str:
        """Return what the closure is called for, with the names of the results, as Python."""
        names: dict[str, ValueName]
        match asked:
            case EvaluationPoint(site):
                self.features.add("AT_POINTS")
                kind, names = "Point", {"at": asked, "gradient": Gradient(site), "loss": Loss(site)}
            case Direction(site):
                self.features.add("CURVED")
                kind, names = "Direction", {"along": asked, "product": HessianProduct(site)}
            case SearchDirection():
                raise AssertionError("rules that search along a line have been refused")
            case _:
                assert_never(asked)
        return f"{kind}({', '.join(f'{field}={literal(self.spelled(name))}' for field, name in names.items())})"

    def place(self, slot: StageTensor) -> str:
        """Return the storage of a value that one stage passes on to another, as Python."""
        if slot.storage is Storage.REDUCED:
            self.features.add("REDUCES")
            return listing(map(str, slot.dims))
        return literal(slot.storage.value)

    # Functions ----------------------------------------------------------------------------------------------

    def helpers(self, those: Iterable[Function]) -> None:
        """Add the helpers that functions of a module call."""
        for function in those:
            if function.name in HELPERS:
                self.library.keep(function)

    def add(self, function: Function, kind: str, suffix: str, names: Sequence[ValueName]) -> Pending:
        """Register a function; ``names`` are the runtime's names of its parameters."""
        pairs = [(n, p) for n, p in zip(names, function.parameters, strict=False) if n not in ("p", "g")]
        self.read |= {name for name, _ in pairs}
        function = respelled(function, {parameter: self.spelled(name) for name, parameter in pairs})
        if names and kind != "start":
            self.hosts.append((function, tuple(names)))
        return Pending(function, kind, suffix)

    def add_part(
        self, host: Function, place: int, kind: str, suffix: str, names: Sequence[ValueName], empty: bool = False
    ) -> Pending:
        """Register one of the two results of ``host``."""
        part = result(host, place, empty)
        read = [n for n, parameter in zip(names, host.parameters, strict=True) if parameter in part.parameters]
        return self.add(part, kind, suffix, read)

    def spelled(self, name: ValueName) -> str:
        """Return the name of a value in the file: unique, and the same in all functions."""
        if name not in self.spelling:
            wanted = f"{name.state}_new" if isinstance(name, New) else name
            taken = () if isinstance(name, str) else {*self.named, *self.spelling.values()}
            self.spelling[name] = python_name(wanted, taken)
        return self.spelling[name]

    @property
    def reads_late(self) -> bool:
        """Whether a number depends on values unknown at export: sums, losses, states."""
        kept = {s.name for s in self.compiled.rule.states}
        return any(isinstance(n, LateNumber | New) or n in kept for n in self.read)


def result(function: Function, place: int, empty: bool = False) -> Function:
    """Return ``host`` with only one of its two results, without the code that only the other needs."""
    *body, last = function.lines
    (node,) = ast.parse(last.strip()).body
    assert isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
    chosen = "()" if empty else ast.unparse(node.value.elts[place])
    wanted = {n.id for n in ast.walk(ast.parse(chosen)) if isinstance(n, ast.Name)}
    kept: list[str] = []
    for line in reversed(body[2:]):
        target, _, formula = line.strip().partition(" = ")
        if target in wanted:
            kept.append(line)
            wanted |= {n.id for n in ast.walk(ast.parse(formula)) if isinstance(n, ast.Name)}
    said = "Coefficients of one step" if place == 0 else "What states kept on the host become"
    head, names = function.lines[0], [n for n in function.parameters if n in wanted]
    head = f"{head.partition('(')[0]}({', '.join(names)}):"
    return Function([head, INDENT + docstring(f"{said}, in float64."), *reversed(kept), f"{INDENT}return {chosen}"])


def _condition(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def respelled(function: Function, new: Mapping[str, str]) -> Function:
    """Return a function with other names; variables that clash with them are renamed."""
    new = {old: name for old, name in new.items() if old != name}
    if not new:
        return function
    used = {*function.calls, *function.parameters}
    for name in (used & set(new.values())) - set(new):
        new[name] = python_name(name, {*used, *new.values()})
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(new)})(?!\w)")
    return Function(
        [x if x.lstrip().startswith(("#", '"""')) else pattern.sub(lambda m: new[m[0]], x) for x in function.lines]
    )


def _view(layout: View) -> str:
    return "()" if layout.exact else f"({layout.front}, {layout.back})"


# Python source ---------------------------------------------------------------------------------------------------


def listing(items: Iterable[str]) -> str:
    """Return a tuple of expressions as Python."""
    parts = list(items)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def pieces(code: str) -> list[str]:
    """Return the elements of a tuple that :func:`listing` has created."""
    node = ast.parse(code, mode="eval").body
    assert isinstance(node, ast.Tuple)
    return [ast.get_source_segment(code, item) or "" for item in node.elts]


def mapping(items: Iterable[tuple[str, str]]) -> str:
    """Return a dict from names to expressions as Python."""
    return "{" + ", ".join(f"{literal(key)}: {value}" for key, value in items) + "}"


# Names ----------------------------------------------------------------------------------------------------------


def words(ways: Sequence[Way]) -> list[str]:
    """Return a name for each path, from the answers that distinguish it from the others."""
    answers: dict[str, set[Any]] = {}
    for way in ways:
        for question, answer in way.trace:
            answers.setdefault(question, set()).add(answer)
    found: list[str] = []
    for way in ways:
        parts = [
            _word(q, a) for q, a in way.trace if len(answers[q]) > 1 or len({q in dict(w.trace) for w in ways}) > 1
        ]
        name = "_".join(filter(None, dict.fromkeys(parts)))
        found.append(name if len(name) <= 50 else f"form_{len(found) + 1}")
    return [n if found.count(n) == 1 else f"{n}_{i}".strip("_") for i, n in enumerate(found, 1)]


def _word(question: str, answer: Any) -> str:
    """Return a word for the answer to a question; empty for no."""
    if question == DIMENSIONS:
        return "" if answer is None else f"{answer}d"
    if isinstance(answer, bool):
        if question.endswith(" is None"):
            return "" if answer else f"with_{question.removesuffix(' is None')}"
        for sign, spoken in ((">=", "from"), ("<=", "upto"), (">", "above"), ("<", "below"), ("==", ""), ("!=", "not")):
            question = question.replace(f" {sign} ", f"_{spoken}_" if spoken else "_")
        question = re.sub(r"shape\[(\d)\]", r"size\1", question)
        return re.sub(r"\W+", "_", question).strip("_") if answer else ""
    if answer is None:
        return "none"
    if isinstance(answer, str):
        return re.sub(r"\W+", "_", answer)
    return f"{question}_{answer:g}"
