"""Expands a rule with transforms, pipelines, ``use`` and ``inner`` into a plain rule.

Each use of a transform becomes statements, with unique names, before the statement that contains it; an inner rule is
inlined at its calls. The result is an ordinary rule, so that checks, passes, kernels and checkpoints need not know
about composition. Every span in it records its origin: the text it was written in, and the uses that brought it into
the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from optlang.core.substitute import calls_in, located
from optlang.core.texts import numbered
from optlang.declarations import infer
from optlang.declarations.instead import NOT_YET, instead_of
from optlang.diagnostics import Diagnostic, OptlangError, raise_errors
from optlang.expand import rules
from optlang.expand.context import MAX_PIECES, MAX_RULES, MAX_STATEMENTS, Work
from optlang.expand.names import Names
from optlang.expand.settle import settled
from optlang.expand.transforms import Transforms, free_parameters
from optlang.functions.table import BUILTINS, MEMBERS
from optlang.source import Origin, Span
from optlang.syntax import tree
from optlang.syntax.errors.refused import Refused
from optlang.syntax.finish import check_depth
from optlang.syntax.library import transform_files
from optlang.syntax.limits import MAX_TOKENS
from optlang.syntax.suggest import did_you_mean, nearest
from optlang.syntax.walk import mapped, nodes_in

COMPOSED = (tree.TransformDecl, tree.Use, tree.Inner, tree.Apply, tree.Pipe)


def is_composed(parsed: tree.Tree) -> bool:
    """Return whether a rule contains anything that must be expanded."""
    for found in nodes_in(parsed.items):
        match found:
            case tree.Call(function=tree.Name(name=name)) if name in transform_files():
                return True
            case tree.Member(name="direction"):
                return True
        if isinstance(found, COMPOSED):
            return True
    return False


def compose(parsed: tree.Tree) -> tuple[tree.Tree, Names]:
    """Return the expanded rule, and the original names of its renamed names.

    Args:
        parsed: The syntax tree of the author's text.

    Raises:
        OptlangError: If the expansion fails; lists every error.
    """
    composer = _Composer(located(parsed, Origin(parsed.source)), 0)
    plain = composer.whole()
    raise_errors(_not_compiled(plain))
    composer.check_size(plain.items)
    steps = {inner.clock.step: name for name, inner in composer.inner.items()}
    return numbered(plain), Names(composer.work.shown, steps)


def _not_compiled(plain: tree.Tree) -> Iterator[Diagnostic]:
    """Yield an error for each construct of a later version, which cannot be expanded."""
    for node in nodes_in(plain.items):
        what = node.what if isinstance(node, tree.Unsupported) else None
        if isinstance(node, tree.Member) and _of_rule(node):
            what = f"`.{node.name}`"
        if what is not None:
            message = f"{what} is not supported yet"
            yield Diagnostic("E901", message, plain.source, node.span, NOT_YET, instead_of(what))


class _Composer:
    """The expansion of one rule.

    Args:
        parsed: The syntax tree of the author's text.
        depth: How many rules enclose this one.
        included: The spans of all rules included so far, across all texts.
    """

    def __init__(self, parsed: tree.Tree, depth: int, included: list[Span] | None = None) -> None:
        self.tree, self.depth = parsed, depth
        self.included = [] if included is None else included
        self.work = Work(parsed)
        self.transforms = Transforms(self.work)
        self.inner: dict[str, rules.InnerRule] = {}
        self.functions = {d.name.name for d in parsed.items if isinstance(d, tree.Def)}
        self.declares = infer.declares(parsed)
        self.using: list[str] = []  # transforms being expanded
        self.count = 0

    def whole(self) -> tree.Tree:
        """Return the expanded rule; raises an error that lists all mistakes."""
        items = self.run()
        raise_errors(self.work.found)
        return replace(self.tree, items=tuple(items), comments=())

    def run(self) -> list[tree.Decl | tree.Stmt]:
        """Return the items of the expanded rule."""
        own = list(self.tree.items)
        for item in own:
            if isinstance(item, tree.TransformDecl):
                self.transforms.declare(item)
                self.functions.discard(item.name.name)
        if self.work.found:
            return []
        items: list[tree.Decl | tree.Stmt] = []
        for item in self._with_trial(own):
            if isinstance(item, tree.Use | tree.Inner):
                self.included.append(item.span)
                if len(self.included) > MAX_RULES:
                    message = f"a rule may contain at most {MAX_RULES} others"
                    raise OptlangError([replace(self._too_much(message), span=item.span)])
            match item:
                case tree.TransformDecl():
                    pass
                case tree.Use():
                    items += rules.used(self.work, item, self.write_out, own, self.transforms.adopt)
                case tree.Inner():
                    if item.name.name in self.inner:
                        self.work.error(
                            "E205",
                            f"`{item.name.text}` is declared twice",
                            item.name.span,
                            "second",
                            "rename one of them",
                        )
                        continue
                    made = rules.declared(self.work, item, self.write_out, _tuples((*own, *items)))
                    if made is not None:
                        items += self.without_rounding(made[0], (*own, *items))
                        self.inner[item.name.name] = made[1]
                        self.functions |= made[1].clock.functions
                case _:
                    items.append(item)
        self.functions |= {item.name.name for item in items if isinstance(item, tree.Def)}  # also of used rules
        done: list[tree.Decl | tree.Stmt] = []
        for item in items:
            if isinstance(item, rules.STATEMENTS):
                done += self.block((item,), ())
            elif isinstance(item, tree.On):
                done.append(replace(item, body=self.block(item.body, ())))
            else:
                done.append(self.refuse(item))
        if self.work.found:
            return []
        clocks = [inner.clock for inner in self.inner.values()]
        return self.ordered(settled(self.work, self._needed(done), clocks))

    def without_rounding(self, items: rules.Items, others: Sequence[tree.Decl | tree.Stmt]) -> rules.Items:
        """Return the items of an inner rule without its ``store p``, if another rule already says how p is rounded."""
        said = any(isinstance(other, tree.StoreDecl) and any(n.name == "p" for n in other.names) for other in others)
        found: rules.Items = []
        for item in items:
            found += rules.stored_by(item, {"p"}) if said and isinstance(item, tree.StoreDecl) else [item]
        return found

    def _needed(self, items: list[tree.Decl | tree.Stmt]) -> list[tree.Decl | tree.Stmt]:
        """Return the items without uncalled functions of other files: a file may be a collection of functions."""
        left = {d.name.name: d for d in items if isinstance(d, tree.Def) and d.span.origin != self.tree.span.origin}
        pending = [calls_in(item) for item in (*items, *self.work.declared) if item not in left.values()]
        while pending:
            pending += [calls_in(left.pop(name)) for name in pending.pop() if name in left]
        return [item for item in items if item not in left.values()]

    def write_out(self, parsed: tree.Tree) -> tree.Tree:
        """Expand another rule."""
        if not is_composed(parsed):
            return parsed
        if self.depth >= MAX_PIECES:
            raise OptlangError([self._too_much("rules are nested too deeply")])
        return _Composer(parsed, self.depth + 1, self.included).whole()

    def _with_trial(self, own: list[tree.Decl | tree.Stmt]) -> list[tree.Decl | tree.Stmt]:
        """Return the items; for a file that contains only transforms, add one use of each, to check them."""
        transforms = [item for item in own if isinstance(item, tree.TransformDecl)]
        if self.depth or not transforms or any(not isinstance(item, (tree.TransformDecl, tree.Def)) for item in own):
            return own
        place = transforms[0].span
        rate = tree.Name(place, "lr", "lr")
        others = [item for item in free_parameters(transforms) if item.name.name != "lr"]
        hypers = (tree.HyperItem(place, rate, None, None), *others)
        tried: list[tree.Decl | tree.Stmt] = [tree.HyperDecl(place, hypers, None)]
        self.declares = True
        for transform in transforms:
            place = replace(transform.name.span, origin=None)  # without an origin: not a use by the author
            names = [tree.Name(place, x, x) for x in ("g", *(p.name.name for p in transform.parameters[1:]))]
            call = tree.Call(place, transform.name, tuple(tree.Argument(place, None, name) for name in names))
            step = tree.Binary(place, "*", rate, call)
            tried.append(tree.Assign(place, (tree.Name(place, "p", "p"),), "-=", step))
        return [*own, *tried]

    def ordered(self, done: list[tree.Decl | tree.Stmt]) -> list[tree.Decl | tree.Stmt]:
        """Return the items with generated declarations placed before the first statement, and merged event blocks."""
        declared = self.work.declared
        if not self.declares and any(not isinstance(d, tree.Def) for d in declared):
            declared = [*self._inferred(done), *declared]
        at = next((i for i, item in enumerate(done) if isinstance(item, rules.STATEMENTS)), len(done))
        items = [*done[:at], *declared, *done[at:]]
        events: dict[str, tree.On] = {}
        result: list[tree.Decl | tree.Stmt] = []
        for item in items:
            if isinstance(item, tree.On):
                before = events.get(item.event)
                events[item.event] = item if before is None else replace(item, body=(*before.body, *item.body))
            else:
                result.append(item)
        return [*result, *events.values()]

    def _inferred(self, done: Sequence[tree.Decl | tree.Stmt]) -> list[tree.Decl | tree.Stmt]:
        """Return declarations for the names of an undeclared rule, needed once its transforms declare states."""
        functions = {d.name.name: d for d in (*done, *self.work.declared) if isinstance(d, tree.Def)}
        body = [item for item in done if isinstance(item, rules.STATEMENTS)]
        decls = [d for d in (*done, *self.work.declared) if isinstance(d, (tree.StateDecl, tree.HyperDecl))]
        known = {item.name.name for decl in decls for item in decl.items}
        found = infer.infer(functions, body)
        hypers = tuple(tree.HyperItem(n.span, n, None, None) for n in found.hypers if n.name not in known)
        held = tuple(tree.StateItem(n.span, n, None, None, None) for n in found.states if n.name not in known)
        made: list[tree.Decl | tree.Stmt] = []
        made += [tree.HyperDecl(hypers[0].span, hypers, None)] if hypers else []
        made += [tree.StateDecl(held[0].span, tree.StateScope.TENSOR, held, None)] if held else []
        return made

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[tree.Stmt], path: tuple[str, ...]) -> tuple[tree.Stmt, ...]:
        """Expand statements; whatever they use is expanded before each of them.

        Args:
            body: The statements.
            path: The keys of the enclosing uses.
        """
        done: list[tree.Stmt] = []
        for statement in body:
            before: list[tree.Stmt] = []
            new = self.statement(statement, before, path)
            done += before
            done += [] if new is None else [new]
            self.count += 1
            if self.count > MAX_STATEMENTS:
                raise OptlangError([self._too_much(f"the rule grows beyond {MAX_STATEMENTS:,} statements")])
        return tuple(done)

    def statement(self, node: tree.Stmt, before: list[tree.Stmt], path: tuple[str, ...]) -> tree.Stmt | None:
        """Expand a statement; statements that must run first are appended to ``before``."""
        match node:
            case tree.Apply():
                assert isinstance(node.call.function, tree.Name)
                name = node.call.function.name
                transform = None if name in self.functions else self.transforms.find(node.call.function)
                inner = self.inner.get(name)
                if transform is not None:
                    result = self.use(transform, node.call, before, path)
                    if before and _renames(before[-1], result):
                        before.pop()  # a mere copy of a state
                elif inner is not None:  # otherwise its declaration was rejected
                    self.apply(inner, self.arguments(node.call, before, path), before, path)
                return None
            case tree.Assign() | tree.Push() | tree.Return():
                return self.parts(node, before, path)  # type: ignore[no-any-return]
            case tree.If():
                branches = []
                for i, (condition, body) in enumerate(node.branches):
                    held = None if i else before  # an `elif` may not be reached
                    branches.append((self.expression(condition, held, path), self.block(body, path)))
                other = None if node.other is None else self.block(node.other, path)
                return replace(node, branches=tuple(branches), other=other)
            case tree.Repeat() | tree.For() | tree.Every():
                return replace(self.refuse(replace(node, body=())), body=self.block(node.body, path))  # type: ignore[no-any-return]
        return node

    # Expressions --------------------------------------------------------------------------------------------

    def expression(self, node: Any, before: list[tree.Stmt] | None, path: tuple[str, ...]) -> Any:
        """Expand an expression.

        Args:
            node: The expression, or any part of one.
            before: Receives statements that must run first; None where that is not allowed.
            path: The keys of the enclosing uses.
        """
        match node:
            case tuple():
                return tuple(self.expression(item, before, path) for item in node)
            case tree.Pipe():
                return self.expression(self.unpiped(node), before, path)
            case tree.Call(function=tree.Member(value=tree.Name(name=name, text=text))):
                self.known_inner(node, name, text)
                return self.use_inner(node, before, path) if name in self.inner and not self.work.found else node
            case tree.Member(value=tree.Name(name=name)) if name in self.inner:
                return self.member(node, self.inner[name])
            case tree.Member(value=tree.Name(name=name, text=text)) if self.inner and _of_rule(node):
                self.known_inner(node, name, text)
            case tree.Call(function=tree.Name(name=name, text=text)) if name in self.inner:
                self.work.error(
                    "E217",
                    f"`{text}` has no value",
                    node.span,
                    "the step of an inner rule",
                    f"write it on a separate line, or use `{text}.direction(g)` for the step as a value",
                )
            case tree.Call(function=tree.Name(name=name) as called) if name not in self.functions:
                transform = self.transforms.find(called)
                if transform is not None:
                    return self.use(transform, node, before, path)
                self.unknown(node)
            case tree.Ternary():
                return replace(
                    node,
                    condition=self.expression(node.condition, before, path),
                    then=self.expression(node.then, None, path),
                    other=self.expression(node.other, None, path),
                )
            case tree.Binary(op="and" | "or" | "??"):
                left, right = self.expression(node.left, before, path), self.expression(node.right, None, path)
                return replace(node, left=left, right=right)
        return self.parts(node, before, path)

    def parts(self, node: Any, before: list[tree.Stmt] | None, path: tuple[str, ...]) -> Any:
        """Expand the children of a node."""
        return mapped(node, lambda held: self.expression(held, before, path)) if isinstance(node, tree.Node) else node

    def unpiped(self, node: tree.Pipe) -> tree.Call:
        """Return a pipeline stage as a call."""
        first = tree.Argument(node.value.span, None, node.value)
        if isinstance(node.stage, tree.Call):
            return replace(node.stage, span=node.span, arguments=(first, *node.stage.arguments))
        return tree.Call(node.span, node.stage, (first,))

    def arguments(self, call: tree.Call, before: list[tree.Stmt] | None, path: tuple[str, ...]) -> tree.Call:
        """Expand the arguments of a call."""
        return replace(call, arguments=self.expression(call.arguments, before, path))

    def use(
        self, transform: tree.TransformDecl, call: tree.Call, before: list[tree.Stmt] | None, path: tuple[str, ...]
    ) -> tree.Expr:
        """Expand a use of a transform and return its result."""
        name = transform.name.name
        if before is None:
            self.misplaced(call, f"`{transform.name.text}`")
            return call
        if len(self.using) >= MAX_PIECES:
            raise OptlangError([self._too_much("transforms are nested too deeply")])
        if name in self.using:
            self.work.error(
                "E212",
                f"`{transform.name.text}` uses itself",
                call.span,
                "recursive call",
                "transforms are inlined, so they cannot recurse; write the steps one after another",
            )
            return tree.Name(call.span, "g", "g")
        call = self.arguments(call, before, path)  # first, to keep the order of evaluation
        key = self.work.key(".".join((*path, name)))
        made = self.transforms.use(transform, call, key)
        if made is None:
            return tree.Name(call.span, "g", "g")
        bound, body, result = made
        self.using.append(name)
        before += bound
        before += self.block(body, (key,))
        self.using.pop()
        return tree.Name(call.span, result, result)

    def use_inner(self, call: tree.Call, before: list[tree.Stmt] | None, path: tuple[str, ...]) -> tree.Expr:
        """Expand ``direction`` of an inner rule: its step, without applying it."""
        assert isinstance(call.function, tree.Member) and isinstance(call.function.value, tree.Name)
        if before is None:
            self.misplaced(call, f"`{call.function.value.text}`")
            return call
        inner = self.inner[call.function.value.name]
        result = self.apply(inner, self.arguments(call, before, path), before, path, direction=True)
        return tree.Name(call.span, result or "g", result or "g")

    def apply(
        self,
        inner: rules.InnerRule,
        call: tree.Call,
        before: list[tree.Stmt],
        path: tuple[str, ...],
        direction: bool = False,
    ) -> str | None:
        """Expand a call of an inner rule; return the name of its result."""
        made = rules.applied(self.work, inner, call, direction)
        if made is None:
            return None
        before += self.block(made[0], path)
        return made[1]

    def member(self, node: tree.Member, inner: rules.InnerRule) -> tree.Expr:
        """Return the current value of a hyperparameter or a state of an inner rule."""
        found = inner.members.get(node.name)
        if isinstance(found, str):
            return tree.Name(node.span, found, found)
        if found is not None:
            return replace(found, span=node.span)
        text = (node.span.source or self.tree.source).excerpt(node.span)
        if node.name == "direction":
            help: str | None = f"call it: `{text}(g)`"
        else:
            known = ", ".join(f"`{name}`" for name in inner.members) or "nothing"
            help = did_you_mean(node.name, inner.members) or f"`{inner.origin.piece}` has: {known}"
        message = f"`{inner.name}` has no hyperparameter and no state `{node.name}`"
        self.work.error("E201", message, node.span, "unknown", help)
        return node

    # Errors -------------------------------------------------------------------------------------------------

    def known_inner(self, node: tree.Call | tree.Member, name: str, text: str) -> None:
        """Report the use of an inner rule that does not exist."""
        member = node.function if isinstance(node, tree.Call) else node
        assert isinstance(member, tree.Member)
        if name not in self.inner:
            near = nearest(name, self.inner)
            known = f"did you mean `{near}`?" if near else f"declare it: `inner {text} = SGD`"
            self.work.error("E201", f"there is no inner rule `{text}`", member.value.span, "unknown", known)

    def unknown(self, call: tree.Call) -> None:
        """Report a call of an unknown function if its name resembles that of one of the author's transforms."""
        assert isinstance(call.function, tree.Name)
        name = call.function
        known = [*BUILTINS, *self.functions, *transform_files(), *self.transforms.own]
        near = None if name.name in known else nearest(name.name, known)
        if near in self.transforms.own:
            self.work.error(
                "E202", f"unknown function `{name.text}`", name.span, "not a function", f"did you mean `{near}`?"
            )

    def misplaced(self, call: tree.Call, what: str) -> None:
        """Report a transform or inner rule in a place that may not be evaluated in every step."""
        self.work.error(
            "E216",
            f"{what} cannot be used here",
            call.span,
            "it would not run in every case",
            "call it in a separate statement, inside an `if` block if necessary, and use the result here",
        )

    def refuse(self, item: Any) -> Any:
        """Expand a declaration or the head of a loop, where transforms and inner rules are not allowed."""
        if isinstance(item, tree.Def) and item.name.name not in self.functions:
            return item
        return self.parts(item, None, ())

    def check_size(self, items: Sequence[tree.Decl | tree.Stmt]) -> None:
        """Raise an error if the expanded rule is too large or too deeply nested."""
        if sum(1 for _ in nodes_in(tuple(items))) > MAX_TOKENS:
            raise OptlangError([self._too_much(f"the rule grows beyond {MAX_TOKENS:,} names, numbers and operations")])
        try:
            for item in items:
                check_depth(item)
        except Refused as mistake:
            raise OptlangError([mistake.diagnostic(self.tree.source)]) from None

    def _too_much(self, message: str) -> Diagnostic:
        return Diagnostic(
            "E501", message, self.tree.source, Span(0, 0), help="use fewer transforms, rules and functions"
        )


def _renames(statement: tree.Stmt, result: tree.Expr) -> bool:
    """Return whether a statement only copies a result to another name."""
    if not (isinstance(statement, tree.Assign) and isinstance(result, tree.Name)):
        return False
    return isinstance(statement.value, tree.Name) and statement.targets[0].name == result.name


def _of_rule(node: tree.Member) -> bool:
    """Return whether the value before a dot can only be an inner rule."""
    return isinstance(node.value, tree.Name) and node.value.name != "group" and node.name not in MEMBERS


def _tuples(items: Sequence[tree.Decl | tree.Stmt]) -> dict[str, tree.HyperItem]:
    """Return the hyperparameters that are tuples, by name."""
    found = (item for decl in items if isinstance(decl, tree.HyperDecl) for item in decl.items)
    return {item.name.name: item for item in found if item.parts is not None}
