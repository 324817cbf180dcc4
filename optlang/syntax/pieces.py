"""Helpers for the pieces of a grammar rule: tokens and finished nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.indentation import LAYOUT, span_of

Pieces = Sequence[Any]


def is_token(piece: Any, *types: str) -> bool:
    """Return whether a piece is a token (of one of ``types``, if any are given)."""
    kind = getattr(piece, "type", None)
    return isinstance(piece, str) and isinstance(kind, str) and (not types or kind in types)


def place_of(piece: Any) -> Span:
    """Return the span of a token or node."""
    return span_of(piece) if is_token(piece) else piece.span


def span(pieces: Iterable[Any]) -> Span:
    """Return the span from the first to the last of the pieces."""
    places = [place_of(x) for x in flatten(pieces) if not is_token(x, *LAYOUT)]
    return Span(min(x.start for x in places), max(x.end for x in places)) if places else Span(0, 0)


def flatten(pieces: Iterable[Any]) -> Iterator[Any]:
    """Yield the pieces, including those of nested tuples."""
    for piece in pieces:
        if isinstance(piece, tuple):
            yield from flatten(piece)
        elif piece is not None:
            yield piece


def nodes(pieces: Iterable[Any], *kinds: type) -> tuple[Any, ...]:
    """Return the pieces that are nodes (of the given kinds), without signs and keywords."""
    return tuple(x for x in pieces if isinstance(x, kinds or tree.Node) and not is_token(x))


def after(pieces: Pieces, *types: str) -> Any:
    """Return the piece after the first token of one of ``types``, or None without such a token."""
    for piece, following in pairwise(pieces):
        if is_token(piece, *types):
            return following
    return None


def later(pieces: Pieces, what: str, defines: Iterable[str] = ()) -> tree.Unsupported:
    """Return a node for a construct of a later version."""
    return tree.Unsupported(span(pieces), what, tuple(defines))


def names_of(pieces: Pieces) -> tuple[str, ...]:
    """Return the canonical names among the pieces."""
    return tuple(name.name for name in nodes(pieces, tree.Name))
