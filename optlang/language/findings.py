"""Collecting diagnostics while a rule is checked: each mistake once."""

from __future__ import annotations

from optlang.diagnostics import Diagnostic
from optlang.source import Source, Span


class Findings:
    """The diagnostics found so far; the same code at the same place is kept once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: dict[tuple[str, Span | None], Diagnostic] = {}

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

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Everything found, in the order of the text."""
        return sorted(self._found.values(), key=lambda d: (d.span or Span(0, 0), d.code))

    @property
    def has_errors(self) -> bool:
        """Whether the rule cannot be compiled."""
        return any(d.is_error for d in self._found.values())
