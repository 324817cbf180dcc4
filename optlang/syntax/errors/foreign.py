"""Notation of other languages, above all Python, and the equivalents in a rule."""

from __future__ import annotations

import re

from optlang.source import Span
from optlang.syntax.errors.refused import Refused
from optlang.syntax.errors.stop import VALUES, Stop
from optlang.syntax.indentation import LAYOUT, span_of

SIGNS = re.compile(r"[-+*/%^=<>!:@]+")

#: Words that begin a statement in Python, and their equivalents in a rule.
PYTHON = {
    "import": "a rule needs no imports: its functions are built in, and it cannot run Python",
    "from": "a rule needs no imports: its functions are built in, and it cannot run Python",
    "class": "write `optimizer NAME` and then the formulas; the class is generated from them",
    "while": "a rule has no open-ended loops; each statement runs once in every step",
    "with": "a rule only has formulas; there are no resources to open or close",
    "try": "a rule has no exceptions; choose values with `a if condition else b`",
    "pass": "remove the empty branch",
    "break": "a rule has no open-ended loops to leave",
    "continue": "a rule has no open-ended loops to continue",
    "print": "a rule cannot print; to watch x, write `state seen as seen` and `seen = x`, and read `optimizer.state`",
    "assert": 'a condition on hyperparameters is written `require CONDITION "message"`',
    "raise": 'a condition on hyperparameters is written `require CONDITION "message"`',
    "del": "variables of a rule are local to one step",
    "global": "to keep a value between steps, declare `state NAME`",
    "nonlocal": "to keep a value between steps, declare `state NAME`",
    "let": "write `NAME = VALUE`",
    "var": "write `NAME = VALUE`",
    "const": "write `NAME = VALUE`",
    "function": "write `def f(x) = EXPRESSION`",
}

#: Operators of other languages, with what to write instead.
FOREIGN = {
    "**=": "write `{name} = {name}^...`",
    "//=": "write `{name} = floor({name} / ...)`",
    "%=": "write `{name} = {name} % ...`",
    "@=": "write `{name} = {name} @ ...`",
    "//": "to round down, write `floor(a / b)`; a comment begins with `#`",
    "/*": "a comment begins with `#` and ends with its line",
    "===": "write `==`",
    "!==": "write `!=`",
    "<>": "write `!=`",
    "=<": "write `<=`",
    "=>": "write `>=`",
    ":=": "assign with `=`, in a separate statement",
    "->": "a function is written `def f(x) = EXPRESSION`",
    "++": "write `{name} += 1`",
    "--": "write `{name} -= 1`",
}


def foreign_operator(stop: Stop) -> Refused | None:
    """Diagnose operators of other languages that the lexer splits into two tokens."""
    start = stop.token.start_pos or 0
    if stop.type in LAYOUT | {"SEMICOLON"} and len(stop.line) > 1:  # `x = y++` stops at the end of the line
        start = stop.line[-1].start_pos or 0
    run = next((m for m in SIGNS.finditer(stop.text) if m.start() <= start < m.end()), None)
    if run is None or run[0] not in FOREIGN:
        return None
    name = stop.text[: run.start()].split()[-1:] or ["x"]
    short = name[0] if name[0].isidentifier() else "x"
    return Refused(
        "E112",
        f"there is no operator `{run[0]}`",
        Span(run.start(), run.end()),
        help=FOREIGN[run[0]].format(name=short),
    )


def other_if(stop: Stop) -> Refused | None:
    """Diagnose ``else if``, ``elseif``, ``then`` and an ``else`` without an ``if``."""
    if stop.type == "IF" and stop.before_type == "ELSE" and len(stop.line) == 1:
        return Refused("E112", "`else if` is a single word here", stop.pair, help="write `elif CONDITION:`")
    if len(stop.line) == 1 and stop.line[0].value in ("elseif", "elsif", "elsif"):
        return Refused("E112", f"there is no `{stop.line[0].value}`", span_of(stop.line[0]), help="write `elif`")
    if stop.token.value == "then" and stop.head in ("IF", "ELIF"):
        return Refused("E112", "there is no `then`", stop.span, help="a condition ends with `:`")
    if stop.type in ("ELSE", "ELIF") and not stop.line:
        return Refused(
            "E114",
            f"this `{stop.token.value}` has no matching `if`",
            stop.span,
            help="write `else` in the same column as its `if`, right after the `if`'s block",
        )
    return None


def python_word(stop: Stop) -> Refused | None:
    """Diagnose Python statements."""
    first = stop.line[0] if stop.line else stop.token
    if first.type == "NAME" and first.value in PYTHON and stop.type in VALUES | LAYOUT | {"COLON"}:
        return python_statement(str(first.value), span_of(first))
    if stop.token.value == "is" and stop.before is not None and stop.before.type == "NAME":
        negated = re.match(r"\s*not\b", stop.text[stop.span.end :])
        sign = "!=" if negated else "=="
        help = f"write `{stop.before.value} {sign} none`, or another value instead of `none`"
        return Refused("E112", "there is no `is`", stop.span, help=help)
    lambdas = [t for t in stop.line[-2:] if t.value == "lambda"]
    if lambdas and stop.type in ("NAME", "COLON", "COMMA"):
        return Refused(
            "E112",
            "there is no `lambda` expression",
            span_of(lambdas[-1]),
            help="give the function a name: `def f(x) = ...` on a separate line",
        )
    return None


def python_statement(word: str, place: Span) -> Refused:
    """Return the error for a statement that begins with a Python keyword."""
    return Refused("E112", f"`{word}` is not a statement of this language", place, help=PYTHON[word])
