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

import sympy as sp

from optlang.backends.memory import INDENT, Memory
from optlang.backends.spelling import ATOM, COMPARE, SIGN, SUM, Piece, Writer
from optlang.ir import algebra
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
        "def triton_pow(x, y):\n"
        "    none = tl.zeros_like(x + y)\n"
        "    return libdevice.pow(x + none, y + none)\n"
    ),
    "triton_mod": (
        "def triton_mod(x, y):\n"
        "    rest = libdevice.fmod(x, y + tl.zeros_like(x))\n"
        "    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)\n"
    ),
    "triton_max": "def triton_max(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_min": "def triton_min(a, b):\n    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_sign": (
        "def triton_sign(x):\n"
        "    return tl.where(x == x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype), x)\n"
    ),
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
CONSTANTS = {"inf": 'float("inf")', "nan": 'float("nan")', "true": "True", "false": "False"}


def emit(program: Program, tensors: Sequence[str], title: str) -> str:
    """Return the module of an elementwise step.

    Args:
        program: The step, after the passes.
        tensors: Names of the tensors ``update`` takes, in order: ``p``, ``g`` and states.
        title: First line of the module's docstring.
    """
    memory = Memory(program, tensors, narrow=True)
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
