"""Syntax error messages, given by example.

An example is parsed once, on the first syntax error of a process. Its message applies wherever the parser stops in the
same state at the same kind of token, so messages keep up with changes of the grammar. Mistakes that are recognised by
context rather than by parser state are in :mod:`optlang.syntax.errors.repairs`. For anything else, the error lists the
expected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optlang.syntax.errors.expected import SHAPES, found, listed
from optlang.syntax.errors.refused import Refused
from optlang.syntax.errors.repairs import GENERAL, HABITS
from optlang.syntax.errors.stop import Stop


@dataclass(frozen=True)
class Example:
    """A message for a mistake, and texts that contain it.

    Attributes:
        code: Its diagnostic code.
        message: What is wrong.
        label: What was expected.
        help: What to do.
        texts: Rules with the mistake; each must stop the parser at the intended position.
        exact: Whether the message applies only to that kind of token, not to others at the same position.
    """

    code: str
    message: str
    label: str | None
    help: str
    texts: tuple[str, ...]
    exact: bool = False


EXAMPLES: tuple[Example, ...] = (
    Example(
        "E109",
        "expected an indented block after `:`",
        "indent this line, or write the statement after the `:`",
        "remove a branch that has nothing to do",
        ("if a:\nx = 1\n", "if a:\n", "def f(x):\ny = 1\n", "if a:\n  x = 1\nelse:\ny = 1\n"),
    ),
    Example(
        "E110",
        "`optimizer` needs the name of the rule",
        "expected a name",
        "for example: `optimizer AdamW`",
        ("optimizer\n", "optimizer = 3\n", 'optimizer "Adam"\n', "optimizer 8\n"),
    ),
    Example(
        "E110",
        "only a comment can follow the name of the rule",
        None,
        "the name is one word of letters, digits and `_`; put declarations on separate lines",
        (
            "optimizer A B\n",
            "optimizer A = 3\n",
            "optimizer A:\n",
            "optimizer A-B\n",
            "optimizer A(lr = 1)\n",
        ),
    ),
    Example(
        "E110",
        "`hyper` needs the name of a hyperparameter",
        "expected a name",
        "for example: `hyper lr = 1e-3 >= 0`",
        ("hyper\n", "hyper = 3\n", "hyper 3\n", "hyper a,\n", "hyper a = 1,\n", "hyper (a = 1)\n"),
    ),
    Example(
        "E110",
        "a default is a number, a string, `true`, `false` or `none`",
        "expected a range such as `>= 0`, a `,`, or the end of the line",
        "the range comes last: `hyper x = 1e-3 >= 0`; a choice between values is made in the formulas",
        ("hyper a = 1 if b else 2\n", "hyper a = b or c\n", "hyper a = 1 and 2\n", "hyper a = 1 ?? 2\n"),
    ),
    Example(
        "E110",
        "a hyperparameter has one range",
        None,
        "write both bounds as an interval, such as `in [0, 1)`: `[` includes the bound, `)` excludes it",
        ("hyper a = 1 > 0 < 1\n", "hyper a in [0, 1] in [0, 2]\n", "hyper a = 1 >= 0 in [0, 1]\n"),
        exact=True,
    ),
    Example(
        "E110",
        "this cannot follow the name of a hyperparameter",
        "expected `= DEFAULT`, a range such as `>= 0`, `,`, or the end of the line",
        "for example: `hyper lr = 1e-3 >= 0, momentum in [0, 1)`",
        ("hyper a b\n", "hyper a * 2\n", "hyper a(1)\n", "hyper a b = 1\n"),
    ),
    Example(
        "E110",
        "this cannot follow the name of a state",
        "expected `= INITIAL`, `: scalar`, `as`, `when`, `,`, or the end of the line",
        "for example: `state m, v`, or `state m = 0*p as exp_avg when momentum`",
        ("state m v\n", "state m(p)\n", "state m + 1\n"),
    ),
    Example(
        "E110",
        "expected a range after `in`",
        "expected `[`, `(` or `{`",
        'for example: `in [0, 1)`, `in (0, inf)`, `in {"l2", "decoupled"}`',
        ("hyper a in 0\n", "hyper a = 1 in\n", "hyper a in x\n"),
    ),
    Example(
        "E110",
        "a range has two bounds, separated by `,`",
        "expected `,` and the upper bound",
        "for example: `in [0, 1)`; where there is no upper bound, write `inf`",
        ("hyper a in [0]\n", "hyper a in (0)\n", "hyper a in [0; 1]\n", "hyper a in [0: 1]\n"),
    ),
    Example(
        "E110",
        "a range has two bounds",
        "expected `]` or `)`",
        'a list of allowed values is written in braces: `in {"l2", "decoupled"}`',
        ("hyper a in [0, 1, 2]\n", "hyper a in (0, 1}\n"),
    ),
    Example(
        "E110",
        "a hyperparameter has no type",
        "expected `= DEFAULT`, a range, `,`, or the end of the line",
        "the type follows from the default: a number, a string, `true`, `false` or `none`",
        ("hyper a: float = 1\n", "hyper a: 1\n"),
        exact=True,
    ),
    Example(
        "E110",
        "`state` needs the name of a state",
        "expected a name",
        "for example: `state m, v`, or `state m = 0*p as exp_avg`",
        ("state\n", "state 3\n", "state m,\n", "group state\n", "state (m, v)\n"),
    ),
    Example(
        "E110",
        "expected the type of the state",
        "expected `scalar`",
        "`state c: scalar = 0` is one number per tensor; without a type, the initial value decides the shape",
        ("state c: = 1\n", "state c: 3\n", "state c:\n"),
    ),
    Example(
        "E110",
        "expected the key of the state after `as`",
        "expected a name",
        "`state m as exp_avg` keeps `m` under the key `exp_avg` in the `state_dict`",
        ('state m as "x"\n', "state m as\n", "state m as 3\n"),
    ),
    Example(
        "E110",
        "the key of a state comes last",
        None,
        "write `state m = EXPRESSION as key`",
        ("state m as key = 1\n", "state m as key: scalar\n"),
    ),
    Example(
        "E110",
        "`when` comes last and holds for the whole line",
        "expected the end of the line",
        "declare states with different conditions on separate lines",
        ("state m when a, v\n", "state m when a as k\n"),
        exact=True,
    ),
    Example(
        "E110",
        "a condition for a state begins with `when`",
        "expected `when`",
        "write `state m when CONDITION`",
        ("state m if a\n", "state m, v if a\n"),
        exact=True,
    ),
    Example(
        "E110",
        "the message of `require` is a string",
        "expected a string, or the end of the line",
        'for example: `require beta1 < 1 "beta1 must stay below 1"`',
        ("require a, b\n", 'require a, "text"\n', "require a: b\n"),
    ),
    Example(
        "E110",
        "`def` needs the name of the function",
        "expected a name",
        "for example: `def f(x) = x^2`",
        ("def\n", "def (x) = 1\n", "def 3(x) = 1\n"),
    ),
    Example(
        "E110",
        "a function needs its parameters in brackets",
        "expected `(`",
        "for example: `def f(x, y = 1) = x + y`",
        ("def f = 3\n", "def f x = 3\n", "def f:\n  return 1\n"),
    ),
    Example(
        "E110",
        "this is not the name of a parameter",
        "expected a name",
        "for example: `def f(x, y = 1) = x + y`",
        ("def f(3) = 1\n", "def f(x, 3) = 1\n", "def f(*x) = 1\n", "def f((x)) = 1\n"),
    ),
    Example(
        "E110",
        "parameters are names, separated by `,`",
        "expected `,`, `= DEFAULT`, or `)`",
        "for example: `def f(x, y = 1) = x + y`",
        ("def f(x y) = 1\n", "def f(x: float) = 1\n", "def f(x; y) = 1\n", "def f(x > 0) = 1\n"),
    ),
    Example(
        "E110",
        "a function needs a body",
        "expected `= EXPRESSION`, or `:` and a block",
        "for example: `def f(x) = x^2`",
        ("def f(x)\n", "def f(x) x\n", "def f(x) += 1\n", "def f(x) return x\n"),
    ),
    Example(
        "E115",
        "a state or a hyperparameter is declared on a line that begins with `state` or `hyper`",
        "expected `=`",
        "for example: `state c: scalar = 1`; a plain assignment has no type",
        ("x: scalar = 1\n", "x: 3\n"),
        exact=True,
    ),
    Example(
        "E115",
        "expected `=` and a value after these names",
        "expected `=`",
        "several names on the left take the results of a function: `a, b = f(x)`",
        ("x, y\n", "x, y)\n"),
    ),
    Example(
        "E115",
        "expected a name after `,`",
        "expected a name",
        "several names on the left take the results of a function: `a, b = f(x)`",
        ("x, 3 = f()\n", "x, = f()\n", "x, (y) = f()\n"),
    ),
    Example(
        "E114",
        "a block cannot follow another statement on the same line",
        "expected a simple statement",
        "put it on a separate line, indented",
        ("if a: if b: x = 1\n", "if a: def f(x): return x\n", "if a: x = 1; if b: y = 2\n"),
        exact=True,
    ),
    Example(
        "E114",
        "`else` must be on a separate line",
        None,
        "a choice between two values is one expression: `x = a if condition else b`",
        ("if a: x = 1 else: x = 2\n", "if a: x = 1; else: x = 2\n", "if a: x = y else: x = 2\n"),
        exact=True,
    ),
    Example(
        "E102",
        "a choice needs both values",
        "expected `else` and the other value",
        "write `a if condition else b`",
        ("x = a if c\n", "x = a if 1\n", "x = f(a if c)\n", "x = a if (c)\n"),
    ),
    Example(
        "E102",
        "expected a name after `.`",
        "expected a name",
        "`group.NAME` reads a key of the parameter group",
        ("x = group.\n", "x = group.3\n", "x = group.(a)\n"),
    ),
    Example(
        "E102",
        "this index is empty",
        "expected a value",
        "write an index: `x[0]`, or `x[:r, :]`",
        ("x = a[]\n",),
        exact=True,
    ),
    Example(
        "E101",
        "`;` separates two statements",
        "expected a statement",
        "remove this `;`",
        ("; x = 1\n", "x = 1;; y = 2\n"),
        exact=True,
    ),
    Example(
        "E101",
        "a docstring must be on a separate line",
        "expected the end of the line",
        "put what follows on the next line",
        ('"""doc""" x = 1\n', '"doc" x\n'),
    ),
)

Table = Mapping[tuple[int, str], Example]


def table(failure: Callable[[str], tuple[int, str]]) -> Table:
    """Return the examples by the state and kind of token they stop at ("" for any kind).

    Args:
        failure: Parses an invalid text and returns the state and kind of token where it stops.
    """
    result: dict[tuple[int, str], Example] = {}
    for example in EXAMPLES:
        for text in example.texts:
            position, kind = failure(text)
            result.setdefault((position, kind), example)
            if not example.exact:
                result.setdefault((position, ""), example)
    return result


def explain(stop: Stop, examples: Table) -> Refused:
    """Return the error for the position where parsing stopped."""
    for habit in HABITS:
        if refused := habit(stop):
            return refused
    if example := examples.get((stop.position, stop.type)) or examples.get((stop.position, "")):
        return Refused(
            example.code,
            example.message,
            stop.span,
            example.label,
            help=example.help,
        )
    for habit in GENERAL:
        if refused := habit(stop):
            return refused
    return Refused(
        "E101",
        f"unexpected {found(stop)}",
        stop.span,
        label=f"expected {listed(stop.accepts)}",
        help=SHAPES.get(stop.head, "a statement reads `NAME = EXPRESSION` and ends with its line"),
    )
