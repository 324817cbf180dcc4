"""``optimizer.eval()`` and ``optimizer.train()``: the parameters as they are evaluated, and as they are trained.

What a rule says under ``on eval`` and ``on train`` runs once for every parameter that has state; those that have had no
step are the same in both.
"""

from __future__ import annotations

from typing import Any

import torch

from optlang.compiled import Facts
from optlang.runtime.kernels import Prepared
from optlang.runtime.plan import GroupPlan, State
from optlang.runtime.records import Record
from optlang.runtime.staged import StagedBatch
from optlang.runtime.tensors import local

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

    def prepare_event(self, state: State) -> None:
        """Check everything and lay out the work."""
        self._read()
        records: dict[Any, list[Record]] = {}
        for p in dict.fromkeys(self.parameters):
            held = state.get(p)
            if not held:
                continue
            part = local(p).detach()
            self._originals[id(part)] = p
            own = {part: {key: local(v) if isinstance(v, torch.Tensor) else v for key, v in held.items()}}
            record = self._bound(part, part, own)  # its own values stand where a gradient would
            if not record.staged:
                records.setdefault(self._batch([record]).key(record), []).append(record)
        for members in records.values():
            batch = self._batch(members)
            if isinstance(batch, StagedBatch):
                self._fail(members[0].parameter, f"cannot be switched: `on {self.event}` of {self.name} is in passes")
            batch.gradients = [record.fitting(record.parameter) for record in members]
            self._work.append(self._host(batch, self._values or {}))

    def run_event(self) -> list[torch.Tensor]:
        """Carry it out; return the parameters that were written."""
        written: list[torch.Tensor] = []
        for batch, coefficients, _ in self._work:
            batch.run(coefficients)
            written += [record.parameter for record in batch.records]
        return written

    def _prepared(self, facts: Facts) -> Prepared:
        return self.kernels.prepared(self._values or {}, self._answers or (), facts, self.event)

    def _named(self, p: torch.Tensor) -> torch.Tensor:
        return self._originals.get(id(p), p)
