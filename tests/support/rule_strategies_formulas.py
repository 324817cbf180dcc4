"""Random rules with matrices, sums over the whole model, shared numbers, time, loops and chance.

As in :mod:`rule_strategies`, a writer makes every choice through one function. Every expression has a kind: ``h`` is a
number known to the host (at the latest when the sums over the model are there), ``s`` one number of a tensor, ``e``
an element value, and any other a vector or matrix, named after its sizes: ``rc`` has the shape of ``matrix(p)``,
``rk`` as many rows and k columns. What decompositions leave open (signs, orders of equal numbers) is kept out of the
results, and conditions compare with odd numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SIZES = {"r": "M", "c": "N", "k": "k"}
MATRICES = ("rc", "cr", "rr", "cc", "kk", "rk", "kc", "kr", "ck", "r", "c", "k")
NUMBERS = ("0.5", "0.1", "3", "1.5", "0.75")
THRESHOLDS = ("0.3713", "-0.1271", "0.0517", "1.6129")
HOST = ("rate", "decay", "0.9^t", "1/t", "cosine(6, 0.1)", "1/numel", "b1", "group.t/(2 + group.t)")
OF_GROUP = ("rate", "decay", "0.9^t", "1/t", "rank", "b1*b2", "(rate if t > 2 else decay)")
STATIC_CONDITIONS = ("flag", "not flag", "mode == 1", "ndim > 1", "rows > cols", "M > 2", "tall", "k == 1", "numel > 7")
HOST_CONDITIONS = ("t > 2", "first", "t % 2 == 1", "rate > 0.2", "1 < t <= 3", "not first and flag")
UNARY = (
    "tanh({})",
    "sin({})",
    "-({})",
    "abs({})",
    "sqrt(1 + ({})^2)",
    "exp(-abs({}))",
    "softplus({})",
    "softmax({})",
    "({})/(1 + ({})^2)",
    "soft_threshold({}, 0.1)",
    "clamp({}, -0.8, 0.9)",
    "({})/(1 + norm({}))",
    "({}) - mean({})",
    "({}) - mean({}, dim=1:)",
    "project_l1_ball({}, 2)",
    "prox_group_lasso({}, 0.1)",
    "damp({})",
)
BINARY = (
    "{} + {}",
    "{} - {}",
    "tanh({})*{}",
    "{}/(1.5 + abs({}))",
    "max({}, {})",
    "lerp({}, {}, 0.3)",
    "mixed({}, {})",
)
NUMBER = ("mean({})", "rms({})", "max({})", "norm({})", "sum(0.1*({}))", "dot({}, tanh({}))", "std({})")
NUMBER += ("norm({}, 1)", "norm({}, ord = inf)", "median({})", "0.1*norm({}, ord = 0)")
TOTALS = (
    "tanh(0.1*total({}))",
    "1/(1 + total(({})^2))",
    "gnorm({})/(1 + gnorm({}))",
    "min(1, 1/gnorm({}))",
    "share({})",
    "sqrt(total(abs({}))/(1 + total(ones(rows(p)))))",
)
#: Functions of the rule's own, beside the random ones: sums in functions, matrices in functions, several results.
HEAD = """optimizer Staged
hyper rate = 0.1 >= 0, decay = 0.9 in [0, 1)
hyper flag = false, mode = 0 in {0, 1}, rank = 2 >= 1, turns = 2 >= 0, period = 2, betas = (b1 = 0.5, b2 = 0.8)
{require}
state m, n = {n}
state c: scalar = {c}
state h: scalar = {h}
group state q = {q}
shared state w = {w}
shared state v = rate
def damp(x) = x/(1 + gnorm(x))
def share(x):
    y = total(tanh(x))
    return y/(1 + abs(y))
def mixed(x, y) = 0.5*x - tanh(y)
def both(x, y):
    if t > 2: return x*decay, y - x
    return y, x
def sym(x) = 0.5*(x + x.T)
def spd(x) = x @ x.T/(1 + norm(x)) + eye(rows(x))
def smooth(x):
    d, Q = eigh(sym(x))
    return Q @ diag(tanh(d)) @ Q.T
"""
#: What the states of every rule start as.
STARTS: dict[str, tuple[str, ...]] = {
    "n": ("0.2", "p > 0.3713", "1 if g > 0.0517 else 0", "where(p > -0.1271, 1, 2)/2", "not (p > mean(p) + 0.0517)"),
    "c": ("0.1", "mean(p) > 0.0517", "1 if norm(p) > 1.6129 else 0", "rate > 0.2 and isfinite(mean(p))"),
    "h": ("1", "rows > cols", "rate > 0.2", "numel/10 if flag else 0"),
    "q": ("0.3", "rate > 0.2", "1 if flag else 0"),
    "w": ("0.5", "not flag", "rank/4 if rate > 0.2 else 0"),
}
STATES = {
    "rr": ("zeros(M, M)", "eye(M)", "0*(matrix(g) @ matrix(g).T)", "matrix(g) @ matrix(g).T > 0.3713"),
    "cc": ("0.1*eye(N)", "zeros(N, N)", "matrix(g).T @ matrix(g)", "where(eye(N) > 0.5, 1, 0)"),
    "rk": ("zeros(M, k)", "eye(M)[:, :k]", "matrix(p)[:, :k]", "not (matrix(p)[:, :k] > 0.0517)"),
    "kc": ("ones(k, N)", "0.1*eye(N)[:k, :]", "tanh(matrix(g))[:k, :]"),
    "kk": ("zeros(k, k)", "eye(k)", "matrix(g)[:k, :k]", "0*eye(k) + rate > 0.2"),
    "c": ("zeros(N)", "matrix(g)[0]", "0.2*ones(N)", "argsort(matrix(p)[0])", "sort(matrix(g)[0])[1]/4"),
    "r": ("ones(M)", "matrix(p)[:, 0]", "0*diag(matrix(p) @ matrix(p).T)", "1 if matrix(g)[:, 0] > 0.0517 else 0"),
}
LOCALS = "M = rows(matrix(p)) if ndim >= 1 else 1\nN = cols(matrix(p)) if ndim >= 1 else 1\nk = min(rank, M, N)\n"


@dataclass
class Formulas:
    """Writes formulas; ``pick`` makes every choice."""

    pick: Callable[[Sequence[str]], str]
    names: dict[str, list[str]] = field(default_factory=lambda: {"e": ["p", "g", "m", "n"], "s": ["c"], "h": ["h"]})
    count: int = 0
    totals: int = 4  # how many sums there may be yet
    ways: int = 2  # how many conditions on numbers may stand around sums
    heavy: int = 4  # how many decompositions
    mode: str = ""
    functions: list[str] = field(default_factory=list)

    def number(self, upto: int) -> int:
        """Return one of 0 to ``upto``."""
        return int(self.pick([str(i) for i in range(upto + 1)]))

    def known(self, kind: str) -> list[str]:
        """Return names of a kind."""
        return self.names.get(kind, [])

    def fill(self, template: str, *operands: str) -> str:
        """Put operands into a template; a single one everywhere."""
        if len(operands) == 1:
            return template.replace("{}", operands[0])
        return template.format(*(x if x.isidentifier() else f"({x})" for x in operands))

    # Expressions ---------------------------------------------------------------------------------------------

    def host(self, depth: int) -> str:
        """Return a number that the host knows, at the latest after the sums."""
        if depth > 0 and self.totals > 0 and self.number(2) == 0:
            self.totals -= 1
            return self.fill(self.pick(TOTALS), self.value(self.array(), depth - 1))
        local = () if self.known("any") else ("0.1*N", "k")
        return self.pick([*NUMBERS, *HOST, *local, "q", "w", "v", *self.known("h")])

    def scalar(self, depth: int) -> str:
        """Return one number of a tensor."""
        matrix = self.pick(["rc", "rr", "rk", "c"])
        choice = self.number(4)
        if choice == 0 or depth == 0 or self.known("any"):
            return self.pick(self.known("s"))
        if choice == 1 and self.guarded:
            return f"trace({self.value(self.pick(['rr', 'cc', 'kk']), depth - 1)})"
        if choice == 2 and self.guarded:
            place = {"rc": "[0, 0]", "rr": "[M - 1, 0]", "rk": "[0, k - 1]", "c": "[N - 1]"}[matrix]
            return f"({self.value(matrix, depth - 1)}){place}"
        if choice == 3 and self.guarded and self.heavy > 0:
            self.heavy -= 1
            return f"sum(svd(G + 0.1*tanh({self.value('rc', depth - 1)})).S)"
        return self.fill(self.pick(NUMBER), self.value(self.array(), depth - 1))

    @property
    def guarded(self) -> bool:
        """Whether there may be matrices here."""
        return "G" in self.known("rc")

    def array(self) -> str:
        """Return a kind that has elements."""
        if self.known("any"):
            return "any"
        return self.pick(["e", *MATRICES]) if self.guarded else "e"

    def condition(self, depth: int) -> str:
        """Return a condition that is decided when compiling, before launch, or between sums."""
        if self.known("any"):
            return self.pick(["flag", "t > 2", "mode == 1", "rate > 0.2", "w > 0.3713"])
        late = [f"{self.pick(['w', 'v', *self.known('h')])} > {self.pick(THRESHOLDS)}"]
        if depth > 0 and self.totals > 0:
            self.totals -= 1
            late.append(f"gnorm({self.value(self.array(), depth - 1)}) > {self.pick(THRESHOLDS)}")
        return self.pick([*STATIC_CONDITIONS, *HOST_CONDITIONS, *late])

    def around(self, condition: str, *texts: str) -> str:
        """Return a condition that may stand around texts: each one around sums doubles the ways a step may go."""
        words = ("total", "norm(", "share", "damp", *(f"{name}(" for name in self.functions))
        if condition in STATIC_CONDITIONS or not any(word in text for text in texts for word in words):
            return condition
        self.ways -= 1
        common = self.known("any") or any(text.strip().startswith(("q =", "w =", "v =")) for text in texts)
        known = ("flag", "mode == 1") if common else STATIC_CONDITIONS
        return condition if self.ways >= 0 else self.pick(known)

    def value(self, kind: str, depth: int) -> str:
        """Return an expression of a kind."""
        if kind in ("h", "s"):
            return self.host(depth) if kind == "h" else self.scalar(depth)
        if depth <= 0:
            return self.pick(self.known(kind)) if self.known(kind) else self.made(kind, 0)
        match self.number(6):
            case 0:
                own = [f"{name}({{}})" for name in self.functions]
                return self.fill(self.pick([*UNARY, *own, *own, *own]), self.value(kind, depth - 1))
            case 1:
                other = self.pick([kind, "h", "s"])
                return self.fill(self.pick(BINARY), self.value(kind, depth - 1), self.value(other, depth - 1))
            case 2:
                a, b = self.value(kind, depth - 1), self.value(kind, depth - 1)
                return f"({a} if {self.around(self.condition(depth), a, b)} else {b})"
            case 3:
                condition = f"{self.value(kind, 0)} > {self.pick(THRESHOLDS)}"
                return f"where({condition}, {self.value(kind, depth - 1)}, {self.value(self.pick([kind, 'h']), 0)})"
            case 4 if self.known(kind):
                return self.pick(self.known(kind))
            case _:
                return self.made(kind, depth)

    def made(self, kind: str, depth: int) -> str:
        """Return an expression of a kind that is more than arithmetic on values of that kind."""
        if kind == "any":
            return self.pick(self.known(kind))
        if kind == "e":
            if self.guarded and depth > 0 and self.number(1):
                return f"(0.3*{self.pick(self.known('e'))} + {self.value('rc', depth - 1)})"
            line = f"{self.pick(['mean', 'rms', 'max'])}({self.pick(self.known('e'))}, dim=-1)"
            return f"({self.pick(self.known('e'))} - {line})" if self.mode != "anything" else self.pick(self.known("e"))
        return self.vector(kind, depth) if len(kind) == 1 else self.matrix(*kind, depth)

    def vector(self, a: str, depth: int) -> str:
        """Return a vector."""
        b = self.pick(["r", "c", "k"])
        size = SIZES[a]
        if depth <= 0:
            return {"r": "G[:, 0]", "c": "G[0]", "k": "G[0, :k]"}[a]
        match self.number(6):
            case 0:
                return f"(0.4*{self.bracketed(a + b, depth - 1)} @ {self.bracketed(b, 0)})"
            case 1:
                return f"diag({self.value(a + a, depth - 1)})"
            case 2:
                return f"sum({self.matrix(a, b, depth - 1)}, dim=1)[:, 0]"
            case 3:
                return f"{self.matrix(a, b, depth - 1)}[:, {SIZES[b]} - 1]"
            case 4:
                return f"sort({self.value(a, depth - 1)})[0]" if self.number(1) else f"flip({self.value(a, depth - 1)})"
            case 5 if self.heavy > 0:
                self.heavy -= 1
                inner = self.value(a + a, depth - 1)
                return self.pick([f"eigh(sym({inner})).values", f"solve(spd({inner}), {self.value(a, depth - 1)})"])
            case _:
                whole = self.value(self.pick(["r", "c"]), depth - 1)
                return f"topk({whole}, k).largest" if a == "k" else f"({self.value(a, 0)}*ones({size}))"

    def matrix(self, a: str, b: str, depth: int) -> str:
        """Return a matrix of sizes ``a`` and ``b``."""
        if depth <= 0 and self.known(a + b):
            return self.pick(self.known(a + b))
        rows, cols = (f":{SIZES[x]}" if x == "k" else ":" for x in (a, b))
        inner = self.pick(["r", "c", "k"])
        match self.number(8) if depth > 0 else 9:
            case 0:
                return f"(0.3*{self.bracketed(a + inner, depth - 1)} @ {self.bracketed(inner + b, depth - 1)})"
            case 1:
                return f"{self.bracketed(b + a, depth - 1)}.T"
            case 2 if self.number(1):
                return f"{self.pick(['triu', 'tril'])}({self.value(a + b, depth - 1)}, {self.pick(['0', '1', '-1'])})"
            case 2:
                return f"outer({self.value(a, depth - 1)}, {self.value(b, depth - 1)})"
            case 3:
                return f"flip({self.value(a + b, depth - 1)}, {self.pick(['0', '1', '-1'])})"
            case 4 if a != "k":
                return f"{self.bracketed(a + b, depth - 1)}[argsort({self.key(a)}), :]"
            case 5:
                line = (
                    f"{self.pick(['mean', 'norm', 'sum', 'max'])}({self.value(a + b, depth - 1)}, dim={self.number(1)})"
                )
                return f"(tanh({line}) - 0.5*{self.bracketed(a + b, depth - 1)})"
            case 6 if a == "k":
                return f"{self.bracketed('r' + b, depth - 1)}[topk({self.key('r')}, k)[1], :]"
            case 7 | 8 if self.heavy > 0:
                self.heavy -= 1
                return self.decomposed(a, b, depth)
            case _:
                if a == b:
                    return self.pick([f"eye({SIZES[a]})", f"diag({self.value(a, 0)})"])
                source = {"rc": "G", "cr": "G.T", "rk": "G", "kc": "G", "kr": "G.T", "ck": "G.T"}[a + b]
                return source if source in ("G", "G.T") and "k" not in a + b else f"{source}[{rows}, {cols}]"

    def bracketed(self, kind: str, depth: int) -> str:
        """Return a matrix that something may be put behind."""
        text = self.value(kind, depth)
        return text if text.isidentifier() else f"({text})"

    def key(self, size: str) -> str:
        """Return numbers that are surely different, to sort by."""
        if size == "r":
            return self.pick(["G[:, 0]", "-sum(G, dim=1)[:, 0]", "diag(G @ G.T)", "G @ ones(N)"])
        return self.pick(["G[0]", "-sum(G, dim=0)[0]", "diag(G.T @ G)", "G.T @ ones(M)"])

    def decomposed(self, a: str, b: str, depth: int) -> str:
        """Return what linear algebra makes of matrices that are far from singular."""
        if a == b:
            inner = self.value(a + a, depth - 1)
            roots = [
                f"inv(spd({inner}))",
                f"cholesky(spd({inner}))",
                f"inv_root(spd({inner}), {self.pick(['2', '4'])})",
            ]
            projector = "(qr(G[:, :k]) @ qr(G[:, :k]).T)" if a == "r" else f"smooth({inner})"
            return self.pick([*roots, f"smooth({inner})", projector])
        inner = self.matrix(a, b, depth - 1)
        if a + b == "rc" and self.number(1):
            return self.pick([f"newton_schulz(G + 0.1*tanh({inner}), 3)", "project_orthogonal(G + 0.01*matrix(p))"])
        return f"solve(spd({self.value(a + a, depth - 1)}), {inner})"
