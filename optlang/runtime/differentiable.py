"""Differentiable steps: for meta-learning, with ``differentiable=True`` in a parameter group.

These steps are not optimized for speed: the generated formulas run operation by operation. Parameters are updated in
place, and ``optimizer.state`` gets new tensors, all of them part of the autograd graph. Tensor hyperparameters receive
gradients too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optlang.artifact import Storage
from optlang.identity import Count
from optlang.inputs import ValueName, as_values
from optlang.runtime.device_scalars import as_number, numbers_of, traced_functions
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.plan import GroupPlan, State
from optlang.runtime.records import STEP
from optlang.runtime.tensors import facts_of


class DifferentiablePlan(GroupPlan):
    """The step of a parameter group that is ``differentiable``.

    :meth:`prepare` computes everything, as new tensors; :meth:`run` writes them.
    """

    unlike = "together with differentiable=True: values rounded to fewer bits have no gradient"

    switch = "differentiable"
    option = "differentiable=True"

    def prepare(self, state: State, same: bool) -> bool:
        """Compute the new values of parameters and states; return whether there are any."""
        self.read()
        self._results: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []
        self._group_results: dict[str, Any] = {}
        found = [(p, p.grad) for p in self.idle if p.grad is not None]
        with torch.enable_grad():
            known = self._known(found[0][0]) if found else {}
            for p, g in found:
                self._results.append((p, *self._computed(p, g, state.get(p) or {}, known)))
        return bool(self._results)

    def run(self, state: State) -> list[torch.Tensor]:
        """Write the new values; return no parameter, since their versions have already been incremented."""
        with torch.enable_grad():
            for p, value, held in self._results:
                p.copy_(value)
                if held:
                    state[p].update(held)
        self.group.update(self._group_results)
        self.abandon()
        return []

    def abandon(self) -> None:
        """Discard the computed values."""
        self._results, self._group_results = [], {}

    def warm(self, state: State) -> None:
        """Only check the hyperparameters: differentiable steps compile nothing."""
        self.read()

    # Computing ----------------------------------------------------------------------------------------------

    def _known(self, p: torch.Tensor) -> dict[ValueName, Any]:
        """Return the group's values as numbers on the device of ``p``, after the group's own update."""
        prepared = self.kernels.prepared(self._values or {}, self._answers or (), facts_of(p))
        self._check_schedule(p, prepared)
        known = numbers_of(self.hyper.raw(self.group), p.device)
        variant = prepared.variant
        if variant.counts_group:
            step = self.hyper.kept(STEP)
            count = float(self.group.get(step, 0.0)) + 1.0
            known[Count.GROUP] = as_number(count, p.device)
            self._group_results[step] = count
        if variant.group_slots:
            initial = self.kernels.compiled.group_initial(self._values or {})
            for slot in variant.group_slots:
                held = self.group.get(self.hyper.kept(slot.key))
                known[slot.name] = as_number(initial[slot.key] if held is None else held, p.device)
            results = traced_functions(variant)["group"](*(known[name] for name in variant.group_arguments))
            for slot, value in zip(variant.group_slots, results, strict=True):
                new = as_number(value, p.device)
                known[slot.new] = new
                self._group_results[self.hyper.kept(slot.key)] = new if new.requires_grad else new.item()
        return known

    def _computed(
        self, p: torch.Tensor, g: torch.Tensor, held: Mapping[str, Any], known: Mapping[ValueName, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the new value of a parameter and of its states."""
        self._check_parameter(p)
        self._check_gradient(p, g)
        if p.is_leaf and p.requires_grad:
            self._fail(
                p,
                "is a leaf that requires gradients, which autograd does not let a step modify; with "
                "differentiable=True, give the optimizer clones (p.clone()) that are part of a graph",
            )
        prepared = self.kernels.prepared(self._values or {}, self._answers or (), facts_of(p))
        self._check_dimensions(p, prepared)
        states = self._states(p, g, held, prepared)
        count = as_number(held[STEP], p.device) if STEP in held else as_number(float(bool(held)), p.device)
        kernel = prepared.variant.kernel
        assert kernel is not None  # rules with a schedule have been rejected
        numbers = self._numbers(p, prepared, states, known, count, is_new=not held)
        coefficients, hosted = traced_functions(kernel)["host"](*numbers)
        arithmetic = torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32
        packed = torch.stack([as_number(c, p.device) for c in coefficients or (0.0,)]).to(arithmetic)
        # Autograd must not save a tensor for p that the step then writes to.
        tensors: dict[ValueName, torch.Tensor] = {
            "p": p.clone(),
            "g": g,
            **{slot.name: states[slot.name] for slot in prepared.stored},
        }
        layout, storage = kernel.layout, kernel.storage
        views = []
        for name in kernel.tensors:
            view = torch.view_as_real(tensors[name].resolve_conj()) if tensors[name].is_complex() else tensors[name]
            shape = (1,) if storage.get(name) is Storage.SCALAR else layout.shape(tuple(view.shape))
            views.append(view.reshape(shape).to(arithmetic))
        written = traced_functions(kernel)["updated"](*views, packed)
        results: dict[ValueName, torch.Tensor] = {
            name: _like(tensors[name], value) for name, value in zip(kernel.written, written, strict=True)
        }
        new: dict[str, Any] = {slot.key: results.get(slot.name, states[slot.name]) for slot in prepared.stored}
        new |= {slot.key: as_number(v, p.device) for slot, v in zip(prepared.hosted, hosted, strict=True)}
        if prepared.counts:
            new[STEP] = (count + 1).detach()
        return results.get("p", tensors["p"]), new

    def _states(
        self, p: torch.Tensor, g: torch.Tensor, held: Mapping[str, Any], prepared: LoadedVariant
    ) -> dict[str, torch.Tensor]:
        """Return the states by name, with missing states at their initial values."""
        slots = prepared.variant.slots
        fresh: Mapping[str, Any] = {}
        if any(held.get(slot.key) is None for slot in slots):
            facts = facts_of(p).named()
            fresh = prepared.started(p, g, {**(self._values or {}), **facts})
        found = {}
        for slot in slots:
            value = held.get(slot.key)
            value = fresh[slot.name] if value is None else value
            found[slot.name] = as_number(value, p.device) if slot.storage is Storage.HOST else value
        return found

    def _numbers(
        self,
        p: torch.Tensor,
        prepared: LoadedVariant,
        states: Mapping[str, torch.Tensor],
        known: Mapping[ValueName, Any],
        count: torch.Tensor,
        is_new: bool,
    ) -> list[torch.Tensor]:
        """Return the arguments of ``host`` as numbers on the device."""
        first = count == 0 if prepared.counts else torch.full((), is_new, device=p.device)
        hosted = {slot.name: states[slot.name] for slot in prepared.hosted}
        assert prepared.direct is not None
        own = as_values(facts_of(p).named()) | {"t": count + 1, "first": first, **hosted}
        arguments = (own[name] if name in own else known[name] for name in prepared.direct.kernel.host_arguments)
        return [value if isinstance(value, torch.Tensor) else as_number(value, p.device) for value in arguments]


def _like(t: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a new value with a tensor's shape and type."""
    if not t.is_complex():
        return (
            value.expand(t.numel()).reshape(t.shape).to(t.dtype)
            if value.dim() < 2
            else value.reshape(t.shape).to(t.dtype)
        )
    return torch.view_as_complex(value.reshape((*t.shape, 2)).contiguous()).to(t.dtype)
