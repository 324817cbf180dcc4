"""The types and ranges of transform parameters."""

from __future__ import annotations

from optlang.core.evaluate import NotStatic, evaluate
from optlang.rule import HyperType, Value
from optlang.syntax import tree


def default_of(parameter: tree.Parameter) -> Value:
    """Return the default of a parameter that has one; 1.0 if it is not a literal."""
    assert parameter.default is not None
    try:
        return evaluate(parameter.default, {})
    except NotStatic:
        return 1.0


def type_of(parameter: tree.Parameter) -> HyperType:
    """Return the type of a parameter, inferred from its default or its choices."""
    listed = parameter.domain.items if isinstance(parameter.domain, tree.Choices) else ()
    texts = any(isinstance(item, tree.Text) for item in listed)
    if texts and any(isinstance(item, tree.Nothing) for item in listed):
        return HyperType.OPTIONAL_TEXT
    if parameter.default is None:
        return HyperType.TEXT if texts else HyperType.NUMBER
    match default_of(parameter):
        case bool():
            return HyperType.FLAG
        case str():
            return HyperType.TEXT
        case None:
            return HyperType.OPTIONAL
    return HyperType.NUMBER


def allows(parameter: tree.Parameter, value: Value) -> bool:
    """Return whether a value is in the range of a parameter, or is not subject to it."""
    domain = parameter.domain
    try:
        if isinstance(domain, tree.Choices):
            return value in [evaluate(item, {}) for item in domain.items]
        if domain is None or isinstance(value, (bool, str)) or value is None:
            return True
        low, high = evaluate(domain.low, {}), evaluate(domain.high, {})
    except NotStatic:
        return True
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    above = value >= low if domain.low_closed else value > low
    below = value <= high if domain.high_closed else value < high
    return above and below
