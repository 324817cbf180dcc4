"""Random rules around inner rules: these are called under periods, conditions and loops, and more than once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

THRESHOLDS = ("0.3713", "-0.1271", "0.0517")
#: Rules to put inside; those in quotes are files that are written anew for each random rule.
INSIDE = (
    "SGD(lr = 0.05, momentum = 0.9)",
    "SGD(lr = rate, momentum = 0.5, dampening = 0.3)",
    "Adam(lr = 0.05, amsgrad = true)",
    "AdamW(lr = rate/2, betas = betas)",
    "AdamW(lr = 0.05, betas = (0.7, 0.8))",
    "RAdam(lr = 0.05, betas = (0.5, 0.6))",
    "Adamax(lr = 0.05)",
    '"first.opt"',
    '"first.opt"(k = 0.3)',
    '"second.opt"',
)
EVERY = ("every 2:", "every 2 from 1:", "every 3 or first:", "every period:", "every period from 2:")
TIME = ("if t > 2:", "if t % 3 == 1:", "if first:", "if not first:", "if rate > 0.2:")
STATIC = ("if ndim > 1:", "if ndim == 2:", "if flag:", "if cols > 3 and not flag:", "if wide:")
DEVICE = ("if mean({}) > {}:", "if norm({}) > 1.3127:", "if gnorm(g) > 3.7131:")
LOOPS = ("repeat 2:", "repeat turns:", "for b in betas:")
GRADIENTS = ("g", "g", "tanh(g)", "g - 0.5*m", "m", "g*warmup(3)", "0.5*g + 0.1*p")


@dataclass
class Writer:
    """Writes one rule and the files that it may use; ``pick`` makes every choice."""

    pick: Callable[[Sequence[str]], str]
    lines: list[str] = field(default_factory=list)

    def inside(self, nested: str) -> str:
        """Return the text of a rule to put inside, which reads the time in many ways."""
        lines = ["hyper k = 0.8 in [0, 1), rate = 0.1, q = 2 >= 1", "state m", "state c: scalar = 1"]
        lines.append(f"state a = {self.pick(['p', 'g^2', '0*p + 1', 'tanh(p) - g'])}")
        lines.append(f"state r = {self.pick(['mean(g, dim=-1)', '0*mean(p, dim=-1)'])} when ndim > 1")
        lines.append("def soft(x) = tanh(x)/t")
        if nested:
            lines.append(f"inner N = {nested}")
        for _ in range(2 + len(self.pick(("", "-", "--")))):
            lines += [f"{line}" for line in self.pick(BODIES).splitlines()]
        if nested:
            around = self.pick(("", "every 2: ", "if t > 1: ", "repeat 2: ", "if mean(g) > 0.0517: "))
            lines.append(f"{around}{self.pick(['N(p, 0.5*g)', 'N(p, m)', 'a += 0.3*tanh(N.direction(g))'])}")
        lines.append("p -= rate*tanh(m + 0.1*a + c)")
        return "\n".join(lines) + "\n"

    def call(self) -> str:
        """Return a call of an inner rule."""
        name, gradient = self.pick(["A", "B"]), self.pick(GRADIENTS)
        match self.pick(["p", "p", "z", "direction"]):
            case "direction":
                return f"m += 0.2*tanh({name}.direction({gradient}))"
            case target:
                return f"{name}({target}, {gradient})"

    def block(self, depth: int) -> list[str]:
        """Return calls with something around them."""
        if depth == 0:
            return [self.call() for _ in range(1 + (self.pick("ab") == "a"))]
        head = self.pick([*EVERY, *TIME, *STATIC, *DEVICE, *LOOPS])
        head = head.format(self.pick(["g", "m", "p"]), self.pick(THRESHOLDS))
        inner = self.block(depth - 1 if self.pick("abc") == "a" else 0)
        lines = [head, *(f"    {line}" for line in inner)]
        if head.startswith("if") and self.pick("ab") == "a":
            lines += ["else:", *(f"    {line}" for line in self.block(0))]
        return lines

    def rule(self) -> dict[str, str]:
        """Return the texts of the files: the rule itself is ``rule.opt``."""
        files = {"second.opt": self.inside("")}
        files["first.opt"] = self.inside(self.pick(["", "SGD(lr = 0.1, momentum = 0.5)", '"second.opt"(k = k)']))
        lines = ["optimizer Random", "hyper rate = 0.1 >= 0, flag = false, period = 2 >= 0, turns = 2"]
        lines += ["hyper betas = (beta1 = 0.7, beta2 = 0.9) in [0, 1)", "state m, z = p"]
        inside = {name: self.pick(INSIDE) for name in "AB"}
        lines += [f"inner {name} = {rule}" for name, rule in inside.items()]
        lines += ["wide = cols > rows", "m = 0.9*m + 0.1*g"]
        for _ in range(1 + len(self.pick(("", "-", "--")))):
            lines += self.block(int(self.pick("0122")))
            if self.pick("abc") == "a":
                lines.append(self.pick(["g = tanh(g)", "p = 0.9*p", "z = lerp(z, p, 0.5)"]))
        read = [name for name, rule in inside.items() if rule.startswith('"') and _is_everywhere(name, lines)]
        lines += [f"m += 0.05*tanh({name}.m)*{name}.k" for name in read]
        lines.append("p -= 0.01*tanh(z + m)")
        return {**files, "rule.opt": "\n".join(lines) + "\n"}


def _is_everywhere(name: str, lines: list[str]) -> bool:
    """Return whether an inner rule has states for all tensors: some call is under no condition on their shapes."""
    heads: list[str] = []
    for line in lines:
        heads = heads[: (len(line) - len(line.lstrip())) // 4]
        called = f"{name}(" in line or f"{name}.direction(" in line
        if called and not any(head in STATIC or head == "else:" for head in heads):
            return True
        if line.endswith(":"):
            heads.append(line.strip())
    return False


#: What rules to put inside are made of.
BODIES = (
    "m = k*m + (1 - k)*(g if first else 0.5*g)",
    "m += 0.1*debias(g, k)",
    "every 2 or first: a = 0.5*a + 0.5*tanh(g)",
    "every q from 2: m = 0.5*m + soft(g)",
    "c = 0.5*c + 0.5*warmup(4)",
    "if t > 2: a = 0.9*a + 0.1*g",
    "if not first: m = 0.7*m",
    "c += 0.1*tanh(norm(g))*cosine(5, 0.1)",
    "g = soft(g) + 0.1*m",
    "if ndim > 1: r = 0.5*r + 0.5*mean(g, dim=-1)",
    "if first: a = a + tanh(g)",
)


@st.composite
def inner_rules(draw: st.DrawFn) -> dict[str, str]:
    """Random rules for Hypothesis."""
    return Writer(lambda choices: draw(st.sampled_from(list(choices)))).rule()


def seeded(seed: int) -> dict[str, str]:
    """Return the random rule of a number, always the same."""
    return Writer(random.Random(seed).choice).rule()
