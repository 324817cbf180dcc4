"""``optimizer.eval()`` and ``optimizer.train()``: switch parameters between evaluation and training values.

The formulas under ``on eval`` and ``on train`` of a rule run once for every parameter that has state; parameters that
have not been updated are the same in both modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from optlang.artifact import ShapeInfo, Storage
from optlang.inputs import as_values
from optlang.runtime.batches import ParameterBatch
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.plan import GroupPlan, State
from optlang.runtime.records import STEP, ParameterState
from optlang.runtime.tensors import facts_of, local
from optlang.storage.blocks import SCALE
from optlang.storage.coded import ElementIndices
from optlang.storage.parameters import KEY
from optlang.syntax.tree import StateScope

#: Key of the parameter groups that stores the mode; the ``schedulefree`` package uses the same name.
TRAINING = "train_mode"


class EventPlan(GroupPlan):
    """An event for one parameter group.

    Args:
        event: ``eval`` or ``train``.
        arguments: Those of :class:`GroupPlan`.
    """

    def __init__(self, event: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.event = event
        self._originals: dict[int, torch.Tensor] = {}
        self._held: dict[int, dict[str, Any]] = {}  # by local part, the dict in `optimizer.state`

    def prepare_event(self, state: State) -> None:
        """Check everything and prepare the work."""
        self.read()
        records: dict[Any, list[ParameterState]] = {}
        for p in dict.fromkeys(self.parameters):
            held = state.get(p)
            part = local(p).detach()
            about = self._about(part)
            if not held or any(held.get(key) is None for key in about):
                continue  # not updated so far, or not by this rule
            self._originals[id(part)], self._held[id(part)] = p, held
            if part.shape != p.shape:
                self._check_part(p, part)
            kept = (*about, *(key + SCALE for key in about), STEP, KEY)
            known = {key: held[key] for key in kept if key in held}
            own = {key: local(v) if isinstance(v, torch.Tensor) else v for key, v in known.items()}
            record = self._bound(part, part, {part: own})  # its own values take the place of a gradient
            records.setdefault(ParameterBatch.key(record), []).append(record)
        numbers = as_values(self._values or {}) | as_values(self._common_states())
        for members in records.values():
            batch = self._batch(members)
            batch.gradients = [record.fitting(record.parameter) for record in members]
            self.lay_out(batch, numbers)

    def _about(self, part: torch.Tensor) -> dict[str, str]:
        """Return the states that the event reads or writes for a parameter: names by key."""
        variant = self.variant_for(facts_of(part)).variant
        named = {*variant.tensors, *variant.written, *variant.schedule.arguments()}
        return {slot.key: slot.name for slot in variant.slots if slot.name in named or slot.storage is Storage.HOST}

    def _check_part(self, p: torch.Tensor, part: torch.Tensor) -> None:
        """Reject a distributed parameter if its parts cannot be switched separately."""
        prepared = self.variant_for(facts_of(part))
        alike = prepared is self.variant_for(facts_of(p)) and not {"numel", "rows", "cols"} & set(prepared.facts)
        if not (alike and prepared.variant.elementwise):
            self._fail(
                part, f"is a distributed tensor, and `on {self.event}` of {self.name} does not work element by element"
            )

    def _common_states(self) -> dict[str, float]:
        """Return the states of the group and of the whole optimizer, by name."""
        compiled = self.kernels.compiled
        initial = compiled.group_initial(self._values or {})
        common = {s.name: s.key for s in compiled.rule.states if s.scope is not StateScope.TENSOR}
        held = {name: self.group.get(self.hyper.kept(key)) for name, key in common.items()}
        return {name: float(initial[common[name]] if value is None else value) for name, value in held.items()}

    def run_event(self) -> list[torch.Tensor]:
        """Run the event; return the parameters that were written."""
        written: list[torch.Tensor] = []
        for batch, coefficients, numbers, _ in self.work:
            batch.run(coefficients)
            written += self._finish_event(batch, numbers)
        for work in self.staged:
            while work.left:
                work.run({})
            written += self._finish_event(work.batch, work.numbers({}))
        return written

    def _finish_event(self, batch: ParameterBatch, numbers: Sequence[float]) -> list[torch.Tensor]:
        """Write what is not in the memory of ``optimizer.state``: host states, and states with another layout."""
        for record in batch.records:
            held, about = self._held[id(record.parameter)], self._about(record.parameter)
            for slot, number in zip(record.prepared.hosted, numbers, strict=True):
                if isinstance(held[slot.key], torch.Tensor):
                    held[slot.key].fill_(number)
                else:
                    held[slot.key] = number
            for key in record.staged.keys() & about.keys():
                if isinstance(held[key], torch.Tensor):
                    local(held[key]).copy_(record.staged[key])
                else:
                    held[key] = record.staged[key]
        return [record.parameter for record in batch.records]

    def variant_for(self, facts: ShapeInfo) -> LoadedVariant:
        """Return the event's variant for such a parameter."""
        return self.kernels.prepared(self._values or {}, self._answers or (), facts, self.event)

    def _places_of(self, p: torch.Tensor) -> ElementIndices:
        """Return which elements of a parameter its local part holds."""
        owner = self._named(p)
        if owner.shape == p.shape:
            return super()._places_of(p)
        from optlang.runtime.sharded_codes import places_of  # only users of distributed tensors pay for this import

        return places_of(owner)

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        return self._originals.get(id(p), p)
