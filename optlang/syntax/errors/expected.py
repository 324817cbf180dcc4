"""Descriptions of the tokens that were expected at a position."""

from __future__ import annotations

from collections.abc import Iterable

from optlang.syntax.errors.stop import Stop
from optlang.syntax.indentation import LAYOUT

#: Names of token kinds, in the order in which expectations are listed.
CALLED = {
    "NUMBER": "a value",
    "NAME": "a name",
    "STRING": "a string",
    "TIMES": "an operator",
    "COMPARE": "a range such as `>= 0`",
    "EQUAL": "`=`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "RPAR": "`)`",
    "RSQB": "`]`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "LSQB": "`[`",
    "LBRACE": "`{`",
    "IN": "`in`",
    "ELSE": "`else`",
    "WHEN": "`when`",
    "OTHERWISE": "`otherwise`",
    "AS": "`as`",
    "STATE": "`state`",
    "SIZE": "`size`",
    "OPTIMIZER": "a statement",
    "_INDENT": "an indented block",
    "_NL": "the end of the line",
}

#: Token kinds that need not be listed next to a more general one.
COVERED = {
    "NUMBER": {"NAME", "STRING", "LPAR"},
    "TIMES": {"COMPARE", "LPAR", "LSQB"},
    "COMPARE": {"IN"},
    "OPTIMIZER": {"NAME", "STRING", "STATE"},
}

#: Forms of statements, by the kind of their first token.
SHAPES = {
    "OPTIMIZER": "for example: `optimizer AdamW`",
    "HYPER": "for example: `hyper lr = 1e-3 >= 0, betas = (beta1 = 0.9, beta2 = 0.999) in [0, 1)`",
    "STATE": "for example: `state m, v = 0*p as exp_avg_sq when momentum`",
    "STORE": "for example: `store m: fp8` or `store v: bf16 stochastic when numel >= 4096`",
    "GROUP": "for example: `group state weight_sum = 0`",
    "REQUIRE": 'for example: `require beta1 < 1 "beta1 must stay below 1"`',
    "DEF": "for example: `def f(x, y = 1) = x + y`",
    "RETURN": "for example: `return x, y`",
    "IF": "for example: `if momentum: b = momentum*b + g`",
    "ELIF": "for example: `elif momentum: b = momentum*b + g`",
    "ELSE": "for example: `else: b = g`",
    "SHARED": "for example: `shared state d = 1e-6`",
    "REPEAT": "for example: `repeat 5: x = x*(2 - x)`",
    "FOR": "for example: `for b in betas: c *= 1 - b^t`",
    "EVERY": "for example: `every 10 or first: s = g`",
    "ON": "for example: `on eval: p = z`",
    "ROUTE": "for example: `route Muon when ndim >= 2`",
}


def found(stop: Stop) -> str:
    """Return a description of the token that was not accepted."""
    match stop.type:
        case "_NL" | "_DEDENT":
            return "end of the line"
        case "$END":
            return "end of the rule"
        case "_INDENT":
            return "indentation"
    value = str(stop.token.value)
    return f"`{value}`" if len(value) <= 40 else f"`{value[:36]}...`"


def listed(accepts: Iterable[str]) -> str:
    """Return the kinds of token as a phrase: "a value, `)` or the end of the line"."""
    kinds = set(accepts)
    for wide, narrow in COVERED.items():
        if wide in kinds:
            kinds -= narrow
    words = [word for kind, word in CALLED.items() if kind in kinds]
    if not words:
        return "the end of the line" if kinds & LAYOUT else "something else"
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
