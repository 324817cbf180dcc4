"""Collects diagnostics while a rule is checked, without duplicates."""

from __future__ import annotations

from optlang.core.texts import text_of
from optlang.diagnostics import Diagnostic
from optlang.source import Span
from optlang.syntax.tree import Expr, Tree


class Findings:
    """The diagnostics found so far in a rule; a code is kept only once per span."""

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
        """Return True on the first call with ``key``: for mistakes that would be reported many times."""
        if key in self._told:
            return False
        self._told.add(key)
        return True

    def error_inside(self, span: Span) -> bool:
        """Return whether an error has been found inside a span."""
        return any(d.is_error and d.span is not None and span.holds(d.span) for d in self._found.values())

    def text(self, expr: Expr) -> str:
        """Return an expression as written."""
        return text_of(self.tree, expr)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Return all diagnostics, in source order."""
        return sorted(self._found.values(), key=lambda d: d.order)

    @property
    def has_errors(self) -> bool:
        """Return whether any of the findings is an error."""
        return any(d.is_error for d in self._found.values())
