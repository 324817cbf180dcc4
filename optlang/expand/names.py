"""Restores the author's names in diagnostics about a composed rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from optlang.diagnostics import Diagnostic

WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Names:
    """The names changed by expansion.

    Attributes:
        before: The original names.
        steps: The inner rules, by the names of their step counts.
    """

    before: Mapping[str, str]
    steps: Mapping[str, str]

    def restored(self, findings: Iterable[Diagnostic]) -> list[Diagnostic]:
        """Return findings in source order with the original names, without repeats from pieces used several times."""
        found: dict[object, Diagnostic] = {}
        for one in sorted(map(self._restored, findings), key=lambda d: d.order):
            found.setdefault((one.code, one.message, one.source.name, one.position), one)
        return [*found.values()]

    def _restored(self, found: Diagnostic) -> Diagnostic:
        inner = next((self.steps[word] for word in WORD.findall(found.message) if word in self.steps), None)
        if found.code == "E301" and inner is not None:  # the author does not know of this count
            return replace(
                found,
                message=f"`{inner}` makes steps for whole tensors, but is called where a condition is shaped like p",
                help=f"pass another gradient, `{inner}(p, g if CONDITION else 0*g)`, or compute its step first and "
                f"choose then: `d = {inner}.direction(g)`",
                related=(),
            )
        return replace(
            found,
            message=self._shown(found.message),
            label=None if found.label is None else self._shown(found.label),
            help=None if found.help is None else self._shown(found.help),
            related=tuple((self._shown(text), place) for text, place in found.related if place != found.span),
        )

    def _shown(self, text: str) -> str:
        return WORD.sub(lambda word: self.before.get(word[0], word[0]), text)
