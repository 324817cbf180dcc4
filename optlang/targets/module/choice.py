"""The function that chooses the form of a rule: its questions as a tree of conditions."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from enum import Enum

from optlang.rule import Value
from optlang.syntax.quoting import docstring, literal
from optlang.targets._python import INDENT, formatted, spaced
from optlang.targets._questions import DIMENSIONS
from optlang.targets.module.forms import Form


class Whatever(Enum):
    """In the place of an answer that does not matter."""

    ANY = "any answer"


def chooser(name: str, what: str, forms: Sequence[Form], requirements: Sequence[tuple[str, str]]) -> str:
    """Return the function.

    Args:
        name: Its name.
        what: What it chooses, for its docstring.
        forms: The forms.
        requirements: Conditions on tensors, with what to say when they do not hold.
    """
    body: list[str] = []
    for condition, message in requirements:
        body += [f"if not ({condition}):", f"{INDENT}raise ValueError({literal(message)})"]
    body += branches(list(forms), 0)
    read: dict[str, None] = {}
    for line in body:
        code = line.strip()
        node = ast.parse(f"{code} pass" if code.endswith(":") else code)
        read |= dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    constants = {*(f.name for f in forms), "math", *dir(builtins)}
    names = sorted(set(read) - constants)
    lines = [f"def {name}({', '.join(names)}):", INDENT + docstring(what), *(INDENT + line for line in body)]
    return "\n".join(out for line in lines for out in formatted(line)) + "\n"


def branches(forms: list[Form], place: int) -> list[str]:
    """Return the lines that choose between forms whose first questions have been answered alike."""
    if len({f.name for f in forms}) == 1 and all(len(f.way.trace) <= place for f in forms):
        return [f"return {forms[0].name}"]
    question = next(f.way.trace[place][0] for f in forms if len(f.way.trace) > place)
    answers: dict[Value | Whatever, list[Form]] = {}
    for form in forms:
        answer = form.way.trace[place][1] if len(form.way.trace) > place else Whatever.ANY
        answers.setdefault(Whatever.ANY if question == DIMENSIONS and answer is None else answer, []).append(form)
    inside = {answer: branches(those, place + 1) for answer, those in answers.items()}
    if len(set(map(tuple, inside.values()))) == 1 and set(inside) == {False, True}:
        return inside[True]
    definite = {answer: block for answer, block in inside.items() if not isinstance(answer, Whatever)}
    equal = len(set(map(tuple, inside.values()))) == 1
    if equal and Whatever.ANY in inside:
        return inside[Whatever.ANY]
    if all(isinstance(answer, bool) for answer in answers):
        return _either(question, definite)
    refusing = f"{INDENT}raise ValueError({literal(_only(question, list(definite)))})"
    if equal and len(definite) > 1:
        every = ", ".join(map(_value, definite))
        return [f"if {question} not in ({every}):", refusing, *next(iter(definite.values()))]
    lines: list[str] = []
    for answer, block in definite.items():
        same = "is None" if answer is None else f"== {_value(answer)}"
        lines += [f"if {question} {same}:", *(INDENT + line for line in block)]
    if Whatever.ANY in inside:
        return [*lines, *inside[Whatever.ANY]]
    return [*lines, refusing.strip()]


def _either(question: str, inside: dict[Value, list[str]]) -> list[str]:
    """Return the lines of a question that is answered by yes or no."""
    if len(inside) == 2:
        return [f"if {question}:", *(INDENT + line for line in inside[True]), *inside[False]]
    ((answer, block),) = inside.items()
    holds = spaced(question)
    refused = f"not ({question})" if answer else question
    said = f"this file was made for {holds if answer else f'not ({holds})'}"
    if holds.isidentifier():
        said = f"this file was made for {holds}={answer}; make another for {holds}={not answer}"
    return [f"if {refused}:", f"{INDENT}raise ValueError({literal(said)})", *block]


def _value(answer: Value) -> str:
    return literal(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)


def _only(question: str, answers: Sequence[Value]) -> str:
    """Return the message about a value that the file was not made for."""
    shown = ", ".join(repr(a) if isinstance(a, str) else _value(a) for a in answers)
    if question == DIMENSIONS:
        return f"this rule is for tensors of {shown} dimensions"
    return f"this file was made for {question} = {shown}"
