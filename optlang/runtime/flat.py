"""Steps of ``flat`` rules: all parameters of a parameter group as one vector.

The vector is a copy of the parameters, flattened and concatenated. It is filled before each step and copied back after
it. Its state is stored under the group's first parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from operator import attrgetter
from typing import Any

import torch

from optlang.backends.loading import vectors
from optlang.runtime.parameter_names import describe
from optlang.runtime.plan import GroupPlan, State, switched
from optlang.runtime.routing import RoutedRule
from optlang.runtime.tensors import pieces
from optlang.runtime.values import Hyperparameters

_is_contiguous, _is_neg, _data_ptr = torch.Tensor.is_contiguous, torch.Tensor.is_neg, torch.Tensor.data_ptr
_dtype, _shape, _device = attrgetter("dtype"), attrgetter("shape"), attrgetter("device")


class FlatPlan(GroupPlan):
    """The step of a parameter group for a rule that sees one vector.

    Attributes:
        vector: The vector, which the rest of the runtime treats as a parameter. ``members`` are the parameters in it.
    """

    unlike = (
        "to a rule that works on one vector of all parameters: the vector is a copy that would lose their bits, and a "
        "block of its states could span several parameters"
    )

    def __init__(
        self, group: dict[str, Any], hyper: Hyperparameters, kernels: Any, chosen: Sequence[torch.Tensor] | None = None
    ) -> None:
        super().__init__(group, hyper, kernels, chosen)
        self.pieces = self.idle
        self._begin_vector()

    def _begin_vector(self) -> None:
        """Allocate a vector for the parameters as they are now, without copying their values."""
        self.batches, first = [], self.pieces[0] if self.pieces else torch.zeros(0)
        self.sizes = [p.numel() for p in self.pieces]
        self.vector = torch.nn.Parameter(first.detach().new_empty(sum(self.sizes)))
        self.vector.members = self.pieces  # type: ignore[attr-defined]
        self.parameters = self.idle = [self.vector]
        self.gradient = torch.empty_like(self.vector.data)
        self.parts = [part for _, part in pieces(self.vector, self.vector.detach())]
        self._checked: list[Any] | None = None  # the properties of the last parameters that were checked
        self._views, self._pointers = list[torch.Tensor](), list[int]()

    # The first half -----------------------------------------------------------------------------------------

    def prepare(self, state: State, same: bool) -> bool:
        """Check everything, gather the vector and its gradient, and prepare the work of this step."""
        if all(p.grad is None for p in self.pieces):
            self.work, self.staged = [], []
            return False
        self._gather_pieces()
        return super().prepare(self._owned(state), same)

    def _gather_pieces(self) -> None:
        """Copy the parameters and their gradients into the vector; a missing gradient counts as zeros."""
        gradients = [p.grad for p in self.pieces]
        found = _likeness([*self.pieces, *gradients])
        if found is None or found != self._checked:
            self._check_pieces()
            self._checked = found
        vector = self.vector
        torch.cat(self._viewed() if found else [p.detach().reshape(-1) for p in self.pieces], out=vector.data)
        graded = [g for g in gradients if g is not None]
        if found and len(graded) == len(gradients) and {*map(_dtype, graded)} == {vector.dtype}:
            parts = [g.view(-1) for g in graded]
        else:
            zeros = (vector.new_zeros(1).expand(p.numel()) for p in self.pieces)
            pairs = zip(gradients, zeros, strict=True)
            parts = [(z if g is None else g.detach().reshape(-1)).to(vector.dtype) for g, z in pairs]
        vector.grad = torch.cat(parts, out=self.gradient)

    def _check_pieces(self) -> None:
        """Check the parameters and their gradients, and allocate a vector that fits them if necessary."""
        first = self.pieces[0]
        for p in self.pieces:
            check_piece(self.name, self.group, p, first)
            if p.grad is not None:
                self._check_gradient(p, p.grad)
        kept = (self.vector.dtype, self.vector.device, self.sizes)
        if kept != (first.dtype, first.device, [p.numel() for p in self.pieces]):
            self._begin_vector()

    def _viewed(self) -> list[torch.Tensor]:
        """Return the parameters, which are contiguous, as vectors; views of memory that has not moved are reused."""
        pointers = list(map(torch.Tensor.data_ptr, self.pieces))
        if pointers != self._pointers:
            self._views, self._pointers = [p.detach().view(-1) for p in self.pieces], pointers
        return self._views

    def warm(self, state: State) -> None:
        """Compile the kernels that the first step would compile."""
        if self.pieces:
            super().warm(self._owned(state))

    def _owned(self, state: State) -> _Owned:
        """Return ``optimizer.state`` with the vector's state under the first parameter."""
        return _Owned(state, self.vector, self.pieces[0])

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        return self.pieces[0] if p is self.vector else p

    # The second half ----------------------------------------------------------------------------------------

    def run(self, state: State) -> list[torch.Tensor]:
        """Update the vector and its states."""
        return super().run(self._owned(state))

    def begin(self, state: State) -> None:
        """Write the states that were initialized, and nothing else."""
        super().begin(self._owned(state))

    def finish(self, state: State) -> None:
        """Copy the vector back into the parameters."""
        super().finish(state)
        self._put_back()

    def settle(self) -> list[torch.Tensor]:
        """Count what an interrupted step has updated, and copy it back into the parameters."""
        super().settle()
        self._put_back()
        return list(self.pieces)

    def _put_back(self) -> None:
        if self.evaluation is not None:
            quick = self.kernels.backend in vectors.BACKENDS
            self.evaluation.arrive(list(zip(self.pieces, self.parts, strict=True)), quick)
        torch._foreach_copy_(self.pieces, self.parts)


def _likeness(tensors: Sequence[torch.Tensor | None]) -> list[Any] | None:
    """Return the properties that decide whether tensors fit a vector, if all are contiguous; otherwise None.

    This runs in every step, so it uses loops that run in C.
    """
    there = [t for t in tensors if t is not None]
    try:
        if not all(map(_is_contiguous, there)) or any(map(_is_neg, there)) or not all(map(_data_ptr, there)):
            return None
    except RuntimeError:  # not strided, or without memory
        return None
    return [*map(type, tensors), *map(_dtype, there), *map(_shape, there), *map(_device, there)]


class _Owned(MutableMapping[torch.Tensor, dict[str, Any]]):
    """``optimizer.state`` as a flat plan sees it: the vector's state belongs to the first parameter."""

    def __init__(self, state: Any, vector: torch.Tensor, owner: torch.Tensor) -> None:
        self.state, self.vector, self.owner = state, vector, owner

    def get(self, p: torch.Tensor, default: Any = None) -> Any:
        """Return the state of a parameter; unlike indexing, this adds nothing to a ``defaultdict``."""
        return self.state.get(self._key(p), default)

    def _key(self, p: torch.Tensor) -> torch.Tensor:
        return self.owner if p is self.vector else p

    def __getitem__(self, p: torch.Tensor) -> Any:
        return self.state[self._key(p)]

    def __setitem__(self, p: torch.Tensor, value: Any) -> None:
        self.state[self._key(p)] = value

    def __delitem__(self, p: torch.Tensor) -> None:
        del self.state[self._key(p)]

    def __contains__(self, p: object) -> bool:
        return p in self.state or (p is self.vector and self.owner in self.state)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def seen(part: RoutedRule, members: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return pairs of a parameter that owns state and the tensor that the rule sees, for its facts and shapes."""
    if not part.compiled.rule.flat:
        return [(p, p) for p in members]
    distinct = {id(p): p for p in members}.values()
    if not distinct:
        return []
    count = sum(p.numel() for p in distinct)
    return [(members[0], torch.empty(count, dtype=members[0].dtype, device="meta"))]


def check(
    part: RoutedRule, group: Mapping[str, Any], groups: int, members: Sequence[torch.Tensor], searches: bool
) -> None:
    """Raise ValueError if a parameter group does not suit a flat rule.

    Args:
        part: The rule.
        group: The group.
        groups: The number of groups.
        members: The parameters of the group that the rule updates.
        searches: Whether the rule has a line search, of which there can be only one for the whole model.
    """
    if not part.compiled.rule.flat:
        return
    name = part.compiled.name
    if switch := switched(group):
        raise ValueError(f"{name}: {switch} is not supported: the rule sees all parameters as one vector (`flat`)")
    if searches and groups > 1:
        raise ValueError(
            f"{name} takes one parameter group: its line search is for all parameters as one vector (`flat`)"
        )
    for p in members:
        check_piece(name, group, p, members[0])


def check_piece(name: str, group: Mapping[str, Any], p: torch.Tensor, first: torch.Tensor) -> None:
    """Raise ValueError if a parameter cannot be part of the vector that another parameter begins."""
    reason = ""
    if hasattr(p, "to_local"):
        reason = "is a distributed tensor"
    elif p.is_complex():
        reason = "is complex"
    elif p.dtype is not first.dtype or p.device != first.device:
        reason = f"has type {p.dtype} on {p.device}, but the first one has type {first.dtype} on {first.device}"
    if reason:
        raise ValueError(
            f"{name}: {describe(group, p)} {reason}; the rule sees all parameters of a group as one vector (`flat`)"
        )
