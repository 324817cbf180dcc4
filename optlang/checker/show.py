"""Readable text of a tree or a checked rule (``optlang emit --stage tree`` and ``--stage rule``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from fractions import Fraction

from optlang.core.texts import text_of
from optlang.expand.histories import initial_text
from optlang.kinds import Level
from optlang.rule import Hyper, Rule
from optlang.source import Source, Span
from optlang.syntax.tree import Iterate, Node, On, StateScope, Stmt, Tree


def show_tree(tree: Tree) -> str:
    """Return a tree as text, one node per line, with positions."""
    return "\n".join(_node(tree, tree.source, "", ""))


def show_rule(rule: Rule) -> str:
    """Return a checked rule as text: the role of each name, then the statements."""
    return "\n".join(_rule(rule))


def _node(node: Node, source: Source, indent: str, label: str) -> Iterator[str]:
    """Yield the lines of a node: its scalar fields on one line, then its children."""
    plain, children = [], []
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, (Source, Span)) or value is None:
            continue
        if isinstance(value, Node) or (isinstance(value, tuple) and any(_is_tree(v) for v in value)):
            children.append((field.name, value))
        elif value != () and not (field.name == "value" and isinstance(value, Fraction)):
            plain.append(f"{field.name}={value.value if isinstance(value, Enum) else value!r}")
    line, column = source.position(node.span.start)
    yield f"{indent}{label}{type(node).__name__} {' '.join(plain)}".rstrip() + f"    {line}:{column}"
    for name, value in children:
        yield from _child(value, source, f"{indent}  ", f"{name}: ")


def _child(value: object, source: Source, indent: str, label: str) -> Iterator[str]:
    if isinstance(value, Node):
        yield from _node(value, source, indent, label)
    elif isinstance(value, tuple):
        for item in value:
            yield from _child(item, source, indent, label)


def _is_tree(value: object) -> bool:
    return isinstance(value, Node) or (isinstance(value, tuple) and any(map(_is_tree, value)))


def _rule(rule: Rule) -> Iterator[str]:
    parsed = rule.tree
    yield f"rule {rule.name or '(unnamed)'}" + (f", reference {rule.reference}" if rule.reference else "")
    for hyper in rule.hypers:
        yield f"  hyper   {_hyper(hyper)}"
    for requirement in rule.requirements:
        yield f"  require {text_of(parsed, requirement.condition)}"
    for state in rule.states:
        initial = initial_text(state, parsed)
        when = f" when {text_of(parsed, state.when)}" if state.when else ""
        scope = "state  " if state.scope is StateScope.TENSOR else f"{state.scope.value} state"
        kind = "matrix" if state.kind.level is Level.MATRIX else state.kind  # its shape is that of some sample
        yield f"  {scope} {state.name}: {kind} = {initial}, key {state.key!r}{when}"
    for stored in rule.stored:
        when = f" when {text_of(parsed, stored.when)}" if stored.when else ""
        yield f"  store   {stored.name}: {stored.format.label('float32')}{when}"
    for name in rule.functions:
        yield f"  def     {name}"
    for item in parsed.items:
        if isinstance(item, Stmt | Iterate):
            yield from (f"  | {line}" for line in text_of(parsed, item).splitlines())
    for event in (item for item in parsed.items if isinstance(item, On)):
        yield f"  on      {event.event}"
        for statement in event.body:
            yield from (f"    | {line}" for line in text_of(parsed, statement).splitlines())
    for route in rule.routes:
        when = f"when {text_of(parsed, route.when)}" if route.when is not None else "otherwise"
        yield f"  route   {route.title} {when}"


def _hyper(hyper: Hyper) -> str:
    place = hyper.name if hyper.part is None else f"{hyper.name} = {hyper.key}[{hyper.part}]"
    kind = hyper.type.value if isinstance(hyper.type, Enum) else hyper.type
    default = "required" if hyper.required else f"default {hyper.default!r}"
    domain = f", {hyper.domain.text}" if hyper.domain else ""
    return f"{place}: {kind}, {default}{domain}"
