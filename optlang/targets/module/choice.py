"""The function that selects the form of a rule: its questions as a tree of conditions."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from enum import Enum

from optlang.rule import Value
from optlang.syntax.quoting import docstring, literal
from optlang.targets._python import INDENT, formatted, spaced
from optlang.targets._questions import DIMENSIONS, Trace
from optlang.targets.module.forms import Form
from optlang.targets.module.implied import Known, negated, simplified


class Whatever(Enum):
    """Placeholder for an answer that does not matter."""

    ANY = "any answer"


def chooser(name: str, what: str, forms: Sequence[Form], requirements: Sequence[tuple[str, str]]) -> str:
    """Return the function.

    Args:
        name: Its name.
        what: What it selects, for its docstring.
        forms: The forms.
        requirements: Conditions on tensors, with the messages for violations.
    """
    body: list[str] = []
    for condition, message in requirements:
        body += [f"if not ({condition}):", f"{INDENT}raise ValueError({literal(message)})"]
    common = _common(forms)
    for question, answer in common.items():
        body += _either(question, {answer: []}) if isinstance(answer, bool) else _refusal(question, [answer])
    leading = [(form, tuple(pair for pair in form.way.trace if pair[0] not in common)) for form in forms]
    body = _simplified([*body, *branches(leading, 0)])
    read: dict[str, None] = {}
    for line in body:
        code = line.strip()
        node = ast.parse(f"{code} pass" if code.endswith(":") else code)
        read |= dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    constants = {*(f.name for f in forms), "math", *dir(builtins)}
    names = sorted(set(read) - constants)
    lines = [f"def {name}({', '.join(names)}):", INDENT + docstring(what), *(INDENT + line for line in body)]
    return "\n".join(out for line in lines for out in formatted(line)) + "\n"


def _simplified(lines: Sequence[str]) -> list[str]:
    """Return the lines of a function without checks that cannot fail."""
    tree = ast.parse("\n".join(lines))
    tree.body = simplified(tree.body, Known())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
            node.test = negated(node.test.operand)
    return ast.unparse(ast.fix_missing_locations(tree)).split("\n")


def _common(forms: Sequence[Form]) -> dict[str, Value]:
    """Return the options that all forms share, with their values: other values are rejected first."""
    traces = [dict(form.way.trace) for form in forms]
    shared = set.intersection(*({*trace.items()} for trace in traces))
    asked = [pair for pair in forms[0].way.trace if pair in shared]
    return {q: answer for q, answer in asked if q != DIMENSIONS and q.removesuffix(" is None").isidentifier()}


def branches(forms: list[tuple[Form, Trace]], place: int) -> list[str]:
    """Return the lines that select one of the forms that share the answers to their first questions.

    Args:
        forms: The forms, each with the questions that select it.
        place: How many of the questions have been answered.
    """
    if len({form.name for form, _ in forms}) == 1 and all(len(trace) <= place for _, trace in forms):
        return [f"return {forms[0][0].name}"]
    question = next(trace[place][0] for _, trace in forms if len(trace) > place)
    answers: dict[Value | Whatever, list[tuple[Form, Trace]]] = {}
    for form, trace in forms:
        answer = trace[place][1] if len(trace) > place else Whatever.ANY
        known = Whatever.ANY if question == DIMENSIONS and answer is None else answer
        answers.setdefault(known, []).append((form, trace))
    inside = {answer: branches(those, place + 1) for answer, those in answers.items()}
    if len(set(map(tuple, inside.values()))) == 1 and set(inside) == {False, True}:
        return inside[True]
    definite = {answer: block for answer, block in inside.items() if not isinstance(answer, Whatever)}
    equal = len(set(map(tuple, inside.values()))) == 1
    if equal and Whatever.ANY in inside:
        return inside[Whatever.ANY]
    if all(isinstance(answer, bool) for answer in answers):
        return _either(question, definite)
    if Whatever.ANY not in inside and equal:
        return [*_refusal(question, list(definite)), *next(iter(definite.values()))]
    lines: list[str] = []
    for answer, block in definite.items():
        same = "is None" if answer is None else f"== {_value(answer)}"
        lines += [f"if {question} {same}:", *(INDENT + line for line in block)]
    if Whatever.ANY in inside:
        return [*lines, *inside[Whatever.ANY]]
    return [*lines, _refusal(question, list(definite))[1].strip()]


def _refusal(question: str, answers: Sequence[Value]) -> list[str]:
    """Return the lines that reject values of a question that the file does not support."""
    every = ", ".join(map(_value, answers))
    test = f"not in ({every})" if len(answers) > 1 else "is not None" if answers[0] is None else f"!= {every}"
    return [f"if {question} {test}:", f"{INDENT}raise ValueError({literal(_only(question, answers))})"]


def _either(question: str, inside: dict[Value, list[str]]) -> list[str]:
    """Return the lines of a question with the answers yes and no."""
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
    """Return the error message for a value that the file does not support."""
    shown = ", ".join(repr(a) if isinstance(a, str) else _value(a) for a in answers)
    if question == DIMENSIONS:
        return f"this rule is for tensors of {shown} dimensions"
    return f"this file was made for {question} = {shown}"
