"""Steps that update only the rows a sparse gradient touches, with ``sparse="lazy"`` in a parameter group.

These rows of the parameter and of its states are gathered, updated by the kernel that updates whole tensors, and
scattered back. The result is right only if an element does not depend on its neighbors, so this is for rules that
update every element from itself alone. Other rows stay unchanged: they do not decay, and no momentum moves them. Dense
gradients in the same group are handled as usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from optlang.artifact import Variant
from optlang.inputs import ValueName
from optlang.runtime import rng
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.parameter_names import named
from optlang.runtime.plan import GroupPlan, State, by_rows
from optlang.runtime.records import ParameterState
from optlang.runtime.routing import RoutedRule
from optlang.runtime.tensors import facts_of, flat, resolved
from optlang.storage import Format
from optlang.storage.blocks import Blocks
from optlang.storage.coded import Coded, ElementIndices

if TYPE_CHECKING:
    from optlang.storage.coded import Key

#: The value by which a parameter group enables sparse gradients.
LAZY = "lazy"

INSTEAD = (
    "give it dense gradients (for an embedding: sparse=False) and, if other parameters of the optimizer have sparse "
    "ones, a separate parameter group"
)


class LazyPlan(GroupPlan):
    """The step of a parameter group in which gradients may be sparse."""

    switch = "sparse"
    option = 'sparse="lazy"'

    def _bind(self, state: State) -> list[ParameterBatch]:
        """Bind the idle parameters that have gradients; each one with a sparse gradient is a separate batch."""
        waiting = [p for p in self.idle if is_sparse(p.grad)]
        batches: list[ParameterBatch] = []
        for p in waiting:
            assert p.grad is not None
            batch = RowBatch([self._bound(p, p.grad, state)])
            batch.seed = self.group.get(rng.SEED, 0)
            batch.take(p.grad)
            batches.append(batch)
        ids = {id(p) for p in waiting}
        self.idle = [p for p in self.idle if id(p) not in ids]
        self.batches.extend(batches)
        return batches + super()._bind(state)

    def _gather_batch(self, batch: ParameterBatch, state: State | None) -> list[ParameterState] | None:
        if not isinstance(batch, RowBatch):
            changed = any(is_sparse(record.parameter.grad) for record in batch.records)
            return None if changed else super()._gather_batch(batch, state)
        (record,) = batch.records
        p, g = record.parameter, record.parameter.grad
        if g is None:
            return []
        if (
            not is_sparse(g)
            or record.volatile
            or not record.is_in_place()
            or g.dtype is not record.gradient_dtype
            or g.shape != record.shape
            or not record.is_current(record.state if state is None else state.get(p))
        ):
            return None
        self._check_gradient(p, g)
        batch.take(g)
        return batch.records

    @classmethod
    def unfit(cls, variant: Variant, p: torch.Tensor, formats: Mapping[str, Format]) -> str:
        """Return why a parameter's values cannot be stored in some formats; empty if they can."""
        if p.dim() == 1 and any(isinstance(format, Blocks) for format in formats.values()):
            return "is a vector, whose elements share scales and cannot be updated separately"
        return ""

    def _check_layout(self, p: torch.Tensor, g: torch.Tensor) -> None:
        if not g.is_sparse:
            if self.kernels.compiled.rule.sparse:
                self._fail(
                    p,
                    f"has a dense gradient, but {self.name} needs sparse gradients, such as those of an embedding "
                    f"with sparse=True; give it to another optimizer, or pass sparse=None",
                )
            return
        if g.sparse_dim() != 1:
            self._fail(
                p,
                f"has a gradient that is sparse in {g.sparse_dim()} dimensions, but {self.option} needs gradients of "
                f"whole rows (sparse in 1), such as those of an embedding",
            )
        variant = self.variant_for(facts_of(p)).variant
        if not by_rows(variant):
            self._fail(p, f"has a sparse gradient, but {self.name} {reason(variant)}")

    def _example(self, p: torch.Tensor) -> torch.Tensor:
        """Return a gradient for which the row-update kernel is compiled."""
        g = p.grad
        if g is None or not g.is_sparse:
            return super()._example(p)
        self._check_gradient(p, g)
        return p.detach().new_zeros((), dtype=g.dtype).expand(p.shape)


def reason(variant: Variant) -> str:
    """Return why a variant cannot update rows, and how to avoid the error."""
    stages = () if variant.schedule.direct else variant.schedule.stages
    why = "does not update each element independently"
    if stages and all(one.kernel.elementwise and not one.points and not one.needs for one in stages):
        random = any(one.draws for one in stages)
        why = "draws random numbers for whole tensors" if random else "does not make the same step every time (`every`)"
    return f"{why}; {INSTEAD}"


class RowTable:
    """A tensor whose rows a step gathers and scatters.

    Args:
        record: The parameter and its state.
        name: The name of the tensor.
    """

    def __init__(self, record: ParameterState, name: ValueName) -> None:
        self.record, self.name = record, name
        self.written = name in record.prepared.variant.written
        self.tensor = (record.parameter if name == "p" else record.tensors[name]).detach()
        self.coded = record.coded.get(name)

    def taken(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather some rows, dequantized."""
        part = _selected(self.tensor, rows)
        if self.coded is None:
            return part
        format, second = self.coded
        return format.decode(part, _companions(format, second, rows))

    def put(self, rows: torch.Tensor, part: torch.Tensor, draw: Key) -> None:
        """Scatter updated rows."""
        if self.coded is None:
            self.tensor.index_copy_(0, rows, part)
            return
        format, second = self.coded
        codes, companions = _selected(self.tensor, rows), _companions(format, second, rows)
        key = self.record.drawn_by(self.name) ^ draw
        format.keep(part.view(codes.shape), codes, companions, key, ElementIndices(rows=rows))
        as_bytes(self.tensor).index_copy_(0, rows, as_bytes(codes))
        if not format.alone:
            second.index_copy_(0, rows, companions)


def as_bytes(t: torch.Tensor) -> torch.Tensor:
    """View 8-bit floats as bytes, because few operations support such floats."""
    return t.view(torch.uint8) if t.dtype is torch.float8_e4m3fn else t


def _selected(t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return as_bytes(t).index_select(0, rows).view(t.dtype)


def _companions(format: Coded, second: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the scales (or other companions) of some rows."""
    return second if format.alone else _selected(second, rows)


class RowBatch(ParameterBatch):
    """One parameter with a sparse gradient: each step gathers the rows that it touches, and scatters them back."""

    __slots__ = ("_moved", "_rows", "_tables")

    def __init__(self, records: list[ParameterState]) -> None:
        super().__init__(records)
        (record,) = records
        self._tables = [RowTable(record, name) for name in ("p", *record.prepared.variant.tensors[2:])]
        self._rows: torch.Tensor | None = None
        self._moved = 0
        if self.call is not None:
            self.call.by_rows = True

    def take(self, g: torch.Tensor) -> None:
        """Read the gradient of a step: its rows, coalesced, and their indices."""
        g = g.detach().coalesce()
        self._rows = g._indices()[0]
        self.gradients = [flat(resolved(g._values()).contiguous())]

    def run(self, coefficients: torch.Tensor) -> None:
        """Run the kernel on the rows."""
        (g,), rows, call = self.gradients, self._rows, self.call
        assert rows is not None and call is not None and call.loaded is not None
        self.gradients, self._rows = [], None
        self._moved = g.numel() * g.element_size()
        if not g.numel():
            return
        parts, draw = [table.taken(rows) for table in self._tables], self.draw
        p, *states = map(flat, parts)
        call.loaded.run([p, g, *states, coefficients])
        for table, part in zip(self._tables, parts, strict=True):
            self._moved += part.numel() * table.tensor.element_size() * (2 if table.written else 1)
        try:
            self._put_back(rows, parts, draw)
        except KeyboardInterrupt:  # so that no table is a step ahead of the others
            self._put_back(rows, parts, draw)
            raise

    def _put_back(self, rows: torch.Tensor, parts: Sequence[torch.Tensor], draw: Key) -> None:
        """Scatter updated rows."""
        for table, part in zip(self._tables, parts, strict=True):
            if table.written:
                assert self.call is not None
                self.call.moved = 1
                table.put(rows, part, draw)

    def bytes_moved(self) -> int:
        """Return how many bytes the last step moved: those of the rows."""
        return self._moved


def is_sparse(g: torch.Tensor | None) -> bool:
    """Return whether there is a sparse gradient: torch supports no other such layout for dense tensors."""
    return g is not None and g.is_sparse


def check(name: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError if a parameter group requests an unknown kind of sparse gradients."""
    how = group.get(LazyPlan.switch)
    if how not in (None, False, LAZY):
        raise ValueError(f'{name}: sparse must be "lazy" or None, got {how!r}')
    for other in ("capturable", "differentiable"):
        if how and group.get(other):
            raise ValueError(f"{name}: {LazyPlan.option} and {other}=True cannot be used together")


def check_rule(part: RoutedRule, group: Mapping[str, Any], members: Sequence[torch.Tensor]) -> None:
    """Raise ValueError if a rule cannot update rows of the parameters that it gets from a group."""
    for p in members:
        if p.layout is not torch.strided:
            raise ValueError(f"{part.compiled.name} requires dense parameters: {named(group, p)} is {p.layout}")
    values = part.hyper.read(group)
    answers = part.hyper.answers(values)
    for p in {facts_of(p): p for p in members}.values():
        variant = part.kernels.prepared(values, answers, facts_of(p)).variant
        if not by_rows(variant):
            rule = part.compiled.name
            raise ValueError(f"{rule}: {named(group, p)} cannot have {LazyPlan.option}: {rule} {reason(variant)}")
