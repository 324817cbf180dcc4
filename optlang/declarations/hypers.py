"""Declarations of hyperparameters: types from defaults, ranges, param-group keys."""

from __future__ import annotations

from keyword import iskeyword

from optlang.core.evaluate import NotStatic, evaluate
from optlang.declarations.constants import NotConstant, fold, is_whole
from optlang.declarations.findings import Findings
from optlang.declarations.scope import Scope
from optlang.rule import Hyper, HyperType, OneOf, Range, Value, Values
from optlang.source import Span
from optlang.syntax.suggest import listing, nearest
from optlang.syntax.tree import Choices, Domain, Expr, HyperDecl, HyperItem, Interval, Name
from optlang.syntax.walk import expressions

#: Keyword arguments and param-group keys that torch.optim or the generated class uses itself.
RESERVED_KEYS: dict[str, str] = {
    "params": "the parameters themselves",
    "param_names": "the names of named parameters",
    "initial_lr": "the learning rate that a scheduler starts from",
    "self": "the optimizer itself",
    "closure": "the argument of `step`",
    "step": "the number of steps taken",
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), "one of torch's own switches"),
    "sparse": "the argument that selects how sparse gradients are handled",
}

SHOWN_TYPES = {
    HyperType.NUMBER: "a number",
    HyperType.OPTIONAL: "a number or none",
    HyperType.FLAG: "true or false",
    HyperType.TEXT: "a string",
    HyperType.OPTIONAL_TEXT: "a string or none",
}


def python_name(name: str) -> str:
    """Return the Python keyword argument for a name (``lambda_`` for ``lambda``)."""
    return f"{name}_" if iskeyword(name) else name


def declare_hypers(declaration: HyperDecl, scope: Scope) -> None:
    """Check one ``hyper`` statement and add its hyperparameters to the scope."""
    for item in declaration.items:
        if item.parts is None:
            if _key_is_free(item, scope) and scope.declare(item.name.name, item.name.text, item.name.span):
                _add(item, item.name.name, None, item.domain, declaration.doc, scope)
        else:
            _declare_tuple(item, item.parts, declaration.doc, scope)


def _declare_tuple(item: HyperItem, parts: tuple[HyperItem, ...], doc: str | None, scope: Scope) -> None:
    """Add the parts of a tuple such as ``betas = (beta1 = 0.9, beta2 = 0.999)``."""
    if not (_key_is_free(item, scope) and scope.declare(item.name.name, item.name.text, item.name.span)):
        scope.excused.update(part.name.name for part in parts)
        return
    scope.tuples[item.name.name] = tuple(part.name.text for part in parts)
    given = [part for part in parts if part.default is not None]
    if given and len(given) < len(parts):
        bare = next(part for part in parts if part.default is None)
        scope.findings.add(
            "E408",
            f"`{bare.name.text}` has no default, but other parts of `{item.name.text}` have one",
            bare.span,
            label="expected `= VALUE`",
            help=f"the user passes `{item.name.text}` as one tuple: give every part a default, or none of them",
        )
    for i, part in enumerate(parts):
        if scope.declare(part.name.name, part.name.text, part.name.span):
            _add(part, item.name.name, i, part.domain or item.domain, doc, scope)


def _key_is_free(item: HyperItem, scope: Scope) -> bool:
    """Return whether an item's name can be a keyword argument of the optimizer; report it if not."""
    key = item.name.name
    same = next((h.key for h in scope.hypers.values() if python_name(h.key) == python_name(key)), key)
    if key in RESERVED_KEYS:
        what, help = f"`{item.name.text}` cannot be a hyperparameter", "choose another name"
        label = f"reserved for {RESERVED_KEYS[key]}"
    elif same != key:
        what = f"`{same}` and `{item.name.text}` would be the same argument in Python"
        label, help = f"both become `{python_name(key)}`", "rename one of them"
    else:
        return True
    scope.excused.add(key)
    scope.findings.add("E407", what, item.name.span, label=label, help=help)
    return False


def _add(item: HyperItem, key: str, part: int | None, domain: Domain | None, doc: str | None, scope: Scope) -> None:
    """Add one hyperparameter, checking its default and its range."""
    name = item.name
    derived = _derived(item, scope) if part is None else None
    default, sound = (derived, True) if derived is not None else _default(item, scope)
    bounds = domain_of(domain, scope.findings)
    kind = _type(default, bounds) if item.default is not None and sound else _required_type(bounds)
    if item.optional and sound and item.default is not None:
        if kind in (HyperType.FLAG, HyperType.TEXT):
            scope.findings.add(
                "E403",
                f"`{name.text}` is {SHOWN_TYPES[kind]}, and only a number may also be none",
                item.default.span,
                label="not a number",
                help='remove `or none`, or add a choice such as `"off"`',
            )
        else:
            kind = HyperType.OPTIONAL
    if domain is not None and bounds is not None and sound:
        if not _suits(kind, bounds):
            bounds = None
            scope.findings.add(
                "E405",
                f"this kind of range does not apply to `{name.text}`, which is {SHOWN_TYPES[kind]}",
                domain.span,
                label="does not match the default",
                help='numbers take a range such as `in [0, 1)`, strings a list such as `in {"l2", "decoupled"}`',
            )
        elif item.default is not None and default is not None and not _inside(default, bounds):
            _outside(item, default, bounds, scope)
    scope.hypers[name.name] = Hyper(
        name.name,
        key,
        part,
        kind,
        default,
        item.default is None,
        bounds,
        doc,
        name.span,
        whole=item.default is not None and is_whole(item.default),
        derived=item.default if derived is not None else None,
    )


def _derived(item: HyperItem, scope: Scope) -> Value:
    """Return the value of a default computed from earlier numbers, using their defaults; None for any other default."""
    if item.default is None:
        return None
    names = {node.name for node in expressions(item.default) if isinstance(node, Name)}
    numbers = [h for h in scope.hypers.values() if h.type is HyperType.NUMBER and not h.required]
    known: Values = {h.name: h.default for h in numbers}
    if not names & known.keys():
        return None
    try:
        value = evaluate(item.default, known)
    except NotStatic:
        return None
    return value if isinstance(value, float) else None


def _default(item: HyperItem, scope: Scope) -> tuple[Value, bool]:
    """Return the value of a default, and whether it is valid."""
    if item.default is None:
        return None, True
    try:
        return fold(item.default), True
    except NotConstant as problem:
        scope.findings.add(
            "E403",
            f"the default of `{item.name.text}` is not a constant: {problem.reason}",
            problem.span,
            label="expected a number, a string, true, false or none",
            help="to derive one hyperparameter from another, give it the default `none` and write "
            f"`{item.name.text} ?? EXPRESSION` where it is used",
        )
        return None, False


def _type(default: Value, bounds: Range | OneOf | None) -> HyperType:
    if isinstance(default, bool):
        return HyperType.FLAG
    if isinstance(bounds, OneOf) and None in bounds.values and isinstance(default, str | None):
        return HyperType.OPTIONAL_TEXT
    if isinstance(default, str):
        return HyperType.TEXT
    return HyperType.OPTIONAL if default is None else HyperType.NUMBER


def _required_type(bounds: Range | OneOf | None) -> HyperType:
    """Return the type of a hyperparameter without a default, inferred from its range."""
    if isinstance(bounds, OneOf):
        return _type(bounds.values[0], bounds)
    return HyperType.NUMBER


def _suits(kind: HyperType, bounds: Range | OneOf) -> bool:
    """Return whether this kind of range applies to values of this type."""
    if isinstance(bounds, Range):
        return kind in (HyperType.NUMBER, HyperType.OPTIONAL)
    listed = _type(bounds.values[0], bounds)
    return listed is kind or (kind is HyperType.OPTIONAL and listed is HyperType.NUMBER)


def _inside(value: Value, bounds: Range | OneOf) -> bool:
    """Return whether a range contains a value of a type it applies to."""
    if isinstance(bounds, Range):
        return isinstance(value, float) and value in bounds
    return value in bounds


def _outside(item: HyperItem, default: Value, bounds: Range | OneOf, scope: Scope) -> None:
    assert item.default is not None
    near = None
    if isinstance(bounds, OneOf) and isinstance(default, str):
        near = nearest(default, [v for v in bounds.values if isinstance(v, str)])
    where = "outside its range" if isinstance(bounds, Range) else "not one of its choices"
    scope.findings.add(
        "E404",
        f"the default of `{item.name.text}` is {where}, `{bounds.text}`",
        item.default.span,
        label=f"not {bounds.text}",
        help=f'did you mean "{near}"?' if near else "change the default or the range",
    )


def domain_of(domain: Domain | None, findings: Findings) -> Range | OneOf | None:
    """Return the value of a range; None without one, or if it is invalid (which is reported)."""
    if domain is None:
        return None
    if isinstance(domain, Interval):
        return _interval(domain, findings)
    return _choices(domain, findings)


def _end(expr: Expr, findings: Findings) -> float | None:
    try:
        value = fold(expr)
        if isinstance(value, float):
            return value
        problem = NotConstant(expr.span, "it is not a number")
    except NotConstant as found:
        problem = found
    findings.add(
        "E405",
        f"the end of a range must be a constant number: {problem.reason}",
        problem.span,
        label="expected a number",
        help="a condition between hyperparameters is written `require low < high`",
    )
    return None


def _interval(domain: Interval, findings: Findings) -> Range | None:
    low, high = _end(domain.low, findings), _end(domain.high, findings)
    if low is None or high is None:
        return None
    if low > high or (low == high and not (domain.low_closed and domain.high_closed)):
        findings.add(
            "E405",
            f"the range `{domain.text}` is empty",
            domain.span,
            label="contains no number",
            help="write the smaller end first; [ and ] include an end, ( and ) exclude it",
        )
        return None
    return Range(low, high, domain.low_closed, domain.high_closed, domain.text)


def _choices(domain: Choices, findings: Findings) -> OneOf | None:
    values: list[Value] = []
    for item in domain.items:
        try:
            values.append(fold(item))
        except NotConstant as problem:
            _bad_choice(problem.span, f"a choice must be a constant: {problem.reason}", findings)
            return None
    sorts = {type(value) for value in values}
    if len(sorts) > 1 and sorts != {str, type(None)}:
        _bad_choice(domain.span, "the choices must be all strings (and `none`) or all numbers", findings)
        return None
    return OneOf(tuple(values), domain.text)


def _bad_choice(span: Span, message: str, findings: Findings) -> None:
    findings.add("E405", message, span, label="in this list", help=f"write for example `in {{{_SAMPLE}}}`")


_SAMPLE = '"l2", "decoupled"'


def tuple_help(name: str, scope: Scope) -> str:
    """Return what to write instead of the name of a tuple."""
    return f"use its parts: {listing(scope.tuples[name])}"
