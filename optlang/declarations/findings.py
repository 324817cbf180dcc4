"""Collecting diagnostics while a rule is checked: each mistake once."""

from __future__ import annotations

from optlang.core.texts import text_of
from optlang.diagnostics import Diagnostic
from optlang.source import Span
from optlang.syntax.tree import Expr, Tree


class Findings:
    """The diagnostics found so far in a rule; the same code at the same place is kept once."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.source = tree, tree.source
        self._found: dict[tuple[str, Span | None], Diagnostic] = {}
        self._told: set[tuple[object, ...]] = set()

    def add(
        self,
        code: str,
        message: str,
        span: Span | None,
        *,
        label: str | None = None,
        help: str | None = None,
        related: tuple[tuple[str, Span], ...] = (),
    ) -> None:
        """Record one finding."""
        if (code, span) not in self._found:
            self._found[code, span] = Diagnostic(code, message, self.source, span, label, help, related)

    def once(self, *key: object) -> bool:
        """Return True the first time it is asked about ``key``: for mistakes that show in many places."""
        if key in self._told:
            return False
        self._told.add(key)
        return True

    def error_inside(self, span: Span) -> bool:
        """Whether an error has been found in these characters."""
        return any(d.is_error and d.span is not None and span.holds(d.span) for d in self._found.values())

    def text(self, expr: Expr) -> str:
        """Return an expression as written."""
        return text_of(self.tree, expr)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Everything found, in the order of the text."""
        return sorted(self._found.values(), key=lambda d: d.order)

    @property
    def has_errors(self) -> bool:
        """Whether the rule cannot be compiled."""
        return any(d.is_error for d in self._found.values())
