"""An error raised during parsing, before there is a source to point into."""

from __future__ import annotations

from optlang.diagnostics import Diagnostic
from optlang.source import Source, Span


class Refused(Exception):
    """A syntax error: the parts of a :class:`Diagnostic` except its source.

    Every syntax error says what to do instead: ``help`` is required.
    """

    def __init__(
        self,
        code: str,
        message: str,
        span: Span,
        label: str | None = None,
        *,
        help: str,
        related: tuple[tuple[str, Span], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.span = code, message, span
        self.label, self.help, self.related = label, help, related

    def diagnostic(self, source: Source) -> Diagnostic:
        """Return it as a diagnostic about ``source``."""
        return Diagnostic(self.code, self.message, source, self.span, self.label, self.help, self.related)
