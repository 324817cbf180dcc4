"""THE table of functions.

One row is one function. A *derived* function is written in the language itself (``definition``) and expanded
when a rule is lowered; a *primitive* has a spelling for tensors (``torch``) and, where it can be computed on the
host, one for Python floats (``host``). ``{0}`` stands for the first argument, and so on. ``helper`` names a
function of :data:`HELPERS` that the spelling calls and that is written into the generated source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Builtin:
    """One function of the language.

    Attributes:
        name: What a rule calls it.
        signature: Parameters as a rule may name them, with defaults, in the language's notation.
        group: The heading it is documented under.
        summary: One sentence.
        torch: Spelling on tensors, for a primitive.
        host: Spelling on Python floats, for a primitive that has one.
        definition: The body in the language, for a derived function.
        reduction: Whether it reduces (takes ``dim=``).
        boolean: Whether its result is a condition.
        helpers: Names of :data:`HELPERS` its spellings call.
        results: Names of its results, for a function with several: ``U, S, Vh = svd(x)``, ``svd(x).S``, ``svd(x)[1]``.
        bare: Which of several results stands for the function in a formula; None if it must be said.
        matrix: Whether it works on whole matrices (its torch spelling then has one more dimension in front, of
            matrices that are treated alike).
        free: Whether a rule may have a value of its own of this name.
    """

    name: str
    signature: str
    group: str
    summary: str
    torch: str | None = None
    host: str | None = None
    definition: str | None = None
    reduction: bool = False
    boolean: bool = False
    helpers: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    bare: int | None = None
    matrix: bool = False
    free: bool = False

    @property
    def block(self) -> bool:
        """Whether its definition is a block of statements that returns."""
        return self.definition is not None and "\n" in self.definition

    @property
    def parameters(self) -> tuple[tuple[str, str | None], ...]:
        """The parameters as (name, default text or None); ``*x`` takes any number."""
        pairs = []
        for part in filter(None, (s.strip() for s in self.signature.split(","))):
            name, _, default = (s.strip() for s in part.partition("="))
            pairs.append((name, default or None))
        return tuple(pairs)

    @property
    def takes_dim(self) -> bool:
        """Whether a call may have ``dim=``."""
        return self.reduction or any(name == "dim" for name, _ in self.parameters)

    @property
    def required(self) -> int:
        """How many of its parameters have no default."""
        return sum(default is None for _, default in self.parameters)


HELPERS: dict[str, str] = {
    "sign": (
        "def sign(x):\n"
        '    """Sign of x; NaN stays NaN, so a NaN gradient is not hidden."""\n'
        "    return torch.where(x == x, torch.sign(x), x)\n"
    ),
    "diag": (
        "def diag(x):\n"
        '    """The diagonals of some matrices, or the matrices with some diagonals."""\n'
        "    return torch.diag_embed(x) if x.dim() == 2 else torch.diagonal(x, dim1=-2, dim2=-1)\n"
    ),
    "stack_sum": (
        "def stack_sum(x, dim, keepdim=False):\n"
        '    """Sums over dimensions; rows are accumulated in 32 bits at least, their sums in float64."""\n'
        "    rows = x.sum(dim[-1], keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))\n"
        "    return rows.sum(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)\n"
    ),
    "product": (
        "def product(a, b):\n"
        '    """Products of matrices; of two alone with the function for two, which is faster."""\n'
        "    return torch.mm(a[0], b[0]).unsqueeze(0) if len(a) == len(b) == 1 else a @ b\n"
    ),
    "stack_squares": (
        "def stack_squares(x, dim, keepdim=False):\n"
        '    """Sums of squares over dimensions, as stack_sum has them, without the squares in memory."""\n'
        "    if x.dtype is torch.bfloat16:  # its numbers have few digits; and conversions row by row are slow\n"
        "        norms = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim, dtype=torch.float32)\n"
        "        return norms.square().to(x.dtype)\n"
        "    rows = torch.linalg.vector_norm(x, dim=dim[-1], keepdim=True)\n"
        "    return rows.double().square().sum(dim, keepdim=keepdim).to(x.dtype)\n"
    ),
    "push": (
        "def push(history, x, when=None):\n"
        '    """A history with one more entry, behind the others, and without its oldest one."""\n'
        "    if when is not None and not when:\n"
        "        return history\n"
        "    return torch.cat((history[:, 1:], x.to(history.dtype).unsqueeze(1)), 1)\n"
    ),
    "collected": (
        "def collected(entries, i, x):\n"
        '    """The values for the entries of a history, with one more filled in."""\n'
        "    entries[:, int(i)] = x\n"
        "    return entries\n"
    ),
    "stack_mean": (
        "def stack_mean(x, dim, keepdim=False):\n"
        '    """Means over dimensions; rows are accumulated in 32 bits at least, their means in float64."""\n'
        "    rows = x.mean(dim[-1], keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))\n"
        "    return rows.mean(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)\n"
    ),
    "ordered": (
        "def ordered(x, order, dim):\n"
        '    """Tensors with a dimension in another order, or parts of it; each has an order of its own."""\n'
        "    shape = [order.shape[0]] + [1] * (x.dim() - 1)\n"
        "    shape[dim] = order.shape[1]\n"
        "    return torch.take_along_dim(x, order.reshape(shape).long(), dim)\n"
    ),
    "eigh": (
        "def eigh(x):\n"
        '    """Eigenvalues and eigenvectors of symmetric matrices; NaN where there are none to be found."""\n'
        "    try:\n"
        "        return torch.linalg.eigh(x)\n"
        "    except torch.linalg.LinAlgError:\n"
        "        if len(x) > 1:\n"
        "            return tuple(map(torch.cat, zip(*map(eigh, x.split(1)))))\n"
        "        return x.new_full(x.shape[:-1], math.nan), torch.full_like(x, math.nan)\n"
    ),
    "svd": (
        "def svd(x):\n"
        '    """Singular value decompositions; NaN where there are none to be found."""\n'
        "    try:\n"
        "        return torch.linalg.svd(x, full_matrices=False)\n"
        "    except torch.linalg.LinAlgError:\n"
        "        if len(x) > 1:\n"
        "            return tuple(map(torch.cat, zip(*map(svd, x.split(1)))))\n"
        "        rank = min(x.shape[-2:])\n"
        "        shapes = ((x.shape[-2], rank), (rank,), (rank, x.shape[-1]))\n"
        "        return tuple(x.new_full((*x.shape[:-2], *shape), math.nan) for shape in shapes)\n"
    ),
    "in_one_type": (
        "def in_one_type(x, y):\n"
        '    """x in the number type in which x and y meet, as factors of a product must."""\n'
        "    return x.to(torch.promote_types(x.dtype, y.dtype))\n"
    ),
    "regular": (
        "def regular(result, info):\n"
        '    """Results of a decomposition; NaN where a matrix had none."""\n'
        "    return torch.where(info[..., None, None] == 0, result, math.nan)\n"
    ),
    "cumsum": (
        "def cumsum(x, dim):\n"
        '    """Sums up to each element along a dimension, accumulated in float64."""\n'
        "    return torch.cumsum(x, dim, dtype=torch.float64).to(x.dtype)\n"
    ),
    "solve": (
        "def solve(a, b):\n"
        '    """Solutions x of a @ x = b, for matrices and vectors b; NaN where there is none."""\n'
        "    vector = b.dim() < a.dim()\n"
        "    x, info = torch.linalg.solve_ex(a, b.unsqueeze(-1) if vector else b)\n"
        "    x = torch.where(info[..., None, None] == 0, x, math.nan)\n"
        "    return x.squeeze(-1) if vector else x\n"
    ),
    "host_sign": (
        "def host_sign(x):\n"
        '    """Sign of a number; NaN stays NaN."""\n'
        "    return x if x != x else float((x > 0) - (x < 0))\n"
    ),
    "host_max": (
        "def host_max(*x):\n"
        '    """Largest of some numbers; NaN if one of them is."""\n'
        "    return math.nan if any(map(math.isnan, x)) else max(x)\n"
    ),
    "host_min": (
        "def host_min(*x):\n"
        '    """Smallest of some numbers; NaN if one of them is."""\n'
        "    return math.nan if any(map(math.isnan, x)) else min(x)\n"
    ),
    "host_nan_to_num": (
        "def host_nan_to_num(x):\n"
        '    """0 for NaN, the largest float64 for an infinity."""\n'
        "    big = 1.7976931348623157e308\n"
        "    return 0.0 if x != x else max(-big, min(big, x))\n"
    ),
}

ELEMENTWISE, REDUCTION = "Elementwise", "Reductions (whole tensor, or dim= with kept dimensions)"
MATRIX, LINEAR, ORDER = "Matrices", "Linear algebra (of each tensor's matrices)", "Orders"
WHOLE, RANDOM = "The whole model", "Random numbers (from the optimizer's seed)"
HISTORY = "Histories"
CLOSURE = "Loss and curvature (from the closure that `step` is given)"
TIME, TYPES = "Time and schedules", "Number types"
PROXIMAL = "Projections and proximal maps (whole tensor, or dim= for each part along these dimensions)"


def _unary(name: str, summary: str, host: str | None = None, torch: str | None = None) -> Builtin:
    return Builtin(name, "x", ELEMENTWISE, summary, torch or f"torch.{name}({{0}})", host or f"math.{name}({{0}})")


#: Of the elements, or of parts along dimensions.
VARIANCE = (
    "(mean((x - mean(x, dim=dim))^2, dim=dim) if correction == 0 else "
    "sum((x - mean(x, dim=dim))^2, dim=dim) / (sum(x^0, dim=dim) - correction))"
)


def _simplex(x: str, total: str) -> str:
    """Return the statements that find what elements lose when they are projected to a simplex.

    ``theta`` is what makes sum(max(y - theta, 0)) the total. For any number of the largest y that sum is at least
    their own minus as many theta, and for the right number it is just that: so theta is the largest quotient (Held,
    Wolfe & Crowder, 1974, https://doi.org/10.1007/BF01580223). From y the largest element has been taken, so that what
    counts is small and sums of it are exact enough.
    """
    return (
        f"y = {x} - max({x}, dim=dim)\n"
        "largest = -sort(-y if dim != none else -flatten(y), dim ?? -1)\n"
        "count = cumsum(largest^0, dim ?? -1)\n"
        f"theta = max((cumsum(largest, dim ?? -1) - {total}) / count, dim=dim)\n"
    )


TABLE: tuple[Builtin, ...] = (
    _unary("abs", "Absolute value.", "abs({0})"),
    _unary("sqrt", "Square root; NaN for a negative number."),
    Builtin("rsqrt", "x", ELEMENTWISE, "One over the square root.", definition="1 / sqrt(x)"),
    _unary("exp", "Exponential."),
    _unary("log", "Natural logarithm."),
    _unary("expm1", "exp(x) - 1, accurate near 0."),
    _unary("log1p", "log(1 + x), accurate near 0."),
    _unary("sin", "Sine."),
    _unary("cos", "Cosine."),
    _unary("tanh", "Hyperbolic tangent."),
    _unary("atan", "Inverse tangent."),
    _unary("erf", "Error function."),
    Builtin(
        "sigmoid",
        "x",
        ELEMENTWISE,
        "Logistic function 1 / (1 + exp(-x)).",
        "torch.sigmoid({0})",
        "(0.5 * (1.0 + math.tanh(0.5 * {0})))",
    ),
    Builtin(
        "softplus",
        "x",
        ELEMENTWISE,
        "log(1 + exp(x)), for large x, too.",
        definition="max(x, 0) + log1p(exp(-abs(x)))",
        free=True,
    ),
    Builtin(
        "sign",
        "x",
        ELEMENTWISE,
        "-1, 0 or 1; NaN for NaN, so a NaN gradient is not hidden.",
        "sign({0})",
        "host_sign({0})",
        helpers=("sign", "host_sign"),
    ),
    Builtin("sgn", "x", ELEMENTWISE, "The same as sign.", definition="sign(x)"),
    Builtin("square", "x", ELEMENTWISE, "x^2.", definition="x^2"),
    _unary("floor", "Largest whole number not above x.", "float(math.floor({0}))"),
    _unary("round", "Nearest whole number, halves to the even one.", "float(round({0}))"),
    Builtin(
        "isfinite",
        "x",
        ELEMENTWISE,
        "Whether x is neither infinite nor NaN.",
        "torch.isfinite({0})",
        "math.isfinite({0})",
        boolean=True,
    ),
    Builtin(
        "nan_to_num",
        "x",
        ELEMENTWISE,
        "0 for NaN, the largest finite number for an infinity.",
        "torch.nan_to_num({0})",
        "host_nan_to_num({0})",
        helpers=("host_nan_to_num",),
    ),
    Builtin(
        "lerp",
        "a, b, w",
        ELEMENTWISE,
        "From a to b by the fraction w: (1 - w)*a + w*b.",
        definition="(1 - w)*a + w*b",
    ),
    Builtin(
        "clamp",
        "x, low, high",
        ELEMENTWISE,
        "x limited to [low, high]; NaN stays NaN.",
        definition="min(max(x, low), high)",
    ),
    Builtin(
        "where",
        "c, a, b",
        ELEMENTWISE,
        "a where the condition c holds, else b (the same as `a if c else b`).",
        "torch.where({0}, {1}, {2})",
        "({1} if {0} else {2})",
    ),
    Builtin(
        "max",
        "*x",
        ELEMENTWISE,
        "Largest of two or more values, NaN if one is; of one value, its largest element (takes dim=).",
        "torch.maximum({0}, {1})",
        "host_max({*})",
        reduction=True,
        helpers=("host_max",),
    ),
    Builtin(
        "min",
        "*x",
        ELEMENTWISE,
        "Smallest of two or more values, NaN if one is; of one value, its smallest element (takes dim=).",
        "torch.minimum({0}, {1})",
        "host_min({*})",
        reduction=True,
        helpers=("host_min",),
    ),
    Builtin("sum", "x", REDUCTION, "Sum, accumulated in float64.", reduction=True),
    Builtin("mean", "x", REDUCTION, "Mean, accumulated in float64.", reduction=True),
    Builtin(
        "norm",
        "x, ord = 2",
        REDUCTION,
        "Euclidean norm, or that of another order, of the elements: 1, inf, -inf (the smallest), 0 (how many are not "
        "0) or any number.",
        definition=(
            "sqrt(sum(x^2, dim=dim)) if ord == 2 else sum(abs(x), dim=dim) if ord == 1 else "
            "max(abs(x), dim=dim) if ord == inf else min(abs(x), dim=dim) if ord == -inf else "
            "sum(x != 0, dim=dim) if ord == 0 else sum(abs(x)^ord, dim=dim)^(1/ord)"
        ),
        reduction=True,
    ),
    Builtin(
        "rms",
        "x",
        REDUCTION,
        "Root of the mean square.",
        definition="sqrt(mean(x^2, dim=dim))",
        reduction=True,
    ),
    Builtin("dot", "x, y", REDUCTION, "Sum of products.", definition="sum(x*y, dim=dim)", reduction=True),
    Builtin(
        "var",
        "x, correction = 0",
        REDUCTION,
        "Variance: squares of distances from the mean, added up and divided by n - correction.",
        definition=VARIANCE,
        reduction=True,
    ),
    Builtin(
        "std",
        "x, correction = 0",
        REDUCTION,
        "Standard deviation, the root of the variance; `torch.std` has `correction = 1`.",
        definition=f"sqrt({VARIANCE})",
        reduction=True,
    ),
    Builtin(
        "softmax",
        "x, dim = none",
        REDUCTION,
        "exp(x) / sum(exp(x)): shares that add up to 1, of the whole tensor or along `dim`.",
        definition="powers = exp(x - max(x, dim=dim))\nreturn powers / sum(powers, dim=dim)",
        free=True,
    ),
    Builtin(
        "median",
        "x, dim = none",
        REDUCTION,
        "The element in the middle, the lower one of two as in `torch.median`; NaN if one is.",
        definition=(
            "y = sort(x if dim != none else flatten(x), dim ?? -1)\n"
            "place = cumsum(y^0, dim ?? -1)\n"
            "middle = sum(y if place == floor((max(place) + 1)/2) else 0, dim=dim)\n"
            "return middle if middle <= max(x, dim=dim) else max(x, dim=dim)"
        ),
        matrix=True,
        free=True,
    ),
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
    Builtin("matrix", "x", MATRIX, "x as a matrix: its first dimension by the rest.", "{0}.flatten(2)", matrix=True),
    Builtin(
        "flatten",
        "x",
        MATRIX,
        "The vector of all elements of x.",
        "{0}.reshape({0}.shape[0], -1)",
        matrix=True,
    ),
    Builtin("zeros", "*n", MATRIX, "Zeros of some sizes: `zeros(rows, r)`.", matrix=True),
    Builtin("ones", "*n", MATRIX, "Ones of some sizes.", matrix=True),
    Builtin("eye", "n", MATRIX, "The identity matrix of n rows.", matrix=True),
    Builtin(
        "diag",
        "x",
        MATRIX,
        "The diagonal of a matrix, or the matrix with a diagonal.",
        "diag({0})",
        helpers=("diag",),
        matrix=True,
    ),
    Builtin(
        "triu",
        "x, diagonal = 0",
        MATRIX,
        "A matrix without what is below a diagonal, counted upwards from the main one.",
        "torch.triu({0}, {1})",
        matrix=True,
        free=True,
    ),
    Builtin(
        "tril",
        "x, diagonal = 0",
        MATRIX,
        "A matrix without what is above a diagonal, counted upwards from the main one.",
        "torch.tril({0}, {1})",
        matrix=True,
        free=True,
    ),
    Builtin("size", "x, i", MATRIX, "How large dimension i of x is: `size(g, 0)`, `size(g, -1)`.", free=True),
    Builtin("trace", "x", MATRIX, "Sum of the diagonal.", "torch.diagonal({0}, dim1=-2, dim2=-1).sum(-1)", matrix=True),
    Builtin(
        "outer",
        "x, y",
        MATRIX,
        "Products of two vectors' elements.",
        "{0}.unsqueeze(-1) * {1}.unsqueeze(-2)",
        matrix=True,
    ),
    Builtin(
        "flip",
        "x, dim = -1",
        MATRIX,
        "x in the opposite order along a dimension.",
        "torch.flip({0}, ({1},))",
        matrix=True,
    ),
    Builtin(
        "cumsum",
        "x, dim = -1",
        MATRIX,
        "Sums of the elements up to each along a dimension, accumulated in float64.",
        "cumsum({0}, {1})",
        helpers=("cumsum",),
        matrix=True,
    ),
    Builtin(
        "eigh",
        "x",
        LINEAR,
        "Eigenvalues, ascending, and eigenvectors (as columns) of a symmetric matrix.",
        "eigh({0})",
        helpers=("eigh",),
        results=("values", "vectors"),
        matrix=True,
    ),
    Builtin(
        "qr",
        "x",
        LINEAR,
        "Orthonormal columns and a triangle whose product is x; `qr(x)` alone is the former.",
        "torch.linalg.qr({0})",
        results=("Q", "R"),
        bare=0,
        matrix=True,
    ),
    Builtin(
        "svd",
        "x",
        LINEAR,
        "Singular value decomposition: x = U @ diag(S) @ Vh.",
        "svd({0})",
        helpers=("svd",),
        results=("U", "S", "Vh"),
        matrix=True,
    ),
    Builtin(
        "inv",
        "x",
        LINEAR,
        "Inverse of a matrix.",
        "regular(*torch.linalg.inv_ex({0}))",
        helpers=("regular",),
        matrix=True,
    ),
    Builtin("solve", "a, b", LINEAR, "The x with a @ x = b.", "solve({0}, {1})", helpers=("solve",), matrix=True),
    Builtin(
        "cholesky",
        "x",
        LINEAR,
        "Lower triangle L with L @ L.T = x.",
        "regular(*torch.linalg.cholesky_ex({0}))",
        helpers=("regular",),
        matrix=True,
    ),
    Builtin(
        "inv_root",
        "x, k",
        LINEAR,
        "x^(-1/k) of a symmetric positive matrix; eigenvalues that rounding cannot tell from 0 beside the largest are "
        "taken to be as large as rounding makes them.",
        definition=(
            "w, Q = eigh(x)\n"
            "least = min(eps_of(x), 1.1920928955078125e-7) * max(w)\n"
            "return (Q @ diag(max(w, least, 1e-38)^(-1 / k))) @ Q.T"
        ),
        matrix=True,
    ),
    Builtin(
        "newton_schulz",
        "x, steps = 5, a = 3.4445, b = -4.775, c = 2.0315, eps = 1e-7",
        LINEAR,
        "The nearly orthogonal matrix that Muon steps along: `steps` times X = a*X + (b*A + c*A @ A) @ X with "
        "A = X @ X.T, from x/norm(x); in the number type of x (`newton_schulz(bf16(x))` is the usual one).",
        definition=(
            "X = x\n"
            "if rows(x) > cols(x): X = X.T\n"
            "X = X / max(norm(X), eps)\n"
            "repeat steps:\n"
            "    A = X @ X.T\n"
            "    B = b*A + c*(A @ A)\n"
            "    X = a*X + B @ X\n"
            "if rows(x) > cols(x): X = X.T\n"
            "return X"
        ),
        matrix=True,
    ),
    Builtin(
        "sort",
        "x, dim = -1",
        ORDER,
        "x sorted along a dimension, smallest first, and the order that sorts it.",
        "torch.sort({0}, dim={1})",
        results=("sorted", "order"),
        bare=0,
        matrix=True,
    ),
    Builtin(
        "argsort",
        "x, dim = -1",
        ORDER,
        "The order that sorts x along a dimension: `x[:, argsort(v)]`.",
        "torch.argsort({0}, dim={1})",
        matrix=True,
    ),
    Builtin(
        "topk",
        "x, k",
        ORDER,
        "The k largest along the last dimension, and their places.",
        results=("largest", "places"),
        bare=0,
        matrix=True,
    ),
    Builtin("randn", "*n", RANDOM, "Standard normal numbers, shaped like p, or of some sizes."),
    Builtin("rand", "*n", RANDOM, "Numbers between 0 and 1, shaped like p, or of some sizes."),
    Builtin("rademacher", "*n", RANDOM, "-1 or 1, each half of the time, shaped like p, or of some sizes."),
    Builtin("bernoulli", "q", RANDOM, "1 with probability q, else 0, shaped like p."),
    Builtin(
        "project_box",
        "x, low, high",
        PROXIMAL,
        "Nearest point in the box [low, high].",
        definition="min(max(x, low), high)",
    ),
    Builtin("project_nonnegative", "x", PROXIMAL, "Nearest point without negative elements.", definition="max(x, 0)"),
    Builtin(
        "project_l2_ball",
        "x, radius = 1, dim = none",
        PROXIMAL,
        "Nearest point with Euclidean norm at most `radius`.",
        definition="x * (1 if norm(x, dim=dim) <= radius else radius / norm(x, dim=dim))",
    ),
    Builtin(
        "project_unit_norm",
        "x, dim = none",
        PROXIMAL,
        "Nearest point with Euclidean norm 1; zero, to which all of them are equally near, stays zero.",
        definition="x / (1 if norm(x, dim=dim) == 0 else norm(x, dim=dim))",
    ),
    Builtin(
        "project_simplex",
        "x, total = 1, dim = none",
        PROXIMAL,
        "Nearest point without negative elements that add up to `total` (at least 0): elements lose the same amount, "
        "down to 0.",
        definition=f"{_simplex('x', 'total')}return max(y - theta, 0)",
        matrix=True,
    ),
    Builtin(
        "project_l1_ball",
        "x, radius = 1, dim = none",
        PROXIMAL,
        "Nearest point whose absolute values add up to at most `radius`.",
        definition=(
            f"{_simplex('abs(x)', 'radius')}return x if sum(abs(x), dim=dim) <= radius else sign(x)*max(y - theta, 0)"
        ),
        matrix=True,
    ),
    Builtin(
        "project_orthogonal",
        "x",
        PROXIMAL,
        "Nearest matrix with orthonormal rows or columns.",
        definition="U, S, Vh = svd(x)\nreturn U @ Vh",
        matrix=True,
    ),
    Builtin(
        "soft_threshold",
        "x, k",
        PROXIMAL,
        "Shrinks x towards 0 by k: the proximal map of k*|x|.",
        definition="sign(x)*max(abs(x) - k, 0)",
    ),
    Builtin(
        "prox_l0",
        "x, k",
        PROXIMAL,
        "0 for what is at most sqrt(2*k) in size: the proximal map of k times the number of elements that are not 0.",
        definition="0 if x^2 <= 2*k else x",
    ),
    Builtin(
        "prox_elastic_net",
        "x, l1, l2",
        PROXIMAL,
        "The proximal map of l1*|x| + l2/2*x^2.",
        definition="sign(x)*max(abs(x) - l1, 0)/(1 + l2)",
    ),
    Builtin(
        "prox_group_lasso",
        "x, k, dim = none",
        PROXIMAL,
        "Shrinks the Euclidean norm by k, down to 0: the proximal map of k*norm(x).",
        definition="x * (0 if norm(x, dim=dim) <= k else 1 - k/norm(x, dim=dim))",
    ),
    Builtin(
        "prox_nuclear",
        "x, k",
        PROXIMAL,
        "Shrinks singular values by k, down to 0: the proximal map of k times their sum.",
        definition="U, S, Vh = svd(x)\nreturn U @ diag(max(S - k, 0)) @ Vh",
        matrix=True,
    ),
    Builtin(
        "f32",
        "x",
        TYPES,
        "x rounded to float32.",
        "{0}.to(torch.float32)",
        "float(torch.tensor({0}, dtype=torch.float32).item())",
    ),
    Builtin(
        "bf16",
        "x",
        TYPES,
        "x rounded to bfloat16.",
        "{0}.to(torch.bfloat16)",
        "float(torch.tensor({0}, dtype=torch.bfloat16).item())",
    ),
    Builtin("eps_of", "x", TYPES, "The machine epsilon of the type that p is stored in."),
)

#: What histories are made of (see :mod:`optlang.language.histories`), under names that no rule could write.
EMPTY, PUSH, COUNT = "empty history", "push onto", "count"
#: What `iterate` is made of (see :mod:`optlang.language.iterations`).
HALT = "iterate until"
INTERNAL: tuple[Builtin, ...] = (
    Builtin(EMPTY, "size", HISTORY, "Room for values shaped like p.", matrix=True),
    Builtin(HALT, "n, c", CLOSURE, "Ends the steps of `iterate` before this one."),
    Builtin(PUSH, "s, x", HISTORY, "A history with one more entry.", "push({0}, {1})", helpers=("push",), matrix=True),
)

BUILTINS: dict[str, Builtin] = {row.name: row for row in (*TABLE, *INTERNAL)}

TENSOR_NAMES: dict[str, str] = {
    "p": "the parameter",
    "g": "its gradient",
}

FACT_NAMES: dict[str, str] = {
    "ndim": "number of dimensions of this tensor",
    "numel": "number of elements of this tensor",
    "rows": "size of dimension -2 of this tensor (1 if it has fewer than two dimensions)",
    "cols": "size of the last dimension of this tensor (1 if it has none)",
}

TIME_NAMES: dict[str, str] = {
    "t": "this tensor's updates, counted from 1",
    "first": "whether this is the tensor's first update (t == 1)",
}

#: Members of values: the transpose, and the results of functions that have several.
MEMBERS = frozenset(("T", *(result for row in BUILTINS.values() for result in row.results)))

#: Functions that have the closure called; the first is also the name of the loss where the step starts.
EVALUATIONS: frozenset[str] = frozenset(
    ("loss", "grad", "hvp", "strong_wolfe", "backtracking", "iteration", "evaluations", HALT)
)

#: Those that are numbers of the step itself.
PROGRESS: tuple[str, ...] = ("iteration", "evaluations")

#: Those that search along a direction.
SEARCHES: tuple[str, ...] = ("strong_wolfe", "backtracking")

#: Functions of a value's own sizes; the first two under the names of the facts of p.
SIZES: tuple[str, ...] = ("rows", "cols", "size")

#: Functions that make tensors of given sizes.
MAKERS: frozenset[str] = frozenset(("zeros", "ones", "eye"))

#: Functions that draw random numbers; the first two are primitive.
RANDOMS: tuple[str, ...] = ("randn", "rand", "rademacher", "bernoulli")

#: Functions that make a rule one of matrices.
MATRIX_FUNCTIONS: frozenset[str] = frozenset(row.name for row in (*TABLE, *INTERNAL) if row.matrix)
