"""Whatever the text, the parser returns a tree or says what is wrong, and the formatter keeps what it got."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optlang.diagnostics import OptlangError, render_all
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

RULE = '''"""A rule with a bit of everything."""
optimizer Everything   # reference: nothing
hyper lr = 1e-3 >= 0, betas = (β1 = .9, beta2 = 0.999) in [0, 1)  "doc"
hyper mode = "l2" in {"l2", 'no'}, flag = false, w = none
require lr > 0 and not flag "positive"
state m as exp_avg, v = 0*p when mode == "l2"
state c: scalar = 1
group state total_weight = 0
def f(x, y = 2) = x^y
def h(x):
    z = x; return z, -x
if flag:   # a comment
    g += w*p
    m, v = h(g)
elif 0 < lr <= 1: m = lerp(m, g, 1 - β1)
else:
    v = max(v, dim=(0, 1)) + group.k % 3
every 3 or first: c = c ?? (1 if flag else 2)
p -= lr/(1 - beta1^t) * (m   # inside
    + eps) / (sqrt(v @ m.T)[0] |> k(1))
'''

PIECES = (
    *("(", ")", "[", "]", "{", "}", '"', "'", '"""', "\n", "\n    ", "\t", " ", ";", ":", ",", "#", "=", "==", "+="),
    *("**", "-", "|>", "<-", "??", "@", ".T", ".", "0", "1e5", "1e999", "λ", "²", "_x", "é", "!", "&&", "\\", "$"),
    *("if ", "elif ", "else", "not ", "as ", "when ", "in", "inf", "hyper ", "state ", "def ", "return ", "every "),
    *("for ", "repeat", "use ", "on eval:", "input x", "group ", "push ", "history", "flat", "store", "otherwise"),
    *("\0", "\ud800", "\r", "\r\n", "\f", "\ufeff", "\u2028", "\u00a0"),
)


def attempt(text: str) -> bool:
    """Parse a text; return whether it is a rule. Anything but a tree or an OptlangError fails the test."""
    try:
        tree = parse(Source(text))
    except OptlangError as e:
        shown = render_all(e.diagnostics)
        assert shown.startswith("error[E")
        assert all(d.help and d.span is not None and d.span.start <= len(text) for d in e.diagnostics)
        return False
    again = format_tree(tree)
    assert format_tree(parse(Source(again))) == again
    return True


def mutated(chance: random.Random) -> str:
    """Return the rule with a few slips."""
    text = RULE
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text))
        match chance.randrange(4):
            case 0 | 1:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 2:
                text = text[:at] + text[at + chance.randint(1, 8) :]
            case 3:
                other = chance.randrange(len(text))
                text = text[:at] + text[other : other + chance.randint(1, 20)] + text[at:]
    return text


def test_the_rule_itself_is_fine() -> None:
    assert attempt(RULE)


@pytest.mark.parametrize("seed", range(4))
def test_slips(seed: int) -> None:
    chance = random.Random(seed)
    assert 0 < sum(attempt(mutated(chance)) for _ in range(60)) < 60


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.sampled_from(["x", "y = 1", "p -= g", "f(", "0.5"]), max_size=25))
def test_any_words(pieces: list[str]) -> None:
    attempt("".join(pieces))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    attempt(text)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    attempt(data.decode("utf-8", errors="replace"))


@pytest.mark.parametrize("end", range(0, len(RULE), 7))
def test_unfinished_rules(end: int) -> None:
    attempt(RULE[:end])
