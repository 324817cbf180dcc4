"""Python attributes such as ``np.sqrt(v)``, ``g.norm()``, ``self.lr``, ``p.grad``, and their equivalents in a rule."""

from __future__ import annotations

from optlang.functions.table import BUILTINS
from optlang.source import Span
from optlang.syntax.errors.refused import Refused
from optlang.syntax.names import canonical_name
from optlang.syntax.suggest import SYNONYMS

MODULES = frozenset(("np", "numpy", "torch", "math", "F", "nn", "jnp", "jax", "tf", "cp", "sp", "sympy", "cmath"))
OBJECTS = frozenset(("self", "cls", "this", "opt", "optim", "args", "cfg", "config", "hparams", "defaults"))

#: Attributes and methods of tensors that have no function with the same name.
OF_TENSORS: dict[str, str] = {
    "grad": "the gradient is `g`",
    "data": "a rule changes the parameter itself: `p -= lr*g`",
    **dict.fromkeys(("shape", "size"), "sizes are read as `rows`, `cols`, `numel` and `ndim`"),
    **dict.fromkeys(("numel", "ndim"), "write the name alone: `{name}`"),
    "dim": "write `ndim`",
    **dict.fromkeys(("mT", "t", "transpose", "permute"), "write `{base}.T`"),
    **dict.fromkeys(
        ("flatten", "view", "reshape"), "`matrix({base})` reshapes it to a matrix: its first dimension by the rest"
    ),
    **dict.fromkeys(("item", "clone", "detach", "float", "to"), "remove it: `{base}` is the value itself"),
    "pow": "write a power as `{base}^n`",
    "values": "remove it: `max` and `min` return the values",
    **dict.fromkeys(("add_", "sub_", "mul_", "div_", "copy_", "lerp_", "addcmul_", "addcdiv_"), "write an assignment"),
}


def foreign_member(base: str | None, name: str, place: Span) -> Refused | None:
    """Return the error for ``base.name``, or None if it is not known from Python.

    Args:
        base: The name before the dot, None for an expression.
        name: The name after the dot.
        place: Its span.
    """
    function = name if name in BUILTINS else SYNONYMS.get(name.rstrip("_"), name.rstrip("_"))
    canonical = canonical_name(base) if base else None
    if base in MODULES:
        known = function in BUILTINS
        return Refused(
            "E112",
            f"a rule has no modules such as `{base}`",
            place,
            label="expected the name alone",
            help=f"write `{function}(x)`" if known else "functions have plain names, such as `sqrt(x)`",
        )
    if base in OBJECTS:
        return Refused(
            "E112",
            f"there is no `{base}` in a rule",
            place,
            label="expected the name alone",
            help=f"write `{name}`; hyperparameters and states are read by their names",
        )
    if advice := OF_TENSORS.get(name):
        help = advice.format(base=base or "x", name=name)
    elif function in BUILTINS:
        help = f"write `{function}({base or '...'})`"
    elif canonical in ("p", "g", "m", "v") and name != "T":
        help = "a function is called by its name, such as `sqrt(v)`"
    else:
        return None
    return Refused("E112", f"there is no `.{name}`: values have no attributes or methods here", place, help=help)
