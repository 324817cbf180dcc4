"""Random rules with matrices, sums over the whole model, shared numbers, time, loops and chance."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from rule_strategies_formulas import (
    HEAD,
    MATRICES,
    OF_GROUP,
    STARTS,
    STATES,
    THRESHOLDS,
    Formulas,
)

LOCALS = [
    "M = rows(matrix(p)) if ndim >= 1 else 1",
    "N = cols(matrix(p)) if ndim >= 1 else 1",
    "k = min(rank, M, N)",
    "tall = M >= N",
]
#: Kinds of rules: what they require, the shapes they are run on, and the condition around matrices.
MODES: dict[str, tuple[str, tuple[tuple[int, ...], ...], str]] = {
    "matrices": ("require ndim == 2", ((3, 4), (4, 3), (3, 4), (2, 2)), ""),
    "tensors": ("require ndim >= 1", ((3, 4), (3,), (2, 3, 2), (3,)), ""),
    "anything": ("", ((3, 4), (), (3, 4), (2, 1, 3), (2,)), "ndim >= 2"),
}
#: What the second param group of every random rule is given.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"rate": 0.3, "rank": 1, "period": 3},
    {"flag": True, "turns": 0, "betas": (0.1, 0.6), "decay": 0.5},
    {"mode": 1, "rank": 3, "period": 0, "turns": 3},
    {},
)
PERIODS = ("period", "2", "3", "turns + 1", "k")
TIMES = ("repeat 2:", "repeat turns:", "repeat min(k, 2):", "for b in betas:")
#: Statements by letter; those that a tensor's condition, or one on elements, may stand around are fewer.
COMMON, TENSOR, ELEMENT = "mmnngppcchxxbMMLqw", "mngppcxbML", "mngppxb"


@dataclass
class Writer(Formulas):
    """Writes one rule."""

    lines: list[str] = field(default_factory=list)
    depth: int = 2
    states: dict[str, str] = field(default_factory=dict)

    def local(self, kind: str) -> str:
        """Return a new name of a kind, which is known from here on."""
        self.count += 1
        name = f"x{self.count}"
        self.names.setdefault(kind, []).append(name)
        return name

    def scoped(self) -> dict[str, list[str]]:
        """Return a copy of the names, to go back to after a block."""
        return {kind: list(names) for kind, names in self.names.items()}

    # Statements ----------------------------------------------------------------------------------------------

    def statement(self, letters: str) -> list[str]:
        """Return one statement that keeps what it assigns small."""
        letter = self.pick([x for x in letters if x not in "ML" or self.guarded])
        match letter:
            case "m":
                return [f"m = decay*m + (1 - decay)*tanh({self.value('e', self.depth)})"]
            case "n":
                return [f"n += 0.1*tanh({self.value('e', self.depth)}) - 0.1*n"]
            case "g":
                return [f"g = tanh({self.value('e', self.depth)})"]
            case "p":
                value = self.value(self.pick(["e", "rc"]) if self.guarded else "e", self.depth)
                return [self.pick([f"p -= rate*tanh({value})", f"p = 0.9*p + 0.1*tanh({value})"])]
            case "c":
                return [f"c = 0.5*c + 0.5*tanh({self.value('s', self.depth)})"]
            case "h":
                return [f"h = 0.5*h + 0.5*tanh({self.value('h', self.depth)})"]
            case "q":
                return [f"q = 0.9*q + 0.1*{self.pick([*OF_GROUP, 'q^2'])}"]
            case "w":
                return [self.common()]
            case "M":
                name = self.pick(list(self.states))
                value = self.value(self.states[name], self.depth)
                return [
                    self.pick([f"{name} = 0.7*{name} + 0.3*tanh({value})", f"{name} += 0.1*tanh({value}) - 0.1*{name}"])
                ]
            case "L":
                return self.several()
            case "b":
                kind = self.array()
                line = f"both({self.value(kind, 1)}, {self.value(kind, 1)})"
                return [f"{self.local(kind)}, {self.local(kind)} = {line}"]
            case _:
                kind = self.pick(["h", "s", self.array(), self.array()])
                value = self.value(kind, self.depth)
                return [f"{self.local(kind)} = tanh({value})"]

    def common(self) -> str:
        """Return an assignment to a shared state."""
        name = self.pick(["w", "v"])
        values = [*OF_GROUP, "w", "v"]
        if self.totals > 0:
            self.totals -= 1
            inner = self.value(self.array(), 1)
            values = [
                f"total(tanh({inner}))",
                f"(total({inner}*{inner}) - w)/(1 + abs(v))",
                f"gnorm({inner}) if t > 1 else w",
            ]
        return f"{name} = 0.8*{name} + 0.2*tanh({self.pick(values)})"

    def several(self) -> list[str]:
        """Return statements that take all results of a decomposition."""
        a, b = self.pick(["r", "c", "k"]), self.pick(["r", "c"])
        self.count += 1
        names = [f"{letter}{self.count}" for letter in "USV"]
        if self.number(1):
            value = self.value(a + a, 1)
            line = f"{names[0]}, {names[1]} = eigh(sym({value}))"
            result = f"{names[1]} @ diag(tanh({names[0]})) @ {names[1]}.T"
            return [line, f"{self.local(a + a)} = {result}"]
        value = self.value(a + b, 1)
        line = f"{', '.join(names)} = svd({value})"
        return [line, f"{self.local(a + b)} = {names[0]} @ diag(tanh({names[1]})) @ {names[2]}"]

    # Blocks --------------------------------------------------------------------------------------------------

    def body(self, letters: str, depth: int) -> list[str]:
        """Return the statements of a block, whose names are gone afterwards."""
        kept = self.scoped()
        lines = self.block(letters, depth - 1) if depth > 0 and self.number(3) == 0 else self.statement(letters)
        if self.number(1):
            lines = [*lines, *self.statement(letters)]
        self.names = kept
        return [f"    {line}" for line in lines]

    def block(self, letters: str, depth: int = 1) -> list[str]:
        """Return a block."""
        match self.number(4):
            case 0:
                start = self.pick(["", "", " from 2", " from turns"])
                # What several tensors have in common cannot wait for a period that depends on one of them.
                period = self.pick(PERIODS)
                inner = letters if period != "k" else "".join(x for x in letters if x not in "qw")
                return [f"every {period}{start}{self.pick(['', ' or first'])}:", *self.body(inner, depth)]
            case 1:
                times = self.pick(TIMES)
                kept = self.scoped()
                if times.startswith("for"):
                    self.names["h"] = [*self.known("h"), "b"]
                inner = "".join(x for x in letters if x not in "qw") if "k" in times else letters
                lines = [times, *self.body(inner, depth)]
                self.names = kept
                return lines
            case 2:
                condition = f"{self.value('s', 1)} > {self.pick(THRESHOLDS)}"
                return self.choice([condition], "".join(x for x in letters if x in TENSOR), depth)
            case 3:
                condition = f"{self.pick(self.known('e'))} < {self.pick(THRESHOLDS)}"
                kept, self.names = self.scoped(), {"e": self.known("e"), "h": self.known("h"), "s": self.known("s")}
                lines = self.choice([condition], "".join(x for x in letters if x in ELEMENT), depth)
                self.names = kept
                return lines
            case _:
                conditions = [self.condition(1), self.condition(0)]
                words = ("ndim", "rows", "M >", "tall", "k ==", "numel", "h >", "x", "gnorm", "w >", "v >")
                if any(word in condition for condition in conditions for word in words):
                    letters = "".join(x for x in letters if x not in "qw")
                return self.choice(conditions, letters, depth)

    def choice(self, conditions: list[str], letters: str, depth: int) -> list[str]:
        """Return an ``if``; names that all its sides give are known afterwards."""
        device = len(conditions) == 1
        body, condition = self.body(letters, depth), self.pick(conditions)
        lines = [f"if {condition if device else self.around(condition, *body)}:", *body]
        if self.number(2) == 0:
            body, condition = self.body(letters, depth), self.pick(conditions)
            if not device:
                condition = self.around(condition, *body)
                lines[0] = f"if {self.around(lines[0][3:-1], condition)}:"
            lines += [f"elif {condition}:", *body]
        if self.number(1):
            kind = self.array()
            sides = [self.value(kind, 1), self.value(kind, 1)]
            if not device:
                lines[0] = f"if {self.around(lines[0][3:-1], *sides)}:"
            name = self.local(kind)
            if "elif" not in lines[-2] and "elif" not in "".join(lines):
                lines += [f"    {name} = tanh({sides[0]})", "else:", f"    {name} = tanh({sides[1]})"]
            else:
                lines = [f"{name} = tanh({sides[0]})", *lines, "else:", f"    {name} += 0.1*tanh({sides[1]})"]
        return lines

    # Rules ---------------------------------------------------------------------------------------------------

    def chance(self) -> str:
        """Return a statement that draws random numbers."""
        draws = ["tanh(randn())", "rand()", "rademacher()", "bernoulli(0.7)", "norm(randn(M, k))", "sum(rand(k))"]
        return f"n += 0.05*{self.pick(draws)}"

    def inside(self, name: str) -> str:
        """Return an expression for a function, which may be given a value of any kind."""
        kept, self.names = self.names, {"any": [name], "s": ["c", f"norm({name})"], "h": ["h"]}
        value = self.value("any", 2)
        self.names = kept
        return value

    def function(self) -> list[str]:
        """Return a function of the rule's own; later ones may call it."""
        name = f"f{len(self.functions) + 1}"
        match self.number(3):
            case 0:
                lines = [f"def {name}(x) = tanh({self.inside('x')})"]
            case 1:
                times = self.pick(["repeat 2:", "repeat turns:", "for y in betas:"])
                lines = [f"def {name}(x):", f"    {times} x = 0.5*x + tanh({self.inside('x')})", "    return x"]
            case 2:
                sides = self.inside("y"), self.inside("x")
                condition = self.around(self.pick(["t > 2", "flag", "mode == 1", "rate > 0.2"]), *sides)
                condition = condition if condition in ("flag", "t > 2", "mode == 1", "rate > 0.2") else "flag"
                lines = [f"def {name}(x):", f"    y = tanh({self.inside('x')})"]
                lines += [f"    if {condition}: return tanh({sides[0]})", f"    return {sides[1]}"]
            case _:
                lines = [f"def {name}(x, y = 0.5):", f"    z = {self.inside('x')}", "    return tanh(z)*y"]
        self.functions.append(name)
        return lines

    def rule(self, mode: str) -> str:
        """Return the text of a rule."""
        self.mode = mode
        self.depth = 2 + (self.number(3) == 3)
        require, _, guard = MODES[mode]
        when = f" when {guard}" if guard else ""
        declared = []
        for name in ("L", "W", "B")[: 1 + self.number(2)]:
            kind = self.pick(list(STATES))
            self.states[name] = kind
            declared.append(f"state {name} = {self.pick(STATES[kind])}{when}")
        head = [*declared, *LOCALS] if self.number(1) else [*LOCALS, *declared]
        head = [line for _ in range(self.number(2)) for line in self.function()] + head
        self.lines = ["raw = g"]
        if not guard:
            self.lines.append("G = matrix(raw)")
            self.open()
        for _ in range(2 + self.number(4)):
            match self.number(4):
                case 0:
                    self.lines += self.block(COMMON)
                case 1 if guard:
                    self.lines += [f"if {guard}:", *self.matrices()]
                case 2 if self.number(2) == 0:
                    self.lines.append(self.chance())
                case _:
                    self.lines += self.statement(COMMON)
        for kind in ("h", "s", *MATRICES):
            value = "{}" if kind in ("h", "s") else "sum({})"
            kept = [name for name in self.known(kind)[-2:] if name.startswith("x")]
            self.lines += [f"c += 0.01*tanh({value.format(name)})" for name in kept]
        self.lines.append(f"p -= rate*tanh({self.value('e', self.depth)})")
        text = HEAD.replace("{require}\n", f"{require}\n" if require else "")
        for name, starts in STARTS.items():
            text = text.replace(f"{{{name}}}", self.pick(starts))
        return "\n".join([text, *head, *self.lines, ""])

    def open(self) -> None:
        """Let matrices be used from here on."""
        for name, kind in {"G": "rc", **self.states}.items():
            self.names.setdefault(kind, []).append(name)

    def matrices(self) -> list[str]:
        """Return the statements of a block for matrices in a rule for tensors of any shape."""
        kept = self.scoped()
        self.open()
        letters = "".join(x for x in COMMON if x not in "qw")
        lines = ["G = matrix(raw)", *self.statement(letters), *self.statement(letters)]
        if self.number(1):
            lines += self.block(letters)
        self.names = kept
        lines = [f"    {line}" for line in lines]
        return lines if self.number(1) else [*lines, "else:", *(f"    {line}" for line in self.statement("mngpp"))]


@st.composite
def staged_rules(draw: st.DrawFn) -> tuple[str, str]:
    """Random rules for Hypothesis, with the name of their kind."""
    writer = Writer(lambda choices: draw(st.sampled_from(list(choices))))
    mode = writer.pick(list(MODES))
    return mode, writer.rule(mode)


def seeded(seed: int) -> tuple[str, str]:
    """Return the random rule of a number, always the same."""
    choose = random.Random(seed).choice
    mode = choose(list(MODES))
    return mode, Writer(choose).rule(mode)
