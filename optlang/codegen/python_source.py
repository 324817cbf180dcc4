"""Generates a readable Python module for a variant, which every backend can load.

The module imports only ``math`` and ``torch`` and defines ``start``, ``group``, ``host`` and ``update`` (see
:mod:`optlang.artifact`). It has two forms: plain, for tensors stored in the compute dtype, and narrow, for 16-bit
storage, where values are converted to float32 on reads and rounded on stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import sympy as sp

from optlang.artifact import AnySlot, Slot, Storage
from optlang.codegen.helpers import HELPERS
from optlang.codegen.memory import INDENT, Memory
from optlang.codegen.naming import spelled
from optlang.codegen.spelling import HostWriter, StartWriter, TorchWriter, Writer
from optlang.inputs import ValueName
from optlang.ir.lower import Lowered
from optlang.ir.program import Program, Store, Value
from optlang.kinds import ELEMENT, SCALAR, Kind, Level
from optlang.storage import Fixed
from optlang.syntax.quoting import docstring, remark


class Width(Enum):
    """The width of the tensors that generated functions take."""

    PLAIN = "stored in the type of the arithmetic"
    NARROW = "stored in 16 bits"
    ANY = "of any type"


def emit(lowered: Lowered, slots: Sequence[AnySlot], tensors: Sequence[ValueName], title: str, width: Width) -> str:
    """Return the module of a variant.

    Args:
        lowered: Its optimised programs.
        slots: The states that exist.
        tensors: The names of the tensors that ``update`` takes, in order.
        title: The first line of the module's docstring.
        width: The width of the tensors.
    """
    return PythonModule(lowered, slots, tensors, width).text(title)


def host_names(program: Program) -> tuple[ValueName, ...]:
    """Return the names of the host values that a program takes, in order."""
    return tuple(i.name for i in program.inputs if i.kind.level <= Level.HOST)


def host_arguments(program: Program, slots: Sequence[AnySlot]) -> tuple[ValueName, ...]:
    """Return the names of the values that ``host`` takes: those it reads, and host states it only passes on."""
    names = host_names(program)
    stored = {s.target for s in program.stores}
    passed = (s.name for s in slots if s.storage is Storage.HOST and s.name not in stored and s.name not in names)
    return (*names, *passed)


def emit_stage(
    program: Program, slots: Sequence[AnySlot], tensors: Sequence[ValueName], title: str, width: Width
) -> str:
    """Return the module of an elementwise stage: ``host`` and ``update``.

    Args:
        program: The optimised stage.
        slots: The states and carried tensors it uses.
        tensors: The names of the tensors that ``update`` takes, in order.
        title: The first line of the module's docstring.
        width: The width of the tensors.
    """
    module = PythonModule(None, slots, tensors, width)
    return module.assembled(title, [module.host(program), module.update(program)])


class PythonModule:
    """Writes one module.

    Args:
        lowered: The programs of a variant, for a module that contains them all.
        slots: The states that exist.
        tensors: The names of the tensors that ``update`` takes, in order.
        width: The width of the tensors.
        writer: Creates the writer of host arithmetic.
    """

    def __init__(
        self,
        lowered: Lowered | None,
        slots: Sequence[AnySlot],
        tensors: Sequence[ValueName],
        width: Width = Width.PLAIN,
        writer: Callable[[], Writer] = HostWriter,
    ) -> None:
        self.lowered, self.slots, self.tensors = lowered, slots, tensors
        self.narrow, self.any_width = width is not Width.PLAIN, width is Width.ANY
        self.host_writer = writer
        self.helpers: set[str] = set()

    def text(self, title: str) -> str:
        """Return the whole module."""
        assert self.lowered is not None
        functions = [self.start(self.lowered.start)]
        if self.lowered.group is not None:
            functions.append(self.group(self.lowered.group))
        functions += [self.host(self.lowered.step), self.update(self.lowered.step)]
        return self.assembled(title, functions)

    def assembled(self, title: str, functions: Sequence[Sequence[str]]) -> str:
        """Return the module with the given functions and the helpers they call."""
        head = f"{docstring(title)}\n\nimport math\n\nimport torch\n"
        helpers = [HELPERS[name] for name in HELPERS if name in self.helpers]
        return "\n\n".join([head, *helpers, *(("\n".join(lines) + "\n") for lines in functions)])

    # What functions begin and end with ----------------------------------------------------------------------

    def begun(self, name: str, said: str, tensors: Sequence[str], numbers: Mapping[ValueName, str]) -> list[str]:
        """Return the first lines of a function.

        Args:
            name: Its name.
            said: What its docstring says.
            tensors: The tensors that it takes.
            numbers: The numbers that it takes, by the runtime's names.
        """
        return [f"def {name}({', '.join([*tensors, *numbers.values()])}):", f'{INDENT}"""{said}"""']

    def returned(self, *results: Sequence[str]) -> list[str]:
        """Return the line that returns some numbers, or several times some."""
        return [f"{INDENT}return {', '.join(map(_tuple, results))}"]

    def chosen(self, path: int) -> str:
        """Return the statement that returns the path of a step."""
        return f"return ({path},)"

    def returned_states(self, initial: Mapping[ValueName, str]) -> list[str]:
        """Return the lines that return the initial values of states, by name."""
        return _braced(f"{INDENT}return {{", [f'"{name}": {text}' for name, text in initial.items()], "}")

    # Functions ----------------------------------------------------------------------------------------------

    def start(self, program: Program) -> list[str]:
        """Return ``start``: the initial values of the states by name."""
        memory = Memory(program, ("p", "g"), self.narrow, "wide" if self.any_width else "torch.float32")
        program = memory.program
        writer = self.host_writer()
        body = list(memory.widened())
        body += self.assignments(program.host, writer)
        plain = frozenset(s for s, k in memory.kinds.items() if k.level <= Level.HOST)
        like = memory.stored["p"]
        dtype = memory.wide if self.narrow else f"{like}.dtype"
        conditions = frozenset(v.symbol for v in program.values if v.boolean)
        tensor = StartWriter(dtype, like, plain, conditions)
        tensor.numbers = self.host_writer()
        body += self.started(program.tensor, tensor)
        slots: dict[ValueName, AnySlot] = {s.name: s for s in self.slots}
        types = StoredTypes(self.narrow, memory.wide, memory.name("kept") if self.narrow else f"{like}.dtype")
        entries = {
            store.target: self.initial(store, slots[store.target], program, writer, like, types)
            for store in program.stores
            if store.target in slots
        }
        if self.narrow:
            body[:0] = types.lines(like, [*entries.values()])
        self.helpers |= writer.helpers | tensor.helpers
        if self.any_width and any(memory.wide in line for line in (*body, *entries.values())):
            body.insert(0, f"{INDENT}{memory.wide} = torch.promote_types({like}.dtype, torch.float32)")
        numbers = {n: memory.arguments[n] for n in host_names(program)}
        begun = self.begun("start", "Initial values of the states of one tensor.", [*memory.stored.values()], numbers)
        return [*begun, *body, *self.returned_states(entries)]

    def started(self, values: Iterable[Value], writer: StartWriter) -> Iterator[str]:
        """Yield assignments of tensor values; a number in place of a tensor is expanded to its shape."""
        for value in values:
            text = writer.text(value.expr)
            if writer.is_plain(value.expr) and not value.boolean:
                text = self.filled(text, value.kind, writer.like, f", dtype={writer.dtype}")
            yield f"{INDENT}{value.symbol} = {text}"

    def initial(
        self, store: Store, slot: AnySlot, program: Program, writer: Writer, like: str, types: StoredTypes
    ) -> str:
        """Return the expression of one initial value."""
        if slot.storage is Storage.HOST:
            return f"float({writer.text(store.expr)})"
        kind = program.kinds().get(store.expr, Kind(Level.STATIC))
        typed = types.of(slot)
        if not kind.on_device:
            return self.filled(writer.text(store.expr), store.kind, like, f", dtype={typed}" if typed else "")
        text = f"{store.expr}"
        if kind.level < store.kind.level:  # a scalar expanded to the tensor
            text = f"{text}.expand_as({like})"
        text += f".to({typed})" if typed else ""
        return f"{text}.clone(memory_format=torch.preserve_format)"

    @staticmethod
    def filled(number: str, kind: Kind, like: str, dtype: str) -> str:
        """Return a tensor filled with a number, shaped by a kind; ``dtype`` is the text of a dtype argument."""
        if kind == SCALAR:
            return f"{like}.new_full((), {number}{dtype})"
        if kind != ELEMENT:
            dims = ", ".join(map(str, sorted(kind.dims)))
            like = f"{like}.sum(dim=({dims},), keepdim=True)"
        if number == "0":
            return f"torch.zeros_like({like}{dtype})"
        return f"torch.full_like({like}, {number}{dtype})"

    def group(self, program: Program) -> list[str]:
        """Return ``group``: the new values of the group states."""
        program, arguments = spelled(program)
        writer = self.host_writer()
        numbers = {n: arguments[n] for n in host_names(program)}
        body = self.begun("group", "New values of the states of a param group, in float64.", (), numbers)
        body += self.assignments(program.host, writer)
        on_tensors = isinstance(writer, TorchWriter)
        results = [writer.text(s.expr) if on_tensors else f"float({writer.text(s.expr)})" for s in program.stores]
        self.helpers |= writer.helpers
        return [*body, *self.returned(results)]

    def host(self, program: Program) -> list[str]:
        """Return ``host``: coefficients and host states."""
        wanted = host_arguments(program, self.slots)
        program, arguments = spelled(program, wanted)
        writer = self.host_writer()
        said = "Coefficients of one step, and what states kept on the host become, in float64."
        body = self.begun("host", said, (), {n: arguments[n] for n in wanted})
        body += self.assignments(program.host, writer)
        flags = host_flags(program)
        number = "{}.to(torch.float64)" if isinstance(writer, TorchWriter) else "float({})"
        packed = [number.format(s) if s in flags else str(s) for s in program.coefficients()]
        states = {s.target: writer.text(s.expr) for s in program.stores if not s.kind.on_device}
        kept = [states.get(s.name) or arguments[s.name] for s in self.slots if s.storage is Storage.HOST]
        self.helpers |= writer.helpers
        return [*body, *self.returned(packed or ["0.0"], kept)]

    def update(self, program: Program) -> list[str]:
        """Return ``update``: one tensor, in place."""
        memory = self.memory(program)
        writer, body = self.computed(memory, "One step of one tensor, in place")
        body += memory.written(writer)
        return [f"def update({', '.join([*memory.stored.values(), memory.numbers])}):", *body]

    def updated(self, program: Program) -> list[str]:
        """Return ``updated``: the new values of one tensor and its states."""
        memory = self.memory(program)
        writer, body = self.computed(memory, "What one step makes of one tensor and its states")
        body.append(f"{INDENT}return {_tuple(list(memory.results(writer)))}")
        return [f"def updated({', '.join([*memory.stored.values(), memory.numbers])}):", *body]

    def memory(self, program: Program) -> Memory:
        """Return the memory of a step."""
        return Memory(program, self.tensors, self.narrow, None)

    def computed(self, memory: Memory, what: str) -> tuple[Writer, list[str]]:
        """Return the lines that compute the new values, and the writer that refers to them."""
        numbers = memory.numbers
        body = [f'{INDENT}"""{what}; {numbers} holds what host returned."""']
        packed = [str(s) for s in memory.program.coefficients()]
        if packed:
            comma = "," if len(packed) == 1 else ""
            body.append(f"{INDENT}{', '.join(packed)}{comma} = {numbers}.unbind()")
        writer = TorchWriter(f"{numbers}.dtype", host_flags(memory.program), frozenset())
        body += memory.widened()
        body += self.passes(memory, writer)
        self.helpers |= writer.helpers
        return writer, body

    # Statements ---------------------------------------------------------------------------------------------

    def assignments(self, values: Iterable[Value], writer: Writer) -> Iterator[str]:
        """Yield assignments of values."""
        for value in values:
            yield f"{INDENT}{value.symbol} = {writer.text(value.expr)}"

    def passes(self, memory: Memory, writer: Writer) -> Iterator[str]:
        """Yield the tensor values of a step, with the lines of the rule they come from as comments."""
        program, rounded = memory.program, memory.rounded()
        sweeps = sum(_sweeps(phase, memory.kinds) for phase in program.phases)
        sweep = line = 0
        for phase in program.phases:
            if sweeps > 1 and _sweeps(phase, memory.kinds):
                sweep, line = sweep + 1, 0
                yield f"{INDENT}# --- pass {sweep} of {sweeps} over memory ---"
            for value in phase:
                if value.line not in (0, line):
                    line = value.line
                    yield INDENT + remark(program.notes[line])
                yield f"{INDENT}{value.symbol} = {memory.spread(value, writer.text(value.expr))}"
                if value.symbol in rounded:  # later formulas see the stored value
                    stored = rounded[value.symbol]
                    yield f"{INDENT}{value.symbol} = {value.symbol}.to({stored}.dtype).to({memory.wide})"


def _sweeps(phase: Sequence[Value], kinds: Mapping[sp.Symbol, Kind]) -> bool:
    """Return whether any value of a phase is elementwise."""
    symbols = {s for value in phase for s in (value.symbol, *value.expr.free_symbols)}
    return any(kinds[s] == ELEMENT for s in symbols)


def host_flags(program: Program) -> frozenset[sp.Symbol]:
    """Return the symbols of host conditions."""
    found = {v.symbol for v in program.host if v.boolean}
    return frozenset(found | {i.symbol for i in program.inputs if i.name == "first"})


@dataclass(frozen=True)
class StoredTypes:
    """The dtypes of states, as text.

    Attributes:
        narrow: Whether they may differ from the parameter's dtype.
        wide: The compute dtype.
        kept: The name of the dtype of states as large as the parameter.
    """

    narrow: bool
    wide: str
    kept: str

    def of(self, slot: AnySlot) -> str | None:
        """Return the dtype of a state; None if it is the default."""
        assert isinstance(slot, Slot)
        said = self.narrow or isinstance(slot.format, Fixed)
        return slot.format.text(self.kept, self.wide) if said else None

    def lines(self, like: str, entries: Sequence[str]) -> list[str]:
        """Return the line that defines ``kept``, if initial values use it."""
        if not any(f"{self.kept})" in entry for entry in entries):
            return []
        text = f"torch.float32 if {like}.dtype == torch.float16 else {like}.dtype"
        return [f"{INDENT}{self.kept} = {text}  # squares of gradients are too small for float16"]


def _tuple(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _braced(opening: str, entries: Sequence[str], closing: str) -> list[str]:
    """Return a bracketed list with one entry per line."""
    if not entries:
        return [opening + closing]
    return [opening, *(f"{INDENT}{INDENT}{entry}," for entry in entries), INDENT + closing]
