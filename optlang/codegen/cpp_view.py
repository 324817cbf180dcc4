"""The dimensions of a C++ kernel: neighbours that are always reduced together are merged.

A rule with a norm per neuron reduces a convolution over three dimensions, which the kernel merges into one, so that
vectors run along all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.artifact import View
from optlang.ir.program import Program
from optlang.kinds import Kind, Level, reduced


def groups(program: Program, rank: int) -> list[int]:
    """Return for each of the ``rank`` dimensions of the view the kernel dimension it belongs to."""
    kinds = [*program.kinds().values(), *(store.kind for store in program.stores)]
    reductions = {_dims(kind, rank) for kind in kinds if kind.level is Level.REDUCED}
    found = [0]
    for d in range(1, rank):
        alike = all((d in dims) == (d - 1 in dims) for dims in reductions)
        found.append(found[-1] + (not alike))
    return found


def merged(program: Program, layout: View, grouped: Sequence[int]) -> tuple[Program, View]:
    """Return a program and its view with merged dimensions."""
    rank = len(grouped)

    def kind(k: Kind) -> Kind:
        return reduced({grouped[d] for d in _dims(k, rank)}) if k.level is Level.REDUCED else k

    front = grouped[layout.front] if not layout.exact else 0
    return (
        replace(
            program,
            inputs=tuple(replace(i, kind=kind(i.kind)) for i in program.inputs),
            phases=tuple(tuple(replace(v, kind=kind(v.kind)) for v in phase) for phase in program.phases),
            stores=tuple(replace(s, kind=kind(s.kind)) for s in program.stores),
        ),
        layout if layout.exact else View(front, grouped[-1] - front),
    )


def _dims(kind: Kind, rank: int) -> frozenset[int]:
    """Return the dimensions of the view that a value is reduced over, counted from 0."""
    return frozenset(d % rank for d in kind.dims)
