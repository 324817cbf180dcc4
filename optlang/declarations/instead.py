"""Alternatives to constructs that the language does not have, or not yet."""

from __future__ import annotations

MANUAL = "see the language guide for what this version supports"

NOT_YET = "not supported by this version"

#: Alternatives to constructs of later versions.
INSTEAD: dict[str, str] = {
    "for": "`for b in betas:` loops over the parts of a hyperparameter; `repeat n:` runs its block n times",
    "use": "copy the other rule's text into this file",
    "inner": "copy the inner rule's formulas into this file",
    "input": "`group.NAME` reads a key of the parameter group, which may change from step to step",
    "transform": "`def` defines a function without state",
    "loss": "a rule sees only the gradient",
    "grad": "the gradient of the step is `g`",
}

#: Alternatives to functions and constants that users may expect.
BUILTINS_OF_MATH: dict[str, str] = {
    **dict.fromkeys(("pow", "power"), "write a power as `x^y`"),
    **dict.fromkeys(("log2", "log10"), "write `log(x) / log(2)`, with the base you need"),
    "cbrt": "write `x^(1/3)`",
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "einsum"), "write the matrix product as `x @ y`"),
    **dict.fromkeys(("transpose", "permute", "swapaxes"), "write the transpose as `x.T`"),
    **dict.fromkeys(("reshape", "view"), "`matrix(x)` reshapes x to a matrix: its first dimension by the rest"),
    **dict.fromkeys(("identity", "eyes"), "write `eye(n)`"),
    **dict.fromkeys(("inverse", "pinv"), "write `inv(x)`, or `solve(a, b)` for `inv(a) @ b`"),
    **dict.fromkeys(
        ("eig", "eigen", "eigvals", "eigvalsh"), "`eigh(x)` is the eigendecomposition of a symmetric matrix"
    ),
    **dict.fromkeys(("global_norm", "total_norm"), "the norm over all tensors is `gnorm(x)`"),
    **dict.fromkeys(("clip_grad_norm", "clip_grad_norm_"), "write `clip_by_global_norm(g, limit)`"),
    **dict.fromkeys(("zeropower", "zeropower_via_newtonschulz5"), "write `newton_schulz(x)`"),
    **dict.fromkeys(("normal", "gaussian", "randn_like"), "`randn()` draws standard normal numbers, shaped like p"),
    **dict.fromkeys(("uniform", "random", "rand_like"), "`rand()` draws numbers between 0 and 1, shaped like p"),
    **dict.fromkeys(("shape", "len"), "sizes are read as `rows`, `cols`, `numel`, and `size(x, 0)`"),
    "range": "to run a block n times, write `repeat n:`",
    "tan": "write `sin(x) / cos(x)`",
    "relu": "write `max(x, 0)`",
    "zeros_like": "write `0*p`; a state without an initial value starts at zero",
    "ones_like": "write `0*p + 1`",
    "print": "remove it: a rule only computes values",
    "nan": "there is no literal NaN; `isfinite(x)` tells whether a value is finite",
    "null": "write `none`",
}


def instead_of(what: str) -> str:
    """Return the alternative to a construct of a later version."""
    return next((hint for word, hint in INSTEAD.items() if f"`{word}`" in what), MANUAL)
