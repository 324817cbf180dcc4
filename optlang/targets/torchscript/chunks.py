"""Elementwise kernels as TorchScript: sweeps over chunks of tensors that stay in a core's cache.

Each torch operation is a pass over memory. So a chunk goes through all operations of a step before the next chunk does,
and results are written to memory that the operations of a chunk share, or to their final destination.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import sympy as sp

from optlang.artifact import Kernel, Storage
from optlang.codegen.memory import INDENT, Memory
from optlang.codegen.python_source import host_flags
from optlang.codegen.spelling import ATOM, Piece, TorchWriter, decimal, fraction, summands
from optlang.codegen.sweeps import Sweep, needed, sweeps
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Store, Value
from optlang.kinds import ELEMENT, Kind, Level, join
from optlang.syntax.quoting import docstring, remark

#: torch functions with an ``out`` argument: all functions that a single-call spelling uses.
CALL = re.compile(r"torch\.(?!where\(|isfinite\()\w+\(.*\)")
NUMBER = re.compile(r"\(?-?(\d[\d.e+-]*|math\.inf)\)?")
#: The initial value of partial reductions, and the final operation.
EXTREMES = {"max": "-math.inf", "min": "math.inf"}


class ChunkWriter(TorchWriter):
    """Generates operations on chunks, one per line, and other expressions inline.

    Args:
        memory: The tensors.

    Attributes:
        lines: The operations so far.
        constants: Names of 0-d tensors, by their values.
        asked: Names of conditions that are the same for all elements, by their source.
        buffers: Names of the memory that the operations of a chunk share.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__(f"{memory.numbers}.dtype", host_flags(memory.program), frozenset())
        self.memory = memory
        self.lines: list[str] = []
        self.constants: dict[str, str] = {}
        self.asked: dict[str, str] = {}
        self.buffers: list[str] = []
        self.free: list[str] = []  # unused buffers
        self.open: list[str] = []  # buffers that the next operation will read, and names of other tensors
        self.fresh = 0  # the number of other tensors with a name
        self.inside = False  # whether the generated code is inside a chunk
        self.at_once = False  # whether the chunk is the whole tensor
        self.parts: dict[str, str] = {}  # inside a chunk, replacements of tensors that are not per element
        self.last = ""  # the call in the last line, if its result may be redirected

    def is_large(self, expr: sp.Expr) -> bool:
        """Return whether an expression is per element of a chunk."""
        return self.inside and self.kind(expr) == ELEMENT

    def kind(self, *exprs: sp.Expr) -> Kind:
        """Return the kind of an operation's result, given its arguments."""
        return join(self.memory.kinds[s] for expr in exprs for s in expr.free_symbols)

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name."""
        text, binds = super().symbol(expr)
        if self.inside and not self.at_once and self.memory.kinds[expr].level is Level.REDUCED:
            text = self.parts.setdefault(text, self.memory.name(f"{text}_part"))
        return text, binds

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression; one that is per element is computed now, and the name of the result returned."""
        if not self.is_large(expr) or expr.is_Symbol:
            return super().piece(expr)
        mark = len(self.open)
        text, binds = super().piece(expr)
        if text in self.open[mark:]:  # it has been computed
            return text, binds
        return self.done(text, mark), ATOM

    def done(self, call: str, mark: int) -> str:
        """Generate an operation on the values computed since a mark, and return the name of its result."""
        given = self.open[mark:]
        del self.open[mark:]
        self.free += [name for name in given if name in self.buffers]
        if CALL.fullmatch(call):
            result = self.free.pop() if self.free else self.buffer()
            self.last = call
            self.lines.append(f"{call[:-1]}, out={result})")
        else:
            self.fresh += 1
            result = self.memory.name(f"_t{self.fresh}")
            self.last = ""
            self.lines.append(f"{result} = {call}")
        self.open.append(result)
        return result

    def buffer(self) -> str:
        """Return the name of an additional buffer."""
        self.buffers.append(self.memory.name(f"_b{len(self.buffers)}"))
        return self.buffers[-1]

    def binary(self, operation: str, a: Piece, b: Piece, kind: Kind, mark: int) -> Piece:
        """Return the result of a binary operation, which has the given kind."""
        texts = [self.wrapped(a), self.wrapped(b)]
        if kind != ELEMENT or not self.inside:
            sign = {"add": " + ", "sub": " - ", "mul": "*", "div": "/"}[operation]
            return f"({texts[0]}{sign}{texts[1]})", ATOM
        if operation == "div" and NUMBER.fullmatch(texts[0]):  # as torch itself does
            text = self.done(f"torch.reciprocal({texts[1]})", mark)
            return (text if texts[0] == "1" else self.done(f"torch.mul({text}, {self.tensor(texts[0])})", mark)), ATOM
        tensors = ", ".join(self.tensor(text) for text in texts)
        return self.done(f"torch.{operation}({tensors})", mark), ATOM

    @staticmethod
    def wrapped(piece: Piece) -> str:
        """Return an expression that binds as tightly as a name."""
        return piece[0] if piece[1] == ATOM else f"({piece[0]})"

    def tensor(self, text: str) -> str:
        """Return a name for a number as a tensor: operations on tensors alone are faster."""
        if NUMBER.fullmatch(text):
            return self.constants.setdefault(text.strip("()"), f"_k{len(self.constants)}")
        return text

    # Elementwise expressions --------------------------------------------------------------------------------

    def sum(self, expr: sp.Expr) -> Piece:
        """Return a sum, with the subtracted terms last."""
        if not self.is_large(expr):
            return super().sum(expr)
        mark = len(self.open)
        (_, done), *others = summands(expr)
        result = self.piece(done)
        for subtracted, term in others:
            done += -term if subtracted else term
            other = self.piece(term)
            result = self.binary("sub" if subtracted else "add", result, other, self.kind(done), mark)
        return result

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product as a fraction."""
        if not self.is_large(expr):
            return super().product(expr)
        mark = len(self.open)
        negative, above, below = fraction(expr)
        result = self.multiplied(above, mark)
        if negative:
            is_large = bool(above) and self.is_large(sp.Tuple(*above))
            result = (self.done(f"torch.neg({result[0]})", mark) if is_large else f"-{self.wrapped(result)}", ATOM)
        if below:
            inner = len(self.open)
            divisor = self.multiplied(below, inner)
            result = self.binary("div", result, divisor, ELEMENT, mark)
        return result

    def multiplied(self, factors: Sequence[sp.Expr], mark: int) -> Piece:
        """Return the product of some factors."""
        if not factors:
            return "1", ATOM
        result = self.piece(factors[0])
        for i, factor in enumerate(factors[1:], 2):
            other = self.piece(factor)
            result = self.binary("mul", result, other, self.kind(*factors[:i]), mark)
        return result

    def power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power."""
        if self.is_large(base) and exponent.is_number and exponent.is_negative:
            mark = len(self.open)
            return self.binary("div", ("1", ATOM), self.piece(sp.Pow(base, -exponent)), ELEMENT, mark)
        return super().power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power that is neither a root nor a reciprocal."""
        if not self.is_large(base):
            return super().general_power(base, exponent)
        text = self.text(base)
        if exponent == 2:
            return f"torch.mul({text}, {text})" if base.is_Symbol else f"torch.square({text})", ATOM
        power = decimal(exponent) if exponent.is_Rational else self.text(exponent)
        return f"torch.pow({text}, {power})", ATOM

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function call on tensors."""
        if name in ("f32", "bf16") and self.is_large(args[0]):  # a conversion may return its argument
            return f"{super().named(name, args)[0]}.clone()", ATOM
        if name != "sign" or not self.is_large(args[0]):
            return super().named(name, args)
        x, mark = self.text(args[0]), len(self.open)
        nan = self.done(f"torch.clamp({x}, max=-2)", mark)  # below any sign, except that NaN stays NaN
        return f"torch.maximum({self.done(f'torch.sign({x})', mark + 1)}, {nan})", ATOM

    def extreme(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a maximum or minimum, one argument at a time."""
        if not self.is_large(sp.Tuple(*args)):
            return super().extreme(name, args)
        mark = len(self.open)
        numbers = [a for a in args if self.is_plain(a)]
        first, *others = (a for a in args if not self.is_plain(a))
        done, text = [first], self.text(first)
        for other in others:
            done.append(other)
            call = f"torch.{name}imum({text}, {self.text(other)})"
            text = self.done(call, mark) if self.kind(*done) == ELEMENT else call
        for other in numbers:
            text = self.done(f"torch.clamp({text}, {'min' if name == 'max' else 'max'}={self.text(other)})", mark)
        return text, ATOM


class Update:
    """Generates ``update`` of an elementwise kernel.

    Args:
        kernel: The kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory = Memory(kernel.program, kernel.tensors, True, None)
        self.memory.taken |= {"_i", "_n", "_size", "_x", "_b"}
        self.program, self.kinds = self.memory.program, self.memory.kinds
        self.writer = ChunkWriter(self.memory)
        self.inputs = {i.symbol: self.memory.stored[i.name] for i in self.program.inputs if i.kind.on_device}
        large = {n for n in kernel.tensors if n in ("p", "g") or kernel.storage.get(n) is Storage.ELEMENT}
        self.large = [self.memory.stored[n] for n in kernel.tensors if n in large]
        self.whole = {name: self.memory.name(f"{name}_whole") for name in self.large}
        self.stores = [s for s in self.memory.stores if s.target in large]
        self.known = {s for s, kind in self.kinds.items() if not kind.on_device}
        self.known |= {s for s in self.inputs if self.kinds[s] != ELEMENT}

    def lines(self) -> list[str]:
        """Return the lines of the function."""
        body = list(self.values())
        taken = [self.whole.get(name, name) for name in self.memory.stored.values()]
        numbers = [str(s) for s in self.program.coefficients()]
        begin = [f"{name} = _x[{i}]" for i, name in enumerate(taken) if mentioned(name, body)]
        if len(numbers) > 1:
            begin.append(f"{', '.join(numbers)} = {self.memory.numbers}.unbind()")
        elif numbers:
            begin.append(f"{numbers[0]} = {self.memory.numbers}[0]")
        if body and any("_size" in line for line in body):
            begin.append(f"_size = _rows({self.whole[self.large[0]]})")
        if self.writer.buffers:
            count = len(self.writer.buffers)
            begin.append(f"_b = _memory({self.whole[self.large[0]]}, _size, {self.writer.dtype}, {count})")
        like = f"dtype={self.writer.dtype}, device={self.memory.numbers}.device"
        begin += [f"{name} = torch.full([], {text}, {like})" for text, name in self.writer.constants.items()]
        begin += [f"{name} = bool({text})" for text, name in self.writer.asked.items()]
        return [
            f"def NAME(_x: List[Tensor], {self.memory.numbers}: Tensor) -> None:",
            INDENT + docstring("One step of a tensor, in place."),
            f"{INDENT}_x = _lifted(_x)",
            *(INDENT + line for line in begin),
            *(INDENT + line for line in body),
        ]

    def values(self) -> Iterator[str]:
        """Yield the statements."""
        for symbol, stored in self.inputs.items():
            if self.kinds[symbol] != ELEMENT:
                yield f"{symbol} = {stored}.to({self.writer.dtype})"
        if any(map(self.is_sum, self.program.tensor)):
            yield from self.at_once()
        found = [Sweep(tuple(filter(self.is_sum, s.sums)), s.stores) for s in sweeps(self.program, self.stores)]
        for sweep in found:
            if sweep.sums or sweep.stores:
                yield from self.small()
                yield from self.sweep(sweep)
        yield from self.small()
        yield from self.small_stores()

    def is_sum(self, value: Value) -> bool:
        """Return whether a value is a reduction over elements."""
        return value.reduces and join(self.kinds[s] for s in value.expr.args[0].free_symbols) == ELEMENT

    def small(self) -> Iterator[str]:
        """Yield the values that are not per element and can be computed at this point."""
        for value in self.program.tensor:
            if value.kind == ELEMENT or value.symbol in self.known or self.is_sum(value):
                continue
            if value.expr.free_symbols <= self.known:
                self.known.add(value.symbol)
                yield f"{value.symbol} = {self.memory.spread(value, self.writer.text(value.expr))}"

    def small_stores(self) -> Iterator[str]:
        """Yield the stores of values that are not per element."""
        memory, kept = self.memory, self.memory.stores
        memory.stores = [s for s in kept if s not in self.stores]
        yield from (line.strip() for line in memory.written(self.writer))
        memory.stores = kept

    def at_once(self) -> Iterator[str]:
        """Yield the code for a tensor that is a single chunk: nothing is computed twice."""
        writer, whole = self.writer, self.whole[self.large[0]]
        writer.inside = writer.at_once = True
        SweptChunk(self, Sweep((), tuple(self.stores)), self.program.tensor).write()
        writer.lines += self.small_stores()
        writer.inside = writer.at_once = False
        yield f"if {whole}.size(0) == _size:"
        yield from (f"{INDENT}{name} = {self.whole[name]}" for name in self.large if mentioned(name, writer.lines))
        yield from (f"{INDENT}{b} = _b[{i}]" for i, b in enumerate(writer.buffers) if mentioned(b, writer.lines))
        yield from (INDENT + line for line in (*writer.lines, "return"))

    # One sweep ----------------------------------------------------------------------------------------------

    def sweep(self, sweep: Sweep) -> Iterator[str]:
        """Yield the statements of a sweep."""
        writer, whole = self.writer, self.whole[self.large[0]]
        for value in sweep.sums:
            yield from self.begun(value)
        writer.lines, writer.free, writer.parts, writer.inside = [], list(writer.buffers), {}, True
        wanted = [*(v.expr for v in sweep.sums), *(s.expr for s in sweep.stores)]
        read = needed(self.program, wanted)
        values = [
            v
            for v in self.program.tensor
            if v in sweep.sums or (v.symbol in read and v.kind == ELEMENT and not v.reduces)
        ]
        SweptChunk(self, sweep, values).write()
        writer.inside = False
        yield f"for _i in range(0, {whole}.size(0), _size):"
        yield f"{INDENT}_n = min(_size, {whole}.size(0) - _i)"
        for i, buffer in enumerate(writer.buffers):
            if mentioned(buffer, writer.lines):
                yield f"{INDENT}{buffer} = _part(_b[{i}], 0, _n)"
        yield from (f"{INDENT}{part} = _part({name}, _i, _n)" for name, part in writer.parts.items())
        for name in self.large:
            if mentioned(name, writer.lines):
                yield f"{INDENT}{name} = _part({self.whole[name]}, _i, _n)"
        yield from (INDENT + line for line in writer.lines)
        for value in sweep.sums:
            self.known.add(value.symbol)
            yield self.ended(value)

    def begun(self, value: Value) -> Iterator[str]:
        """Yield the statement that allocates a reduction."""
        whole, name = self.whole[self.large[0]], algebra.name_of(value.expr)
        dims = [int(d) for d in value.expr.args[1:]]
        shape = f"_reduced({whole}, {dims})" if dims else "[]"
        dtype = self.writer.dtype if name in EXTREMES else "torch.float64"
        if not dims and name not in EXTREMES:
            yield f"{value.symbol} = {self.memory.numbers}  # until there is a sum"
            return
        made = f"torch.full({shape}, {EXTREMES[name]}, " if name in EXTREMES else f"torch.zeros({shape}, "
        yield f"{value.symbol} = {made}dtype={dtype}, device={whole}.device)"

    def ended(self, value: Value) -> str:
        """Return the statement that combines the chunks' parts of a reduction."""
        whole, name, x = self.whole[self.large[0]], algebra.name_of(value.expr), value.symbol
        if name == "mean":
            return f"{x} = ({x} / ({whole}.numel() // {x}.numel())).to({self.writer.dtype})"
        return f"{x} = {x}.to({self.writer.dtype})"


class SweptChunk:
    """Generates the code for one chunk.

    Args:
        update: The generator of the function.
        sweep: The reductions and stores.
        values: The values to compute.
    """

    def __init__(self, update: Update, sweep: Sweep, values: Sequence[Value]) -> None:
        self.update, self.writer, self.memory, self.sweep = update, update.writer, update.memory, sweep
        self.values = values
        self.held: dict[sp.Symbol, str] = {}  # buffers of values
        self.stored: set[ValueName] = set()
        self.rounded = update.memory.rounded()

    def write(self) -> None:
        """Generate the operations."""
        line = 0
        self.read_inputs()
        for place, value in enumerate(self.values):
            if value.line not in (0, line):
                line = value.line
                self.writer.lines.append(remark(self.update.program.notes[line]))
            if self.update.is_sum(value):
                self.reduce(value)
            elif value.kind != ELEMENT:
                text = self.memory.spread(value, self.writer.text(value.expr))
                self.writer.lines.append(f"{value.symbol} = {text}")
            else:
                self.compute(value, place)
            self.let_go(place)
        self.store()

    def read_inputs(self) -> None:
        """Generate the lines that widen the inputs."""
        read = {s for v in self.values for s in v.expr.free_symbols} | {
            s for store in self.sweep.stores for s in store.expr.free_symbols
        }
        for symbol, stored in self.update.inputs.items():
            if symbol in read and stored in self.update.large:
                self.writer.lines.append(f"{symbol} = {stored}.to({self.writer.dtype})")

    def reduce(self, value: Value) -> None:
        """Generate a reduction over a chunk."""
        mark = len(self.writer.open)
        name, (inner, *dims) = algebra.name_of(value.expr), value.expr.args
        if self.writer.at_once:
            text, _ = self.writer.reduction(value.expr)
            self.writer.lines.append(f"{value.symbol} = {text}")
            self.let_go_of(mark)
            return
        text = self.writer.text(inner, ATOM)
        options = [f"dim=[{', '.join(map(str, dims))}]", "keepdim=True"] if dims else []
        if name in EXTREMES:
            part = f"{text}.a{name}({', '.join(options)})"
            self.writer.lines.append(f"_extend({value.symbol}, {part}, _i, {name == 'max'})")
        else:
            part = f"{text}.sum({', '.join([*options, 'dtype=torch.float64'])})"
            add = "_add" if dims else f"{value.symbol} = _sum"
            self.writer.lines.append(f"{add}({value.symbol}, {part}, _i)")
        self.let_go_of(mark)

    def let_go_of(self, mark: int) -> None:
        """Release the buffers of values computed since a mark."""
        self.writer.free += [b for b in self.writer.open[mark:] if b in self.writer.buffers]
        del self.writer.open[mark:]

    def compute(self, value: Value, place: int) -> None:
        """Generate a value, directly in its destination if that is free."""
        writer, symbol = self.writer, value.symbol
        stores = [s for s in self.sweep.stores if s.expr == symbol]
        mark = len(writer.open)
        condition, then, expr = self.chosen(value.expr)
        text = writer.text(expr)
        computed = text in writer.open[mark:]
        del writer.open[mark:]
        if not computed:
            text = self.memory.spread(value, text) if not value.expr.is_Symbol else f"{text}.clone()"
            writer.lines.append(f"{symbol} = {text}")
        elif writer.last and (store := next((s for s in stores if self.is_free(s, place, then)), None)):
            target = self.memory.stored[store.target]
            if text in writer.buffers:
                writer.free.append(text)
            writer.lines[-1] = f"{writer.last[:-1]}, out={target})"
            self.stored.add(store.target)
            writer.lines += [f"if {condition}:", f"{INDENT}{target}.copy_({then})"] if condition else []
            if any(symbol in v.expr.free_symbols for v in self.values[place + 1 :]) or len(stores) > 1:
                writer.lines.append(f"{symbol} = {target}.to({writer.dtype})")
            return
        else:
            writer.lines.append(f"{symbol} = {text}")
            writer.lines += [f"if {condition}:", f"{INDENT}{symbol}.copy_({then})"] if condition else []
            if text in writer.buffers:
                self.held[symbol] = text
        if symbol in self.rounded and any(symbol in v.expr.free_symbols for v in self.values[place + 1 :]):
            kept = self.rounded[symbol]
            writer.lines.append(f"{symbol} = {symbol}.to({kept}.dtype).to({writer.dtype})")

    def chosen(self, expr: sp.Expr) -> tuple[str, sp.Symbol | None, sp.Expr]:
        """Split a choice into its condition, which all elements share, the replacement, and the computed value.

        If an expression is not such a choice, the condition is empty, and the replacement is None.
        """
        if algebra.name_of(expr) == "select":
            condition, then, other = expr.args
            alike = not any(self.update.kinds[s].on_device for s in condition.free_symbols)
            computed = other.is_Add or other.is_Mul  # in memory that may be written
            if alike and then.is_Symbol and computed and all(map(self.writer.is_large, (then, other))):
                asked = self.writer.text(condition)
                return self.writer.asked.setdefault(asked, f"_if{len(self.writer.asked)}"), then, other
        return "", None, expr

    def is_free(self, store: Store, place: int, then: sp.Symbol | None) -> bool:
        """Return whether memory is not read any more, so that a value may be stored there."""
        old = next((s for s, stored in self.update.inputs.items() if stored == self.memory.stored[store.target]), None)
        later = {s for v in self.values[place + 1 :] for s in v.expr.free_symbols}
        later |= {s for other in self.sweep.stores for s in other.expr.free_symbols}
        return old is None or old not in {*later, then}

    def let_go(self, place: int) -> None:
        """Release the buffers of values that are not read any more."""
        later = {s for v in self.values[place + 1 :] for s in v.expr.free_symbols}
        later |= {s for store in self.sweep.stores for s in store.expr.free_symbols}
        for symbol in [s for s in self.held if s not in later]:
            self.writer.free.append(self.held.pop(symbol))

    def store(self) -> None:
        """Generate the remaining stores."""
        memory, kept = self.memory, self.memory.stores
        memory.stores = [s for s in self.sweep.stores if s.target not in self.stored]
        self.writer.lines += [line.strip() for line in memory.written(self.writer)]
        memory.stores = kept


def element_update(kernel: Kernel) -> tuple[list[str], set[str]]:
    """Return ``update`` of an elementwise kernel, and the names of the helpers that it calls."""
    update = Update(kernel)
    return update.lines(), update.writer.helpers


def mentioned(name: str, lines: Iterable[str]) -> bool:
    """Return whether some lines mention a name."""
    return any(re.search(rf"\b{name}\b", line) for line in lines)
