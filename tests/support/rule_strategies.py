"""Random rules that are well formed and stay finite.

A writer makes every choice through one function, so the same code serves Hypothesis (which shrinks what fails) and a
seeded generator. Conditions compare with odd numbers only: algebra may move a value by a rounding error, and a
comparison with 0 would turn that into a different result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

NUMBERS = ("0.5", "2", "0.1", "1e-2", "3", "1.5", "0.75")
THRESHOLDS = ("0.3713", "-0.1271", "0.0517", "-0.6129")
HOST_CONDITIONS = ("t > 2", "first", "t < 4 and not first", "rate > 0.2", "not flag", "1 < t <= 3")
STATIC_CONDITIONS = ("flag", "not flag", 'mode == "b"', 'mode != "b"', "extra == none", "ndim > 1", "ndim == 3")
UNARY = (
    "tanh({})",
    "sin({})",
    "cos({})",
    "atan({})",
    "sigmoid({})",
    "abs({})",
    "-{}",
    "({})^2/(1 + ({})^2)",
    "sqrt(1 + ({})^2)",
    "exp(-abs({}))",
    "log1p(abs({}))",
    "expm1(-abs({}))",
    "asinh({})",
    "erf({})",
    "erfc({})",
    "rsqrt(0.5 + ({})^2)",
    "soft_threshold({}, 0.1)",
    "clamp({}, -0.8, 0.9)",
    "project_l2_ball({}, 0.7)",
    "square(tanh({}))",
    "softplus({})",
    "softmax({})",
    "softmax({}, dim=-1)",
    "{} - mean({}, dim=1:)",
    "({})/(1 + norm({}, dim=1:))",
)
BINARY = (
    "{} + {}",
    "{} - {}",
    "tanh({})*{}",
    "{}/(1.5 + abs({}))",
    "max({}, {})",
    "min({}, {})",
    "lerp({}, {}, 0.3)",
    "f({}, {})",
    "({})*sigmoid({})",
)
REDUCTIONS = ("mean({})", "rms({})", "max({})", "min({})", "norm({})", "std({})", "sum(0.1*({}))", "dot({}, p)")
REDUCTIONS += ("norm({}, 1)", "norm({}, ord = inf)", "tanh(norm({}, 3))", "std({}, correction = -1)", "logsumexp({})")
ALONG = ("mean({}, dim={})", "rms({}, dim={})", "max({}, dim={})", "sum(tanh({}), dim={})", "norm({}, dim={})")
ALONG += ("logsumexp({}, dim={})", "norm({}, dim={}, ord = 1)", "norm({}, inf, dim={})", "std({}, -1, dim={})")
HOST = ("rate", "decay", "0.9^t", "1/t", "1 - decay^t", "min(1, t/3)", "warmup(3)", "cosine(6, 0.1)", "(extra ?? 0.4)")
HOST += ("(other ?? 0.2)",)

HEAD = """optimizer Random
hyper rate = 0.1 >= 0, decay = 0.9 in [0, 1)  "numbers"
hyper flag = false, mode = "a" in {"a", "b"}, extra = none, other = 0.6 or none
state m, n = {n}, r = {r}
state c: scalar = {c}
state k = p when flag
group state q = {q}
def f(x, y) = 0.5*x - tanh(y)
def both(x, y):
    z = x*decay
    if t > 2: return z, y - x
    return y, z
"""

#: What states start as: conditions and choices between whole numbers are numbers like others. T is a threshold.
STARTS: dict[str, tuple[str, ...]] = {
    "n": (
        "0.2",
        "p > T",
        "not (g > T)",
        "isfinite(p)",
        "p > T and g < T",
        "(p > T) + (g < T)",
        "1 if p > T else 0",
        "where(g > T, 2, rows)/4",
        "max(where(p > T, 1, 3), 2)/3",
        "where(p > T, rate > 0.2, cols > 2)",
        "p if rate > 0.2 else 1",
        "1/3 if p > mean(p) + T else 0.1",
    ),
    "r": (
        "0*mean(g, dim=-1)",
        "mean(p, dim=-1) > T",
        "where(max(g, dim=-1) > T, 1, 0)",
        "mean(p > T, dim=-1)",
        "max(where(p > T, 1, 2), dim=-1)/2",
        "0*mean(g, dim=-1) + rate",
    ),
    "c": (
        "1",
        "mean(p) > T",
        "1 if mean(p) > T else 0",
        "rows > cols",
        "rate > 0.2",
        "max(where(p > T, 1, 2))/2",
        "not (norm(p) > T) or flag",
        "0.5 if isfinite(norm(p)) else cols",
    ),
    "q": ("0.3", "rate > 0.2", "1 if rate > 0.2 else 0", "not flag", "0.5*(decay > 0.7)"),
}

#: Which statements may stand where, by their letters in :meth:`Writer.statement`.
ANYWHERE, BRANCH, BRANCH_ELEMENTS = "mngporcqbxtl", "mngporct", "mngpot"

#: What every random rule is run with, so that both sides of each static question are met.
HYPERS: tuple[dict[str, Any], ...] = (
    {},
    {"flag": True, "rate": 0.3, "other": None},
    {"mode": "b", "extra": 0.7, "decay": 0.6},
)


@dataclass
class Writer:
    """Writes one rule; ``pick`` makes every choice."""

    pick: Callable[[Sequence[str]], str]
    elements: list[str] = field(default_factory=lambda: ["p", "g", "m", "n"])
    lines: list[str] = field(default_factory=list)
    count: int = 0
    grouped: bool = False  # whether the group's state has been assigned

    def number(self, upto: int) -> int:
        """Return one of 0 to ``upto``."""
        return int(self.pick([str(i) for i in range(upto + 1)]))

    def host(self) -> str:
        """Return a number known before launch."""
        return self.pick([*NUMBERS, *HOST, "q"])

    def element(self, depth: int) -> str:
        """Return an expression that is surely shaped like p."""
        if depth == 0:
            return self.pick(self.elements)
        match self.number(4):
            case 0:
                return self.pick(UNARY).replace("{}", self.element(depth - 1))
            case 1:
                return self.fill(self.pick(BINARY), self.element(depth - 1), self.any(depth - 1))
            case 2:
                a, b = self.element(depth - 1), self.element(depth - 1)
                return f"({a} if {self.pick([*HOST_CONDITIONS, *STATIC_CONDITIONS])} else {b})"
            case 3:
                condition = f"{self.pick(self.elements)} > {self.pick(THRESHOLDS)}"
                return f"where({condition}, {self.any(depth - 1)}, {self.any(depth - 1)})"
            case _:
                return self.pick(self.elements)

    def any(self, depth: int) -> str:
        """Return an expression of any kind that meets an element."""
        match self.number(4):
            case 0:
                return self.host()
            case 1 if depth > 0:
                return self.reduction(depth)
            case 2 if depth > 0:
                return self.along(depth, self.pick(["-1", "-2"]))
            case 3:
                return self.pick(["r", "c", "q", f"sign({self.pick(self.elements)} - {self.pick(THRESHOLDS)})"])
            case _:
                return self.element(max(0, depth - 1))

    def reduction(self, depth: int) -> str:
        """Return one number of a tensor."""
        return self.pick(REDUCTIONS).replace("{}", self.element(depth - 1))

    def along(self, depth: int, dim: str) -> str:
        """Return a reduction over one dimension."""
        return self.pick(ALONG).format(self.element(depth - 1), dim)

    def fill(self, template: str, *operands: str) -> str:
        """Put operands into a template, in brackets where they need them."""
        return template.format(*(x if x.isidentifier() else f"({x})" for x in operands))

    def local(self) -> str:
        """Return a new name."""
        self.count += 1
        return f"x{self.count}"

    def statement(self, kinds: str) -> str:
        """Return one statement that keeps what it assigns small; ``kinds`` are the first letters allowed."""
        value = self.element(2)
        match self.pick(list(kinds)):
            case "m":
                return f"m = decay*m + (1 - decay)*tanh({value})"
            case "n":
                return f"n += 0.1*tanh({value}) - 0.1*n"
            case "g":
                return f"g = tanh({value})"
            case "p":
                return f"p -= rate*tanh({value})"
            case "o":
                return f"p = {self.pick(['0.9*p', 'project_box(p, -2, 2)', 'soft_threshold(p, 0.01*rate)'])}"
            case "r":
                return f"r = 0.5*r + 0.5*{self.along(2, '-1')}"
            case "c":
                return f"c = 0.5*c + 0.5*{self.pick([f'tanh({self.host()})', f'tanh({self.reduction(2)})'])}"
            case "q" if not self.grouped:
                self.grouped = True
                return f"q = 0.9*q + 0.1*{self.pick([*NUMBERS, 'rate', 'decay', '1/t'])}"
            case "t":
                return f"m, n = 0.5*n, decay*m + 0.1*tanh({value})"
            case "l":
                name = self.local()
                self.elements.append(name)
                loop = f"for a, b in ((0.5, 0.1), (rate, 0.2)): {name} = tanh(a*{name} + b)"
                return f"{name} = tanh({value})\n{loop}"
            case "b":
                a, b = self.local(), self.local()
                line = f"{a}, {b} = both({value}, {self.pick(self.elements)})"
                self.elements += [a, b]
                return line
            case _:
                name = self.local()
                self.elements.append(name)
                return f"{name} = tanh({value})"

    def block(self) -> list[str]:
        """Return an ``if``, decided when compiling, before launch or on the device."""
        conditions, kinds = [*HOST_CONDITIONS, *STATIC_CONDITIONS], BRANCH
        if self.number(1):
            conditions.append(f"mean({self.pick(self.elements)}) > {self.pick(THRESHOLDS)}")
        if self.number(1):
            # What is selected element by element cannot go into a state of another shape.
            conditions = [f"{self.pick(self.elements)} < {self.pick(THRESHOLDS)}", *HOST_CONDITIONS]
            kinds = BRANCH_ELEMENTS
        lines = [f"if {self.pick(conditions)}:", f"    {self.statement(kinds)}"]
        if self.number(1):
            lines += [f"elif {self.pick(conditions)}:", f"    {self.statement(kinds)}"]
        if self.number(1):
            lines += ["else:", f"    {self.statement(kinds)}", f"    {self.statement(kinds)}"]
        return lines

    def rule(self) -> str:
        """Return the text of a rule."""
        for _ in range(2 + self.number(4)):
            self.lines += self.block() if self.number(3) == 0 else [self.statement(ANYWHERE)]
        self.lines.append("if flag: k = 0.5*k + 0.5*p")
        self.lines.append(f"p -= rate*tanh({self.element(2)})")
        return self.head() + "\n".join(self.lines) + "\n"

    def head(self) -> str:
        """Return the declarations."""
        text = HEAD
        for name, starts in STARTS.items():
            text = text.replace(f"{{{name}}}", self.pick(starts).replace("T", self.pick(THRESHOLDS)))
        return text


@st.composite
def rules(draw: st.DrawFn) -> str:
    """Random rules for Hypothesis."""
    return Writer(lambda choices: draw(st.sampled_from(list(choices)))).rule()


def seeded(seed: int) -> str:
    """Return the random rule of a number, always the same."""
    return Writer(random.Random(seed).choice).rule()
