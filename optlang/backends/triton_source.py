"""The step of an elementwise variant -> a Triton kernel that updates the tensors of many parameters in one launch.

The generated module imports ``triton`` and holds ``update``. Each of its program instances updates one chunk of one
tensor: ``places`` says which, ``rows`` (sizes, addresses of the parameter and its states) and ``gradients`` (their
addresses, which may change from step to step) say where that tensor lies. What is a whole block of an aligned tensor
is read and written in vectors; the rest goes through a mask, element by element.

Storage types are parameters of the kernel. Arithmetic is done in the type of the coefficients, and what is stored is
rounded where the narrow form of :mod:`optlang.backends.python_source` rounds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap

import sympy as sp

from optlang.backends.memory import INDENT, Memory
from optlang.backends.spelling import ATOM, SIGN, SUM, Piece, Writer
from optlang.ir.program import Program
from optlang.language.builtins import BUILTINS

#: Functions of the generated module. Triton's own division and root of float32 are approximate, so both are asked for
#: as IEEE 754 has them; its maximum drops NaN unless told otherwise.
HELPERS: dict[str, str] = {
    "triton_divide": (
        "def triton_divide(a, b):\n"
        "    if (a + b).dtype == tl.float32:\n"
        "        return tl.div_rn(a, b)\n"
        "    else:\n"
        "        return a / b\n"
    ),
    "triton_sqrt": (
        "def triton_sqrt(x):\n"
        "    if x.dtype == tl.float32:\n"
        "        return tl.sqrt_rn(x)\n"
        "    else:\n"
        "        return tl.sqrt(x)\n"
    ),
    "triton_power": (
        "def triton_power(x, n: tl.constexpr):\n"
        "    result = x\n"
        "    for _ in tl.static_range(n - 1):\n"
        "        result *= x\n"
        "    return result\n"
    ),
    "triton_pow": (
        "def triton_pow(x, y):\n    none = tl.zeros_like(x + y)\n    return libdevice.pow(x + none, y + none)\n"
    ),
    "triton_mod": (
        "def triton_mod(x, y):\n"
        "    rest = libdevice.fmod(x, y + tl.zeros_like(x))\n"
        "    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)\n"
    ),
    "triton_max": "def triton_max(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_min": "def triton_min(a, b):\n    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_sign": ("def triton_sign(x):\n    return tl.where(x == x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype), x)\n"),
    "triton_isfinite": 'def triton_isfinite(x):\n    return tl.abs(x) < float("inf")\n',
    "triton_nan_to_num": (
        "def triton_nan_to_num(x):\n"
        "    if x.dtype == tl.float32:\n"
        "        big: tl.constexpr = 3.4028234663852886e38\n"
        "    else:\n"
        "        big: tl.constexpr = 1.7976931348623157e308\n"
        "    return tl.where(x != x, 0.0, tl.minimum(tl.maximum(x, -big), big))\n"
    ),
}
#: What Triton spells otherwise than ``libdevice.NAME``.
SPELLINGS = {
    "abs": "tl.abs({0})",
    "sqrt": "triton_sqrt({0})",
    "floor": "tl.floor({0})",
    "round": "libdevice.rint({0})",
    "sigmoid": "triton_divide(1.0, 1.0 + libdevice.exp(-({0})))",
    "sign": "triton_sign({0})",
    "isfinite": "triton_isfinite({0})",
    "nan_to_num": "triton_nan_to_num({0})",
    "pow": "triton_pow({0}, {1})",
    "mod": "triton_mod({0}, {1})",
}
#: What else the module gives a name to.
OWN = frozenset({"triton", "tl", "libdevice", "element", "update", "chunk", "block", *HELPERS})
CONSTANTS = {"inf": 'float("inf")', "nan": 'float("nan")', "true": "True", "false": "False"}


def emit(program: Program, tensors: Sequence[str], title: str) -> str:
    """Return the module of an elementwise step.

    Args:
        program: The step, after the passes.
        tensors: Names of the tensors ``update`` takes, in order: ``p``, ``g`` and states.
        title: First line of the module's docstring.
    """
    memory = Memory(_renamed(program), tensors, narrow=True)
    writer = TritonWriter(memory)
    element, update = _element(memory, writer), _update(memory)
    body = "\n".join((*element, "", "", *update)) + "\n"
    helpers = [HELPERS[name] for name in HELPERS if re.search(rf"\b{name}\(", body)]
    if any("triton_divide(" in text for text in helpers):
        helpers = [HELPERS["triton_divide"], *(h for h in helpers if h != HELPERS["triton_divide"])]
    functions = [f"@triton.jit\n{text}" for text in helpers]
    device = "libdevice." in body or any("libdevice." in text for text in helpers)
    imports = "import triton\nimport triton.language as tl\n"
    imports += "from triton.language.extra import libdevice\n" if device else ""
    return "\n\n".join([f'"""{title}"""\n\n{imports}', *functions, body])


def _renamed(program: Program) -> Program:
    """Return a program that calls nothing by a name of the module's own."""
    taken = {s.name for s in program.kinds()}
    names = {}
    for symbol in program.kinds():
        name = symbol.name
        while name in OWN or name.startswith("type_") or (name != symbol.name and name in taken):
            name = f"the_{name}"
        names[symbol] = sp.Symbol(name)
    return program.renamed({old: new for old, new in names.items() if old != new})


def _element(memory: Memory, writer: TritonWriter) -> Iterator[str]:
    """Yield the lines of ``element``: one block of one tensor."""
    program, stored, real = memory.program, memory.stored, writer.real
    at, inside = memory.name("at"), memory.name("inside")
    arguments = [*stored.values(), *map(str, program.coefficients()), at, inside, f"{real}: tl.constexpr"]
    yield "@triton.jit"
    yield from _call("def element", arguments, "", ":")
    yield f'{INDENT}"""Update the elements at some places of one tensor."""'
    read = {i.name for i in program.inputs}
    for name, pointer in stored.items():
        if name in read:
            yield f"{INDENT}{memory.arguments[name]} = tl.load({pointer} + {at}, {inside}).to({real})"
    rounded = memory.rounded()
    line = 0
    for value in program.tensor:
        if value.line not in (0, line):
            line = value.line
            yield f"{INDENT}# {program.notes[line]}"
        yield f"{INDENT}{value.symbol} = {writer.typed(value.expr)}"
        if value.symbol in rounded:  # later formulas see what is stored
            yield f"{INDENT}{value.symbol} = {value.symbol}.to({rounded[value.symbol]}.dtype.element_ty).to({real})"
    for store in sorted(memory.stores, key=lambda s: s.target == "p"):
        yield f"{INDENT}tl.store({stored[store.target]} + {at}, {writer.text(store.expr)}, {inside})"


def _update(memory: Memory) -> Iterator[str]:
    """Yield the lines of ``update``: one chunk of one of the tensors."""
    places, rows, gradients, c = (memory.name(n) for n in ("places", "rows", "gradients", "coefficients"))
    place, tensor, first, row, size, whole, start, at = (
        memory.name(n) for n in ("place", "tensor", "first", "row", "size", "whole", "start", "at")
    )
    stored, numbers = memory.stored, [str(s) for s in memory.program.coefficients()]
    types = {name: f"type_{i}" for i, name in enumerate(stored)}  # by these names they are passed
    options = [f"{option}: tl.constexpr" for option in (*types.values(), "chunk", "block")]
    yield "@triton.jit"
    yield from _call("def update", [places, rows, gradients, c, *options], "", ":")
    yield f'{INDENT}"""Update one chunk of one of the tensors; {c} holds what host returned."""'
    yield from (f"{INDENT}{number} = tl.load({c} + {i})" for i, number in enumerate(numbers))
    yield f"{INDENT}{place} = {places} + 2*tl.program_id(0).to(tl.int64)"
    yield f"{INDENT}{tensor} = tl.load({place}).to(tl.int64)"
    yield f"{INDENT}{first} = tl.load({place} + 1).to(tl.int64)*chunk"
    yield f"{INDENT}{row} = {rows} + {len(stored)}*{tensor}"
    yield f"{INDENT}{size} = tl.load({row})"
    yield f"{INDENT}{whole} = tl.load({gradients} + 2*{tensor})  # elements in whole blocks of aligned tensors"
    fixed = [name for name in stored if name != "g"]
    for name, pointer in stored.items():
        address = f"{gradients} + 2*{tensor} + 1" if name == "g" else f"{row} + {fixed.index(name) + 1}"
        yield f"{INDENT}{pointer} = tl.load({address}).to(tl.pointer_type({types[name]}))"
    yield f"{INDENT}for {start} in range({first}, tl.minimum({first} + chunk, {size}), block):"
    yield f"{INDENT * 2}{at} = tl.multiple_of({start}, block) + tl.arange(0, block)"
    yield f"{INDENT * 2}if {start} < {whole}:"
    aligned = [f"tl.multiple_of({pointer}, 16)" for pointer in stored.values()]
    real = f"{c}.dtype.element_ty"
    yield from _call("element", [*aligned, *numbers, at, "None", real], INDENT * 3)
    yield f"{INDENT * 2}else:"
    yield from _call("element", [*stored.values(), *numbers, at, f"{at} < {size}", real], INDENT * 3)


def _call(name: str, arguments: Sequence[str], indent: str, end: str = "") -> Iterator[str]:
    """Yield the lines of a call (or the head of a function), in several lines if it is long."""
    inside = ", ".join(arguments)
    if len(inside) + len(name) + len(indent) < 110:
        yield f"{indent}{name}({inside}){end}"
        return
    yield f"{indent}{name}("
    yield from wrap(inside, 110, initial_indent=indent + INDENT, subsequent_indent=indent + INDENT)
    yield f"{indent}){end}"


class TritonWriter(Writer):
    """Writes values of a Triton kernel.

    Attributes:
        real: Name of the type that arithmetic is done in.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        program = memory.program
        self.real = memory.name("real")
        conditions = {v.symbol for v in program.host if v.boolean}
        self.flags = conditions | {i.symbol for i in program.inputs if i.name == "first"}

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; a condition of the host arrives as a number, which is compared with 0."""
        return (f"({expr.name} != 0)", ATOM) if expr in self.flags else (expr.name, ATOM)

    def typed(self, expr: sp.Expr) -> str:
        """Return an expression as a value that has a type: a bare literal of Triton's would be a float32 or whole."""
        text = self.text(expr)
        return text if expr.free_symbols else f"tl.full((), {text}, {self.real})"

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product; a fraction is a call, as ``/`` is approximate."""
        factors = sp.Mul.make_args(expr)
        below = [f for f in factors if f.is_Pow and f.exp.is_number and f.exp.is_negative]
        rest = [f for f in factors if f not in below]
        if not below or (below == [expr]):
            return super().product(expr)
        above = sp.Mul(*rest, evaluate=False) if len(rest) > 1 else rest[0] if rest else sp.Integer(1)
        turned = [sp.Pow(f.base, -f.exp) for f in below]
        divisor = sp.Mul(*turned, evaluate=False) if len(turned) > 1 else turned[0]
        return f"triton_divide({self.text(above)}, {self.text(divisor)})", ATOM

    def power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power; one over something is a call."""
        if exponent.is_number and exponent.is_negative:
            return f"triton_divide(1.0, {self.text(sp.Pow(base, -exponent))})", ATOM
        return super().power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return products for small powers."""
        if exponent.is_Integer and exponent <= 8:
            return f"triton_power({self.text(base)}, {int(exponent)})", ATOM
        return f"triton_pow({self.typed(base)}, {self.typed(exponent)})", ATOM

    def function(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function; Triton has no ``math`` for infinity."""
        return (CONSTANTS[name], ATOM) if name in CONSTANTS else super().function(name, args)

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on blocks."""
        match name:
            case "select" | "where":
                condition, *choices = args
                return f"tl.where({self.text(condition)}, {', '.join(map(self.typed, choices))})", ATOM
            case "and" | "or":
                sign = " & " if name == "and" else " | "
                return sign.join(_condition(self.piece(a)) for a in args), SUM
            case "not":
                return f"~{_condition(self.piece(args[0]))}", SIGN
            case "number":
                if args[0] in self.flags:
                    return args[0].name, ATOM
                return f"({self.text(args[0])}).to({self.real})", ATOM
            case "max" | "min":
                text = self.typed(args[0])
                for argument in args[1:]:
                    text = f"triton_{name}({text}, {self.typed(argument)})"
                return text, ATOM
            case "f32" | "bf16":
                stored = "float32" if name == "f32" else "bfloat16"
                return f"({self.typed(args[0])}).to(tl.{stored}).to({self.real})", ATOM
        assert name in SPELLINGS or BUILTINS[name].torch == f"torch.{name}({{0}})", f"{name} has no spelling in Triton"
        return SPELLINGS.get(name, f"libdevice.{name}({{0}})").format(*map(self.typed, args)), ATOM


def _condition(piece: Piece) -> str:
    """Return a condition as an operand of ``&``, ``|`` or ``~``, which bind more tightly than comparisons."""
    text, binds = piece
    return text if binds == ATOM else f"({text})"
