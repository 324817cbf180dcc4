"""What is found in the text that a rule was written out to -> the place in the author's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from optlang.diagnostics import Diagnostic
from optlang.language import tree
from optlang.language.reading.pieces import children
from optlang.source import Source, Span

WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Origin:
    """Where something that was written out comes from.

    Attributes:
        span: The place in the author's text that brought it in.
        piece: Name of the transform or rule that it is a part of.
    """

    span: Span
    piece: str


class Places:
    """The way back from the written-out text.

    Args:
        author: The text that the author wrote.
        names: What names were called before they were made unique.
        steps: The inner rules, by the names of their counts.
    """

    def __init__(self, author: Source, names: Mapping[str, str], steps: Mapping[str, str]) -> None:
        self.author, self.names, self.steps = author, names, steps
        self._places: dict[Span, tuple[Span, str]] = {}

    def pair(self, new: tree.Node, old: tree.Node, origins: Mapping[int, Origin], inside: Origin | None = None) -> None:
        """Note where the nodes of a tree come from, given the same nodes before they were written."""
        pending = [(new, old, inside)]
        while pending:
            now, before, origin = pending.pop()
            origin = origins.get(id(before), origin)
            place = (before.span, "") if origin is None else (origin.span, origin.piece)
            self._places.setdefault(now.span, place)
            pending += [(a, b, origin) for a, b in zip(children(now), children(before), strict=False)]

    def find(self, span: Span) -> tuple[Span, str]:
        """Return the place in the author's text, and the piece that it brought in there."""
        if span in self._places:
            return self._places[span]
        around = [place for place in self._places if place.start <= span.start and span.end <= place.end]
        return self._places[min(around, key=lambda s: s.end - s.start)] if around else (Span(0, 0), "")

    def back(self, found: Diagnostic) -> Diagnostic:
        """Return a diagnostic as one about the author's text."""
        span, piece = (None, "") if found.span is None else self.find(found.span)
        inner = next((self.steps[word] for word in WORD.findall(found.message) if word in self.steps), None)
        if found.code == "E301" and inner is not None:  # the count is not the author's to reduce
            return replace(
                found,
                source=self.author,
                span=span,
                message=f"`{inner}` makes steps for whole tensors, but is called where a condition is shaped like p",
                help=f"give it another gradient, `{inner}(p, g if CONDITION else 0*g)`, or take its step before and "
                f"choose then: `d = {inner}.direction(g)`",
                related=(),
            )
        message = f"in `{piece}`: {found.message}" if piece else found.message
        related = [(text, self.find(place)) for text, place in found.related]
        return replace(
            found,
            source=self.author,
            span=span,
            message=self.shown(message),
            label=None if found.label is None else self.shown(found.label),
            help=None if found.help is None else self.shown(found.help),
            related=tuple((text, place) for text, (place, part) in related if not part and place != span),
        )

    def shown(self, text: str) -> str:
        """Return a text with the names that the author knows."""
        return WORD.sub(lambda word: self.names.get(word[0], word[0]), text)
