"""Composition of rules: ``use`` includes another rule, ``inner`` declares one with its own name and states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from optlang.core.known import known_before
from optlang.core.substitute import is_literal, names_in, placed, renamed
from optlang.expand.clocks import Clock
from optlang.expand.context import Work, matched, title
from optlang.source import Origin
from optlang.syntax import tree
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import assigned

STATEMENTS = (tree.Assign, tree.If, tree.Apply, tree.Push, tree.Repeat, tree.For, tree.Every)
Items = list[tree.Decl | tree.Stmt]
#: Expands another rule.
WriteOut = Callable[[tree.Tree], tree.Tree]
#: Imports the transforms of a file.
Adopt = Callable[[Sequence[tree.Decl | tree.Stmt]], None]


@dataclass(frozen=True)
class InnerRule:
    """A declared inner rule.

    Attributes:
        name: Its name in the outer rule.
        prefix: The prefix of generated names.
        like: The value whose shape its states have, if not ``p``.
        body: The statements of a step, with names of the outer rule; calls supply ``p`` and ``g``.
        origin: The origin of the rule.
        clock: Its time placeholders.
        starts: Statements that initialise its states in its first step.
        members: The outer names of its hyperparameters and states.
        events: Whether it has event blocks, which concern ``p``.
    """

    name: str
    prefix: str
    like: tree.Expr | None
    body: tuple[tree.Stmt, ...]
    origin: Origin
    clock: Clock
    starts: tuple[tree.Stmt, ...]
    members: Mapping[str, str | tree.Expr]
    events: bool = False


def used(work: Work, node: tree.Use, write_out: WriteOut, own: Sequence[tree.Decl | tree.Stmt], adopt: Adopt) -> Items:
    """Expand ``use``: return the items of the other rule that the author does not override.

    Args:
        work: Collects errors.
        node: The ``use``.
        write_out: Expands the other rule.
        own: The author's items; their hyperparameters and functions override those of the other rule.
        adopt: Imports the transforms of the other file.
    """
    parsed = _expanded(work, node, write_out, adopt)
    if parsed is None:
        return []
    mine = {i.name.name for d in own if isinstance(d, tree.HyperDecl) for i in d.items}
    functions = {d.name.name for d in own if isinstance(d, tree.Def)}
    chosen = {name.name for d in own if isinstance(d, tree.StoreDecl) for name in d.names}
    hypers = [i for d in parsed.items if isinstance(d, tree.HyperDecl) for i in d.items]
    given = matched(work, node, title(node.rule), node.arguments, {i.name.name: True for i in hypers})
    if given is None:
        return []
    items: Items = []
    for item in parsed.items:
        match item:
            case tree.OptimizerDecl():
                continue
            case tree.HyperDecl():
                left = tuple(_defaulted(work, i, given) for i in item.items if i.name.name not in mine)
                if left:
                    items.append(replace(item, items=left))
            case tree.Def() if item.name.name in functions:
                continue
            case tree.StoreDecl():
                items += stored_by(item, chosen)
            case _:
                items.append(item)
    work.take(items)
    return items


def stored_by(item: tree.StoreDecl, chosen: Collection[str]) -> Iterator[tree.StoreDecl]:
    """Yield a ``store`` statement without the names that another one covers, if any remain."""
    left = tuple(name for name in item.names if name.name not in chosen)
    if left:
        yield replace(item, names=left)


def declared(
    work: Work, node: tree.Inner, write_out: WriteOut, tuples: Mapping[str, tree.HyperItem]
) -> tuple[Items, InnerRule] | None:
    """Expand ``inner``: return its declarations and the rule; report why and return None if that fails.

    Args:
        work: Collects errors.
        node: The ``inner``.
        write_out: Expands the other rule.
        tuples: The declared tuples of hyperparameters, by name.
    """
    parsed = _expanded(work, node, write_out)
    if parsed is None or not _fits_inside(work, parsed, node):
        return None
    origin = parsed.span.origin
    assert origin is not None
    if not any(isinstance(item, STATEMENTS) for item in parsed.items):
        help = "an inner rule must change `p`; to import transforms and functions from a file, write `use`"
        work.error("E215", f"`{title(node.rule)}` has no update", node.rule.span, "not a rule", help)
        return None
    prefix = work.key(node.name.name.lower())
    clock = Clock.of(work, node, prefix, parsed)
    parsed = replace(parsed, items=clock.wound(parsed.items))
    decls = [d for d in parsed.items if isinstance(d, tree.HyperDecl)]
    hypers = [i for d in decls for i in d.items]
    given = matched(work, node, title(node.rule), node.arguments, {i.name.name: True for i in hypers})
    if given is None:
        return None
    body = tuple(item for item in parsed.items if isinstance(item, STATEMENTS))
    like = None if node.like is None else renamed(node.like, _starting(work.author.items))
    names: dict[str, str | tree.Expr] = {}
    items: Items = []
    shown = node.name.text

    def own(name: str) -> str:
        names[name] = work.fresh(f"{prefix}_{name}", f"{shown}'s {name}")
        return str(names[name])

    for decl in decls:
        left = []
        for item in decl.items:
            value = given.get(item.name.name)
            if value is None or _is_constant(value):
                left.append(_exposed(work, _defaulted(work, item, given), names, prefix))
            elif isinstance(value, tree.Tuple) or item.parts is not None:
                _bind_parts(work, item, value, names, tuples)
            else:
                local = own(item.name.name)
                items.append(tree.Assign(value.span, (tree.Name(value.span, local, local),), "=", value))
        if left:
            items.append(replace(decl, items=tuple(left)))
    states = [d for d in parsed.items if isinstance(d, tree.StateDecl)]
    histories = [d for d in parsed.items if isinstance(d, tree.History)]
    held = [i.name.name for d in states for i in d.items] + [n.name for d in histories for n in d.names]
    functions = [d for d in parsed.items if isinstance(d, tree.Def)]
    events = [d for d in parsed.items if isinstance(d, tree.On)]
    inside = {n.name for n in assigned(body)} | {n.name for e in events for n in assigned(e.body)}
    for name in (*held, *(f.name.name for f in functions), *sorted(inside - {"p", "g", *held})):
        if name not in names:
            own(name)
    known = known_before(body, list(names_in(tuple(decls))), held, {f.name.name: f for f in functions})
    for statement in body:
        if isinstance(statement, tree.Assign) and statement.targets[0].name in known:
            made = renamed(statement, names)
            items.append(replace(made, value=clock.if_reached(made.value.span, made.value)))
    for other in parsed.items:
        match other:
            case tree.StateDecl():
                items.append(_stated(other, names, prefix, like, clock))
            case tree.Require():
                required = renamed(other.condition, names)
                items.append(replace(other, condition=clock.if_reached(required.span, required)))
            case tree.On():
                event = tree.If(other.span, ((clock.if_reached(other.span), renamed(other.body, names)),), None)
                items.append(replace(other, body=(event,)))
            case tree.Def() | tree.History():
                items.append(renamed(other, names))
            case tree.StoreDecl() if node.like is None:  # states of another shape are stored unchanged
                items.append(renamed(other, names))
            case _:
                pass
    left_body = tuple(s for s in body if not (isinstance(s, tree.Assign) and s.targets[0].name in known))
    starts = tuple(statement for state in states for statement in _starts(state, clock))
    members = {name: names[name] for item in hypers for name in _named(item) if name in names}
    members |= {key: names[i.name.name] for d in states for i in d.items for key in (i.key, i.name.name) if key}
    return items, InnerRule(
        node.name.text,
        prefix,
        node.like,
        renamed(left_body, names),
        origin,
        clock,
        renamed(starts, names),
        members,
        bool(events),
    )


def applied(work: Work, inner: InnerRule, call: tree.Call, direction: bool) -> tuple[list[tree.Stmt], str] | None:
    """Return the statements of an inner rule's call and its result's name; report why and return None if that fails."""
    what = f"{inner.name}.direction" if direction else inner.name
    given = matched(work, call, what, call.arguments, {"g": False} if direction else {"p": False, "g": False})
    if given is None:
        return None
    done: list[tree.Stmt] = []
    names: dict[str, str | tree.Expr] = {}
    writes = {n.name for n in assigned(inner.body)}

    def assign(name: str, value: tree.Expr) -> None:
        done.append(tree.Assign(value.span, (tree.Name(value.span, name, name),), "=", value))

    if direction:
        moved = names["p"] = work.fresh(f"{inner.prefix}_p", "p")
        base = tree.Name(call.span, "p", "p") if inner.like is None else inner.like
        assign(moved, base)
    else:
        target = given["p"]
        if inner.events and isinstance(target, tree.Name) and target.name != "p":
            work.error(
                "E217",
                f"`{inner.name}` has an `on eval` block, which changes `p`",
                target.span,
                "can only update `p`",
                f"write `{inner.name}(p, ...)`, or use an inner rule without such a block",
            )
            return None
        if not isinstance(target, tree.Name):
            work.error(
                "E217",
                f"`{inner.name}` cannot update a value",
                target.span,
                "expected `p`, a state or a local variable",
                "to get its step without updating anything, write `.direction(g)`",
            )
            return None
        names["p"] = target.name
    gradient = given["g"]
    if isinstance(gradient, (tree.Name, tree.Member)) and "g" not in writes:
        names["g"] = gradient
    else:
        local = names["g"] = work.fresh(f"{inner.prefix}_g", "g")
        assign(local, gradient)
    given_p = base if direction else names["p"]
    given_g = gradient if isinstance(gradient, (tree.Name, tree.Member)) else names["g"]
    starts = renamed(inner.starts, {"p": given_p, "g": given_g})
    called = replace(inner.origin, used=call.span)
    body = placed((*starts, *renamed(inner.body, names)), lambda span: span.moved(inner.origin, called))
    done += [inner.clock.tick(call.span), *body]
    result = ""
    if direction:
        result = work.fresh(f"{inner.prefix}_direction", f"{inner.name}.direction")
        place = call.span
        moved_name = tree.Name(place, str(names["p"]), str(names["p"]))
        assign(result, tree.Binary(place, "-", moved_name, base))
    return done, result


def _expanded(
    work: Work, node: tree.Use | tree.Inner, write_out: WriteOut, adopt: Adopt = lambda items: None
) -> tree.Tree | None:
    """Return the used rule, expanded; report why and return None if that fails."""
    parsed = work.rule(node)
    if parsed is None:
        return None
    adopt(parsed.items)
    parsed = write_out(parsed)
    if not any(isinstance(item, tree.Route) for item in parsed.items):
        return parsed
    message, label = "routes tensors to other rules and has no update", "expected a rule with an update"
    help = "name one of the rules that it routes to"
    work.error("E217", f"`{title(node.rule)}` {message}", node.rule.span, label, help)
    return None


def _fits_inside(work: Work, parsed: tree.Tree, node: tree.Inner) -> bool:
    """Return whether a rule can be an inner rule; report it if not."""
    reason = None
    if any(isinstance(item, tree.Flat) for item in parsed.items):
        reason = "sees all parameters as one vector (`flat`)", "cannot be used in a rule that sees single tensors"
    elif any(isinstance(item, tree.Iterate) for item in parsed.items):
        reason = "makes several steps in one (`iterate`)", "cannot be one statement of another rule"
    elif node.like is not None and any(isinstance(i, tree.History) and i.type is None for i in parsed.items):
        reason = "keeps a history of values shaped like p", "cannot be given another shape"
    if reason is None:
        return True
    help = "write its formulas in this rule, or use another inner rule"
    work.error("E217", f"`{title(node.rule)}` {reason[0]}", node.rule.span, reason[1], help)
    return False


def _is_constant(value: tree.Expr) -> bool:
    return all(map(is_literal, value.items)) if isinstance(value, tree.Tuple) else is_literal(value)


def _defaulted(work: Work, item: tree.HyperItem, given: dict[str, tree.Expr]) -> tree.HyperItem:
    """Return a hyperparameter with its default replaced by the given value, if any."""
    value = given.get(item.name.name)
    if value is None:
        return item
    if item.parts is None:  # a number that may be none remains optional
        optional = item.optional or (isinstance(item.default, tree.Nothing) and isinstance(value, tree.Number))
        return replace(item, default=value, optional=optional and not isinstance(value, tree.Nothing))
    parts = value.items if isinstance(value, tree.Tuple) else ()
    if len(parts) != len(item.parts):
        work.error(
            "E208",
            f"`{item.name.text}` takes {len(item.parts)} values",
            value.span,
            "expected as many values in brackets",
            f"for example `{item.name.text} = (0.9, 0.999)`",
        )
        return item
    return replace(item, parts=tuple(replace(p, default=v) for p, v in zip(item.parts, parts, strict=True)))


def _exposed(work: Work, item: tree.HyperItem, names: dict[str, str | tree.Expr], prefix: str) -> tree.HyperItem:
    """Return an inner rule's hyperparameter for the outer rule; it keeps its name unless that is taken."""

    def named(name: tree.Name) -> tree.Name:
        free = name.name not in work.taken or name.name in work.wanted
        new = name.name if free else work.fresh(f"{prefix}_{name.name}", name.name)
        work.taken.add(new)
        work.wanted.discard(new)
        names[name.name] = new
        return replace(name, name=new, text=new)

    parts = None if item.parts is None else tuple(replace(p, name=named(p.name)) for p in item.parts)
    default = None if item.default is None else renamed(item.default, names)
    return replace(item, name=named(item.name), default=default, parts=parts)


def _bind_parts(
    work: Work,
    item: tree.HyperItem,
    value: tree.Expr,
    names: dict[str, str | tree.Expr],
    tuples: Mapping[str, tree.HyperItem],
) -> None:
    """Bind the parts of a tuple to the given values, or to the parts of another tuple."""
    if isinstance(value, tree.Name) and value.name in tuples and item.parts is not None:
        parts = tuples[value.name].parts or ()
        if len(parts) == len(item.parts):
            names[item.name.name] = value.name
            names |= {own.name.name: part.name.name for own, part in zip(item.parts, parts, strict=True)}
            return
    if item.parts is None or not isinstance(value, tree.Tuple) or len(value.items) != len(item.parts):
        count = 1 if item.parts is None else len(item.parts)
        work.error(
            "E208",
            f"`{item.name.text}` takes {count} values" if count > 1 else f"`{item.name.text}` takes one value",
            value.span,
            "expected as many values in brackets, or the name of such a tuple" if count > 1 else "not one value",
            f"for example `{item.name.text} = (0.9, 0.999)`" if count > 1 else "remove the brackets",
        )
        return
    for part, given in zip(item.parts, value.items, strict=True):
        names[part.name.name] = given


def _stated(
    decl: tree.StateDecl,
    names: dict[str, str | tree.Expr],
    prefix: str,
    like: tree.Expr | None,
    clock: Clock,
) -> tree.StateDecl:
    """Return the states of an inner rule as states of the outer rule."""
    items = []
    for item in decl.items:
        made = replace(renamed(item, names), key=f"{prefix}.{item.key or item.name.name}")
        if like is not None and decl.scope is StateScope.TENSOR and item.type is None:
            if item.initial is None:
                made = replace(made, initial=_zeros_like(like))
            else:
                made = replace(made, initial=renamed(made.initial, {"p": like, "g": like}))
        items.append(made)
    when = None if decl.when is None else renamed(decl.when, names)
    if decl.scope is StateScope.TENSOR:  # states shared by tensors do not depend on where one tensor goes
        when = clock.if_reached(decl.span, *(() if when is None else (when,)))
    return replace(decl, items=tuple(items), when=when)


def _starting(items: Sequence[tree.Decl | tree.Stmt]) -> dict[str, str | tree.Expr]:
    """Return the initial values of a rule's states, which determine their shapes."""
    states = (item for decl in items if isinstance(decl, tree.StateDecl) for item in decl.items)
    return {item.name.name: item.initial or "p" for item in states if item.type is None}


def _zeros_like(like: tree.Expr) -> tree.Expr:
    """Return zeros with the shape of a value."""
    if isinstance(like, tree.Call) and isinstance(like.function, tree.Name) and like.function.name == "zeros":
        return like
    return tree.Binary(like.span, "*", tree.Number(like.span, "0", Fraction(0)), like)


def _starts(state: tree.StateDecl, clock: Clock) -> Iterator[tree.Stmt]:
    """Yield statements that initialise states in the first step of an inner rule.

    The first call need not be in the tensor's first step, and its gradient need not be the tensor's. States whose
    initial value never changes are omitted.
    """
    if state.scope is not StateScope.TENSOR:
        return
    place = state.span
    for item in state.items:
        if item.initial is None or not names_in(item.initial) or _is_nothing(item.initial):
            continue
        start = tree.Assign(place, (item.name,), "=", item.initial)
        made = tree.If(place, ((tree.Name(place, clock.first, clock.first), (start,)),), None)
        yield made if state.when is None else tree.If(place, ((state.when, (made,)),), None)


def _is_nothing(initial: tree.Expr) -> bool:
    """Return whether an initial value is a constant for any tensor: ``0*mean(g, dim=-1)``, ``zeros(rows, 1)``."""
    match initial:
        case tree.Binary(op="*", left=tree.Number(value=0)):
            return True
        case tree.Call(function=tree.Name(name="zeros" | "ones" | "eye")):
            return True
        case tree.Binary(op="*", left=left, right=tree.Call() as right) if is_literal(left):
            return _is_nothing(right)
    return False


def _named(item: tree.HyperItem) -> Iterator[str]:
    """Yield the names by which a hyperparameter can be read."""
    yield from (part.name.name for part in item.parts) if item.parts is not None else (item.name.name,)
