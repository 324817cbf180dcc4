"""temp"""

from __future__ import annotations

from optlang.diagnostics import Diagnostic
from optlang.source import Source, Span


class Mistake(Exception):
    """A mistake found while the text is read; becomes a diagnostic once the source is at hand."""

    def __init__(
        self,
        code: str,
        message: str,
        span: Span,
        label: str | None = None,
        help: str | None = None,
        related: tuple[tuple[str, Span], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.span = code, message, span
        self.label, self.help, self.related = label, help, related

    def diagnostic(self, source: Source) -> Diagnostic:
        """Return it as a diagnostic about ``source``."""
        return Diagnostic(self.code, self.message, source, self.span, self.label, self.help, self.related)
