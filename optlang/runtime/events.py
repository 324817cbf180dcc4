"""``optimizer.eval()`` and ``optimizer.train()``: the parameters as they are evaluated, and as they are trained.

What a rule says under ``on eval`` and ``on train`` runs once for every parameter that has state; those that have had no
step are the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optlang.compiled import Facts
from optlang.runtime.kernels import Prepared
from optlang.runtime.plan import GroupPlan, State
from optlang.runtime.records import Record
from optlang.runtime.tensors import facts_of, local

#: Key of the param groups that tells which the parameters are; the name that the ``schedulefree`` package gives it.
TRAINING = "train_mode"


class EventPlan(GroupPlan):
    """What an event does to one param group.

    Args:
        event: ``eval`` or ``train``.
        arguments: Those of :class:`GroupPlan`.
    """

    def __init__(self, event: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.event = event
        self._originals: dict[int, torch.Tensor] = {}
        self._held: dict[int, dict[str, Any]] = {}  # by part, the dict in `optimizer.state`

    def prepare_event(self, state: State) -> None:
        """Check everything and lay out the work."""
        self._read()
        records: dict[Any, list[Record]] = {}
        for p in dict.fromkeys(self.parameters):
            held = state.get(p)
            part = local(p).detach()
            if not held or not self._is_started(part, held):
                continue
            self._originals[id(part)], self._held[id(part)] = p, held
            own = {part: {key: local(v) if isinstance(v, torch.Tensor) else v for key, v in held.items()}}
            record = self._bound(part, part, own)  # its own values stand where a gradient would
            records.setdefault(self._batch([record]).key(record), []).append(record)
        known = {**(self._values or {}), **self._common_states()}
        for members in records.values():
            batch = self._batch(members)
            batch.gradients = [record.fitting(record.parameter) for record in members]
            self._lay_out(batch, known)

    def _is_started(self, part: torch.Tensor, held: Mapping[str, Any]) -> bool:
        """Whether a parameter has every state that the event is about: those of this rule, and of this variant."""
        variant = self._prepared(facts_of(part)).variant
        about = {*variant.tensors, *variant.host_arguments}
        return all(held.get(slot.key) is not None for slot in variant.slots if slot.name in about)

    def _common_states(self) -> dict[str, float]:
        """Return the states of the group and of the whole optimizer, by name."""
        compiled = self.kernels.compiled
        initial = compiled.group_initial(self._values or {})
        common = {s.name: s.key for s in compiled.rule.states if s.scope != "tensor"}
        held = {name: self.group.get(key) for name, key in common.items()}
        return {name: float(initial[common[name]] if value is None else value) for name, value in held.items()}

    def run_event(self) -> list[torch.Tensor]:
        """Carry it out; return the parameters that were written."""
        written: list[torch.Tensor] = []
        for batch, coefficients, numbers in self._work:
            batch.run(coefficients)
            for record in batch.records:
                self._write_back(record, numbers)
            written += [record.parameter for record in batch.records]
        for work in self.staged:
            for one in work.left:
                one.run()
            for record in work.batch.records:
                self._write_back(record, work.numbers({}))
            written += [record.parameter for record in work.batch.records]
        return written

    def _write_back(self, record: Record, numbers: Sequence[float]) -> None:
        """Write what is not in the memory of ``optimizer.state``: host states, and states laid out otherwise."""
        held = self._held[id(record.parameter)]
        for slot, number in zip(record.prepared.hosted, numbers, strict=True):
            value = held.get(slot.key)
            if isinstance(value, torch.Tensor):
                value.fill_(number)
            elif value is not None:
                held[slot.key] = number
        for key, tensor in record.staged.items():
            value = held.get(key)
            if isinstance(value, torch.Tensor):
                local(value).copy_(tensor)
            elif value is not None:
                held[key] = tensor

    def _prepared(self, facts: Facts) -> Prepared:
        return self.kernels.prepared(self._values or {}, self._answers or (), facts, self.event)

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        return self._originals.get(id(p), p)
