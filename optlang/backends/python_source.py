"""Programs of a variant -> one readable Python module, which every backend loads.

The module imports ``math`` and ``torch`` only and holds ``start``, ``group``, ``host`` and ``update`` (see
:mod:`optlang.compiled`). It comes in two forms: plain, for tensors stored in the type arithmetic is done in, and
narrow, for 16-bit storage, where values are widened to float32 as they are read and rounded as they are stored.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sympy as sp

from optlang.backends.spelling import HostWriter, TorchWriter, Writer
from optlang.compiled import Slot
from optlang.ir import algebra
from optlang.ir.lower import Lowered
from optlang.ir.program import Program, Store, Value
from optlang.language.builtins import HELPERS
from optlang.language.kinds import ELEMENT, SCALAR, Kind, Level, join

INDENT = "    "


def emit(lowered: Lowered, slots: Sequence[Slot], tensors: Sequence[str], title: str, narrow: bool) -> str:
    """Return the module of a variant.

    Args:
        lowered: Its programs, after the passes.
        slots: The states that exist.
        tensors: Names of the tensors ``update`` takes, in order.
        title: First line of the module's docstring.
        narrow: Whether tensors may be stored in 16 bits.
    """
    return _Module(lowered, slots, tensors, narrow).text(title)


def host_names(program: Program) -> tuple[str, ...]:
    """Return the names of the host values a program takes, in order."""
    return tuple(i.name for i in program.inputs if i.kind.level <= Level.HOST)


def host_arguments(program: Program, slots: Sequence[Slot]) -> tuple[str, ...]:
    """Return the names of the values ``host`` takes: what it reads, and host states it only passes on."""
    names = host_names(program)
    stored = {s.target for s in program.stores}
    passed = (s.name for s in slots if s.place == "host" and s.name not in stored and s.name not in names)
    return (*names, *passed)


def python_name(name: str) -> str:
    """Return a name as Python can spell it (``lambda`` as ``lambda_``)."""
    return f"{name}_" if keyword.iskeyword(name) or name in ("math", "torch") else name


class _Module:
    """Writes one module."""

    def __init__(self, lowered: Lowered, slots: Sequence[Slot], tensors: Sequence[str], narrow: bool) -> None:
        self.lowered, self.slots, self.tensors, self.narrow = lowered, slots, tensors, narrow
        self.helpers: set[str] = set()
        taken = {s.name for p in self.programs() for s in p.kinds()}
        self.memory = {
            name: _unused(f"{python_name(name)}_mem", taken) if narrow else python_name(name) for name in tensors
        }
        self.packed = _unused("c", taken)

    def programs(self) -> tuple[Program, ...]:
        """Return the programs there are."""
        group = (self.lowered.group,) if self.lowered.group else ()
        return (self.lowered.start, *group, self.lowered.step)

    def text(self, title: str) -> str:
        """Return the whole module."""
        functions = [self.start(self.lowered.start)]
        if self.lowered.group is not None:
            functions.append(self.group(self.lowered.group))
        functions += [self.host(self.lowered.step), self.update(self.lowered.step)]
        head = f'"""{title}"""\n\nimport math\n\nimport torch\n'
        helpers = [HELPERS[name] for name in HELPERS if name in self.helpers]
        return "\n\n".join([head, *helpers, *(("\n".join(lines) + "\n") for lines in functions)])

    # Functions ----------------------------------------------------------------------------------------------

    def start(self, program: Program) -> list[str]:
        """Return ``start``: initial values of the states by name."""
        program = _spelled(program)
        names = [python_name(_argument(n)) for n in host_names(program)]
        read = {i.name for i in program.inputs if i.kind.on_device}
        body = [f'{INDENT}"""Initial values of the states of one tensor."""']
        memory = {n: self.memory.get(n, n) for n in ("p", "g")}
        if self.narrow:
            body += [f"{INDENT}{n} = {memory[n]}.to(torch.float32)" for n in ("p", "g") if n in read]
        writer = HostWriter()
        body += self.assignments(program.host, writer, {})
        plain = frozenset(s for s, k in program.kinds().items() if k.level <= Level.HOST)
        dtype = "torch.float32" if self.narrow else f"{memory['p']}.dtype"
        tensor = TorchWriter(dtype, frozenset(), plain)
        body += self.assignments(program.tensor, tensor, {})
        places = {s.name: s.place for s in self.slots}
        entries = [
            f'"{store.target}": {self.initial(store, places[store.target], program, writer, memory["p"])}'
            for store in program.stores
        ]
        self.helpers |= writer.helpers | tensor.helpers
        body += _braced(f"{INDENT}return {{", entries, "}")
        return [f"def start({', '.join([memory['p'], memory['g'], *names])}):", *body]

    def initial(self, store: Store, place: str, program: Program, writer: Writer, like: str) -> str:
        """Return the expression of one initial value."""
        if place == "host":
            return f"float({writer.text(store.expr)})"
        value = next((v for v in program.tensor if v.symbol == store.expr), None)
        kind = value.kind if value is not None else program.kinds().get(store.expr, Kind(Level.STATIC))
        if not kind.on_device:
            return self.filled(writer.text(store.expr), store.kind, like)
        text = f"{store.expr}"
        if kind.level < store.kind.level:  # a scalar spread over the tensor
            text = f"{text}.expand_as({like})"
        typed = value is not None and _type_of(value.expr)
        text += f".to({typed or f'{like}.dtype'})" if self.narrow or typed else ""
        return f"{text}.clone(memory_format=torch.preserve_format)"

    @staticmethod
    def filled(number: str, kind: Kind, like: str) -> str:
        """Return a tensor of one number, shaped as a kind says."""
        if kind == ELEMENT:
            return f"torch.zeros_like({like})" if number == "0" else f"torch.full_like({like}, {number})"
        if kind == SCALAR:
            return f"{like}.new_full((), {number})"
        dims = ", ".join(map(str, sorted(kind.dims)))
        return f"torch.full_like({like}.sum(dim=({dims},), keepdim=True), {number})"

    def group(self, program: Program) -> list[str]:
        """Return ``group``: the new values of the group states."""
        program = _spelled(program)
        writer = HostWriter()
        names = [python_name(_argument(n)) for n in host_names(program)]
        body = [f'{INDENT}"""New values of the states of a param group, in float64."""']
        body += self.assignments(program.host, writer, {})
        results = [f"float({writer.text(s.expr)})" for s in program.stores]
        self.helpers |= writer.helpers
        return [f"def group({', '.join(names)}):", *body, f"{INDENT}return {_tuple(results)}"]

    def host(self, program: Program) -> list[str]:
        """Return ``host``: coefficients and host states."""
        program = _spelled(program)
        writer = HostWriter()
        names = [python_name(_argument(n)) for n in host_arguments(program, self.slots)]
        body = [f'{INDENT}"""Coefficients of one step, and what states kept on the host become, in float64."""']
        body += self.assignments(program.host, writer, {})
        flags = _flags(program)
        packed = [f"float({s})" if s in flags else str(s) for s in program.coefficients()]
        states = {s.target: writer.text(s.expr) for s in program.stores if not s.kind.on_device}
        kept = [states.get(s.name, _argument(s.name)) for s in self.slots if s.place == "host"]
        self.helpers |= writer.helpers
        return [
            f"def host({', '.join(names)}):",
            *body,
            f"{INDENT}return {_tuple(packed or ['0.0'])}, {_tuple(kept)}",
        ]

    def update(self, program: Program) -> list[str]:
        """Return ``update``: one tensor, in place."""
        program = _spelled(program)
        names = [self.memory[n] for n in self.tensors]
        body = [f'{INDENT}"""One step of one tensor, in place; {self.packed} holds what host returned."""']
        packed = [str(s) for s in program.coefficients()]
        if packed:
            comma = "," if len(packed) == 1 else ""
            body.append(f"{INDENT}{', '.join(packed)}{comma} = {self.packed}.unbind()")
        if self.narrow:
            read = {i.name for i in program.inputs}
            body += [
                f"{INDENT}{python_name(n)} = {self.memory[n]}.to(torch.float32)" for n in self.tensors if n in read
            ]
        writer = TorchWriter(f"{self.packed}.dtype", _flags(program), frozenset())
        body += self.assignments(program.tensor, writer, self.rounded(program), program)
        body += self.stores(program, writer)
        self.helpers |= writer.helpers
        return [f"def update({', '.join([*names, self.packed])}):", *body]

    # Statements ---------------------------------------------------------------------------------------------

    def assignments(
        self,
        values: Iterable[Value],
        writer: Writer,
        rounded: Mapping[sp.Symbol, str],
        program: Program | None = None,
    ) -> Iterator[str]:
        """Yield the assignments of some values, with the lines of the rule they come from as comments."""
        line = 0
        for value in values:
            if program is not None and value.line not in (0, line):
                line = value.line
                yield f"{INDENT}# {program.notes[line]}"
            text = writer.text(value.expr)
            if program is not None and value.kind.level > Level.SCALAR and not _kind_read(value, program).on_device:
                text = self.constant(value, text, program)
            yield f"{INDENT}{value.symbol} = {text}"
            memory = rounded.get(value.symbol)
            if memory is not None:  # later formulas see what is stored
                yield f"{INDENT}{value.symbol} = {value.symbol}.to({memory}.dtype).to(torch.float32)"

    def constant(self, value: Value, text: str, program: Program) -> str:
        """Return a number as a tensor of the kind of the state (or parameter) that gets it."""
        target = next((s.target for s in program.stores if s.expr == value.symbol), "p")
        return f"torch.zeros_like({self.memory[target]}, dtype={self.packed}.dtype) + {text}"

    def rounded(self, program: Program) -> dict[sp.Symbol, str]:
        """Return the stored values that later formulas read, with the tensor they are stored in (narrow only)."""
        if not self.narrow:
            return {}
        stored = {s.expr: self.memory[s.target] for s in program.stores if s.target in self.memory}
        read = set().union(*(v.expr.free_symbols for v in program.tensor)) if program.tensor else set()
        return {v.symbol: stored[v.symbol] for v in program.tensor if v.symbol in stored and v.symbol in read}

    def stores(self, program: Program, writer: Writer) -> Iterator[str]:
        """Yield the stores; a state that takes another's old value takes a copy, since that is overwritten too."""
        kept = [s for s in program.stores if s.kind.on_device]
        by_symbol = {i.symbol: i.name for i in program.inputs}
        targets = {s.target for s in kept}
        copies = {}
        for store in kept:
            source = by_symbol.get(store.expr)
            if source in targets and source != store.target and not self.narrow:
                copies[store.expr] = f"{store.expr}_old"
                yield f"{INDENT}{store.expr}_old = {store.expr}.clone()"
        for store in sorted(kept, key=lambda s: s.target == "p"):
            text = copies.get(store.expr) or writer.text(store.expr)
            if algebra.is_literal(store.expr):
                yield f"{INDENT}{self.memory[store.target]}.fill_({text})"
            else:
                yield f"{INDENT}{self.memory[store.target]}.copy_({text})"


def _kind_read(value: Value, program: Program) -> Kind:
    """Return the kind that the symbols of a value's expression make up, which may be below that of the value."""
    kinds = program.kinds()
    return join(kinds[s] for s in value.expr.free_symbols)


def _flags(program: Program) -> frozenset[sp.Symbol]:
    """Return the symbols of host conditions."""
    found = {v.symbol for v in program.host if v.boolean}
    return frozenset(found | {i.symbol for i in program.inputs if i.name == "first"})


def _type_of(expr: sp.Expr) -> str | None:
    """Return the type that an initial value asks for."""
    name = getattr(expr.func, "__name__", "")
    return {"f32": "torch.float32", "bf16": "torch.bfloat16"}.get(name)


def _argument(name: str) -> str:
    """Return the symbol name of an input (``group.t`` as ``group_t``)."""
    return name.replace("group.", "group_").replace("'", "_new")


def _spelled(program: Program) -> Program:
    """Return a program whose symbols Python can spell."""
    bad = {s: sp.Symbol(python_name(s.name)) for s in program.kinds() if python_name(s.name) != s.name}
    return program.renamed(bad) if bad else program


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _tuple(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _braced(opening: str, entries: Sequence[str], closing: str) -> list[str]:
    """Return a bracketed list, one entry a line if there are any."""
    if not entries:
        return [opening + closing]
    return [opening, *(f"{INDENT}{INDENT}{entry}," for entry in entries), INDENT + closing]
