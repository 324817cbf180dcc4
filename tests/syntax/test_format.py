"""The formatter: canonical text that means the same, keeps what people wrote beside it, and is stable."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optlang.source import Source
from optlang.syntax import tree
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree


def formatted(text: str) -> str:
    return format_tree(parse(Source(text)))


def meaning(x: Any) -> Any:
    """Return a tree without places and comments; ranges by their bounds."""
    if isinstance(x, tree.Unsupported):
        return (x.what, x.defines)
    if isinstance(x, tree.Node):
        left_out = {"span", "source", "comments"}
        if isinstance(x, tree.Interval | tree.Choices):
            left_out.add("text")
        names = [f.name for f in fields(x) if f.name not in left_out]
        return (type(x).__name__, *(meaning(getattr(x, name)) for name in names))
    return tuple(map(meaning, x)) if isinstance(x, tuple) else x


def check(text: str) -> str:
    """Format a text, check that nothing but its layout changes, and return the result."""
    before = parse(Source(text))
    result = format_tree(before)
    after = parse(Source(result))
    assert meaning(after) == meaning(before)
    assert [x.text for x in after.comments] == [x.text for x in before.comments]
    assert format_tree(after) == result
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=a*b+c", "x = a*b + c"),
        ("x = a * b / c", "x = a * b / c"),
        ("x = a*b", "x = a * b"),
        ("x=(a*b)+(c/(d*e))", "x = a*b + c/(d * e)"),
        ("x = a ** -b ** c", "x = a^-b^c"),
        ("x = (a^b)^c", "x = (a^b)^c"),
        ("x = (-a)^2 - -b", "x = (-a)^2 - -b"),
        ("x = ((a - b)) - (c - d)", "x = a - b - (c - d)"),
        ("x = not (a and b) or (c)", "x = not (a and b) or c"),
        ("x = (a<b)==(c>d)", "x = (a < b) == (c > d)"),
        ("x = (a if b else c) if d else (e if f else h)", "x = (a if b else c) if d else e if f else h"),
        ("x = f( a,dim = (0,1) , k=-1 )", "x = f(a, dim=(0, 1), k=-1)"),
        ("x = True ?? (none ?? inf)", "x = true ?? (none ?? inf)"),
        ("x,y=f(g)", "x, y = f(g)"),
        ("β₁ = group . ρ", "β₁ = group.ρ"),
        ("if a :x=1;y=2", "if a: x = 1; y = 2"),
        ("hyper a=1e-3>=0,b=(β1=.9,β2=1)in[0,1)'doc'", 'hyper a = 1e-3 >= 0, b = (β1 = .9, β2 = 1) in [0, 1)  "doc"'),
        ("hyper a='x' in {'x',\"y\"}, b < 3, c", 'hyper a = "x" in {"x", "y"}, b < 3, c'),
        ("require a>0'why \"not\"'", "require a > 0  'why \"not\"'"),
        ("group  state a=1 as μ", "group state a = 1 as μ"),
        ("state a:scalar=(1),b when(c)", "state a: scalar = 1, b when c"),
        ("def f(x,y=1)=(x)", "def f(x, y = 1) = x"),
        ("x = a@b+ c [ 1 ]", "x = a @ b + c[1]"),
        ("x = q [ : , i: ]@r .T", "x = q[:, i:] @ r.T"),
        ("x = (a*b)@c*(d@e)", "x = a * b @ c * (d @ e)"),
        ("x = svd( g ) .S[ :k , 0 ]", "x = svd(g).S[:k, 0]"),
        ("U,S,Vh = svd(g)", "U, S, Vh = svd(g)"),
        ("shared  state d=1 ,e", "shared state d = 1, e"),
        ("repeat  5 :x=1", "repeat 5: x = 1"),
        ("for  b  in  betas:c*=b", "for b in betas: c *= b"),
        ("for i in reversed( s ):a[ i ]=s[i]", "for i in reversed(s): a[i] = s[i]"),
        ("history  s,y:scalar  size  2*k", "history s, y: scalar size 2 * k"),
        ("push s<-x,y  <-  -z", "push s <- x, y <- -z"),
        ("flat ;v=g", "flat\nv = g"),
        ("every  k  from (2)  or  first :h=g", "every k from 2 or first: h = g"),
        ("on  eval :p=z", "on eval: p = z"),
        ("route  Muon  when(ndim==2)", "route Muon when ndim == 2"),
        ("route AdamW  otherwise", "route AdamW otherwise"),
        ("use  AdamW", "use AdamW"),
        ('use  "a b.opt"( lr=1 )', 'use "a b.opt"(lr=1)'),
        ("inner  B=SGD(lr=1)like(q)", "inner B = SGD(lr=1) like q"),
        ("p-=lr*(g|>f( 2 )|>h)", "p -= lr * (g |> f(2) |> h)"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert check(text) == expected + "\n"


LAYOUT = '''

# first


"""doc
  string"""
a=1;b=2   # both


if a:   # head
\tx=1
\t# end of the block
# before the branch
elif b: y=2 # inline
else: # branch

  if c:
        z=3
  # last in the branch
def f(x): # function
  return x
long = (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    + bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb)
short = (a +
   b)
noted = (a + # here
   b)
every 3:
  x=1
  # comment
  y=2
store m:bf16
w = 1     # one
wide = 12 # two
'''

LAID_OUT = '''# first

"""doc
  string"""
a = 1
b = 2  # both

if a:  # head
    x = 1
    # end of the block
# before the branch
elif b: y = 2  # inline
else:          # branch

    if c:
        z = 3
    # last in the branch
def f(x):  # function
    return x
long = (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    + bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb)
short = a + b
noted = (a + # here
   b)
every 3:
    x = 1
    # comment
    y = 2
store m: bf16
w = 1      # one
wide = 12  # two
'''


def test_comments_blank_lines_and_blocks() -> None:
    assert check(LAYOUT) == LAID_OUT


def test_verbatim_blocks_move_with_their_block() -> None:
    assert check("if a:\n  x=(1+ # one\n     2)\n  y = 2\n") == "if a:\n    x=(1+ # one\n       2)\n    y = 2\n"


# Generated texts --------------------------------------------------------------------------------------------

ATOMS = st.sampled_from(["a", "β1", "p", "g", "1", "0.50", ".5", "1e-3", "true", "none", "inf", '"s"', "group.k"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "%", "^", "**", "??", "and", "or", "<", "<=", "==", "!="])
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda x: f"({x[0]}) {x[1]} ({x[2]})"),
        st.tuples(inner, st.sampled_from(["+", "*", "^", " and ", "-"]), ATOMS).map(lambda x: f"({x[0]}){x[1]}{x[2]}"),
        st.tuples(ATOMS, st.sampled_from(["-", "/", "^", " or ", "<"]), ATOMS).map("".join),
        st.tuples(st.sampled_from(["-", "+", "not "]), inner).map(lambda x: f"{x[0]}({x[1]})"),
        st.tuples(inner, inner, inner).map(lambda x: f"({x[0]}) if ({x[1]}) else ({x[2]})"),
        st.tuples(inner, inner).map(lambda x: f"f({x[0]}, k = {x[1]})"),
    )


EXPRESSIONS = st.recursive(ATOMS, _grown, max_leaves=8)
NAMES = st.sampled_from(["a", "b", "m", "θ"])
COMMENTS = st.sampled_from(["", "", "  # note", "# x=1; 'y"])
SIMPLE = st.one_of(
    st.tuples(NAMES, st.sampled_from([" = ", "+=", " *= "]), EXPRESSIONS).map("".join),
    st.tuples(NAMES, EXPRESSIONS).map(lambda x: f"{x[0]} = (\n   {x[1]}\n )"),
)


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


def _blocks(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    def branch(x: tuple[str, str, list[str], list[str] | None]) -> list[str]:
        head, comment, body, other = x
        tail = [] if other is None else ["# otherwise", f"else:{comment}", *_indent(other)]
        return [f"if {head}:{comment}", *_indent(body), *tail]

    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda x: [line for block in x for line in block]),
        st.tuples(EXPRESSIONS, COMMENTS, inner, st.none() | inner).map(branch),
        st.tuples(EXPRESSIONS, SIMPLE, COMMENTS).map(lambda x: [f"if {x[0]}: {x[1]}{x[2]}"]),
    )


STATEMENTS = st.recursive(st.tuples(SIMPLE, COMMENTS).map(lambda x: ["".join(x)]), _blocks, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS)
def test_expressions_survive(expression: str) -> None:
    check(f"x = {expression}\n")


@settings(max_examples=100, deadline=None)
@given(STATEMENTS, st.sampled_from(["\n", "\n\n\n", "\n# c\n"]))
def test_statements_survive(lines: list[str], between: str) -> None:
    check("\n".join(lines) + between + "\n".join(lines))
