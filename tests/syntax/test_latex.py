"""Formulas as LaTeX."""

import re

import pytest

import optlang
from optlang.source import Source
from optlang.syntax.latex import expression_latex, name_latex, rule_latex
from optlang.syntax.parse import parse
from optlang.syntax.tree import Assign


def latex(text: str) -> str:
    """Return the LaTeX of one expression."""
    (statement,) = parse(Source(f"x = {text}\n")).items
    assert isinstance(statement, Assign)
    return expression_latex(statement.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p", "p"),
        ("m1", "m_{1}"),
        ("beta1", r"\beta_{1}"),
        ("beta", r"\beta"),
        ("eps", r"\epsilon"),
        ("eps1", r"\epsilon_{1}"),
        ("lr", r"\mathrm{lr}"),
        ("weight_decay", r"\mathrm{weight\_decay}"),
        ("v_max", r"v_{\mathrm{max}}"),
        ("mu_t", r"\mu_{t}"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert name_latex(name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a*b + c", r"a \, b + c"),
        ("a*(b + c)", r"a \, \left(b + c\right)"),
        ("a - (b - c)", r"a - \left(b - c\right)"),
        ("a - b - c", "a - b - c"),
        ("a - -b", r"a - \left(-b\right)"),
        ("(a + b)/(c*d)", r"\frac{a + b}{c \, d}"),
        ("a/b*c", r"\frac{a}{b} \, c"),
        ("g^2", "g^{2}"),
        ("(-g)^2", r"\left(-g\right)^{2}"),
        ("-g^2", "-g^{2}"),
        ("(a/b)^t", r"\left(\frac{a}{b}\right)^{t}"),
        ("sqrt(v)^k", r"\left(\sqrt{v}\right)^{k}"),
        ("2^3^4", "2^{3^{4}}"),
        ("1e-8*a", r"10^{-8} \, a"),
        ("2.5e+3", r"2.5 \cdot 10^{3}"),
        ("a*3", r"a \cdot 3"),
        ("2*pi*π", r"2 \, \pi \, \pi"),
        ("abs(g)", r"\left| g \right|"),
        ("norm(g)", r"\left\lVert g \right\rVert"),
        ("mean(g^2, dim=-1)", r"\operatorname{mean}_{\mathrm{dim} -1}\left(g^{2}\right)"),
        ("soft_threshold(p, k)", r"\operatorname{soft\_threshold}\left(p, k\right)"),
        ("max(a, b)", r"\max\left(a, b\right)"),
        ("a < b <= c", r"a < b \le c"),
        ("a ?? b", r"a \mathbin{??} b"),
        ("not a and b", r"\lnot a \land b"),
        (
            "2*(a if c else b)",
            r"2 \, \left(\begin{cases}a & \text{if } c \\ b & \text{otherwise}\end{cases}\right)",
        ),
        (
            "a if c else b if d else e",
            r"\begin{cases}a & \text{if } c \\ b & \text{if } d \\ e & \text{otherwise}\end{cases}",
        ),
        ('mode == "l_2"', r"\mathrm{mode} = \text{“l\_2”}"),
        ("group.scale", r"\mathrm{group}.\mathrm{scale}"),
        ("Q.T @ g", r"Q^{\top} \, g"),
        ("(a + b).T", r"\left(a + b\right)^{\top}"),
        ("matrix(g).T^2", r"\left(\left(\operatorname{matrix}\left(g\right)\right)^{\top}\right)^{2}"),
        ("v[i, :][:, 2:k]", r"v_{i, {:}}_{{:}, 2{:}k}"),
        ("svd(g).S", r"\operatorname{svd}\left(g\right).S"),
    ],
)
def test_expressions(text: str, expected: str) -> None:
    assert latex(text) == expected


def test_pieces() -> None:
    assert latex("lr*(g |> f(2) |> B.direction)") == (
        r"\mathrm{lr} \, \left(g \triangleright f\left(2\right) \triangleright B.\mathrm{direction}\right)"
    )
    text = rule_latex(parse(Source("inner B = SGD\nB(p, g)\n")))
    assert r"&B\left(p, g\right)" in text


def test_statements() -> None:
    tree = parse(Source("def f(x) = 2*x\nif nesterov: g += m\nelse:\n    p -= lr*(g + m)\n"))
    assert rule_latex(tree).splitlines() == [
        r"\begin{aligned}",
        r"&f(x) = 2 \, x \\",
        r"&\textbf{if } \mathrm{nesterov}\textbf{:} \\",
        r"&\quad g \leftarrow g + m \\",
        r"&\textbf{else:} \\",
        r"&\quad p \leftarrow p - \mathrm{lr} \, \left(g + m\right)",
        r"\end{aligned}",
    ]


def test_blocks_that_run_at_other_times() -> None:
    text = (
        "every k from 2 or first: v = g\nrepeat steps: v = 2*v\nfor b in betas: v *= b\n"
        "on eval: p = z\nroute Muon when ndim == 2\nroute AdamW otherwise\n"
    )
    assert rule_latex(parse(Source(text))).splitlines()[1:-1] == [
        r"&\textbf{every } k \textbf{ from } 2 \textbf{ or first}\textbf{:} \\",
        r"&\quad v \leftarrow g \\",
        r"&\textbf{repeat } \mathrm{steps} \textbf{ times:} \\",
        r"&\quad v \leftarrow 2 \, v \\",
        r"&\textbf{for } b \textbf{ in } \mathrm{betas}\textbf{:} \\",
        r"&\quad v \leftarrow v \, b \\",
        r"&\textbf{on eval:} \\",
        r"&\quad p \leftarrow z \\",
        r"&p \rightarrow \mathrm{Muon}\text{ if } \mathrm{ndim} = 2 \\",
        r"&p \rightarrow \mathrm{AdamW}\text{ otherwise}",
    ]


@pytest.mark.parametrize("name", optlang.rules.names())
def test_every_rule_of_the_library_is_balanced(name: str) -> None:
    text = rule_latex(parse(Source(optlang.rules.path(name).read_text(encoding="utf-8"))))
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right") - text.count(r"\rightarrow")
    moved_by_an_inner_rule = re.search(r"^\w+\(p, ", optlang.rules.path(name).read_text(encoding="utf-8"), re.MULTILINE)
    assert r"p \leftarrow" in text or r"p \rightarrow" in text or moved_by_an_inner_rule
