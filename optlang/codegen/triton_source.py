"""Generates Triton kernels that update the tensors of many parameters in few launches.

The generated module imports ``triton`` and defines one or more kernels; ``LAUNCHES`` lists them in launch order, and
``SUMS`` is the number of reductions. :mod:`optlang.codegen.sweeps` decides which steps are supported, and in which
sweeps.

A *sweep* runs one program instance per chunk of each tensor. ``places`` gives its chunk; ``rows`` (sizes, first chunks,
addresses of the parameter and its states) and ``gradients`` (their addresses, which may change from step to step) give
the location of the tensor. Whole blocks of an aligned tensor are accessed as vectors; the rest is masked, element by
element.

A sweep stores its partial results of each reduction in ``partials``. A kernel with one program instance per tensor then
*finishes* the reduction: it combines the partial results of the chunks in order, so that the result depends on the
tensor alone, and stores it in ``sums``. Formulas over per-tensor numbers are cheap enough to be recomputed by every
reader; the last of these kernels stores them.

Storage dtypes are parameters of the kernels. Arithmetic is done in the dtype of the coefficients, reductions in
float64, and stores round where the narrow form of :mod:`optlang.codegen.python_source` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sympy as sp

from optlang.artifact import Kernel, Locality, Storage
from optlang.codegen.helpers import texts
from optlang.codegen.memory import INDENT, Memory
from optlang.codegen.sweeps import Sweep, needed, sweeps
from optlang.codegen.triton_codes import Codes
from optlang.codegen.triton_writer import TritonWriter, call_lines
from optlang.functions.table import BUILTINS
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Store, Value
from optlang.kinds import ELEMENT
from optlang.storage.coded import Coded
from optlang.syntax.quoting import docstring, remark

#: Names of functions and arguments that get a number.
NUMBERED = re.compile(r"(type|more|element|sweep|finish)_\d+|element|update")
#: The initial value of a reduction, and how to combine two partial results.
REDUCTIONS = {name: row.parts for name, row in BUILTINS.items() if row.parts is not None}
#: Functions of the generated module; those of formats come after those they may call.
HELPERS = texts("triton_blocks")
CODES = texts("triton_codes")
#: Other names that the module defines.
OWN = frozenset({"triton", "tl", "libdevice", "chunk", "block", "LAUNCHES", "SUMS", *HELPERS, *CODES})


def emit(kernel: Kernel, coded: Sequence[tuple[int, Coded]] = ()) -> str:
    """Return the Triton module of a kernel; empty if it reduces along dimensions or uses matrices.

    Args:
        kernel: The kernel.
        coded: The quantised tensors, by their position in ``kernel.tensors``.
    """
    if kernel.locality not in (Locality.ELEMENTS, Locality.SWEEPS):
        return ""
    scalars = [slot.name for slot in kernel.kept if slot.storage is Storage.SCALAR]
    formats = {kernel.tensors[place]: format for place, format in coded}
    module = _Module(_renamed(kernel.program, formats.values()), kernel.tensors, scalars, formats)
    body = "\n".join(module.lines()) + "\n"
    own = list(module.codes.functions())
    called = "".join([body, *own])
    helpers = [HELPERS[name] for name in HELPERS if re.search(rf"\b{name}\b", called)]
    if any("triton_divide(" in text for text in helpers):
        helpers = [HELPERS["triton_divide"], *(h for h in helpers if h != HELPERS["triton_divide"])]
    helpers += [*own, *(CODES[name] for name in CODES if re.search(rf"\b{name}\b", body))]
    functions = [f"@triton.jit\n{text.rstrip()}\n" for text in helpers]
    device = "libdevice." in body or any("libdevice." in text for text in helpers)
    imports = "import triton\nimport triton.language as tl\n"
    imports += "from triton.language.extra import libdevice\n" if device else ""
    return "\n\n".join([f"{docstring(kernel.title)}\n\n{imports}", *functions, body])


def _renamed(program: Program, formats: Iterable[Coded]) -> Program:
    """Return a program without names that the module defines."""
    taken = {s.name for s in program.kinds()}
    own = OWN | {name for each in formats for name in re.findall(r"^def (\w+)", each.triton, re.MULTILINE)}
    names = {}
    for symbol in program.kinds():
        name = symbol.name
        while name in own or NUMBERED.fullmatch(name) or (name != symbol.name and name in taken):
            name = f"the_{name}"
        names[symbol] = sp.Symbol(name)
    return program.renamed({old: new for old, new in names.items() if old != new})


class _Names(dict[str, str]):
    """Names of everything in the kernels that is not a value of the rule, chosen on first use."""

    def __init__(self, memory: Memory, real: str) -> None:
        super().__init__(real=real)
        self.memory = memory

    def __missing__(self, wanted: str) -> str:
        self[wanted] = self.memory.name(wanted)
        return self[wanted]


class _Module:
    """Writes the kernels of a step.

    Args:
        program: The step.
        tensors: The names of the kernels' tensors, in order.
        scalars: The names of those that are per-tensor numbers.
        formats: The formats of the quantised ones.
    """

    def __init__(
        self,
        program: Program,
        tensors: Sequence[ValueName],
        scalars: Sequence[ValueName],
        formats: Mapping[ValueName, Coded],
    ) -> None:
        self.memory = memory = Memory(program, tensors, narrow=True)
        self.program, self.stored = memory.program, memory.stored
        self.writer = TritonWriter(memory)
        self.names = _Names(memory, self.writer.real)
        self.codes = Codes(formats, self.stored, self.names, len(self.stored) - ("g" in self.stored))
        self.scalars = {name: self.stored[name] for name in scalars if name in self.stored}
        self.inputs = {i.symbol: i.name for i in self.program.inputs}
        # Quantised values are rounded on store, after everything that reads them.
        coded = {self.stored[name] for name in formats}
        self.rounded = {s: pointer for s, pointer in memory.rounded().items() if pointer not in coded}
        self.sums = [value for value in self.program.tensor if value.reduces]
        self.accumulators = {v.symbol: memory.name(f"{v.symbol}_all") for v in self.sums}
        self.terms = {v.symbol: memory.name(f"{v.symbol}_term") for v in self.sums}
        stores = sorted(memory.stores, key=lambda s: s.target == "p")
        self.numbers = [s for s in stores if s.kind != ELEMENT]
        self.sweeps = sweeps(self.program, [s for s in stores if s.kind == ELEMENT])

    def needed(self, exprs: Iterable[sp.Expr]) -> set[sp.Symbol]:
        """Return the symbols that formulas depend on, without going through reductions."""
        return needed(self.program, exprs)

    def lines(self) -> Iterator[str]:
        """Yield the lines of all kernels."""
        launches = []
        single = len(self.sweeps) == 1
        for i, sweep in enumerate(self.sweeps, 1):
            alone = single and not sweep.sums and not self.numbers
            names = ("element", "update") if alone else (f"element_{i}", f"sweep_{i}")
            yield from (*self.element(sweep, names[0]), "", "")
            yield from (*self.sweep(sweep, *names), "", "")
            launches.append(f'("chunks", {names[1]})')
            last = i == len(self.sweeps)
            if sweep.sums:
                yield from (*self.finish(f"finish_{i}", sweep.sums, self.numbers if last else ()), "", "")
                launches.append(f'("tensors", finish_{i})')
        if self.numbers and not (self.sweeps and self.sweeps[-1].sums):
            name = f"finish_{len(self.sweeps) + 1}"
            yield from (*self.finish(name, (), self.numbers), "", "")
            launches.append(f'("tensors", {name})')
        yield f"SUMS = {len(self.sums)}"
        yield f"LAUNCHES = ({', '.join(launches)}{',' if len(launches) == 1 else ''})"

    # One block ----------------------------------------------------------------------------------------------

    def element(self, sweep: Sweep, name: str) -> Iterator[str]:
        """Yield the lines of a sweep's function for one block of one tensor."""
        at, inside, real = (self.names[n] for n in ("at", "inside", "real"))
        needed = self._read(sweep)
        yield "@triton.jit"
        options = [f"{real}: tl.constexpr", *(["block: tl.constexpr"] if self.codes.formats else [])]
        yield from call_lines(f"def {name}", [*self._arguments(sweep), at, inside, *options], "", ":")
        does = " and ".join(["Update"] * bool(sweep.stores) + ["reduce"] * bool(sweep.sums)).capitalize()
        yield f'{INDENT}"""{does} the elements at some places of one tensor."""'
        symbols = {origin: symbol for symbol, origin in self.inputs.items()}
        yield from self.codes.places(*self._coded(sweep))
        for origin, pointer in self.stored.items():
            if origin not in self.scalars and symbols.get(origin) in needed:
                coded = origin in self.codes.formats
                text = self.codes.read(origin) if coded else f"tl.load({pointer} + {at}, {inside}).to({real})"
                yield f"{INDENT}{symbols[origin]} = {text}"
        yield from self.values(v for v in self.program.tensor if v.symbol in needed and v.kind == ELEMENT)
        for store in sweep.stores:
            if store.target in self.codes.formats:
                yield from self.codes.write(store.target, self.writer.typed(store.expr))
            else:
                yield f"{INDENT}tl.store({self.stored[store.target]} + {at}, {self.writer.text(store.expr)}, {inside})"
        terms = []
        for value in sweep.sums:
            start = REDUCTIONS[algebra.name_of(value.expr)][0]
            terms.append(f"triton_inside({self.writer.text(value.expr.args[0])}, {inside}, {start})")
        if terms:
            yield f"{INDENT}return {', '.join(terms)}"

    def values(self, values: Iterable[Value]) -> Iterator[str]:
        """Yield assignments of values, with the lines of the rule they come from."""
        line = 0
        for value in values:
            if value.line not in (0, line):
                line = value.line
                yield INDENT + remark(self.program.notes[line])
            yield f"{INDENT}{value.symbol} = {self.writer.typed(value.expr)}"
            if value.symbol in self.rounded:  # later formulas see the stored value
                stored, real = self.rounded[value.symbol], self.names["real"]
                yield f"{INDENT}{value.symbol} = {value.symbol}.to({stored}.dtype.element_ty).to({real})"

    def _read(self, sweep: Sweep) -> set[sp.Symbol]:
        """Return the symbols that a sweep's formulas depend on."""
        return self.needed([*(v.expr for v in sweep.sums), *(s.expr for s in sweep.stores)])

    def _coded(self, sweep: Sweep) -> tuple[list[ValueName], list[ValueName]]:
        """Return the quantised tensors that a sweep reads, and those it writes."""
        needed, formats = self._read(sweep), self.codes.formats
        read = [name for symbol, name in self.inputs.items() if symbol in needed and name in formats]
        return read, [store.target for store in sweep.stores if store.target in formats]

    def _arguments(self, sweep: Sweep) -> list[str]:
        """Return the names of the tensors and numbers that a sweep's block reads or writes."""
        needed = self._read(sweep)
        mine = [v for v in self.program.tensor if v.symbol in needed and v.kind == ELEMENT]
        stored = {self.stored[s.target] for s in sweep.stores}
        stored |= {self.stored[n] for s, n in self.inputs.items() if s in needed and n in self.stored}
        stored |= {self.rounded[v.symbol] for v in mine if v.symbol in self.rounded}
        direct = {x for v in (*mine, *sweep.sums) for x in v.expr.free_symbols}
        direct |= {x for s in sweep.stores for x in s.expr.free_symbols}
        numbers = [*self.program.coefficients(), *self._scalar_symbols()]
        tensors = [pointer for name, pointer in self.stored.items() if pointer in stored and name not in self.scalars]
        return [*tensors, *self.codes.arguments(*self._coded(sweep)), *(str(s) for s in numbers if s in direct)]

    def _scalar_symbols(self) -> list[sp.Symbol]:
        """Return the symbols of per-tensor numbers: states, reductions and values computed from them."""
        inputs = [symbol for symbol, name in self.inputs.items() if name in self.scalars]
        return [*inputs, *(v.symbol for v in self.program.tensor if v.kind != ELEMENT)]

    # Kernels ------------------------------------------------------------------------------------------------

    def sweep(self, sweep: Sweep, element: str, name: str) -> Iterator[str]:
        """Yield the lines of a sweep's kernel, which processes one chunk of one tensor."""
        n = self.names
        needed = self._read(sweep)
        yield from self._head(name)
        yield f'{INDENT}"""{"Update" if sweep.stores else "Reduce"} one chunk of one of the tensors; ' + (
            f'{n["coefficients"]} holds what host returned."""'
        )
        yield from self._coefficients(needed)
        yield f"{INDENT}{n['place']} = {n['places']} + 2*tl.program_id(0).to(tl.int64)"
        yield f"{INDENT}{n['tensor']} = tl.load({n['place']}).to(tl.int64)"
        yield f"{INDENT}{n['first']} = tl.load({n['place']} + 1).to(tl.int64)*chunk"
        yield from self._row()
        yield from self.codes.sizes()
        yield (
            f"{INDENT}{n['whole']} = tl.load({n['gradients']} + 2*{n['tensor']})"
            "  # elements in whole blocks of aligned tensors"
        )
        arguments, stored = self._arguments(sweep), {*self.stored.values(), *self.codes.paired}
        yield from self._pointers({*arguments, *self._scalar_pointers(needed)})
        yield from self._numbers(needed, {v.symbol for v in self.sums})
        for value in sweep.sums:
            start = REDUCTIONS[algebra.name_of(value.expr)][0]
            yield f"{INDENT}{self.accumulators[value.symbol]} = tl.full((block,), {start}, tl.float64)"
        first, start_, at = n["first"], n["start"], n["at"]
        yield f"{INDENT}for {start_} in range({first}, tl.minimum({first} + chunk, {self.codes.extent}), block):"
        together = f"{INDENT}{at} = tl.multiple_of({start_}, block) + tl.arange(0, block)"
        if not self.codes.unit:
            yield INDENT + together
        aligned = [f"tl.multiple_of({a}, 16)" if a in stored else a for a in arguments]
        results = ", ".join(self.terms[v.symbol] for v in sweep.sums)
        call = f"{results} = {element}" if results else element
        options, inside = [self._real(), *(["block"] if self.codes.formats else [])], f"{at} < {n['size']}"
        yield f"{INDENT * 2}if {start_} < {n['whole']}:"
        if self.codes.unit:
            yield INDENT * 2 + together
        yield from call_lines(call, [*aligned, at, "None", *options], INDENT * 3)
        yield f"{INDENT * 2}else:"
        if self.codes.unit:
            inside = n["inside"]
            known = f"{start_}, {n['columns']}, {n['size']}, {self.codes.unit}, block"
            yield f"{INDENT * 3}{at}, {inside} = triton_elements({known})"
        yield from call_lines(call, [*arguments, at, inside, *options], INDENT * 3)
        for value in sweep.sums:
            all_, joined = self.accumulators[value.symbol], REDUCTIONS[algebra.name_of(value.expr)][1]
            yield f"{INDENT * 2}{all_} = {joined.format(all_, self.terms[value.symbol])}"
        for value in sweep.sums:
            at_ = f"{n['partials']} + {len(self.sums)}*tl.program_id(0).to(tl.int64) + {self.sums.index(value)}"
            yield f"{INDENT}tl.store({at_}, {self._reduced(value)})"

    def finish(self, name: str, sums: Sequence[Value], stores: Sequence[Store]) -> Iterator[str]:
        """Yield the lines of a per-tensor kernel, which finishes reductions and stores per-tensor numbers."""
        n = self.names
        tensor, at, last = n["tensor"], n["at"], n["end"]
        needed = self.needed(s.expr for s in stores)
        yield from self._head(name)
        yield f'{INDENT}"""Finish one of the tensors, from its parts of reductions."""'
        yield from self._coefficients(needed)
        yield f"{INDENT}{tensor} = tl.program_id(0).to(tl.int64)"
        yield from self._row()
        if sums:
            yield f"{INDENT}{n['first']} = tl.load({n['row']} + 1)"
            yield from self.codes.sizes()
            yield f"{INDENT}{last} = {n['first']} + ({self.codes.extent} + chunk - 1)//chunk"
            for value in sums:
                start = REDUCTIONS[algebra.name_of(value.expr)][0]
                yield f"{INDENT}{self.accumulators[value.symbol]} = tl.full((block,), {start}, tl.float64)"
            yield f"{INDENT}for {n['start']} in range({n['first']}, {last}, block):"
            yield f"{INDENT * 2}{at} = {n['start']} + tl.arange(0, block)"
        for value in sums:
            start, joined = REDUCTIONS[algebra.name_of(value.expr)]
            part = f"{n['partials']} + {len(self.sums)}*{at} + {self.sums.index(value)}"
            all_ = self.accumulators[value.symbol]
            yield f"{INDENT * 2}{all_} = {joined.format(all_, f'tl.load({part}, {at} < {last}, {start})')}"
        for value in sums:
            reduced = self._reduced(value)
            reduced = f"({reduced}/{n['size']})" if algebra.name_of(value.expr) == "mean" else reduced
            yield f"{INDENT}{value.symbol} = {reduced}.to({self._real()})"
            yield f"{INDENT}tl.store({self._place_of(value)}, {value.symbol})"
        yield from self._pointers({*self._scalar_pointers(needed), *(self.stored[s.target] for s in stores)})
        yield from self._numbers(needed, {v.symbol for v in self.sums} - {v.symbol for v in sums})
        for store in stores:
            yield f"{INDENT}tl.store({self.stored[store.target]}, {self.writer.text(store.expr)})"

    # Parts of kernels ---------------------------------------------------------------------------------------

    def _head(self, name: str) -> Iterator[str]:
        """Yield the head of a kernel; all kernels have the same parameters."""
        tables = [self.names[n] for n in ("places", "rows", "gradients", "coefficients")]
        tables += [self.names[n] for n in ("partials", "sums")] if self.sums else []
        tables += [self.names["draw"]] if self.codes.drawing else []
        types = [f"type_{i}" for i, _ in enumerate(self.stored)] + self.codes.types()  # passed by keyword
        options = [f"{option}: tl.constexpr" for option in (*types, "chunk", "block")]
        yield "@triton.jit"
        yield from call_lines(f"def {name}", [*tables, *options], "", ":")

    def _coefficients(self, needed: set[sp.Symbol]) -> Iterator[str]:
        for i, number in enumerate(self.program.coefficients()):
            if number in needed:
                yield f"{INDENT}{number} = tl.load({self.names['coefficients']} + {i})"

    def _row(self) -> Iterator[str]:
        row, size = self.names["row"], self.names["size"]
        yield f"{INDENT}{row} = {self.names['rows']} + {self.codes.fixed + 2 + self.codes.width}*{self.names['tensor']}"
        yield f"{INDENT}{size} = tl.load({row})"

    def _scalar_pointers(self, needed: set[sp.Symbol]) -> set[str]:
        """Return the pointers of per-tensor numbers that symbols are read from, or rounded to the dtype of."""
        found = {pointer for symbol, pointer in self.rounded.items() if symbol in needed}
        found |= {self.stored[name] for symbol, name in self.inputs.items() if symbol in needed and name in self.stored}
        return found & set(self.scalars.values())

    def _pointers(self, wanted: set[str]) -> Iterator[str]:
        """Yield the lines that define the wanted pointers."""
        fixed = [name for name in self.stored if name != "g"]
        for i, (name, pointer) in enumerate(self.stored.items()):
            gradient = f"{self.names['gradients']} + 2*{self.names['tensor']} + 1"
            address = gradient if name == "g" else f"{self.names['row']} + {fixed.index(name) + 2}"
            if pointer in wanted:
                yield f"{INDENT}{pointer} = tl.load({address}).to(tl.pointer_type(type_{i}))"
        yield from self.codes.pointers(wanted)

    def _numbers(self, needed: set[sp.Symbol], finished: set[sp.Symbol]) -> Iterator[str]:
        """Yield the per-tensor numbers needed; reductions in ``finished`` are loaded from memory."""
        real = self._real()
        for symbol, name in self.inputs.items():
            if symbol in needed and name in self.scalars:
                yield f"{INDENT}{symbol} = tl.load({self.scalars[name]}).to({real})"
        for value in self.sums:
            if value.symbol in needed and value.symbol in finished:
                yield f"{INDENT}{value.symbol} = tl.load({self._place_of(value)})"
        formulas = [v for v in self.program.tensor if v.kind != ELEMENT and not v.reduces and v.symbol in needed]
        if formulas:
            yield f"{INDENT}{self.names['real']}: tl.constexpr = {real}"
            yield from self.values(formulas)

    def _reduced(self, value: Value) -> str:
        """Return the reduction of a block of partial results."""
        all_, name = self.accumulators[value.symbol], algebra.name_of(value.expr)
        return f"tl.reduce({all_}, 0, triton_{name})" if name in ("max", "min") else f"tl.sum({all_})"

    def _place_of(self, value: Value) -> str:
        """Return the location of a reduction's result."""
        return f"{self.names['sums']} + {len(self.sums)}*{self.names['tensor']} + {self.sums.index(value)}"

    def _real(self) -> str:
        return f"{self.names['coefficients']}.dtype.element_ty"
