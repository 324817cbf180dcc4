"""Mistakes recognised from the tokens around the error, most of them typos.

Each function inspects a :class:`Stop` and returns the error, or None if it does not recognise the mistake. They are
tried in the order of :data:`HABITS`.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from optlang.functions.table import BUILTINS
from optlang.source import Span
from optlang.syntax.errors.foreign import foreign_operator, other_if, python_word
from optlang.syntax.errors.refused import Refused
from optlang.syntax.errors.stop import VALUES, Stop
from optlang.syntax.indentation import CLOSING, LAYOUT, OPENING, span_of

OPERATORS = frozenset(("SIGN", "TIMES", "POWER", "COMPARE", "AT", "AND", "OR", "NOT", "COALESCE", "PIPE"))
STATEMENT_WORDS = (
    *("optimizer", "hyper", "state", "require", "def", "return", "if", "elif", "else", "group state", "shared state"),
    *("repeat", "every", "route"),
)
WORDS = frozenset(
    ("IF", "ELIF", "ELSE", "AND", "OR", "NOT", "IN", "INF", "PI", "TRUE", "FALSE", "NONE", "DEF", "RETURN")
)


def indented(stop: Stop) -> Refused | None:
    """Diagnose a line that is indented without a reason."""
    if stop.type != "_INDENT":
        return None
    return Refused(
        "E109",
        "this line is indented, but no block begins here",
        stop.span,
        label="expected in the same column as the line above",
        help="a block begins after a line that ends with `:`; inside brackets, a statement may span several lines",
    )


def misspelt(stop: Stop) -> Refused | None:
    """Diagnose a misspelt keyword at the start of a statement: ``hypr lr = 1``."""
    if len(stop.line) != 1 or stop.head != "NAME" or stop.type not in VALUES:
        return None
    word = stop.line[0].value
    close = get_close_matches(word, STATEMENT_WORDS, n=1, cutoff=0.7)
    if not close:
        return None
    return Refused(
        "E101",
        f"no statement begins with `{word}`",
        span_of(stop.line[0]),
        label=f"did you mean `{close[0]}`?",
        help=f"write `{close[0]} {stop.token.value} ...`",
    )


def not_closed(stop: Stop) -> Refused | None:
    """Diagnose an unclosed bracket on an earlier line."""
    if not stop.opened or stop.before is None or stop.type in LAYOUT:
        return None
    bracket = stop.opened[-1]
    before = max((t for t in (bracket, stop.before)), key=lambda t: t.end_pos or 0)
    broken = "\n" in stop.text[before.end_pos or 0 : stop.token.start_pos or 0]
    line = stop.text[stop.text.rfind("\n", 0, stop.token.start_pos or 0) + 1 : stop.token.start_pos or 0]
    begun = stop.type in ("EQUAL", "CHANGE") and line.strip().isidentifier()
    if not (broken or begun) or "\n" not in stop.text[bracket.end_pos or 0 : stop.token.start_pos or 0]:
        return None
    if stop.wants_value and not begun and stop.type in OPERATORS:
        return None
    return Refused(
        "E104",
        f"this `{bracket.value}` is never closed",
        span_of(bracket),
        label=f"needs a closing `{CLOSING[OPENING.index(bracket.value)]}`",
        help="inside brackets, a statement may span several lines",
        related=(("the statement continues to here", stop.span),),
    )


def wrong_bracket(stop: Stop) -> Refused | None:
    """Diagnose an unmatched closing bracket."""
    if stop.token.value not in CLOSING or stop.type in LAYOUT:
        return None
    if not stop.opened:
        return Refused(
            "E104",
            f"this `{stop.token.value}` has no opening bracket",
            stop.span,
            help="remove it, or add the opening bracket",
        )
    opening = stop.opened[-1]
    at = stop.line.index(opening)
    if at and stop.line[at - 1].type == "IN":  # a range: `[0, 1)`
        return None
    wanted = CLOSING[OPENING.index(opening.value)]
    if wanted == stop.token.value:
        return None
    return Refused(
        "E104",
        f"`{opening.value}` is closed by `{stop.token.value}`",
        stop.span,
        label=f"expected `{wanted}`",
        help=f"write `{wanted}` here, or add the `{wanted}` that is missing before it",
        related=(("opened here", span_of(opening)),),
    )


def equals_in_expression(stop: Stop) -> Refused | None:
    """Diagnose ``=`` where only a comparison makes sense, and assignments within expressions."""
    if stop.type == "CHANGE":
        return Refused(
            "E112",
            f"`{stop.token.value}` cannot be used inside an expression",
            stop.span,
            help="change the variable in a separate statement before this line",
        )
    if stop.type == "EQUAL" and stop.before_type in OPERATORS:
        return Refused(
            "E112",
            f"`{stop.before.value if stop.before else ''}` and `=` do not combine here",
            stop.pair,
            help="to change a name, begin the statement with it: `x += ...`",
        )
    if stop.type != "EQUAL" or not stop.after_value:
        return None
    kinds = {token.type for token in stop.line}
    if kinds & {"IF", "ELIF", "REQUIRE", "WHEN"}:
        return Refused(
            "E107",
            "`=` assigns, it does not compare",
            stop.span,
            label="expected `==`",
            help="a comparison is written `==`",
        )
    if stop.opened and stop.opened[-1].value == "(":
        return Refused(
            "E107",
            "`=` inside brackets passes a keyword argument and must follow a name",
            stop.span,
            help="to compare, write `==`",
        )
    if kinds & {"EQUAL", "CHANGE"}:
        return Refused(
            "E112", "a statement can assign only once", stop.span, help="write two statements, one on each line"
        )
    return None


def nameless_part(stop: Stop) -> Refused | None:
    """Diagnose ``betas = (0.9, 0.999)``, a tuple whose parts have no names."""
    if stop.head != "HYPER" or stop.type != "COMMA" or not stop.opened:
        return None
    at = stop.line.index(stop.opened[-1])
    if len(stop.opened) != 1 or stop.line[at - 1].type != "EQUAL":
        return None
    name = stop.line[at - 2].value
    part = name.rstrip("s") or name
    return Refused(
        "E110",
        "each part of a tuple needs its own name",
        span_of(stop.opened[-1]).to(stop.span),
        label="expected `(NAME = DEFAULT, ...`",
        help=f"for example: `{name} = ({part}1 = 0.9, {part}2 = 0.999)`; the formulas use the parts by name",
    )


def reserved_word(stop: Stop) -> Refused | None:
    """Diagnose a keyword where a name is expected."""
    if stop.type not in WORDS or "NAME" not in stop.accepts or stop.before_type in OPERATORS:
        return None
    if stop.wants_value and stop.type not in ("DEF", "RETURN"):
        return None
    if stop.line and "REQUIRE" in stop.accepts and stop.type in ("IF", "ELIF", "ELSE", "DEF"):
        return None  # a block after another statement on its line
    return Refused(
        "E113",
        f"`{stop.token.value}` is a keyword and cannot be a name",
        stop.span,
        label="expected a name",
        help=f"choose another name, such as `{stop.token.value}_` or `{stop.token.value}1`",
    )


def missing_colon(stop: Stop) -> Refused | None:
    """Diagnose a block without a ``:``."""
    if "COLON" not in stop.accepts or stop.opened or stop.type == "EQUAL":
        return None
    if stop.head not in ("IF", "ELIF", "ELSE", "FOR", "EVERY", "REPEAT", "ON", "TRANSFORM"):
        return None
    if stop.type not in LAYOUT | VALUES | {"RETURN", "OPTIMIZER", "STATE"}:
        return None
    return Refused(
        "E108",
        f"missing `:` after this `{stop.line[0].value}`",
        stop.span,
        label="expected `:`",
        help="a statement or an indented block follows the `:`",
    )


def alone(stop: Stop) -> Refused | None:
    """Diagnose a line that is just a value, or assigns to something that is not a name."""
    if "EQUAL" in stop.accepts and "CHANGE" in stop.accepts and stop.type == "COMPARE":
        return Refused(
            "E111",
            "a comparison alone does nothing",
            stop.span,
            help=f"to assign, write `{stop.line[0].value} = ...`"
            if stop.token.value == "=="
            else "a condition on hyperparameters is written `require CONDITION`",
        )
    begins = not stop.line and "OPTIMIZER" in stop.accepts and stop.type not in LAYOUT
    applied = "EQUAL" in stop.accepts and "CHANGE" in stop.accepts and stop.type in OPERATORS
    if applied and stop.head == "DEF":
        return Refused(
            "E111",
            "a function does not return a value without `return`",
            stop.span,
            label="expected an assignment or `return` after the `:`",
            help="write `def f(x) = EXPRESSION`, or `return EXPRESSION` in the block",
        )
    if applied or (begins and stop.type in VALUES | {"LPAR", "SIGN", "NOT"} - {"DOCSTRING"}):
        return Refused(
            "E111",
            "a value alone does nothing",
            span_of(stop.line[0]).to(stop.span) if applied else stop.span,
            label="a statement begins with the name it assigns",
            help="assign it to a name: `x = ...`",
        )
    return None


def no_equals(stop: Stop) -> Refused | None:
    """Diagnose a name and a value with nothing between them."""
    if not {"EQUAL", "CHANGE"} <= stop.accepts or stop.type not in VALUES:
        return None
    return Refused(
        "E115",
        "a statement assigns a value to a name",
        stop.span,
        label="expected `=` before this",
        help="for example: `m = beta*m + g`; a declaration begins with `hyper` or `state`",
    )


def late_docstring(stop: Stop) -> Refused | None:
    """Diagnose a triple-quoted string that is not the first thing in the file."""
    if stop.type != "DOCSTRING":
        return None
    return Refused(
        "E114",
        "a docstring must be first in the file",
        stop.span,
        help="move it above everything else, or make it a comment with `#`",
    )


def missing_value(stop: Stop) -> Refused | None:
    """Diagnose an operator, bracket or comma without a value after it."""
    before = stop.before
    if not stop.wants_value or before is None or stop.type == "_INDENT":
        return None
    operator = before.type in OPERATORS or before.value in ("=", ",", "(", "[", "<-")
    keyword = before.type in ("IF", "ELIF", "ELSE", "REQUIRE", "WHEN", "RETURN", "CHANGE")
    if not operator and not keyword:
        return None
    found = "" if stop.type in LAYOUT | {"$END"} else f", found `{_short(stop.token.value)}`"
    if before.type in OPERATORS and stop.type in OPERATORS:
        return Refused(
            "E102",
            f"`{before.value}` and `{stop.token.value}` have no value between them",
            stop.span,
            label=f"expected a value after `{before.value}`",
            help="remove one of the two operators, or put the missing value between them",
        )
    return Refused(
        "E102",
        f"nothing follows `{before.value}`" if not found else f"expected a value after `{before.value}`{found}",
        stop.span if found else Span(before.end_pos or 0, before.end_pos or 0),
        label="expected a value here",
        help=f"add what is missing after `{before.value}`, or remove it",
    )


def missing_operator(stop: Stop) -> Refused | None:
    """Diagnose two adjacent values."""
    if not stop.after_value or stop.type not in VALUES | {"LBRACE"} or stop.before is None:
        return None
    if "STRING" in stop.accepts and stop.type == "STRING":
        return None
    left, right = _short(stop.before.value), _short(stop.token.value)
    if stop.type == "LBRACE":
        return _brace(stop)
    declared = stop.head in ("HYPER", "STATE", "GROUP", "SHARED") and len(stop.opened) <= (stop.head == "HYPER")
    if stop.type == "STRING":
        help_text = "a string is used alone, as a value, or at the end of a `hyper` or `require` line"
    elif declared:
        help_text = "separate what is declared on one line with `,`"
    elif stop.head == "REQUIRE" and not stop.opened:
        help_text = 'the message goes in quotes: `require CONDITION "message"`'
    elif stop.before.type == "NUMBER" and stop.before.end_pos == stop.token.start_pos:
        help_text = f"write products with `*`: `{left}*{right}`"
    elif stop.before.value in BUILTINS:
        help_text = f"call the function with brackets: `{left}({right})`"
    else:
        help_text = f"for a product write `{left} * {right}`; two statements need a new line or `;` between them"
    return Refused(
        "E103",
        f"missing `,` between `{left}` and `{right}`"
        if declared
        else f"missing operator between `{left}` and `{right}`",
        stop.span,
        label="expected `,`" if declared else "expected an operator before this",
        help=help_text,
    )


def _brace(stop: Stop) -> Refused:
    """Return the error for ``{`` after a value: a block in C, or a subscript in TeX."""
    if stop.head in ("IF", "ELIF", "ELSE", "DEF"):
        help_text = "a block begins with `:` and is indented: `if CONDITION:`"
    else:
        help_text = "names have no subscripts: a name read before it is assigned has its value from the previous step"
    return Refused("E112", "`{` is only used for the choices of a hyperparameter", stop.span, help=help_text)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:20] + "..."


HABITS: tuple[Callable[[Stop], Refused | None], ...] = (
    indented,
    not_closed,
    wrong_bracket,
    foreign_operator,
    other_if,
    python_word,
    misspelt,
    equals_in_expression,
    nameless_part,
    late_docstring,
    no_equals,
    reserved_word,
    missing_colon,
    alone,
)

#: Tried after the table of example mistakes, which is more specific for declarations.
GENERAL: tuple[Callable[[Stop], Refused | None], ...] = (missing_value, missing_operator)
