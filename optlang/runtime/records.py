"""A parameter with its state, in the form that steps need, and the checks that this form is still current."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from optlang.artifact import ShapeInfo, Slot, Storage
from optlang.inputs import ValueName, text
from optlang.rule import Values
from optlang.runtime.kernels import LoadedVariant
from optlang.runtime.rng import mixed
from optlang.runtime.tensors import (
    address,
    arithmetic,
    as_laid_out,
    facts_of,
    form,
    is_dense,
    is_fake,
    is_marked,
    is_shared,
    lost,
    pieces,
    real_name,
    resolved,
    same_order,
)
from optlang.storage import Format, Wide, choice
from optlang.storage.blocks import SCALE, Blocks
from optlang.storage.coded import WHOLE, Coded
from optlang.storage.named import CODES
from optlang.storage.parameters import KEY, ParameterFormat, Stochastic

if TYPE_CHECKING:
    from optlang.storage.coded import Key

#: Attribute of the memory that backs the displayed numbers of many parameters.
OURS = "optlang_mirror"

#: Key of a parameter's step count in ``optimizer.state[p]``, and of a group's step count in the parameter group.
STEP = "step"

#: The element types of quantized states.
_CODES = {kind.codes for kind in CODES.values()}


class ParameterState:
    """A parameter and its state, in the form that kernels take.

    Attributes:
        parameter: The parameter.
        prepared: Its variant.
        owner: The parameter that is listed in the parameter groups.
        place: Its index among all parameters of the optimizer.
        places: Which elements of the owner it holds, if not all.
        draws: Whether quantizing its states, or rounding the parameter, draws random numbers.
        facts: The facts that the rule may know about it.
        state: Its dict in ``optimizer.state``.
        keys: The state's keys that this record uses; mirrors of host numbers come first.
        values: The objects under these keys when they were read.
        pointers: The addresses of these objects at that time.
        forms: How their elements were read from memory.
        count: The number of updates so far.
        numbers: The values of the host states.
        is_new: Whether none of its states existed before.
        tensors: The state tensors, by name.
        coded: The format and the scales (or other companions) of each quantized state, and of the parameter, by name.
        shown: How many of its keys show host numbers.
        gradient_needs_check: Whether each gradient must be inspected (complex numbers, non-contiguous memory orders).
        copied: Whether the parameter itself cannot be viewed, so that it is copied in and out.
        ordinary: Whether all tensors have addresses, which kernels need; other tensors use torch's own operations.
        whole: Whether nothing is viewed, since torch's own elementwise operations take tensors of any shape.
        volatile: Whether the tensors may change undetected, so that they are bound in every step.
    """

    __slots__ = (
        "coded",
        "copied",
        "count",
        "draws",
        "dtype",
        "facts",
        "form",
        "forms",
        "gradient_dtype",
        "gradient_needs_check",
        "is_new",
        "keys",
        "numbers",
        "ordinary",
        "owner",
        "parameter",
        "place",
        "places",
        "pointer",
        "pointers",
        "prepared",
        "shape",
        "shown",
        "staged",
        "state",
        "tensors",
        "values",
        "volatile",
        "whole",
    )

    def __init__(self, parameter: torch.Tensor, prepared: LoadedVariant, state: dict[str, Any]) -> None:
        self.parameter, self.prepared, self.state = parameter, prepared, state
        self.owner, _ = next(pieces(parameter, parameter))
        self.facts: ShapeInfo = facts_of(parameter)
        self.shape, self.dtype, self.form = parameter.shape, parameter.dtype, form(parameter)
        self.pointer = address(parameter)
        self.staged: dict[str, Any] = {}
        self.keys: tuple[str, ...] = ()
        self.values: tuple[Any, ...] = ()
        self.pointers: tuple[int, ...] = ()
        self.forms: tuple[Any, ...] = ()
        self.ordinary, self.volatile, self.whole = True, False, False
        self.tensors: dict[ValueName, torch.Tensor] = {}
        self.coded: dict[ValueName, tuple[Coded, torch.Tensor]] = {}
        self.shown, self.place, self.places, self.draws = 0, 0, WHOLE, False
        self.numbers: tuple[float, ...] = ()
        self.count, self.is_new, self.gradient_needs_check, self.copied = 0.0, False, False, False
        self.gradient_dtype = parameter.dtype

    @property
    def counts(self) -> bool:
        """Whether its updates are counted: if the rule needs the count, or if it is part of a random-number key."""
        return self.prepared.counts or self.draws

    def drawn_by(self, name: ValueName) -> int:
        """Return the key of a state's random numbers, apart from the step."""
        names = ["p", *(slot.name for slot in self.prepared.stored)]
        return mixed(self.place, names.index(text(name))) & 0xFFFFFFFF

    def codes(self, name: ValueName) -> torch.Tensor:
        """Return the codes of a quantized tensor."""
        return (self.parameter if name == "p" else self.tensors[name]).detach()

    def uncoded(self, name: ValueName) -> torch.Tensor:
        """Return a quantized tensor, dequantized to the type in which the rule computes."""
        format, second = self.coded[name]
        return format.decode(self.codes(name), second).to(arithmetic(self.parameter))

    def keep(self, name: ValueName, x: torch.Tensor, draw: Key) -> None:
        """Quantize and store values; ``draw`` is the random-number key of this step."""
        format, second = self.coded[name]
        codes = self.codes(name)
        format.keep(x.reshape(codes.shape).float(), codes, second, self.drawn_by(name) ^ draw, self.places)

    # Binding ------------------------------------------------------------------------------------------------

    def bind(self, g: torch.Tensor, values: Values, formats: Mapping[str, Format]) -> None:
        """Read the state from ``optimizer.state``, and initialize what is missing.

        Nothing is written to ``optimizer.state`` yet: changes are staged for :meth:`commit`.

        Args:
            g: A gradient of the parameter.
            values: The hyperparameters.
            formats: The storage formats of states that override the rule's, by key.
        """
        p, layout = self.parameter, self.prepared.variant.layout
        self.gradient_dtype = g.dtype
        self.copied = is_marked(p) or (not is_dense(p) if layout.flat else not p.is_contiguous())
        states = self.tensors = self._states(g, {**values, **self.facts.named()}, formats)
        self._take_way(formats)
        self.copied |= not p.is_contiguous() and any(not format.pairs for format, _ in self.coded.values())
        self.ordinary = all(address(t) or not t.numel() for t in (p, g, *states.values()) if not t.is_sparse)
        self.volatile |= p.is_inference() or not (self.ordinary or is_fake(p) or p.is_meta)
        self.whole = not self.ordinary and layout.flat and self.prepared.variant.elementwise and not p.is_complex()
        self.copied &= not self.whole
        self.gradient_needs_check = self.copied or p.is_complex() or not p.is_contiguous() or not self.ordinary

    def _states(self, g: torch.Tensor, values: Values, formats: Mapping[str, Format]) -> dict[ValueName, torch.Tensor]:
        """Return the state tensors by name, each in the form that its kernel takes, and set the host numbers."""
        prepared, held = self.prepared, self.state
        slots = prepared.variant.slots
        missing = [slot for slot in slots if held.get(slot.key) is None]
        present = len(missing) < len(slots)
        self.is_new = bool(slots) and not present
        step = held.get(STEP)
        # State without a count means that there has been a step, so this is not the first.
        self.count = _number(step) if step is not None else float(present)
        if missing and g.is_sparse:  # a state may be initialized from it
            g = g.to_dense()
        empty = {slot.name: self._zeros(formats[slot.key]) for slot in missing if slot.zero and slot.key in formats}
        unknown = any(slot.name not in empty for slot in missing)
        fresh = {**(prepared.started(self.parameter, g, values) if unknown else {}), **empty}
        numbers: list[float] = []
        tensors: dict[ValueName, torch.Tensor] = {}
        shapes = prepared.shapes(self.parameter, values) if present else {}
        for slot in slots:
            if slot.key in shapes and slot not in missing and tuple(held[slot.key].shape) != shapes[slot.key]:
                shape = tuple(held[slot.key].shape)
                raise ValueError(f"state {slot.key!r} has shape {shape}, but its shape is {shapes[slot.key]}")
            value = fresh[slot.name] if slot in missing else held[slot.key]
            if slot.storage is Storage.HOST:
                numbers.append(_number(value))
                continue
            found = formats.get(slot.key)
            if slot not in missing and slot.key + SCALE not in held and _is_coded(value):
                raise ValueError(
                    f"state {slot.key!r} is in codes of {value.dtype}, but {slot.key + SCALE!r} is missing"
                )
            if isinstance(found, Blocks):
                tensors[slot.name] = self._in_codes(slot, found, value, slot in missing)
                continue
            if slot.key + SCALE in held:
                value = self._decoded(slot, value)
                self.staged[slot.key + SCALE] = None
            tensor = self._fitting(slot.key, slot.storage, value)
            if found is not None:
                tensor = tensor.to(getattr(torch, found.dtype(real_name(self.dtype))))
            elif slot not in missing and self._is_cut(slot, tensor):
                tensor = tensor.to(getattr(torch, slot.format.dtype(real_name(self.dtype))))
            if tensor is not held.get(slot.key):
                self.staged[slot.key] = tensor
            if isinstance(found, Stochastic):
                self.coded[slot.name] = found, found.companion(self.parameter)
            tensors[slot.name] = tensor
        self.numbers = tuple(numbers)
        mirrored = [STEP] if self.counts else []
        mirrored += [slot.key for slot in prepared.hosted]
        scaled = [s for s in prepared.stored if s.name in self.coded and not self.coded[s.name][0].alone]
        self.keys = (*mirrored, *(s.key for s in prepared.stored), *(s.key + SCALE for s in scaled))
        self.volatile = any(is_kept(v) and is_shared(v) for v in map(held.get, mirrored))
        scales = [self.coded[slot.name][1] for slot in scaled]
        self.shown = len(mirrored)
        self.hold([None] * len(mirrored), [*(tensors[slot.name] for slot in prepared.stored), *scales])
        return tensors

    def _take_way(self, formats: Mapping[str, Format]) -> None:
        """Read what is stored for a parameter whose rounding errors are kept, initializing it if it is missing."""
        way, p, held = formats.get(KEY), self.parameter, self.state.get(KEY)
        if held is not None and (not isinstance(way, ParameterFormat) or way.alone):
            self.staged[KEY] = None  # the parameter will change without it
        if not isinstance(way, ParameterFormat):
            return
        second = way.companion(p)
        if isinstance(held, torch.Tensor) and held.dtype is second.dtype and held.shape == p.shape:
            second = held if same_order(held, p) else second.copy_(held)
        self.coded["p"] = way, second
        if not way.alone:
            if second is not held:
                self.staged[KEY] = second
            self.keys = (*self.keys, KEY)
            self.hold(self.values[: self.shown], [*self.values[self.shown :], second])

    def _zeros(self, format: Format) -> torch.Tensor:
        """Return a zero state of its stored width; for a quantized state, only a tensor of the right shape."""
        p = self.parameter
        if isinstance(format, Blocks):
            return torch.empty(p.shape, device="meta")
        return torch.zeros_like(p, dtype=getattr(torch, format.dtype(real_name(p.dtype))), requires_grad=False)

    def _in_codes(self, slot: Slot, format: Blocks, value: torch.Tensor, fresh: bool) -> torch.Tensor:
        """Return the codes of a quantized state, which become its tensor, and record their scales."""
        held = self.state.get(slot.key + SCALE)
        if isinstance(held, torch.Tensor) and format.fits(value, held):
            codes, scales = value, held
        else:
            if fresh and slot.zero:
                codes, scales = format.zeros(self.parameter)
            else:
                value = value if held is None else self._decoded(slot, value)
                x = self._fitting(slot.key, slot.storage, value).contiguous().float()
                codes, scales = format.encode(x, 0, self.places)
            self.staged[slot.key], self.staged[slot.key + SCALE] = codes, scales
        self.coded[slot.name] = format, scales
        return codes

    def _decoded(self, slot: Slot, codes: torch.Tensor) -> torch.Tensor:
        """Dequantize a state that a checkpoint stores quantized."""
        scales = self.state[slot.key + SCALE]
        format = choice.found(codes, scales)
        if format is None:
            raise ValueError(f"state {slot.key!r} is in codes of an unknown format")
        return format.decode(codes, scales)

    def hold(self, mirrors: Sequence[Any], stored: Sequence[torch.Tensor]) -> None:
        """Record the tensors under the keys, and their addresses."""
        self.values = (*mirrors, *stored)
        self.pointers = tuple(0 if value is None else address(value) for value in self.values)
        self.forms = tuple(None if value is None else form(value) for value in self.values)

    @staticmethod
    def _is_cut(slot: Slot, tensor: torch.Tensor) -> bool:
        """Return whether a state from a checkpoint may have a narrower type than the rule stores it in."""
        return tensor.dtype is torch.float16 or (tensor.dtype is torch.bfloat16 and isinstance(slot.format, Wide))

    def _fitting(self, key: str, storage: Storage, held: Any) -> torch.Tensor:
        """Return a state tensor in the form that the kernel takes: its device, and the parameter's shape and layout."""
        p = self.parameter
        value: torch.Tensor = held if isinstance(held, torch.Tensor) else torch.tensor(held, dtype=arithmetic(p))
        if reason := lost(value):
            raise ValueError(f"state {key!r} {reason}")
        if is_fake(value) is not is_fake(p):
            raise ValueError(f"state {key!r} is a {'fake' if is_fake(value) else 'real'} tensor, but the other is not")
        if value.is_inference():  # it could not be written outside inference mode
            value = value.clone()
        if value.device != p.device:
            value = value.to(p.device)
        if not (value.is_floating_point() or value.is_complex()):  # masks and integers: arithmetic needs floats
            value = value.to(p.dtype)
        value = resolved(value)
        if storage is Storage.SCALAR:
            if value.numel() != 1:
                raise ValueError(f"state {key!r} must be one number, but has shape {tuple(value.shape)}")
            return value
        if storage is Storage.ELEMENT and value.shape != p.shape:
            raise ValueError(
                f"state {key!r} has shape {tuple(value.shape)}, but its parameter has shape {tuple(p.shape)}"
            )
        if storage is Storage.ELEMENT and not self.copied and self.prepared.variant.layout.flat:
            return value if same_order(value, p) else as_laid_out(value, p)
        return value.contiguous()

    def is_in_place(self) -> bool:
        """Return whether the parameter is still at the address at which the views were created."""
        p = self.parameter
        return address(p) == self.pointer and form(p) == self.form

    def is_current(self, held: dict[str, Any] | None) -> bool:
        """Return whether ``optimizer.state`` still holds the objects that were viewed."""
        if not self.keys:
            return True
        if held is not self.state or not all(map(is_, map(held.get, self.keys), self.values)):
            return False
        return tuple(map(address, self.values)) == self.pointers and tuple(map(form, self.values)) == self.forms

    def commit(self) -> None:
        """Write the staged changes to the state."""
        self.state.update(self.staged)
        for key in [key for key, value in self.staged.items() if value is None]:
            del self.state[key]
        self.staged = {}

    # Each step ----------------------------------------------------------------------------------------------

    def fitting(self, g: torch.Tensor) -> torch.Tensor:
        """Return a gradient with the memory order that the kernel expects."""
        p = self.parameter
        g = resolved(g.detach())
        if self.copied or not self.prepared.variant.layout.flat:
            return g.contiguous()
        if self.whole:
            return g
        return g if same_order(g, p) else as_laid_out(g, p)


def _is_coded(value: Any) -> bool:
    """Return whether a state has a type of quantized states, which mean nothing without their scales."""
    return isinstance(value, torch.Tensor) and str(value.dtype)[6:] in _CODES


def _number(value: Any) -> float:
    """Return a number that a checkpoint or the user may have stored as a tensor."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"a state that is one number has shape {tuple(value.shape)}")
        try:
            value = value.item()
        except RuntimeError as error:  # it is fake, or on `meta`
            raise ValueError(f"a state that is one number has no value: {error}") from None
    return float(value)


def is_kept(value: Any) -> TypeGuard[torch.Tensor]:
    """Return whether a number that someone else put into the state is written in place; not those that we created."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float32, torch.float64)
        and not value.is_inference()
        and not hasattr(value._base, OURS)
    )
