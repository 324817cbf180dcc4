"""Expands the use of a transform into states and statements with unique names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from optlang.core.evaluate import evaluate
from optlang.core.substitute import always_returns, decided, exists, is_literal, located, renamed, returning
from optlang.declarations.findings import Findings
from optlang.declarations.hypers import domain_of
from optlang.declarations.scope import FIXED, FREE_FUNCTIONS
from optlang.expand.context import Work, matched
from optlang.expand.parameters import allows
from optlang.functions.table import BUILTINS
from optlang.source import Origin, Source
from optlang.syntax import tree
from optlang.syntax.library import transform_files
from optlang.syntax.parse import parse
from optlang.syntax.suggest import nearest
from optlang.syntax.walk import assigned, statements

#: The declarations allowed in the body of a transform.
DECLARATIONS = (tree.StateDecl, tree.History, tree.StoreDecl)


class Transforms:
    """The transforms that a rule may use: its own and the library's.

    Args:
        work: The shared state of the expansion.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._known: dict[str, tree.TransformDecl] = {}
        self._defs: dict[str, dict[str, str]] = {}  # new names of the functions in a transform's file

    @property
    def own(self) -> list[str]:
        """The names of the author's transforms."""
        return [name for name, known in self._known.items() if known.span.origin == self.work.author.span.origin]

    def declare(self, transform: tree.TransformDecl) -> None:
        """Add a transform of the author's."""
        work, name = self.work, transform.name
        if name.name in self._known:
            work.error(
                "E205", f"`{name.text}` is declared twice", name.span, "second declaration", "remove one of the two"
            )
            return
        if _has_meaning(name.name):
            self._taken(name)
        self._known[name.name] = transform
        own = [p.name.name for p in transform.parameters]
        for parameter in transform.parameters:
            if own.count(parameter.name.name) > 1 or _has_meaning(parameter.name.name):
                self._taken(parameter.name)
                return
        findings = Findings(work.author)
        for parameter in transform.parameters:
            domain_of(parameter.domain, findings)
        work.found += findings.diagnostics
        body = [item for item in transform.body if not isinstance(item, DECLARATIONS)]
        held = [i.name for d in transform.body if isinstance(d, tree.StateDecl) for i in d.items]
        first = {n.name: n for n in reversed((*held, *assigned(body)))}  # type: ignore[arg-type]
        for own_name in first.values():
            if own_name.name not in ("p", "g") and _has_meaning(own_name.name):
                self._taken(own_name)
        for target in assigned(body):  # type: ignore[arg-type]
            if target.name in ("p", "g"):
                work.error(
                    "E204",
                    f"a transform cannot assign `{target.text}`",
                    target.span,
                    "cannot be changed here",
                    "a transform returns a value: assign it to `p` in the rule",
                )
        for statement in statements(body):  # type: ignore[arg-type]
            if isinstance(statement, tree.Return) and len(statement.values) != 1:
                work.error(
                    "E214", "a transform returns one value", statement.span, "several values", "remove the others"
                )
            if isinstance(statement, tree.Every | tree.Repeat | tree.For):
                for inside in statements(statement.body):
                    if isinstance(inside, tree.Return):
                        work.error(
                            "E213",
                            "`return` cannot leave a block that runs several times or not in every step",
                            inside.span,
                            "not allowed here",
                            "assign the value, and return it after the block",
                        )
        if not always_returns(body):  # type: ignore[arg-type]
            work.error(
                "E213",
                f"`{name.text}` does not always return a value",
                name.span,
                "expected `return` on every path",
                "add a `return` after the blocks that do not always return",
            )
        if not transform.parameters:
            work.error(
                "E208",
                f"`{name.text}` has no parameters",
                name.span,
                "expected a first parameter: the value",
                f"write `transform {name.text}(u):`",
            )

    def _taken(self, name: tree.Name) -> None:
        """Report a name that is already taken."""
        self.work.error("E206", f"`{name.text}` is already taken", name.span, "name in use", "choose another name")

    def adopt(self, items: Iterable[tree.Decl | tree.Stmt]) -> None:
        """Add the transforms of a used file, except those that the rule defines itself."""
        for item in items:
            if isinstance(item, tree.TransformDecl) and item.name.name not in self._known:
                self._known[item.name.name] = item
                self._defs[item.name.name] = {}  # functions of the file keep their names

    def find(self, name: tree.Name) -> tree.TransformDecl | None:
        """Return the transform with the given name; None if there is none."""
        if name.name not in self._known:
            file = transform_files().get(name.name)
            if file is None:
                return None
            source = Source(file.read_text(encoding="utf-8"), file.name)
            parsed = located(parse(source), Origin(source, name.name, name.span))
            functions = [item for item in parsed.items if isinstance(item, tree.Def)]
            names = {f.name.name: self.work.fresh(f.name.name, f.name.name) for f in functions}
            self.work.declared += [renamed(function, names) for function in functions]
            for item in parsed.items:
                if isinstance(item, tree.TransformDecl):
                    self._known[item.name.name] = item
                    self._defs[item.name.name] = names
        return self._known.get(name.name)

    def use(
        self, transform: tree.TransformDecl, call: tree.Call, key: str
    ) -> tuple[list[tree.Stmt], tuple[tree.Stmt, ...], str] | None:
        """Expand a use of a transform; report why and return None if that fails.

        Args:
            transform: The transform.
            call: The call; its arguments are already expanded.
            key: The prefix of its state keys.

        Returns:
            Assignments of arguments that need names, the body, and the name of the result.
        """
        work, name = self.work, transform.name.text
        assert transform.span.source is not None
        if call.span.origin is not None:  # otherwise it is only being checked
            transform = located(transform, Origin(transform.span.source, name, call.span))
        given = matched(
            work, call, name, call.arguments, {p.name.name: p.default is not None for p in transform.parameters}
        )
        if given is None:
            return None
        body = tuple(item for item in transform.body if not isinstance(item, DECLARATIONS))
        histories = [item for item in transform.body if isinstance(item, tree.History)]
        states = [item for item in transform.body if isinstance(item, tree.StateDecl)]
        written = {n.name for n in assigned(body)}  # type: ignore[arg-type]
        prefix = key.replace(".", "_")
        result = work.fresh(prefix, name)
        names: dict[str, str | tree.Expr] = {}
        bound: list[tree.Stmt] = []
        for parameter in transform.parameters:
            own = parameter.name.name
            value = given.get(own, parameter.default)
            assert value is not None
            if is_literal(value) and not allows(parameter, evaluate(value, {})):
                self._outside(transform, parameter, value)
            if own not in written and (is_literal(value) or isinstance(value, (tree.Name, tree.Member))):
                names[own] = value
                continue
            local = work.fresh(f"{prefix}_{own}", own)
            names[own] = local
            bound.append(tree.Assign(value.span, (tree.Name(value.span, local, local),), "=", value))
        locals_ = {n.name for n in assigned(body)} - set(names)  # type: ignore[arg-type]
        held = {item.name.name for state in states for item in state.items}
        held |= {kept.name for history in histories for kept in history.names}
        for own in sorted(locals_ | held):
            names[own] = work.fresh(f"{prefix}_{own}", own)
        names |= {own: new for own, new in self._defs.get(transform.name.name, {}).items() if own not in names}
        for state in states:
            self._state(state, names, key)
        work.declared += [renamed(history, names) for history in histories]
        for store in (item for item in transform.body if isinstance(item, tree.StoreDecl)):
            self._store(store, names, transform)
        made = decided(renamed(returning(body, result), {**names, result: result}))  # type: ignore[arg-type]
        return bound, made, result

    def _outside(self, transform: tree.TransformDecl, parameter: tree.Parameter, value: tree.Expr) -> None:
        """Report an argument outside the range of its parameter."""
        assert parameter.domain is not None
        name, near = parameter.name.text, None
        if isinstance(parameter.domain, tree.Choices) and isinstance(value, tree.Text):
            word = nearest(value.value, [x.value for x in parameter.domain.items if isinstance(x, tree.Text)])
            near = word and f'did you mean "{word}"?'
        self.work.error(
            "E404",
            f"`{name}` of `{transform.name.text}` must be {parameter.domain.text}",
            value.span,
            f"not {parameter.domain.text}",
            near or "give a value in the range",
        )

    def _state(self, state: tree.StateDecl, names: Mapping[str, str | tree.Expr], key: str) -> None:
        """Declare the states of a use, unless a literal argument excludes them."""
        when = None if state.when is None else decided(renamed(state.when, names))
        if not exists(when):
            return
        if when is not None and exists(tree.Unary(when.span, "not", when)) is False:
            when = None  # the condition always holds
        items = tuple(
            replace(
                renamed(item, names),
                name=replace(item.name, name=str(names[item.name.name]), text=str(names[item.name.name])),
                key=f"{key}.{item.key or item.name.name}",
            )
            for item in state.items
        )
        self.work.declared.append(replace(state, items=items, when=when))

    def _store(self, store: tree.StoreDecl, names: Mapping[str, str | tree.Expr], of: tree.TransformDecl) -> None:
        """Declare how the states of a use are stored, if they exist; names that are not states are reported later."""
        known = {item.name.name for d in self.work.declared if isinstance(d, tree.StateDecl) for item in d.items}
        own = {item.name.name for d in of.body if isinstance(d, tree.StateDecl) for item in d.items}
        left = tuple(renamed(name, names) for name in store.names if name.name not in own or names[name.name] in known)
        if left:
            self.work.declared.append(replace(store, names=left))


def _has_meaning(name: str) -> bool:
    """Return whether a name is predefined."""
    return name in FIXED or (name in BUILTINS and name not in FREE_FUNCTIONS)


def free_parameters(transforms: Sequence[tree.TransformDecl]) -> list[tree.HyperItem]:
    """Return hyperparameters for all parameters of the transforms without defaults, except the first of each."""
    found: dict[str, tree.HyperItem] = {}
    for transform in transforms:
        for parameter in transform.parameters[1:]:
            item = tree.HyperItem(parameter.span, parameter.name, parameter.default, parameter.domain)
            found.setdefault(parameter.name.name, item)
    return list(found.values())
