"""The parser: every construct of the language, names and numbers, layout, limits, and the words of syntax errors."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from optlang.diagnostics import OptlangError
from optlang.source import Source, Span
from optlang.syntax import tree
from optlang.syntax.errors import syntax_errors
from optlang.syntax.parse import _failure, parse
from optlang.syntax.tree import StateScope


def read(text: str) -> tree.Tree:
    return parse(Source(text))


def items(text: str) -> tuple[Any, ...]:
    return read(text).items


def value(expression: str) -> Any:
    """Return the node of an expression."""
    return items(f"x = {expression}\n")[0].value


def shape(node: Any) -> str:
    """Return an expression with every operation in brackets."""
    match node:
        case tree.Binary():
            return f"({shape(node.left)} {node.op} {shape(node.right)})"
        case tree.Unary():
            return f"({node.op} {shape(node.operand)})"
        case tree.Compare():
            words = [shape(node.operands[0])]
            for op, operand in zip(node.ops, node.operands[1:], strict=True):
                words += [op, shape(operand)]
            return f"({' '.join(words)})"
        case tree.Ternary():
            return f"({shape(node.then)} if {shape(node.condition)} else {shape(node.other)})"
        case tree.Call():
            return f"{shape(node.function)}({', '.join(shape(a.value) for a in node.arguments)})"
    return str(node.text if isinstance(node, tree.Name | tree.Number) else type(node).__name__)


def errors(text: str) -> list[Any]:
    with pytest.raises(OptlangError) as caught:
        read(text)
    return list(caught.value.diagnostics)


# Expressions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a + b*c - d", "((a + (b * c)) - d)"),
        ("a/b*c % d", "(((a / b) * c) % d)"),
        ("-a^b", "(- (a ^ b))"),
        ("a^-b^c", "(a ^ (- (b ^ c)))"),
        ("a**b", "(a ^ b)"),
        ("-a*b", "((- a) * b)"),
        ("not a and b or c", "(((not a) and b) or c)"),
        ("not a < b", "(not (a < b))"),
        ("a < b <= c", "(a < b <= c)"),
        ("a + b == c", "((a + b) == c)"),
        ("a ?? b or c", "(a ?? (b or c))"),
        ("a ?? b ?? c", "((a ?? b) ?? c)"),
        ("a if b else c if d else e", "(a if b else (c if d else e))"),
        ("a ?? b if c else d", "((a ?? b) if c else d)"),
        ("f(a, b + c)^2", "(f(a, (b + c)) ^ 2)"),
        ("a < -b", "(a < (- b))"),
        ("a <-b", "(a < (- b))"),
        ("--a", "(- (- a))"),
        ("(a + b)*c", "((a + b) * c)"),
    ],
)
def test_operators_bind_as_on_paper(text: str, meant: str) -> None:
    assert shape(value(text)) == meant


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("1", Fraction(1)),
        (".9", Fraction(9, 10)),
        ("5.", Fraction(5)),
        ("1e-3", Fraction(1, 1000)),
        ("2.5E+2", Fraction(250)),
        ("1_000.5_0", Fraction(2001, 2)),
    ],
)
def test_numbers_are_exact(text: str, exact: Fraction) -> None:
    node = value(text)
    assert isinstance(node, tree.Number)
    assert (node.text, node.value) == (text, exact)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("β1", "beta1"),
        ("β₁", "beta1"),
        ("𝛽", "beta"),
        ("θ", "theta"),
        ("ϵ", "epsilon"),
        ("ε", "epsilon"),
        ("Δ", "Delta"),
        ("λ", "lambda"),
        ("µ", "mu"),
        ("σ_max", "sigma_max"),
        ("größe", "größe"),
        ("m̂", "m̂"),
    ],
)
def test_spellings_of_names(text: str, name: str) -> None:
    node = value(text)
    assert (node.name, node.text) == (name, text)


@pytest.mark.parametrize(
    "word",
    [
        "lambda",
        "class",
        "size",
        "input",
        "from",
        "use",
        "on",
        "group",
        "first",
        "flat",
        "when",
        "as",
        "state",
        "store",
        "every",
        "push",
        "shared",
        "optimizer",
    ],
)
def test_words_that_remain_names(word: str) -> None:
    (assign,) = items(f"x = {word} + f({word}, k={word})\n")
    assert assign.value.left.name == word
    if word != "optimizer":
        (assign,) = items(f"{word} = 1\n")
        assert assign.targets[0].name == word


def test_literals_and_calls() -> None:
    call = value('f(true, False, none, inf, "l2", \'x"y\', dim=(0, -1))')
    kinds = [type(argument.value) for argument in call.arguments]
    assert kinds == [tree.Bool, tree.Bool, tree.Nothing, tree.Infinity, tree.Text, tree.Text, tree.Tuple]
    assert call.arguments[5].value.value == 'x"y'
    assert (call.arguments[6].name, len(call.arguments[6].value.items)) == ("dim", 2)
    assert value("group.lr").name == "lr"


def test_spans_are_the_characters() -> None:
    text = "x = (a + b)*f(c)\n"
    node = value("(a + b)*f(c)")
    source = Source(text)
    assert source.excerpt(node.span) == "(a + b)*f(c)"
    assert source.excerpt(node.left.span) == "(a + b)"
    assert source.excerpt(node.right.span) == "f(c)"


# Declarations -----------------------------------------------------------------------------------------------


def test_whole_rule() -> None:
    text = '''"""A rule.

More about it.
"""
# a comment
optimizer Rule   # reference: torch.optim.Adam

hyper lr = 1e-3 >= 0  "step size"
hyper betas = (β1 = .9, beta2 = .999) in [0, 1), mode = "l2" in {"l2", 'no'}, free
require lr > 0 "positive"
state m as exp_avg, v = 0*p as k when mode == "l2"
state c: scalar = 1
group state total_weight = 0
def f(x, y = 2) = x^y
def h(x):
    z = x; return z, x
p -= lr*m
'''
    found = read(text)
    assert found.doc is not None and found.doc.value.startswith("A rule.\n\nMore")
    assert [comment.own_line for comment in found.comments] == [True, False]
    optimizer, hyper, betas, require, states, scalar, group, line, block, assign = found.items
    assert (optimizer.name.name, optimizer.reference) == ("Rule", "torch.optim.Adam")
    assert hyper.doc == "step size"
    assert (hyper.items[0].domain.text, hyper.items[0].domain.low_closed) == (">= 0", True)
    assert [part.name.name for part in betas.items[0].parts] == ["beta1", "beta2"]
    assert betas.items[0].default is None
    assert (betas.items[0].domain.text, betas.items[0].domain.high_closed) == ("in [0, 1)", False)
    assert [x.value for x in betas.items[1].domain.items] == ["l2", "no"]
    assert betas.items[2].default is None
    assert require.message == "positive"
    assert [(x.name.name, x.key) for x in states.items] == [("m", "exp_avg"), ("v", "k")]
    assert states.items[1].initial is not None and isinstance(states.when, tree.Compare)
    assert (scalar.items[0].type, group.scope) == ("scalar", StateScope.GROUP)
    assert line.parameters[1].default is not None and isinstance(line.body, tree.Binary)
    assert [type(x) for x in block.body] == [tree.Assign, tree.Return]
    assert assign.op == "-="


def test_branches() -> None:
    text = "if a: x = 1; y = 2\nelif b:\n    x = 2\nelse:\n  if c:\n      x = 3\n  y = 4\nz = 1\n"
    block, last = items(text)
    assert [len(body) for _, body in block.branches] == [2, 1]
    assert [type(x) for x in block.other] == [tree.If, tree.Assign]
    assert last.targets[0].name == "z"


@pytest.mark.parametrize(
    ("text", "what", "defines"),
    [
        ("compute float32\n", "compute", ()),
        ("input x, y\n", "input", ("x", "y")),
        ("for i in range(s):\n    q -= s*i\n", "for", ("i", "q")),
    ],
)
def test_later_constructs_are_recognised(text: str, what: str, defines: tuple[str, ...]) -> None:
    (item,) = items(text)
    assert isinstance(item, tree.Unsupported)
    assert what in item.what
    assert item.defines == defines


def test_stored_states() -> None:
    text = (
        "store m, v: int8(block = 256) when numel > 4096\nstore w: bf16 stochastic\nstore p: bf16+8\nstore p: kahan\n"
    )
    several, rounded, bits, way = items(text)
    assert [name.name for name in several.names] == ["m", "v"]
    assert (several.format.name.text, several.format.options[0].name) == ("int8", "block")
    assert isinstance(several.when, tree.Compare)
    assert (rounded.format.rounding.text, rounded.when) == ("stochastic", None)
    assert (bits.format.name.text, bits.format.bits.value) == ("bf16", 8)
    assert way.format == tree.StoreFormat(way.format.span, tree.Word(way.format.span, "kahan"))


def test_pieces_of_rules() -> None:
    text = (
        'use AdamW(lr = 0.1)\ninner B = SGD like q\ninner C = "my.opt"(k = 2)\n'
        "transform f(u, beta = 0.9 in [0, 1), n = 2 > 0, s = true):\n    state b\n    b = beta*b + u\n    return b\n"
    )
    use, inner, file, transform = items(text)
    assert (use.rule.name, use.arguments[0].name) == ("AdamW", "lr")
    assert (inner.name.name, inner.rule.name, inner.like.name) == ("B", "SGD", "q")
    assert (file.rule.value, file.like, file.arguments[0].name) == ("my.opt", None, "k")
    assert [p.name.name for p in transform.parameters] == ["u", "beta", "n", "s"]
    assert [p.domain and p.domain.text for p in transform.parameters] == [None, "in [0, 1)", "> 0", None]
    assert [type(x) for x in transform.body] == [tree.StateDecl, tree.Assign, tree.Return]


def test_pipes() -> None:
    node = value("g |> f(2) |> h")
    assert isinstance(node, tree.Pipe) and isinstance(node.value, tree.Pipe)
    assert (node.stage.name, node.value.stage.function.name) == ("h", "f")
    assert node.span == Span(4, 4 + len("g |> f(2) |> h"))
    assert value("g |> b.direction").stage.name == "direction"
    assert value("b.direction(g)").function.value.name == "b"


def test_matrices() -> None:
    node = value("a*b @ c.T + d")
    assert (node.op, node.left.op, node.left.left.op) == ("+", "@", "*")
    assert (node.left.right.name, node.left.right.value.name) == ("T", "c")
    picked = value("eigh(L)[1]")
    assert isinstance(picked.value, tree.Call) and [x.value for x in picked.items] == [1]
    assert isinstance(value("svd(x).Vh"), tree.Member)
    part = value("x[:r, i:, order, 2]")
    first, second, third, fourth = part.items
    assert (first.start, first.stop.name, second.start.name, second.stop) == (None, "r", "i", None)
    assert (third.name, fourth.value) == ("order", 2)
    (several,) = items("U, S, Vh = svd(g)\n")
    assert [target.name for target in several.targets] == ["U", "S", "Vh"]


def test_loops() -> None:
    repeat, loop = items("repeat n + 1:\n    X = 2*X\nfor b in betas: c *= b\n")
    assert (repeat.count.op, [type(x) for x in repeat.body]) == ("+", [tree.Assign])
    assert (loop.name.name, loop.over.name, len(loop.body)) == ("b", "betas", 1)


@pytest.mark.parametrize(
    ("text", "start", "first"),
    [
        ("every k: h = g\n", None, False),
        ("every k or first: h = g\n", None, True),
        ("every k from 10:\n    h = g\n", 10, False),
        ("every k from 10 or first: h = g\n", 10, True),
    ],
)
def test_every(text: str, start: int | None, first: bool) -> None:
    (every,) = items(text)
    assert isinstance(every, tree.Every) and every.period.name == "k"
    assert (every.start.value if every.start else None, every.first) == (start, first)


def test_shared_state_events_and_routes() -> None:
    (shared,) = items("shared state d = 1, e = 0\n")
    assert (shared.scope, [x.name.name for x in shared.items]) == (StateScope.SHARED, ["d", "e"])
    to_eval, to_train = items("on eval: p = z\non train:\n    p = y\n    z = p\n")
    assert [(x.event, len(x.body)) for x in (to_eval, to_train)] == [("eval", 1), ("train", 2)]
    muon, rest = items("route Muon when ndim >= 2 and not group.adam\nroute AdamW otherwise\n")
    assert (muon.rule.name, muon.when.op, rest.rule.name, rest.when) == ("Muon", "and", "AdamW", None)


def test_parts_are_not_assigned() -> None:
    assert errors("a[3] = 3\n")[0].code == "E115"
    assert errors("a[i, j] = 3\n")[0].code == "E115"
    assert errors("a.T = 3\n")[0].code == "E115"


@pytest.mark.parametrize("value_of_it", ["x", "-x", "x^2", "x * y - z", "a if c else b", "(-x)", "x < y"])
def test_what_is_pushed_stands_behind_an_arrow(value_of_it: str) -> None:
    flat, history, push = items(f"flat\nhistory s, y: scalar size k\npush s <- {value_of_it}, y <-1\n")
    assert isinstance(flat, tree.Flat)
    assert ([name.name for name in history.names], history.type, history.size.name) == (["s", "y"], "scalar", "k")
    (target, pushed), (_, one) = push.items
    assert target.name == "s" and shape(pushed) == shape(value(value_of_it))
    assert isinstance(one, tree.Number)


def test_loops_over_histories() -> None:
    forward, backward = items("for i in s: a[i] = x\nfor i in reversed(s): q -= a[i]\n")
    assert (forward.over.name, forward.backwards, backward.over.name, backward.backwards) == ("s", False, "s", True)
    (entry,) = forward.body
    assert (entry.targets[0].name, entry.at.name) == ("a", "i")


def test_inner_rule_is_applied() -> None:
    assert isinstance(items("inner B = SGD(lr = 1)\nB(p, g)\n")[1], tree.Apply)
    assert errors("B(p, g)\n")[0].code == "E111"


# Layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# only a comment",
        "   \n\t\n",
        "\ufeffp -= g",
        "p -= g\r\nv = 1\r\n",
        "    p -= g\n    v = 1\n",
        "\tif a:\n\t\tx = 1\n\n\n\t# odd\n\ty = 2",
        "if a:\n  # comment\n  x = 1\n# comment\n  y = 2\n",
        "x = f(a,\n  b # why\n)\n",
        "x = 1;\n",
        "\fx = 1\n",
    ],
)
def test_layouts_that_are_fine(text: str) -> None:
    assert read(text).source.text == text


@pytest.mark.parametrize(
    "text",
    [
        "p -= " + "(" * 10_000,
        "p -= g" + ")" * 10_000,
        "p -= " + "-" * 9_000 + "g",
        "p -= " + "not " * 9_000 + "g",
        "p -= " + "+".join("g" * 9_000),
        "p -= " + "^".join("g" * 9_000),
        "p -= " + "g if a else " * 4_000 + "g",
        "p -= " + "f(" * 51 + "g" + ")" * 51,
        "".join("  " * i + "if a:\n" for i in range(30)) + "  " * 30 + "x = 1\n",
        "x = 1\n" * 10_000,
        "x" * 1_000_000,
        "p -= 1e401*g",
        "p -= 1e" + "9" * 5_000,
        "p -= " + "9" * 5_000,
        "p -= x" + "\u0301\u0345" * 40_000,
    ],
)
def test_limits(text: str) -> None:
    (found,) = errors(text)
    assert found.code in ("E104", "E501", "E502", "E503")
    assert found.help


def test_ordinary_sizes_are_far_from_the_limits() -> None:
    assert shape(value(" + ".join("a" * 90))).count("+") == 89
    read("hyper " + ", ".join(f"a{i} = 1" for i in range(1000)) + "\n")
    read("if a: x = 1\n" + "elif a: x = 1\n" * 500)


# Mistakes ---------------------------------------------------------------------------------------------------


def test_several_mistakes_are_reported_together() -> None:
    found = errors("hyper lr: float = 1\nif a = 1:\n    x = 2\nelse:\n    x = 3\np -= lr g\nv = g\n")
    assert [diagnostic.position[0] for diagnostic in found] == [1, 2, 6]


def test_statements_that_do_nothing_are_all_reported() -> None:
    found = errors("x\nif a:\n    return x\nsqrt(g)\ndef f(x):\n    return x\np -= g\n")
    assert [(d.code, d.position[0]) for d in found] == [("E111", 1), ("E114", 3), ("E111", 4)]


EXAMPLES = [(example, text) for example in syntax_errors.EXAMPLES for text in example.texts]


@pytest.mark.parametrize(("example", "text"), EXAMPLES, ids=[text for _, text in EXAMPLES])
def test_examples_of_mistakes_get_their_words(example: syntax_errors.Example, text: str) -> None:
    first = errors(text)[0]
    spoken_for = first.message == example.message
    assert spoken_for or first.code != "E101", f"{text!r} gets: {first.message}"


# Errors that may happen in any expression: the words of a declaration must not claim their parser states.
ANYWHERE = [
    *("x = a b\n", "x = 1 2\n", "x = a 3\n", "x = (a) b\n", "x = f(a b)\n", "x = a^2 b\n", "x = a < b c\n"),
    *("x = -a b\n", "x = a or b c\n", "x = not a b\n", "x = a =\n", "x = 1 =\n", "x = a < 1 =\n", "x = a :\n"),
    *("x = f(a:)\n", "x = \n", "x = a +\n", "x = [1]\n", "x = a ]\n", "x = a }\n", "return a b\n", "x = a ?? b c\n"),
    *("x = a,\n", "x = f(a = b = c)\n", "x = a if b else c d\n", "x = a {\n", "x = f(,)\n", "x = a if\n"),
]


@pytest.mark.parametrize("text", ANYWHERE)
def test_words_of_declarations_stay_there(text: str) -> None:
    position, kind = _failure(text)
    found = syntax_errors.table(_failure)
    assert (position, kind) not in found
    assert (position, "") not in found
