"""The rule-specific functions of a TorchScript module: the computation for one tensor, by variant and path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optlang.artifact import AnySlot, Kernel, Stage, Storage, Variant
from optlang.codegen import schedule_source
from optlang.inputs import Handed, LateNumber, NumberContribution, Total, ValueName, text
from optlang.rule import Rule
from optlang.syntax.tree import Name, StateScope
from optlang.syntax.walk import expressions
from optlang.targets._conditions import Conditions, Untranslatable, number
from optlang.targets._variants import Carried
from optlang.targets.torchscript.chunks import element_update
from optlang.targets.torchscript.dialect import ScriptMatrices, ScriptModule, ascii_text, matrix_update

INDENT = "    "


@dataclass(frozen=True)
class ScriptedWay:
    """One path of one variant: its stages, grouped by the number of preceding sums over the model.

    Attributes:
        one: The variant.
        path: Number of the path.
        levels: The stages by level.
    """

    one: Carried
    path: int
    levels: tuple[tuple[Stage, ...], ...]

    @property
    def variant(self) -> Variant:
        """The compiled variant."""
        return self.one.variant


@dataclass(frozen=True)
class States:
    """The states of all variants together.

    Attributes:
        tensors: Names of the states that are tensors, in order.
        numbers: Names of the host states, in order.
        keys: The key that users see, for each state.
        group: Names of the numbers of a parameter group.
        shared: Names of the numbers of the whole optimizer.
    """

    tensors: tuple[str, ...]
    numbers: tuple[str, ...]
    keys: Mapping[str, str]
    group: tuple[str, ...]
    shared: tuple[str, ...]

    @classmethod
    def of(cls, rule: Rule, variants: Sequence[Variant]) -> States:
        """Return the states of some variants."""
        slots = [slot for variant in variants for slot in variant.slots]
        scopes = {scope: tuple(s.name for s in rule.states if s.scope is scope) for scope in StateScope}
        return cls(
            tuple(dict.fromkeys(s.name for s in slots if s.storage is not Storage.HOST)),
            tuple(dict.fromkeys(s.name for s in slots if s.storage is Storage.HOST)),
            {s.name: s.key for s in slots},
            scopes[StateScope.GROUP],
            scopes[StateScope.SHARED],
        )


def leveled(variants: Sequence[Carried]) -> tuple[list[list[ScriptedWay]], dict[ValueName, int]]:
    """Return the paths of each variant, and the level at which each late value is available.

    A stage runs at level n if n sums over the model must be complete before it, one after another.
    """
    there: dict[ValueName, int] = {}
    shared = {slot.new: names for v in variants for slot, names in v.variant.schedule.shared}
    levels: dict[tuple[int, int, int], int] = {}
    for _ in range(32):  # until a fixed point; there are few sums
        before = dict(there), dict(levels)
        for i, variant in enumerate(variants):
            for j, path in enumerate(variant.variant.schedule.paths):
                last = 0
                for k, one in enumerate(path):
                    last = levels[i, j, k] = max([last, *(there.get(name, 0) for name in one.needs)])
                    for total in one.totals:
                        there[total] = max(there.get(total, 0), last + 1)
        for name, inputs in shared.items():
            there[name] = max([0, *(there.get(n, 0) for n in inputs if isinstance(n, LateNumber))])
        if before == (there, levels):
            break
    count = 1 + max(levels.values(), default=0)
    ways = [
        [
            ScriptedWay(
                variant,
                j,
                tuple(tuple(one for k, one in enumerate(path) if levels[i, j, k] == n) for n in range(count)),
            )
            for j, path in enumerate(variant.variant.schedule.paths)
        ]
        for i, variant in enumerate(variants)
    ]
    return ways, there


class Functions:
    """Generates functions, each distinct one once.

    Args:
        places: The index of each name in the list of known values.
        states: The states.
        totals: Names of the sums over the whole model.

    Attributes:
        texts: The functions, in order.
        helpers: Names of the helpers that they call.
    """

    def __init__(self, places: Mapping[ValueName, int], states: States, totals: Sequence[Total]) -> None:
        self.places, self.states = places, states
        self.totals: list[NumberContribution] = list(totals)
        self.helpers: set[str] = set()
        self.texts: list[str] = []
        self._names: dict[tuple[str, ...], str] = {}

    def add(self, stem: str, lines: Sequence[str], helpers: set[str]) -> str:
        """Add a function, unless an equal one exists, and return its name."""
        key = (stem, *lines)
        self.helpers |= helpers
        if key not in self._names:
            name = self._names[key] = f"_{stem}_{sum(k[0] == stem for k in self._names)}"
            self.texts.append(ascii_text("\n".join(lines).replace("NAME", name, 1)) + "\n")
        return self._names[key]

    # One variant --------------------------------------------------------------------------------------------

    def start(self, one: Carried) -> list[str]:
        """Return the lines that initialize the missing states of a tensor."""
        hosted = [s.name for s in one.variant.slots if s.storage is Storage.HOST]
        tensors = [s.name for s in one.variant.slots if s.storage is not Storage.HOST]
        module = self.module(one)
        lowered = one.programs
        if any(v.matrices for v in lowered.start.tensor):
            written = schedule_source.start(module, lowered, one.dimensions, ScriptMatrices)
        else:
            written = module.start(lowered.start)
        lines = [f"tensors, kept = {self.add('start', written, module.helpers)}(p, g, known)"]
        for i, name in enumerate(tensors):
            place = self.states.tensors.index(name)
            lines += [f"if s[{place}].numel() == 0:", f"{INDENT}s[{place}] = tensors[{i}]"]
        for i, name in enumerate(hosted):
            place = self.states.numbers.index(name)
            lines += [f"if math.isnan(n[{place}]):", f"{INDENT}n[{place}] = kept[{i}]"]
        return lines

    def module(self, one: Carried) -> ScriptModule:
        """Return the generator of a variant's functions."""
        return ScriptModule(one.programs, one.variant.slots, self.places)

    def coefficients(self, kernel: Kernel) -> str:
        """Return the name of a function that computes coefficients and host states."""
        module = ScriptModule(None, kernel.kept, self.places)
        return self.add("host", module.host(kernel.program), module.helpers)

    def group(self, one: Carried) -> str:
        """Return the name of a function that computes the states of a group."""
        module = self.module(one)
        assert one.programs.group is not None
        return self.add("numbers", module.group(one.programs.group), module.helpers)

    def shared(self, one: Carried, name: str) -> str:
        """Return the name of a function that computes a state of the whole optimizer."""
        module = self.module(one)
        return self.add("numbers", schedule_source.shared(module, one.programs.shared, name), module.helpers)

    def advance(self, way: ScriptedWay) -> list[str]:
        """Return the lines that compute the new values of host states."""
        hosted = [s.name for s in way.variant.slots if s.storage is Storage.HOST]
        if not hosted:
            return []
        if way.variant.kernel is not None:
            lines = [f"kept = {self.coefficients(way.variant.kernel)}(known)[1]"]
        else:
            module = self.module(way.one)
            written = schedule_source.numbers_of_path(module, way.one.numbers[way.path], way.path)
            lines = [f"kept = {self.add('numbers', written, module.helpers)}(known)"]
        return [*lines, *(f"n[{self.states.numbers.index(name)}] = kept[{i}]" for i, name in enumerate(hosted))]

    def path(self, one: Carried, first: int) -> list[str]:
        """Return the lines that select the path of a step; ``first`` is the number of the variant's first one."""
        if len(one.variant.schedule.paths) == 1:
            return [f"return {first}"]
        module = self.module(one)
        name = self.add("path", schedule_source.path(module, one.programs.paths), module.helpers)
        return [f"return {first} + {name}(known)"]

    def run(self, way: ScriptedWay, level: int) -> tuple[list[str], list[str]]:
        """Return the lines that return the numbers of a level's stages, and those that run the stages."""
        stages = way.levels[level]
        hosts = [self.coefficients(one.kernel) for one in stages]
        numbers = [f"return [{', '.join(f'{host}(known)[0]' for host in hosts)}]"] if hosts else []
        return numbers, _Run(self, way, level).lines()

    def update(self, kernel: Kernel) -> str:
        """Return the name of the function that updates a tensor."""
        lines, helpers = matrix_update(kernel) if kernel.matrices else element_update(kernel)
        return self.add("update", lines, helpers)


class _Run:
    """Generates the calls of the stages of one level of a path."""

    def __init__(self, functions: Functions, way: ScriptedWay, level: int) -> None:
        self.functions, self.way, self.level = functions, way, level
        kernels = [one.kernel for level in way.levels for one in level]
        self.slots: dict[ValueName, AnySlot] = {s.name: s for k in kernels for s in k.kept}
        self.there: set[ValueName] = set()

    def handed_on(self, level: int) -> list[Handed]:
        """Return the values that one level passes on to later ones, in order."""
        written = [n for one in self.way.levels[level] for n in one.kernel.written if isinstance(n, Handed)]
        later = {n for after in self.way.levels[level + 1 :] for one in after for n in one.kernel.tensors}
        return [n for n in dict.fromkeys(written) if n in later]

    def lines(self) -> list[str]:
        """Return the lines."""
        lines: list[str] = []
        place = 0
        passes = self.way.levels[self.level]
        read = {n for one in passes for n in one.kernel.tensors}
        for before in range(self.level):
            for name in self.handed_on(before):
                if name in read:
                    lines.append(f"{_local(name)} = carry[{place}]")
                    self.there.add(name)
                place += 1
        for i, one in enumerate(passes):
            lines += self.matrices(one, i) if one.kernel.matrices else self.elements(one, i)
        lines += [f"carry.append({_local(name)})" for name in self.handed_on(self.level)]
        return lines

    def name(self, name: ValueName) -> str:
        """Return the name of a tensor."""
        if name == "p" or name == "g":
            return name
        if not isinstance(name, str):
            return _local(name)
        return f"s[{self.functions.states.tensors.index(name)}]"

    def elements(self, one: Stage, index: int) -> list[str]:
        """Return the lines of an elementwise stage."""
        lines = []
        for name in one.kernel.tensors:
            if not isinstance(name, str) and name not in self.there:
                slot = self.slots[name]
                like = f"dtype=c[{index}].dtype, device=p.device"
                shape = f"_reduced(p, {list(slot.dims)})" if slot.storage is Storage.REDUCED else "[]"
                made = f"torch.empty_like(p, dtype=c[{index}].dtype)"
                lines.append(
                    f"{_local(name)} = {made if slot.storage is Storage.ELEMENT else f'torch.empty({shape}, {like})'}"
                )
                self.there.add(name)
        lines.append(
            f"{self.functions.update(one.kernel)}([{', '.join(map(self.name, one.kernel.tensors))}], c[{index}])"
        )
        lines += [self.total(name, _local(name)) for name in one.totals]
        return lines

    def total(self, name: NumberContribution, part: str) -> str:
        """Return the line that adds a tensor's contribution to a sum."""
        place = self.functions.totals.index(name)
        return f"sums[{place}] = sums[{place}] + float({part})"

    def matrices(self, one: Stage, index: int) -> list[str]:
        """Return the lines of a stage over matrices."""
        kernel = one.kernel
        arguments = [self.stack(name) for name in kernel.tensors]
        arguments += [f"v[{index}][{i}]" for i in range(len(kernel.coefficients))]
        update = self.functions.update(kernel)
        lines = [f"r{index} = [r.clone() for r in {update}({', '.join(arguments)})]"]
        for i, name in enumerate(kernel.written):
            result = f"r{index}[{i}]"
            if isinstance(name, Total):
                lines.append(self.total(name, f"{result}.reshape([-1])[0]"))
            elif not isinstance(name, Handed):
                lines.append(f"_put({self.name(name)}, {result})")
            else:
                storage = self.slots[name].storage
                self.there.add(name)
                part = f"{result}[0].to(_arithmetic(p))"
                shaped = {
                    Storage.ELEMENT: f"_shaped({part}, p.shape)",
                    Storage.SCALAR: f"{part}.reshape([])",
                    Storage.REDUCED: f"_shaped({part}, _reduced(p, {list(self.slots[name].dims)}))",
                }.get(storage, part)
                lines.append(f"{_local(name)} = {shaped}")
        return lines

    def stack(self, name: ValueName) -> str:
        """Return a tensor with an additional dimension, in the type in which the rule computes."""
        storage = self.slots[name].storage if name in self.slots else Storage.ELEMENT
        tensor = f"{self.name(name)}.reshape([])" if storage is Storage.SCALAR else self.name(name)
        return f"{tensor}.unsqueeze(0).to(_arithmetic(p))"


def _local(name: ValueName) -> str:
    return ascii_text("_" + re.sub(r"\W", "_", text(name)))


def test_of(one: Carried, conditions: Conditions) -> str:
    """Return the condition that selects a variant."""
    parts = [] if one.ndim is None else [f"dim == {one.ndim}"]
    for question, answer in one.asked:
        try:
            if isinstance(answer, bool):
                text = conditions.truth(question)
                parts.append(text if answer else f"not {text}")
            else:
                assert isinstance(answer, int | float)
                parts.append(f"{conditions.number(question)} == {number(answer)}")
        except Untranslatable:  # a question about options, which are fixed
            conditions.lost |= {n.name for n in expressions(question) if isinstance(n, Name)}
    return " and ".join(dict.fromkeys(parts)) or "True"
