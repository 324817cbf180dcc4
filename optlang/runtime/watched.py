"""Detects changes since the last step that affect how a step is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch

from optlang.backends.loading import watch
from optlang.runtime.records import ParameterState
from optlang.runtime.tensors import form

_pointer, _is_contiguous, _is_neg = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
_dtype, _shape, _grad = attrgetter("dtype"), attrgetter("shape"), attrgetter("grad")

_TENSORS = {torch.Tensor}

#: How often a watch is renewed when gradients change their kind, before we assume that they will keep changing.
MOST = 4


class Watched:
    """The conditions under which the views of some records are valid.

    All records are compared at once, in C++ where possible: this is the cost of a small step.
    """

    def __init__(self, records: Sequence[ParameterState]) -> None:
        self.parameters = [record.parameter for record in records]
        self.pointers = [record.pointer for record in records]
        self.states = [record.state for record in records]
        self.values = [value for record in records for value in record.values]
        self.value_pointers = [pointer for record in records for pointer in record.pointers]
        first, shown = records[0], records[0].shown
        self.stored = [value for record in records for value in record.values[shown:]]
        self.forms = [form for record in records for form in record.forms[shown:]]
        self.dtypes, self.gradient_dtypes, keys = {first.dtype}, {first.gradient_dtype}, first.keys
        # A one-dimensional kernel needs a gradient with the parameter's number of elements, in any shape.
        flat = first.prepared.variant.layout.flat
        self.size = torch.Tensor.numel if flat else _shape
        self.sizes = [record.facts.numel if flat else record.shape for record in records]
        self.simple = not any(record.gradient_needs_check for record in records)
        # itemgetter returns a single key's value without a tuple, so a single key is requested twice.
        self.get = itemgetter(*(keys if len(keys) > 1 else keys * 2)) if keys else None
        self.held = self.values
        if len(keys) == 1:
            self.held = [v for value in self.values for v in (value, value)]
        self.addresses: Iterable[int] = ()  # addresses of the last returned gradients
        self._watch: watch.Watch | None = None
        self._watches = MOST

    def gradients(self, state: Mapping[Any, Any] | None) -> list[torch.Tensor] | None:
        """Return the gradients, or None if anything has changed; without ``state``, its dicts are the same."""
        if not self.simple:
            return None
        gradients = [*map(_grad, self.parameters)]
        try:
            if {*map(type, gradients)} != _TENSORS:
                return None
            if self._watch is not None and self._watch.look():
                self.addresses = self._watch.addresses
            elif not self._look(gradients):
                return None
            if self.get is not None:
                held = chain.from_iterable(map(self.get, self.states))
                if not all(map(is_, held, self.held)):
                    return None
                if state is not None and not all(map(is_, map(state.get, self.parameters), self.states)):
                    return None
        except (AttributeError, KeyError, RuntimeError):  # no such state, no such memory
            return None
        return gradients

    def _look(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Return whether parameters, gradients and states have the layouts that the kernel expects (in Python)."""
        addresses = list(map(_pointer, gradients))
        alike = (
            all(addresses)
            and list(map(_pointer, self.parameters)) == self.pointers
            and {*map(_dtype, self.parameters)} == self.dtypes
            and all(map(_is_contiguous, self.parameters))
            and not any(map(_is_neg, self.parameters))
            and {*map(_dtype, gradients)} == self.gradient_dtypes
            and list(map(self.size, gradients)) == self.sizes
            and all(map(_is_contiguous, gradients))
            and not any(map(_is_neg, gradients))
            and list(map(_pointer, self.values)) == self.value_pointers
            and list(map(form, self.stored)) == self.forms
        )
        if alike and self._watches:
            self._watch = watch.watch(self.parameters, self.values)
            self._watches -= self._watch is not None
        self.addresses = addresses
        return alike
