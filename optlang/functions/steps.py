"""Functions that reach beyond the tensor: time, the whole model, the closure, histories, random numbers."""

from __future__ import annotations

from optlang.functions import shapes
from optlang.functions.row import CLOSURE, EMPTY, HALT, HISTORY, PUSH, RANDOM, TIME, WHOLE, Builtin

SCHEDULES: tuple[Builtin, ...] = (
    Builtin(
        "debias",
        "x, beta",
        TIME,
        "x / (1 - beta^t): bias correction of an exponential moving average that started at 0.",
        definition="x / (1 - beta^t)",
    ),
    Builtin("warmup", "n", TIME, "Rises from 1/n at t = 1 to 1 at t = n.", definition="min(1, t / max(n, 1))"),
    Builtin(
        "cosine",
        "n, floor = 0",
        TIME,
        "Falls from 1 at t = 1 to `floor` at t = n + 1 along half a cosine.",
        definition="floor + (1 - floor)*(1 + cos(pi*min(1, (t - 1)/n)))/2",
    ),
    Builtin(
        "linear",
        "n, floor = 0",
        TIME,
        "Falls linearly from 1 at t = 1 to `floor` at t = n + 1.",
        definition="1 - (1 - floor)*min(1, (t - 1)/n)",
    ),
    Builtin(
        "wsd",
        "n, warmup, decay, floor = 0",
        TIME,
        "Rises to 1 over `warmup` steps, stays at 1, and falls to `floor` over the last `decay` of n steps.",
        definition="min(1, t/max(warmup, 1)) * (1 - (1 - floor)*clamp((t - 1 - (n - decay))/max(decay, 1), 0, 1))",
    ),
)

MODEL: tuple[Builtin, ...] = (
    Builtin("total", "x", WHOLE, "Sum over all elements of all tensors of the optimizer that have a gradient."),
    Builtin("gnorm", "x", WHOLE, "Euclidean norm over all tensors of the optimizer.", definition="sqrt(total(x^2))"),
    Builtin("grad", "at", CLOSURE, "The gradient with every parameter set to `at`; p itself is unchanged."),
    Builtin("loss", "at", CLOSURE, "The loss with every parameter set to `at`; `loss` alone is the loss at p."),
    Builtin("hvp", "z", CLOSURE, "The Hessian of the loss times z, by a second backward pass."),
    Builtin("iteration", "", CLOSURE, "Index of this step of `iterate`, from 1."),
    Builtin("evaluations", "", CLOSURE, "Number of closure calls of `step()` before this step of the rule."),
    Builtin(
        "strong_wolfe",
        "d, step, c1 = 1e-4, c2 = 0.9, tolerance = 1e-9, evaluations = 25, sign = 1",
        CLOSURE,
        "Step size along d from p that meets the strong Wolfe conditions for `sign` times the loss; `step` is tried "
        "first.",
    ),
    Builtin(
        "backtracking",
        "d, step, c1 = 1e-4, shrink = 0.5, evaluations = 25, sign = 1",
        CLOSURE,
        "Step size along d from p: `step`, shrunk until `sign` times the loss satisfies the Armijo condition with c1; "
        "0 if it never does.",
    ),
    Builtin(
        "count", "s", HISTORY, "Number of filled entries of a history; they are the last ones, the newest is `s[-1]`."
    ),
)

DRAWS: tuple[Builtin, ...] = (
    Builtin("randn", "*n", RANDOM, "Standard normal numbers, shaped like p, or of the given sizes."),
    Builtin("rand", "*n", RANDOM, "Uniform numbers between 0 and 1, shaped like p, or of the given sizes."),
    Builtin("rademacher", "*n", RANDOM, "-1 or 1 with equal probability, shaped like p, or of the given sizes."),
    Builtin("bernoulli", "q", RANDOM, "1 with probability q, else 0, shaped like p."),
)

#: Functions that rules cannot call by name.
INTERNAL: tuple[Builtin, ...] = (
    Builtin(EMPTY, "size", HISTORY, "Room for values shaped like p.", matrix=True),
    Builtin(HALT, "n, c", CLOSURE, "Ends the steps of `iterate` before this one."),
    Builtin(PUSH, "s, x", HISTORY, "A history with one more entry.", matrix=True, shape=shapes.pushed),
)
