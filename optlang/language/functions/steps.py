"""What a step knows and asks besides its own tensor: time, the whole model, the closure, histories, chance."""

from __future__ import annotations

from optlang.language import shapes
from optlang.language.functions.row import CLOSURE, EMPTY, HALT, HISTORY, PUSH, RANDOM, TIME, WHOLE, Builtin

SCHEDULES: tuple[Builtin, ...] = (
    Builtin(
        "debias",
        "x, beta",
        TIME,
        "x / (1 - beta^t): an exponential average that started at 0, made unbiased.",
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
        "Falls from 1 at t = 1 to `floor` at t = n + 1 on a straight line.",
        definition="1 - (1 - floor)*min(1, (t - 1)/n)",
    ),
    Builtin(
        "wsd",
        "n, warmup, decay, floor = 0",
        TIME,
        "Warm up for `warmup` steps, stay at 1, and fall to `floor` over the last `decay` of n steps.",
        definition="min(1, t/max(warmup, 1)) * (1 - (1 - floor)*clamp((t - 1 - (n - decay))/max(decay, 1), 0, 1))",
    ),
)

MODEL: tuple[Builtin, ...] = (
    Builtin("total", "x", WHOLE, "Sum over all elements of all tensors of the optimizer that have a gradient."),
    Builtin("gnorm", "x", WHOLE, "Euclidean norm over all tensors of the optimizer.", definition="sqrt(total(x^2))"),
    Builtin("grad", "at", CLOSURE, "The gradient where every parameter is `at`; p itself stays."),
    Builtin("loss", "at", CLOSURE, "The loss where every parameter is `at`; `loss` alone is that of p."),
    Builtin("hvp", "z", CLOSURE, "The Hessian of the loss times z, by a second pass backward."),
    Builtin("iteration", "", CLOSURE, "Which of the steps of `iterate` this is, from 1."),
    Builtin("evaluations", "", CLOSURE, "How often `step()` has called the closure when the rule's step starts."),
    Builtin(
        "strong_wolfe",
        "d, step, c1 = 1e-4, c2 = 0.9, tolerance = 1e-9, evaluations = 25, sign = 1",
        CLOSURE,
        "How far to go along d from p, `step` being tried first: far enough to meet the strong Wolfe conditions for "
        "`sign` times the loss.",
    ),
    Builtin(
        "backtracking",
        "d, step, c1 = 1e-4, shrink = 0.5, evaluations = 25, sign = 1",
        CLOSURE,
        "How far to go along d from p: `step`, shrunk until `sign` times the loss falls by c1 of what its slope "
        "promises; 0 if it never does.",
    ),
    Builtin(
        "count", "s", HISTORY, "How many entries of a history are filled; the last ones are, the newest is `s[-1]`."
    ),
)

DRAWS: tuple[Builtin, ...] = (
    Builtin("randn", "*n", RANDOM, "Standard normal numbers, shaped like p, or of some sizes."),
    Builtin("rand", "*n", RANDOM, "Numbers between 0 and 1, shaped like p, or of some sizes."),
    Builtin("rademacher", "*n", RANDOM, "-1 or 1, each half of the time, shaped like p, or of some sizes."),
    Builtin("bernoulli", "q", RANDOM, "1 with probability q, else 0, shaped like p."),
)

#: What a rule cannot call by these names.
INTERNAL: tuple[Builtin, ...] = (
    Builtin(EMPTY, "size", HISTORY, "Room for values shaped like p.", matrix=True),
    Builtin(HALT, "n, c", CLOSURE, "Ends the steps of `iterate` before this one."),
    Builtin(PUSH, "s, x", HISTORY, "A history with one more entry.", matrix=True, shape=shapes.pushed),
)
