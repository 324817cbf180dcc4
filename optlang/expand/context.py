"""Shared state of an expansion: names in use, origins, errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from optlang.core.substitute import located, names_in
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.functions.table import BUILTINS, FACT_NAMES, TIME_NAMES
from optlang.source import Origin, Source, Span, read_text
from optlang.syntax import tree
from optlang.syntax.library import rule_files, rule_of
from optlang.syntax.parse import parse
from optlang.syntax.suggest import did_you_mean
from optlang.syntax.walk import nodes_in

#: Limits on the nesting of rules, the number of rules, and the number of statements they expand to.
MAX_PIECES = 12
MAX_RULES = 50
MAX_STATEMENTS = 4_000


class Work:
    """The state of expanding one rule.

    Attributes:
        author: The syntax tree of the author's text.
        taken: Names in use.
        wanted: Names that the author reads but does not define, which another rule may define.
        shown: The original names of renamed names.
        declared: Generated declarations.
        found: The errors.
    """

    def __init__(self, author: tree.Tree) -> None:
        self.author = author
        self.taken = {*BUILTINS, *FACT_NAMES, *TIME_NAMES, "p", "g", "group", *names_in(author.items)}
        self.wanted = names_in(author.items) - _defined(author.items) - {*FACT_NAMES, *TIME_NAMES, "p", "g", "group"}
        self.shown: dict[str, str] = {}
        self.keys: set[str] = set()
        self._numbers: dict[tuple[int, str], int] = {}
        self.declared: list[tree.Decl | tree.Stmt] = []
        self.found: list[Diagnostic] = []

    def error(self, code: str, message: str, span: Span, label: str | None = None, help: str | None = None) -> None:
        """Record an error."""
        self.found.append(Diagnostic(code, message, self.author.source, span, label, help))

    def fresh(self, wish: str, shown: str) -> str:
        """Return an unused name."""
        name = self._free(wish, self.taken)
        self.shown[name] = shown
        return name

    def key(self, wish: str) -> str:
        """Return an unused key: ``momentum``, then ``momentum_2``."""
        return self._free(wish, self.keys)

    def _free(self, wish: str, taken: set[str]) -> str:
        """Return ``wish``, with the next number appended if it is taken, and mark it as taken."""
        found, number = wish, self._numbers.get((id(taken), wish), 2)
        while found in taken:
            found, number = f"{wish}_{number}", number + 1
        self._numbers[id(taken), wish] = number
        taken.add(found)
        return found

    def take(self, items: Iterable[tree.Decl | tree.Stmt]) -> None:
        """Record the names and keys of an included rule."""
        for item in items:
            self.taken |= names_in(item)
            self.wanted -= _defined((item,))
            if isinstance(item, tree.StateDecl):
                self.keys |= {state.key.rpartition(".")[0] for state in item.items if state.key}

    # Other rules --------------------------------------------------------------------------------------------

    def rule(self, node: tree.Use | tree.Inner) -> tree.Tree | None:
        """Return the tree of a rule used by another; report why and return None if there is none."""
        parsed = self._rule(node.rule)
        return parsed and located(parsed, Origin(parsed.source, title(node.rule), node.span))

    def _rule(self, name: tree.Name | tree.Text) -> tree.Tree | None:
        if isinstance(name, tree.Text):
            return self.file(Path(self.author.source.name).parent / name.value, name.span)
        known = rule_files()
        if name.name not in known:
            self.error(
                "E215",
                f"the library has no rule `{name.text}`",
                name.span,
                "not a rule of the library",
                did_you_mean(name.name, known)
                or "`optlang list` prints the library; write the name of a file in quotes",
            )
            return None
        return parse(rule_of(name, self.author.source))

    def file(self, path: Path, span: Span) -> tree.Tree | None:
        """Return the tree of a file; report why and return None if it cannot be read."""
        try:
            return parse(Source(read_text(path), str(path)))
        except (OSError, ValueError) as error:
            not_text = isinstance(error, UnicodeDecodeError)
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8" if not_text else error
            self.error("E215", f"cannot read {path}: {reason}", span, help="paths are relative to this file")
        except OptlangError as error:
            first = error.diagnostics[0]
            self.error(
                "E215",
                f"{path.name} has errors",
                span,
                f"line {first.position[0]}: {first.message}",
                f"`optlang check {path.name}` shows them",
            )
        return None


def title(rule: tree.Name | tree.Text) -> str:
    """Return the name of another rule or file as written."""
    return rule.text if isinstance(rule, tree.Name) else rule.value


def _defined(items: Iterable[tree.Node]) -> set[str]:
    """Return the names that declarations and statements define, including parameters."""
    found: set[str] = set()
    for node in nodes_in(tuple(items)):
        match node:
            case tree.Assign(targets=targets) | tree.History(names=targets):
                found |= {target.name for target in targets}
            case (
                tree.HyperItem() | tree.StateItem() | tree.Parameter() | tree.Def() | tree.TransformDecl() | tree.For()
            ):
                found.add(node.name.name)
            case tree.Inner():
                found.add(node.name.name)
    return found


def matched(
    work: Work, call: tree.Node, what: str, given: Sequence[tree.Argument], parameters: Mapping[str, bool]
) -> dict[str, tree.Expr] | None:
    """Match the arguments of a call to parameters; report why and return None if they do not fit.

    Args:
        work: Collects errors.
        call: The call.
        what: The name of the callee in messages.
        given: The arguments.
        parameters: The parameter names, and whether each is optional.
    """
    names, found = list(parameters), dict[str, tree.Expr]()
    head = f"the call is `{what}({', '.join(f'{n} = ...' if optional else n for n, optional in parameters.items())})`"
    for i, argument in enumerate(given):
        name = argument.name
        if name is None:
            if i >= len(names):
                work.error("E208", f"`{what}` got too many arguments", argument.span, "one too many", head)
                return None
            name = names[i]
        if name not in parameters:
            near = did_you_mean(name, names)
            work.error("E208", f"`{what}` has no parameter `{name}`", argument.span, "unknown", near or head)
            return None
        if name in found:
            work.error("E208", f"`{what}` got `{name}` twice", argument.span, "given before", head)
            return None
        found[name] = argument.value
    missing = [n for n, optional in parameters.items() if not optional and n not in found]
    if missing:
        work.error("E208", f"`{what}` needs `{missing[0]}`", call.span, "an argument is missing", head)
        return None
    return found
