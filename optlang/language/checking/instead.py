"""What to write instead of things that the language does not have, or not yet."""

from __future__ import annotations

MANUAL = "see the language guide for what this version compiles"

#: What to write, in the meantime, instead of some constructs of later versions.
INSTEAD: dict[str, str] = {
    "for": "`for b in betas:` goes through the parts of a hyperparameter; `repeat n:` does something n times",
    "use": "copy the other rule's text into this file",
    "inner": "copy the inner rule's formulas into this file",
    "store": "states are stored in the type of their initial value, as a rule the type of p",
    "input": "`group.NAME` reads a key of the parameter group, which may change from step to step",
    "transform": "`def` is a function without state of its own",
    "loss": "a rule sees the gradient only",
    "grad": "the gradient of the step is `g`",
}

#: What the language has instead of some functions and constants that one might look for.
BUILTINS_OF_MATH: dict[str, str] = {
    **dict.fromkeys(("pow", "power"), "write a power as `x^y`"),
    **dict.fromkeys(("log2", "log10"), "write `log(x) / log(2)`, with the base you need"),
    "cbrt": "write `x^(1/3)`",
    "tan": "write `sin(x) / cos(x)`",
    "relu": "write `max(x, 0)`",
    "zeros_like": "write `0*p`; a state without an initial value starts at zero by itself",
    "ones_like": "write `0*p + 1`",
    "print": "a rule only computes: leave it out",
    "pi": "write `3.141592653589793`",
    "nan": "there is no literal NaN; `isfinite(x)` tells whether a value is finite",
    "null": "write `none`",
}
