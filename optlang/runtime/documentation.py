"""The signature and docstring of a generated class, and the printed form of an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from optlang.artifact import Compiled
from optlang.core.texts import text_of
from optlang.rule import Hyper, HyperType
from optlang.runtime.records import STEP
from optlang.runtime.rng import SEED
from optlang.runtime.routing import Parts
from optlang.runtime.stored import described as described_formats
from optlang.syntax.quoting import visible
from optlang.syntax.tree import StateScope

KINDS = {
    HyperType.NUMBER: "float",
    HyperType.OPTIONAL: "float or None",
    HyperType.FLAG: "bool",
    HyperType.TEXT: "str",
    HyperType.OPTIONAL_TEXT: "str or None",
}


def signature(hyper: Parts) -> inspect.Signature:
    """Return the call signature: ``params``, then the hyperparameters in the rule's order, or as in torch.optim."""
    parameters = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    required = [key in hyper.required for key in hyper.keys]
    ordered = required == sorted(required, reverse=True)
    # Python requires keyword-only arguments once one without a default follows one with a default.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if ordered else inspect.Parameter.KEYWORD_ONLY
    defaults, placed = {**hyper.counterpart.switches, **hyper.defaults}, hyper.counterpart.positional
    for key in dict.fromkeys([*(placed or ()), *hyper.keys, *hyper.counterpart.switches]):
        if key in hyper.keys or key in defaults:
            here = inspect.Parameter.KEYWORD_ONLY if placed is not None and key not in placed else kind
            parameters.append(inspect.Parameter(key, here, default=defaults.get(key, inspect.Parameter.empty)))
    if hyper.random:
        parameters.append(inspect.Parameter(SEED, inspect.Parameter.KEYWORD_ONLY, default=None))
    return inspect.Signature(parameters)


def docstring(compiled: Compiled, hyper: Parts) -> str:
    """Return the docstring: the rule's own documentation, then its arguments."""
    rule = compiled.rule
    parts = [(rule.doc or f"{compiled.name}, an optimizer compiled from a rule.").strip()]
    lines = ["Args:", "    params (iterable): parameters, named parameters, or dicts that define parameter groups"]
    rules = {key: part.compiled.name for part in hyper.parts for key in part.hyper.keys}
    for key, hypers in hyper.keys.items():
        of = f"of {rules[key]}: " if len(hyper.parts) > 1 else ""
        lines.append(
            f"    {key} ({_kind(hypers)}{'' if key in hyper.required else ', optional'}): {of}{_text(key, hyper)}"
        )
    if hyper.random:
        lines.append(f"    {SEED} (int, optional): seed of the random numbers (default: drawn by torch)")
    parts.append("\n".join(lines))
    if rule.stored:
        kept = (f"``{each.key}`` in {each.format.label('float32')}" for each in rule.stored if each.name != "p")
        way = (f"parameters in bfloat16 {each.format.label('bfloat16')}" for each in rule.stored if each.name == "p")
        parts.append(f"Formats, unless ``store`` or ``rounding`` is given: {', '.join((*kept, *way))}.")
    if compiled.rule.events:
        parts.append(
            "Call ``optimizer.eval()`` before evaluating or saving, ``optimizer.train()`` before training again."
        )
    if compiled.group_keys:
        names = ", ".join(f"``{key}``" for key in compiled.group_keys)
        parts.append(f"Every parameter group must also have: {names}.")
    if rule.reference:
        parts.append(f"Reference: ``{rule.reference}``.")
    parts.append(
        "Note:\n    ``foreach`` and ``fused`` are accepted for compatibility with ``torch.optim`` and have no effect:\n"
        "    everything that can be fused already is. ``store`` selects the formats of states, ``rounding`` how\n"
        "    parameters in bfloat16 are rounded."
    )
    return visible("\n\n".join(parts), kept="\n\t") + "\n"


def _kind(hypers: tuple[Hyper, ...]) -> str:
    if hypers[0].part is None:
        return KINDS[hypers[0].type].replace("float", "int" if hypers[0].count else "float")
    return f"tuple of {len(hypers)} numbers"


def _text(key: str, hyper: Parts) -> str:
    """Return the documentation of one argument."""
    hypers = hyper.keys[key]
    said = list(dict.fromkeys(h.doc for h in hypers if h.doc))
    if hypers[0].part is not None:
        said.append(f"({', '.join(h.name for h in hypers)})")
    ranges = list(dict.fromkeys(h.domain.text for h in hypers if h.domain is not None))
    if len(ranges) == 1:
        said.append(f"{'each ' if len(hypers) > 1 else ''}{ranges[0]}")
    elif ranges:
        said += [f"{h.name} {h.domain.text}" for h in hypers if h.domain is not None]
    text = ", ".join(said) or "see the formulas"
    if key in hyper.required:
        return text
    derived = hypers[0].derived
    if derived is None:
        return f"{text} (default: {shown(hyper.defaults[key])})"
    parsed = next(part.compiled.rule.tree for part in hyper.parts if key in part.hyper.keys)
    return f"{text} (default: {text_of(parsed, derived)})"


def shown(value: Any) -> str:
    """Return a default as a person writes it (``0.01``, ``1e-08``, ``1``)."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    return repr(value)


def described(parts: Parts, groups: Sequence[Mapping[str, Any]]) -> str:
    """Return an optimizer as text: its parameter groups, without the entries that the rule itself keeps there."""
    own = {
        part.hyper.kept(key)
        for part in parts.parts
        for key in (STEP, *(s.key for s in part.compiled.rule.states if s.scope is not StateScope.TENSOR))
    }
    hidden = {"params", "param_names", *own}
    lines = [f"{parts.name} ("]
    for i, group in enumerate(groups):
        lines.append(f"Parameter Group {i}")
        lines += [f"    {key}: {group[key]}" for key in sorted(set(group) - hidden)]
        lines += [f"    states: {line}" for line in _kept_as(parts, group)]
    return "\n".join([*lines, ")"])


def _kept_as(parts: Parts, group: Mapping[str, Any]) -> list[str]:
    """Return how a group's states are stored if a format was requested, one line per rule."""
    try:
        placed = zip(parts.parts, parts.split(group), strict=True)
        found = (described_formats(part, group, members) for part, members in placed)
        return [line for line in found if line is not None]
    except ValueError:  # hyperparameters that the next step will reject
        return []
