"""Programs -> TorchScript: functions on numbers and on matrices, in the subset of Python that TorchScript supports.

TorchScript requires types, and has neither dicts of mixed tensors nor variadic functions; nor does it mix integers with
floats. Host values are passed as one list, in which each name has an index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp

from optlang.artifact import AnySlot, Kernel, Storage
from optlang.codegen.helpers import HELPERS, texts
from optlang.codegen.matrix_source import MatrixWriter
from optlang.codegen.matrix_stage import MatrixStage
from optlang.codegen.memory import INDENT
from optlang.codegen.python_source import PythonModule, Width
from optlang.codegen.spelling import ATOM, SIGN, HostWriter, Piece
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.lower import Lowered
from optlang.syntax.quoting import docstring
from optlang.targets._conditions import number

#: Helper functions of generated code that TorchScript needs in another form.
SCRIPTED = texts("torchscript")
#: Builtins whose TorchScript call differs: it does not unpack tuples in calls.
SPELLINGS = {"inv": "regular_inv_ex({0})", "cholesky": "regular_cholesky_ex({0})"}
#: Return types of functions that do not return numbers.
RESULTS = {"host": "Tuple[List[float], List[float]]", "start": "Tuple[List[Tensor], List[float]]", "path": "int"}


def ascii_text(text: str) -> str:
    """Return code for a parser without Unicode support."""
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in text)


def helper_texts(names: set[str]) -> list[str]:
    """Return the helper functions with some names, as TorchScript."""
    found = [SCRIPTED[name] for name in SCRIPTED if name in names]
    return found + [text for name, text in HELPERS.items() if name in names and name not in SCRIPTED]


class ScriptNumbers(HostWriter):
    """Generates floats, never integers; powers that raise in TorchScript become calls of a helper."""

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression and its precedence."""
        if expr.is_Rational:
            return number(algebra.to_float(expr)), SIGN if expr < 0 else ATOM
        return super().piece(expr)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power."""
        self.helpers.add("_power")
        return f"_power({self.text(base)}, {self.text(exponent)})", ATOM

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function call on floats."""
        if name == "pow":
            return self.general_power(*args)
        if name in ("max", "min"):
            self.helpers.add(f"host_{name}")
            text = self.text(args[-1])
            for argument in args[-2::-1]:
                text = f"host_{name}({self.text(argument)}, {text})"
            return text, ATOM
        return super().named(name, args)


class ScriptModule(PythonModule):
    """Generates the functions of a variant that take and return numbers, and those that initialize its states.

    Args:
        lowered: The programs of the variant.
        slots: The states that exist.
        places: The index of each name in the list of known values.
    """

    def __init__(self, lowered: Lowered | None, slots: Sequence[AnySlot], places: Mapping[ValueName, int]) -> None:
        super().__init__(lowered, slots, (), Width.ANY, ScriptNumbers)
        self.places = places

    def begun(self, name: str, said: str, tensors: Sequence[str], numbers: Mapping[ValueName, str]) -> list[str]:
        """Return the first lines of a function, which reads its numbers from the list."""
        taken = ", ".join([*(f"{tensor}: Tensor" for tensor in tensors), "_known: List[float]"])
        lines = [f"def NAME({taken}) -> {RESULTS.get(name, 'List[float]')}:", INDENT + docstring(said)]
        for value, text in numbers.items():
            lines.append(f"{INDENT}{text} = _known[{self.places[value]}]{' != 0.0' if value == 'first' else ''}")
        return lines

    def returned(self, *results: Sequence[str]) -> list[str]:
        """Return the lines that return one or several lists of numbers."""
        lines = [f"{INDENT}_result_{i}: List[float] = [{', '.join(texts)}]" for i, texts in enumerate(results)]
        return [*lines, f"{INDENT}return {', '.join(f'_result_{i}' for i in range(len(results)))}"]

    def chosen(self, path: int) -> str:
        """Return the statement that returns the path of a step."""
        return f"return {path}"

    def returned_states(self, initial: Mapping[ValueName, str]) -> list[str]:
        """Return the lines that return the initial values of states: tensors, and numbers."""
        hosted = {s.name for s in self.slots if s.storage is Storage.HOST}
        tensors = ", ".join(text for name, text in initial.items() if name not in hosted)
        numbers = ", ".join(text for name, text in initial.items() if name in hosted)
        return [
            f"{INDENT}_tensors: List[Tensor] = [{tensors}]",
            f"{INDENT}_numbers: List[float] = [{numbers}]",
            f"{INDENT}return _tensors, _numbers",
        ]


class ScriptMatrices(MatrixWriter):
    """Generates operations on stacks of tensors."""

    def spelling(self, name: str) -> str:
        """Return the function that a builtin calls."""
        if name not in SPELLINGS:
            return super().spelling(name)
        self.helpers.add(SPELLINGS[name].partition("(")[0])
        return SPELLINGS[name]

    def operation(self, expr: sp.Expr) -> str:
        """Return an operation on matrices."""
        if algebra.name_of(expr) == "shaped" and self.whole:
            x = self.text(expr.args[0])
            return f"{x}.reshape([{x}.size(0)] + {self.whole}.shape[1:])"
        return super().operation(expr)


class ScriptStage(MatrixStage):
    """Generates ``update`` of a stage over matrices."""

    writes = ScriptMatrices

    def last_reads(self, added: Mapping[sp.Symbol, tuple[sp.Symbol, str]]) -> dict[sp.Symbol, list[sp.Symbol]]:
        """Return no values to release: the interpreter does so itself."""
        return {}


def matrix_update(kernel: Kernel) -> tuple[list[str], set[str]]:
    """Return ``update`` of a kernel over matrices, and the names of the helpers that it calls."""
    stage = ScriptStage(kernel.program, kernel.tensors, kernel.ndim)
    numbers = (f"{symbol}: float" for symbol in stage.program.coefficients())
    lines = [f"def NAME({', '.join([*(f'{t}: Tensor' for t in stage.tensors), *numbers])}) -> List[Tensor]:"]
    lines += [INDENT + docstring("What one step makes of a tensor; each has a dimension more, in front.")]
    lines += stage.values()
    results = ", ".join(stage.result(store.expr) for store in stage.program.stores)
    return [*lines, f"{INDENT}return [{results}]"], stage.writer.helpers
