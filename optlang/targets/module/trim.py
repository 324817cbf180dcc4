"""Trims ``runtime.py`` to what one rule needs: resolves branches on constants, and removes unused definitions.

A statement that does not change is copied from the source, with its comments; a changed one is unparsed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlang.targets.module.trimmed_file import BLOCKS, TrimmedFile

_FILE = Path(__file__).with_name("runtime.py")
#: The class that becomes the rule's.
OPTIMIZER = "Optimizer"
#: Methods that are called from outside, whose parameters stay.
_PUBLIC = frozenset(("step", "load_state_dict", "add_param_group", "eval", "train"))
#: Comments for tools that only matter in the untrimmed runtime.
_FOR_TOOLS = re.compile(r"  # (?:type: ignore|noqa)\b.*")

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Trimmed:
    """The trimmed runtime.

    Attributes:
        pieces: Source of each function and class, by name, in order.
        members: Source of the methods of the optimizer's class.
        fields: Names of the fields that each record keeps.
        columns: The columns that remain of each table that a loop reads.
    """

    pieces: dict[str, str]
    members: list[str]
    fields: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[int, ...]]


def flags() -> set[str]:
    """Return the names of optional features: constants of the runtime, and tables that may be empty."""
    tree = ast.parse(_FILE.read_text(encoding="utf-8"))
    return {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


@dataclass(frozen=True)
class ModuleNeeds:
    """The needs of a rule.

    Attributes:
        name: Its name.
        constants: Names, and attributes such as ``form.group``, whose truth value is known.
        replaced: Replacements of names, attributes and items.
        names: New names of definitions in the runtime.
        given: Names of definitions that are generated for the rule.
        read: Names of definitions that the generated code reads.
    """

    name: str
    constants: Mapping[str, bool]
    replaced: Mapping[str, str]
    names: Mapping[str, str]
    given: Collection[str]
    read: Collection[str]


def trimmed(needs: ModuleNeeds) -> Trimmed:
    """Return the parts of the runtime that a rule needs."""
    file = TrimmedFile(_named(_FILE.read_text(encoding="utf-8"), needs.name))
    replaced = {text: ast.parse(code, mode="eval").body for text, code in needs.replaced.items()}
    fold = _Fold(needs.constants, replaced, needs.names)
    tree = fold.visit(file.tree)
    definitions = {n.name: n for n in tree.body if isinstance(n, Definition) and n.name not in needs.given}
    roots = {OPTIMIZER, *needs.read}
    constants = {*definitions, *needs.given}
    while _shortened(_reached(definitions, roots), constants):
        pass
    kept = _reached(definitions, roots)
    columns = dict(found for node in kept for function in _functions(node) for found in _without_columns(function))
    own = definitions[OPTIMIZER]
    return Trimmed(
        {n.name: file.text(n, 0) for n in kept if n is not own},
        [file.text(m, 1) for m in own.body if isinstance(m, ast.FunctionDef) and m.name != "__init__"],
        {n.name: tuple(_fields(n)) for n in kept if isinstance(n, ast.ClassDef)},
        columns,
    )


def _named(source: str, name: str) -> str:
    """Return the source with the rule's name in its messages."""
    said = _FOR_TOOLS.sub("", source).replace("{NAME}", name)
    return re.sub(r"f(\"[^\"{\n]*\")", r"\1", said)


# Constants ------------------------------------------------------------------------------------------------------


class _Fold(ast.NodeTransformer):
    """Resolves branches, replaces names by expressions, and removes annotations, which the formulas lack as well."""

    def __init__(
        self, constants: Mapping[str, bool], replaced: Mapping[str, ast.expr], names: Mapping[str, str]
    ) -> None:
        self.constants, self.replaced, self.names = constants, replaced, names
        self.fields: set[str] = set()  # of the record that is visited

    def truth(self, node: ast.expr) -> bool | None:
        """Return whether a condition holds; None if unknown."""
        match node:
            case ast.Name() | ast.Attribute():
                return self.constants.get(ast.unparse(node))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.truth(operand)
                return None if inner is None else not inner
            case ast.BoolOp(op=op, values=values):
                decisive = isinstance(op, ast.Or)
                known = [self.truth(value) for value in values]
                if decisive in known:
                    return decisive
                return None if None in known else not decisive
            case _:
                return None

    def visit_If(self, node: ast.If) -> Any:
        truth = self.truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        chosen = [x for inner in (node.body if truth else node.orelse) for x in self._listed(self.visit(inner))]
        if chosen:
            chosen[0].outer = node  # the comments above it describe the chosen branch
        return chosen

    @staticmethod
    def _listed(found: Any) -> list[Any]:
        return found if isinstance(found, list) else [] if found is None else [found]

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        truth = self.truth(node.test)
        return self.generic_visit(node) if truth is None else self.visit(node.body if truth else node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        truth = self.truth(node)
        if truth is not None:
            return ast.copy_location(ast.Constant(truth), node)
        left = [self.visit(value) for value in node.values if self.truth(value) is None]
        return left[0] if len(left) == 1 else ast.BoolOp(node.op, left)

    def visit_comprehension(self, node: ast.comprehension) -> Any:
        node.ifs = [test for test in node.ifs if self.truth(test) is not True]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self._renamed(node, "name")

    def visit_arg(self, node: ast.arg) -> Any:
        return ast.copy_location(ast.arg(self.names.get(node.arg, node.arg)), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if isinstance(node.target, ast.Name) and node.target.id in self.fields:
            node.annotation = ast.parse(ast.unparse(node.annotation).partition("[")[0], mode="eval").body
            return node
        if node.value is None:
            return []
        assigned = ast.copy_location(ast.Assign([node.target], self.visit(node.value)), node)
        assigned.outer = node  # type: ignore[attr-defined]
        return assigned

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.fields = set(_fields(node))
        found = self.generic_visit(node)
        self.fields = set()
        return found

    def visit_Name(self, node: ast.Name) -> Any:
        if isinstance(node.ctx, ast.Load) and node.id in self.replaced:
            return self.replaced[node.id]
        return self._renamed(node, "id")

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return self.replaced.get(ast.unparse(node)) or self._renamed(node, "attr")

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        return self.replaced.get(ast.unparse(node)) or self.generic_visit(node)

    def _renamed(self, node: Any, field: str) -> Any:
        """Return a node with its name in the file."""
        setattr(node, field, self.names.get(getattr(node, field), getattr(node, field)))
        return self.generic_visit(node)


# Reachability ---------------------------------------------------------------------------------------------------


def _reached(definitions: Mapping[str, Definition], roots: Iterable[str]) -> list[Definition]:
    """Return the definitions reachable from some of them, in order."""
    found, waiting = set(roots), list(roots)
    while waiting:
        more = (_names(definitions[waiting.pop()]) & set(definitions)) - found
        found |= more
        waiting += sorted(more)
    return [node for name, node in definitions.items() if name in found]


def _names(node: ast.AST) -> set[str]:
    """Return the names that are read."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _functions(node: Definition) -> Iterator[ast.FunctionDef]:
    """Yield a function, or the methods of a class."""
    yield from [node] if isinstance(node, ast.FunctionDef) else (m for m in node.body if isinstance(m, ast.FunctionDef))


def _fields(node: ast.ClassDef) -> Iterator[str]:
    yield from (n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))


def _shortened(definitions: list[Definition], constants: Collection[str]) -> bool:
    """Remove parameters, fields and variables that are unused, or that are aliases.

    Returns whether there were any.

    Args:
        definitions: The functions and classes.
        constants: Names with the same value everywhere.
    """
    calls = [call for node in definitions for call in ast.walk(node) if isinstance(call, ast.Call)]
    attributes = [n for node in definitions for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    read = {n.attr for n in attributes if isinstance(n.ctx, ast.Load)}
    found = False
    for node in definitions:
        for function in list(_functions(node)):
            found |= _without_variables(function)
            found |= _without_aliases(function)
            own = _CallsOf(function, node, calls)
            found |= _without_constants(own, constants)
            found |= _without_parameters(own)
            if isinstance(node, ast.ClassDef) and node.name != OPTIMIZER:
                found |= _without_attributes(function, read)
            if isinstance(node, ast.ClassDef) and not (function.name in _PUBLIC | read or function.name[:2] == "__"):
                node.body.remove(function)
                found = True
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "NamedTuple" for base in node.bases):
            # A record is read through a variable with its name (`form`, `self.form`), or from a list.
            named = [(ast.unparse(n.value).rpartition(".")[2], n.attr) for n in attributes]
            taken = {attribute for owner, attribute in named if owner in (node.name.lower(), "left[0]")}
            unread = {name for name in _fields(node) if name not in taken}
            _say_nothing_of(node, unread)
            found |= bool(unread)
            node.body = [n for n in node.body if not (isinstance(n, ast.AnnAssign) and ast.unparse(n.target) in unread)]
    return found


def _say_nothing_of(node: Definition, names: Collection[str]) -> None:
    """Remove some fields or arguments from the docstring of a definition."""
    node.body[0].unread = {*names, *getattr(node.body[0], "unread", ())}  # type: ignore[attr-defined]


def _without_attributes(function: ast.FunctionDef, read: Collection[str]) -> bool:
    """Remove assignments to unused attributes."""
    found = False
    for block in _blocks(function):
        for node in list(block):
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)]) if name not in read:
                    block.remove(node)
                    found = True
    return found


def _without_aliases(function: ast.FunctionDef) -> bool:
    """Replace variables that are aliases of others, except for those that appear in messages."""
    spelled = {name for n in ast.walk(function) if isinstance(n, ast.JoinedStr) for name in _names(n)}
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    once = {name for name in stored if stored.count(name) == 1}
    once |= {a.arg for a in function.args.args} - set(stored)
    for loop in (n for n in ast.walk(function) if isinstance(n, ast.For)):  # it changes in every iteration
        once -= {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
    for block in _blocks(function):
        for node in block:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=other)) if {
                    name,
                    other,
                } <= once and name not in spelled:
                    block.remove(node)
                    _put(function, name, ast.Name(other, ast.Load()))
                    return True
    return False


def _without_columns(function: ast.FunctionDef) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Remove the unused variables of a loop over a table; yield the table with its remaining columns."""
    for node in ast.walk(function):
        match node:
            case ast.For(target=ast.Tuple(elts=elements) as target, iter=ast.Name(id=table)) if table.isupper():
                read = _names(function)
                kept = [i for i, one in enumerate(elements) if not isinstance(one, ast.Name) or one.id in read]
                target.elts = [elements[i] for i in kept]
                yield table, tuple(kept)
            case _:
                continue


def _put(function: ast.FunctionDef, name: str, value: ast.expr) -> None:
    """Replace a variable by an expression, wherever it is read."""
    replaced = _Fold({}, {name: value}, {})
    function.body = [replaced.visit(node) for node in function.body]


def _without_variables(function: ast.FunctionDef) -> bool:
    """Remove assignments to unused names; calls on the right-hand side are kept."""
    read, found = _names(function), False
    for block in _blocks(function):
        for place, node in enumerate(block):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                ) if name not in read:
                    block[place] = ast.copy_location(
                        ast.Expr(value) if isinstance(value, ast.Call) else ast.Pass(), node
                    )
                    block[place].outer = node  # type: ignore[attr-defined]
                    found = True
        block[:] = [n for n in block if not isinstance(n, ast.Pass)]
    return found


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the blocks of a statement, including nested ones."""
    for inner in ast.walk(node):
        for name in BLOCKS:
            block = getattr(inner, name, None)
            if isinstance(block, list):
                yield block


class _CallsOf:
    """The calls of a function.

    Args:
        function: The function.
        owner: The class that it is a method of, or itself.
        calls: All calls in the file.
    """

    def __init__(self, function: ast.FunctionDef, owner: Definition, calls: Iterable[ast.Call]) -> None:
        self.function, self.owner = function, owner
        self.is_init, self.in_class = function.name == "__init__", owner is not function
        self.is_fixed = function.name in _PUBLIC or (
            function.name.startswith("__") and (not self.is_init or owner.name == OPTIMIZER)
        )
        found = [(call, self._first(call)) for call in calls]
        self.found = [(call, first) for call, first in found if first is not None]

    def _first(self, call: ast.Call) -> int | None:
        """Return the index of the parameter that a call's first argument is for; None if it calls something else."""
        called = self.owner.name if self.is_init else self.function.name
        match call:
            case ast.Call(func=ast.Attribute(attr=name)) if self.in_class and name == self.function.name:
                return 1
            case ast.Call(func=ast.Name(id=name)) if name == called:
                return int(self.is_init)
            case ast.Call(func=ast.Attribute(attr="partial"), args=[ast.Attribute(attr=name), *_]):
                return 0 if name == self.function.name else None  # a function has no `self`
            case _:
                return None

    def passed(self, place: int) -> list[ast.expr | None]:
        """Return each call's argument for a parameter; None where unknown."""
        arguments = self.function.args
        optional = place - len(arguments.args) + len(arguments.defaults)
        default = arguments.defaults[optional] if optional >= 0 else None
        found: list[ast.expr | None] = []
        for call, first in self.found:
            named = [k.value for k in call.keywords if k.arg == arguments.args[place].arg]
            if any(isinstance(a, ast.Starred) for a in call.args):
                found.append(None)
            else:
                found += [call.args[place - first]] if place - first < len(call.args) else named or [default]
        return found

    def take_away(self, place: int) -> None:
        """Remove a parameter, and its arguments in calls."""
        arguments, name = self.function.args, self.function.args.args[place].arg
        optional = place - len(arguments.args) + len(arguments.defaults)
        if optional >= 0:
            del arguments.defaults[optional]
        del arguments.args[place]
        for call, first in self.found:
            call.args[place - first : place - first + 1] = []
            call.keywords = [k for k in call.keywords if k.arg != name]
        if self.is_init:
            _say_nothing_of(self.owner, [name])


def _without_constants(calls: _CallsOf, constants: Collection[str]) -> bool:
    """Replace a parameter by its argument, if all calls pass the same constant."""
    function = calls.function
    if calls.is_fixed or not calls.found:
        return False
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found = False
    for place in reversed(range(len(function.args.args))):
        name = function.args.args[place].arg
        if name == "self" or name in stored:
            continue
        values = {"" if value is None else ast.unparse(value) for value in calls.passed(place)}
        if len(values) == 1 and (value := values.pop()) in constants:
            _put(function, name, ast.Name(value, ast.Load()))
            calls.take_away(place)
            found = True
    return found


def _without_parameters(calls: _CallsOf) -> bool:
    """Remove the parameters that a function does not read, and their arguments in calls."""
    if calls.is_fixed:
        return False
    function = calls.function
    read = {name for inner in function.body for name in _names(inner)}
    names = [a.arg for a in function.args.args]
    unread = [i for i, name in enumerate(names) if name not in read and name != "self"]
    for place in reversed(unread):
        calls.take_away(place)
    return bool(unread)
