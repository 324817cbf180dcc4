"""Replaces the inner rules of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optlang.source import Source
from optlang.syntax import tree
from optlang.syntax.library import rule_files
from optlang.syntax.parse import parse
from optlang.syntax.suggest import nearest
from optlang.syntax.unparse_formulas import quoted


def exchanged(source: Source, inner: str | Path | Mapping[str, str | Path]) -> Source:
    """Return a rule with some inner rules replaced; the new ones use their own defaults.

    Args:
        source: The rule.
        inner: The replacements by the names of the inner rules: each a name of the library or a path (also a string
            ending in ``.opt``). For a rule with one inner rule, just the replacement.

    Raises:
        OptlangError: If the rule has syntax errors.
        ValueError: If there is no such inner rule, or no such rule.
    """
    found = {item.name.text: item for item in parse(source).items if isinstance(item, tree.Inner)}
    if not isinstance(inner, Mapping):
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise ValueError(f"inner={str(inner)!r} is for a rule with one inner rule; this one has {names}")
        inner = dict.fromkeys(found, inner)
    for name in inner:
        if name not in found:
            near = nearest(name, found)
            hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(found) or 'none'}"
            raise ValueError(f"the rule has no inner rule {name!r}; {hint}")
    text = source.text
    for name, node in reversed(found.items()):
        if name in inner:
            like = "" if node.like is None else f" like {source.excerpt(node.like.span)}"
            made = f"inner {name} = {_reference(inner[name])}{like}"
            text = text[: node.span.start] + made + text[node.span.end :]
    return Source(text, source.name)


def _reference(rule: str | Path) -> str:
    """Return the text that refers to a rule from another one."""
    if isinstance(rule, Path) or rule.endswith(".opt"):
        path = str(Path(rule).absolute())
        if "\n" in path or ('"' in path and "'" in path):
            raise ValueError(f"{path!r} cannot be written in a rule; give the file a name without quotes")
        return quoted(path)
    for known in rule_files():
        if known.lower() == rule.lower():
            return known
    near = nearest(rule, rule_files())
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(rule_files())}"
    raise ValueError(f"{rule!r} is neither a rule of the library nor a file; {hint}")
