"""What is around the formulas of a rule in a TorchScript module, as Python that ``torch.jit.script`` takes.

A module has all of it, but for the part about events. The rule is another (see :mod:`optlang.targets.torchscript`).
"""

import math
from typing import Final

import torch
from torch import Tensor

from optlang.targets.torchscript import descent
from optlang.targets.torchscript.descent import (
    _advance,
    _fill,
    _group,
    _late,
    _numbers,
    _path,
    _problem,
    _run,
    _start,
    _start_group,
    _start_shared,
    _unmet,
    _unsuited,
    _variant,
)
from optlang.targets.torchscript.tensors import _dense, _packed, _run_pieces


class ScriptedRule(torch.nn.Module):
    """An optimizer: ``step(params, grads)`` updates the parameters of all groups, which follow one another.

    Parameters of which the same is known go by the same coefficients: they are a cohort. The small ones in it lie one
    after the other in packs if a step updates every element from itself alone; what their states are is in ``flats``.
    """

    rule: str
    names: list[str]
    defaults: list[float]
    asked: list[bool]
    fixed: dict[str, str]
    parts: dict[str, str]
    tensor_names: list[str]
    number_names: list[str]
    tensors_of: list[list[int]]
    numbers_of: list[list[int]]
    elementwise: list[bool]
    alone: list[bool]
    hypers: list[list[float]]
    later: list[float]
    sizes: list[int]
    group_states: list[list[float]]
    group_steps: list[float]
    shared_states: list[float]
    tensors: list[list[Tensor]]
    numbers: list[list[float]]
    counts: list[float]
    variants: list[int]
    shapes: list[list[int]]
    types: list[torch.dtype]
    active: list[bool]
    contiguous: list[bool]
    owner: list[int]
    cohorts: list[list[int]]
    single: list[list[int]]
    packed: list[list[int]]
    packs: list[list[int]]
    lengths: list[list[int]]
    flats: list[list[Tensor]]
    views: list[list[Tensor]]
    stale: bool
    training_mode: bool
    group_place: Final[int]
    shared_place: Final[int]
    totals_place: Final[int]
    time: Final[int]
    hosted: Final[int]
    groups_count: Final[int]
    shares: Final[int]
    sums: Final[int]
    levels: Final[int]

    def __init__(self) -> None:
        super().__init__()
        self.rule = descent.NAME + ": "
        self.names, self.defaults, self.asked = descent.HYPERS, descent.DEFAULTS, descent.ASKED
        self.fixed, self.parts = descent.FIXED, descent.PARTS
        self.tensor_names, self.number_names = descent.TENSORS, descent.NUMBERS
        self.tensors_of, self.numbers_of = descent.TENSORS_OF, descent.NUMBERS_OF
        self.elementwise, self.alone = descent.ELEMENTWISE, descent.ALONE
        self.hypers = [descent.DEFAULTS.copy()]
        self.sizes = [-1]
        self.group_states = [[]]
        self.group_steps = [0.0]
        self.shared_states = []
        self.tensors, self.numbers = [], []
        self.counts, self.variants, self.shapes, self.types = [], [], [], []
        self.active, self.contiguous, self.owner = [], [], []
        self.cohorts, self.single, self.packed = [], [], []
        self.packs, self.lengths, self.flats, self.views = [], [], [], []
        self.stale, self.training_mode = False, True
        self.later = [0.0] * (descent.KNOWN - len(descent.HYPERS))
        self.levels = descent.LEVELS
        self.groups_count, self.shares, self.sums = descent.GROUPS, descent.SHARES, descent.SUMS
        self.group_place = len(descent.HYPERS)
        self.shared_place = self.group_place + 2 * descent.GROUPS
        self.totals_place = self.shared_place + 2 * descent.SHARES
        self.time = self.totals_place + descent.SUMS + 1  # after the steps of the group
        self.hosted = descent.KNOWN - len(descent.NUMBERS)

    # Hyperparameters and groups -----------------------------------------------------------------------------

    @torch.jit.export
    def hyper_names(self) -> list[str]:
        """Names of the hyperparameters that may be set."""
        return self.names

    @torch.jit.export
    def hyper(self, name: str, group: int = 0) -> float:
        """Value of a hyperparameter in a group."""
        place = self._place(name)
        self._check_group(group, 0)
        return self.hypers[group][place]

    @torch.jit.export
    def set_hyper(self, name: str, value: float, group: int = -1) -> None:
        """Set a hyperparameter in a group, or in all of them."""
        place = self._place(name)
        problem = _problem(place, value)
        if problem != "":
            raise ValueError(self.rule + problem)
        self._check_group(group, -1)
        for i in range(len(self.hypers)):
            if group == -1 or group == i:
                self.hypers[i][place] = value
        self.stale = self.stale or self.asked[place]

    def _check_group(self, group: int, least: int) -> None:
        if group < least or group >= len(self.hypers):
            raise ValueError(self.rule + "there is no group " + str(group))

    def _place(self, name: str) -> int:
        for i in range(len(self.names)):
            if self.names[i] == name:
                return i
        if name in self.fixed:
            fixed = name + " is fixed at " + self.fixed[name] + " in this file; "
            raise ValueError(self.rule + fixed + "emit the rule anew with --set " + name + "=VALUE")
        if name in self.parts:
            raise ValueError(self.rule + name + " is set part by part: " + self.parts[name])
        there = "; there are " + ", ".join(self.names)
        raise ValueError(self.rule + "there is no hyperparameter " + name + there)

    @torch.jit.export
    def set_groups(self, sizes: list[int]) -> None:
        """Say how many parameters each group has; later calls may only add groups behind the others."""
        held = len(self.counts)
        for size in sizes:
            if size < 0:
                raise ValueError(self.rule + "a group cannot have " + str(size) + " parameters")
        if held > 0:
            same = len(sizes) >= len(self.sizes)
            for i in range(len(self.sizes)):
                same = same and (self.sizes[i] < 0 or sizes[i] == self.sizes[i])
                held -= sizes[i] if same else 0
            if not same or held != 0:
                raise ValueError(self.rule + "groups that have made steps cannot change their sizes")
        if len(sizes) == 0:
            raise ValueError(self.rule + "there must be a group")
        while len(self.hypers) < len(sizes):
            self.hypers.append(self.defaults.copy())
            none: list[float] = []
            self.group_states.append(none)
            self.group_steps.append(0.0)
        while len(self.hypers) > len(sizes):
            self.hypers.pop()
            self.group_states.pop()
            self.group_steps.pop()
        self.sizes = sizes
        self.stale = True

    @torch.jit.export
    def groups(self) -> list[int]:
        """How many parameters each group has; -1 for one that has all there are."""
        return self.sizes

    # States -------------------------------------------------------------------------------------------------

    @torch.jit.export
    def state_names(self) -> list[str]:
        """Names of the states of a parameter."""
        return self.tensor_names + self.number_names + ["step"]

    @torch.jit.export
    def state(self, name: str, parameter: int) -> Tensor:
        """A state of a parameter, by its place in the lists; of no elements where there is none."""
        if parameter < 0 or parameter >= len(self.counts):
            raise ValueError(self.rule + "there is no parameter " + str(parameter) + " with states")
        if name == "step":
            return torch.tensor(self.counts[parameter], dtype=torch.float64)
        for i in range(len(self.number_names)):
            if self.number_names[i] == name:
                return torch.tensor(self.numbers[parameter][i], dtype=torch.float64)
        for i in range(len(self.tensor_names)):
            if self.tensor_names[i] == name:
                for k in range(len(self.packs)):
                    if parameter in self.packs[k]:
                        return self._unpacked(k, self.packs[k].index(parameter))[i]
                return self.tensors[parameter][i]
        there = "; there are " + ", ".join(self.state_names())
        raise ValueError(self.rule + "there is no state " + name + there)

    def _unpacked(self, pack: int, place: int) -> list[Tensor]:
        """Return the states of a parameter in a pack."""
        begin = 0
        for length in self.lengths[pack][:place]:
            begin += length
        shape = self.shapes[self.packs[pack][place]]
        count = self.lengths[pack][place]
        return [t if t.numel() == 0 else t.narrow(0, begin, count).view(shape) for t in self.flats[pack]]

    # What a step goes by ------------------------------------------------------------------------------------

    def _owners(self, count: int, grads: int) -> list[int]:
        """Return the group of each parameter."""
        if count != grads:
            told = str(count) + " parameters, but " + str(grads) + " gradients; "
            raise ValueError(self.rule + told + "give an empty tensor where there is none")
        owner: list[int] = []
        for i in range(len(self.sizes)):
            for _ in range(count if self.sizes[i] < 0 else self.sizes[i]):
                owner.append(i)
        if len(owner) != count:
            told = "the groups have " + str(len(owner)) + " parameters, but " + str(count) + " were given"
            raise ValueError(self.rule + told)
        held = len(self.counts)
        if count < held or (self.sizes[0] < 0 and held > 0 and count != held):
            told = str(held) + " parameters have made steps, but " + str(count) + " were given"
            raise ValueError(self.rule + told)
        return owner

    def _refuse(self, i: int, p: Tensor, g: Tensor) -> None:
        """Raise what is wrong with a parameter or its gradient, if something is."""
        who = self.rule + "parameter " + str(i) + " of shape " + str(p.shape)
        if not p.is_floating_point():
            raise ValueError(who + " is neither of real numbers nor of a type with fractions")
        if i < len(self.counts):
            if self.shapes[i] != list(p.shape):
                raise ValueError(who + " had the shape " + str(self.shapes[i]) + " before")
            if self.types[i] != p.dtype:
                raise ValueError(who + " had another number type before")
        if g.numel() > 0:
            if g.shape != p.shape:
                raise ValueError(who + " has a gradient of shape " + str(g.shape))
            if g.dtype != p.dtype:
                raise ValueError(who + " has a gradient of another number type")
            if g.device != p.device:
                raise ValueError(who + " has a gradient on another device")

    def _is_usual(self, params: list[Tensor], grads: list[Tensor]) -> bool:
        """Check the arguments; return whether those that have gradients are those of the last step."""
        usual = not self.stale and len(self.active) == len(params)
        for i in range(len(params)):
            p, g = params[i], grads[i]
            if not usual or self.shapes[i] != list(p.shape) or self.types[i] != p.dtype:
                self._refuse(i, p, g)
            if g.numel() > 0:
                if not g.is_same_size(p) or g.dtype != p.dtype or g.device != p.device:
                    self._refuse(i, p, g)
                usual = usual and self.active[i] and self.contiguous[i] == p.is_contiguous()
            else:
                usual = usual and not self.active[i]
        for i in range(len(self.hypers)):
            for j in range(len(self.names)):
                if math.isnan(self.hypers[i][j]):
                    raise ValueError(self.rule + self.names[j] + " has no value yet; set it with set_hyper")
            unmet = _unmet(self._known(i))
            if unmet != "":
                raise ValueError(self.rule + unmet)
        return usual

    def _known(self, group: int) -> list[float]:
        """Return values by place: those of a group, and zeros for what belongs to a tensor or comes later."""
        return self.hypers[group] + self.later

    def _choose(self, event: int, params: list[Tensor], owner: list[int]) -> list[int]:
        """Return the variant of each parameter; raise if one has none."""
        chosen: list[int] = []
        for i in range(len(params)):
            p = params[i]
            known = self._known(owner[i])
            _fill(known, p)
            who = self.rule + "parameter " + str(i) + " of shape " + str(p.shape)
            unsuited = _unsuited(known)
            if unsuited != "":
                raise ValueError(who + " does not suit the rule: " + unsuited)
            variant = _variant(event, p.dim(), known)
            if variant == -1:
                told = self.rule + "this file has no formulas for parameter " + str(i) + " of shape " + str(p.shape)
                told += " with these hyperparameters; "
                raise ValueError(told + "emit the rule anew with --set for those that choose formulas")
            chosen.append(variant)
        return chosen

    def _bases(self) -> list[list[float]]:
        """Return the known values of each group, states of groups and of the whole optimizer among them."""
        bases: list[list[float]] = []
        for i in range(len(self.hypers)):
            known = self._known(i)
            if len(self.group_states[i]) == 0:
                self.group_states[i] = _start_group(known)
            if len(self.shared_states) == 0:
                self.shared_states = _start_shared(known)
            for j in range(len(self.group_states[i])):
                known[self.group_place + j] = self.group_states[i][j]
                known[self.group_place + self.groups_count + j] = self.group_states[i][j]
            for j in range(len(self.shared_states)):
                known[self.shared_place + j] = self.shared_states[j]
                known[self.shared_place + self.shares + j] = self.shared_states[j]
            known[self.time - 1] = self.group_steps[i]
            bases.append(known)
        return bases

    def _filled(self, base: list[float], i: int, p: Tensor) -> list[float]:
        """Return the known values of a parameter."""
        known = base.copy()
        known[self.time] = self.counts[i] + 1.0
        known[self.time + 1] = 1.0 if self.counts[i] == 0.0 else 0.0
        _fill(known, p)
        for j in range(len(self.number_names)):
            known[self.hosted + j] = self.numbers[i][j]
        return known

    # Cohorts ------------------------------------------------------------------------------------------------

    def _unpack(self) -> None:
        """Give every parameter its states back."""
        for k in range(len(self.packs)):
            for place in range(len(self.packs[k])):
                self.tensors[self.packs[k][place]] = [t.clone() for t in self._unpacked(k, place)]
        for places in [self.cohorts, self.single, self.packed, self.packs, self.lengths]:
            places.clear()
        for tensors in [self.flats, self.views]:
            tensors.clear()

    def _begin(self, params: list[Tensor], chosen: list[int]) -> None:
        """Take note of the parameters and of their variants."""
        for i in range(len(params)):
            if i < len(self.counts):
                self.variants[i] = chosen[i]
            else:
                self.variants.append(chosen[i])
                self.counts.append(0.0)
                self.shapes.append(list(params[i].shape))
                self.types.append(params[i].dtype)
                none = torch.empty([0], dtype=params[i].dtype, device=params[i].device)
                self.tensors.append([none for _ in self.tensor_names])
                self.numbers.append([math.nan for _ in self.number_names])
        self.stale = False

    def _begun(self, i: int) -> bool:
        """Whether a parameter has every state of its variant."""
        tensors = [self.tensors[i][j].numel() > 0 for j in self.tensors_of[self.variants[i]]]
        numbers = [not math.isnan(self.numbers[i][j]) for j in self.numbers_of[self.variants[i]]]
        return self.counts[i] > 0.0 and all(tensors) and all(numbers)

    def _gather(self, bases: list[list[float]], params: list[Tensor], grads: list[Tensor]) -> None:
        """Sort the parameters that have gradients into cohorts, and start the states of new ones."""
        knowns: list[list[float]] = []
        for i in range(len(params)):
            if self.active[i]:
                p = params[i]
                known = self._filled(bases[self.owner[i]], i, p)
                if not self._begun(i):
                    _start(self.variants[i], p, grads[i], known, self.tensors[i], self.numbers[i])
                    known = self._filled(bases[self.owner[i]], i, p)
                found = -1
                for k in range(len(self.cohorts)):
                    j = self.cohorts[k][0]
                    if (
                        self.owner[j] == self.owner[i]
                        and self.variants[j] == self.variants[i]
                        and self.types[j] == self.types[i]
                        and params[j].device == p.device
                        and knowns[k] == known
                    ):
                        found = k
                        break
                if found < 0:
                    found = len(self.cohorts)
                    knowns.append(known)
                    none: list[int] = []
                    self.cohorts.append(none)
                self.cohorts[found].append(i)
        for members in self.cohorts:
            self._pack(params, members)

    def _pack(self, params: list[Tensor], members: list[int]) -> None:
        """Put the small parameters of a cohort into packs, if there are several."""
        single: list[int] = []
        packed: list[int] = []
        pack: list[int] = []
        total = 0
        for i in members:
            p, s = params[i], self.tensors[i]
            held = sum([t.numel() for t in s])  # not of another variant
            packable = held == p.numel() * len(self.tensors_of[self.variants[i]]) and _dense(p, s)
            if not packable or not self.elementwise[self.variants[i]] or p.numel() > 8192:
                single.append(i)
            elif total + p.numel() > 131072:
                packed.append(self._close(params, pack))
                pack = [i]
                total = p.numel()
            else:
                pack.append(i)
                total += p.numel()
        if len(pack) > 1:
            packed.append(self._close(params, pack))
        else:
            single.extend(pack)
        self.single.append(single)
        self.packed.append(packed)

    def _close(self, params: list[Tensor], pack: list[int]) -> int:
        """Make a pack of some parameters, and return its number."""
        places = range(len(self.tensor_names))
        flats = [torch.cat([self.tensors[i][j].reshape(-1) for i in pack]) for j in places]
        none: list[Tensor] = []
        for i in pack:
            self.tensors[i] = none
        self.packs.append(pack)
        self.lengths.append([params[i].numel() for i in pack])
        self.flats.append(flats)
        self.views.append(none.copy())
        return len(self.packs) - 1

    # Steps --------------------------------------------------------------------------------------------------

    @torch.jit.export
    def step(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Update the parameters that have gradients; nothing is changed if something is wrong."""
        # Under `no_grad`, autograd would stay off: a method that has waited for tasks goes on in another thread.
        self._step([p.detach() for p in params], [g.detach() for g in grads])

    def _step(self, params: list[Tensor], grads: list[Tensor]) -> None:
        if not self.training_mode:
            told = "the parameters are those to evaluate with; call train_params before step"
            raise ValueError(self.rule + told)
        owner = self._owners(len(params), len(grads))
        usual = self._is_usual(params, grads)
        if not usual:
            chosen = self.variants
            if self.stale or len(self.counts) < len(params):
                chosen = self._choose(0, params, owner)
            self._unpack()
            self._begin(params, chosen)
            self.owner = owner
            self.active = [g.numel() > 0 for g in grads]
            self.contiguous = [p.is_contiguous() for p in params]
        if not any(self.active):
            return
        bases = self._bases()
        self._advance_groups(bases)
        if not usual:
            self._gather(bases, params, grads)
        self._run_levels(bases, params, grads)

    def _advance_groups(self, bases: list[list[float]]) -> None:
        """Compute what belongs to groups that have gradients."""
        last = -1
        for i in range(len(self.active)):
            if self.active[i] and self.owner[i] != last:
                last = self.owner[i]
                self.group_steps[last] += 1.0
                bases[last][self.time - 1] = self.group_steps[last]
                if self.groups_count > 0:
                    self.group_states[last] = _group(self.variants[i], bases[last])
                    for j in range(self.groups_count):
                        bases[last][self.group_place + self.groups_count + j] = self.group_states[last][j]

    def _run_levels(self, bases: list[list[float]], params: list[Tensor], grads: list[Tensor]) -> None:
        """Run the stages of all levels, and advance what is counted."""
        first = bases[0].copy()
        for base in bases:
            first[self.time - 1] = max(first[self.time - 1], base[self.time - 1])
        sums = [0.0 for _ in range(self.sums)]
        none: list[Tensor] = []
        carries = [none.copy() for _ in params]
        ways: list[int] = []
        for level in range(self.levels + 1):
            if self.sums + self.shares > 0:
                _late(level, self.variants[self.cohorts[0][0]], first, sums)
                for base in bases:
                    for j in range(self.sums):
                        base[self.totals_place + j] = first[self.totals_place + j]
                    for j in range(self.shares):
                        base[self.shared_place + self.shares + j] = first[self.shared_place + self.shares + j]
            tasks: list[torch.jit.Future[None]] = []
            parts: list[list[float]] = []
            for k in range(len(self.cohorts)):
                i = self.cohorts[k][0]
                known = self._filled(bases[self.owner[i]], i, params[i])
                if level == 0:
                    ways.append(_path(self.variants[i], known))
                if level < self.levels:
                    self._run_cohort(level, k, ways[k], known, params, grads, carries, parts, tasks)
                else:
                    self._advance_cohort(k, ways[k], known)
            for task in tasks:
                torch.jit.wait(task)
            for part in parts:
                for j in range(self.sums):
                    sums[j] += part[j]
        for k in range(len(self.packs)):
            views = self.views[k]
            torch.split_with_sizes_copy(views.pop(), self.lengths[k], out=views)
            views.clear()
        for j in range(self.shares):
            self.shared_states[j] = first[self.shared_place + self.shares + j]

    def _run_cohort(
        self,
        level: int,
        cohort: int,
        way: int,
        known: list[float],
        params: list[Tensor],
        grads: list[Tensor],
        carries: list[list[Tensor]],
        parts: list[list[float]],
        tasks: list[torch.jit.Future[None]],
    ) -> None:
        """Run the stages of a level on the parameters of a cohort; large ones are left to tasks."""
        v = _numbers(level, way, known)
        c = [_packed(x, params[self.cohorts[cohort][0]]) for x in v]
        for k in self.packed[cohort]:
            views = self.views[k]
            if level == 0:  # the last one is what the parameters become
                views.clear()
                for i in self.packs[k]:
                    views.append(params[i].view(-1))
                views.append(torch.cat(views))
            g = torch.cat([grads[i].reshape(-1) for i in self.packs[k]])
            carry, none = carries[self.packs[k][0]], [0.0]
            tasks.append(torch.jit.fork(_run, level, way, views[-1], g, self.flats[k], carry, none, v, c))
        for i in self.single[cohort]:
            p, g, s = params[i], grads[i], self.tensors[i]
            sums = [0.0 for _ in range(self.sums)]
            parts.append(sums)
            if p.numel() <= 32768 or p.device.type != "cpu" or self.alone[way]:
                _run(level, way, p, g, s, carries[i], sums, v, c)
            elif self.elementwise[self.variants[i]] and _dense(p, s) and g.is_contiguous():
                tasks.extend(_run_pieces(level, way, p, g, s, v, c))
            else:
                tasks.append(torch.jit.fork(_run, level, way, p, g, s, carries[i], sums, v, c))

    def _advance_cohort(self, cohort: int, way: int, known: list[float]) -> None:
        """Count a step, and compute what states that are numbers become."""
        for i in self.cohorts[cohort]:
            self.counts[i] += 1.0
            if len(self.number_names) > 0:
                _advance(way, known, self.numbers[i])

    # Events -------------------------------------------------------------------------------------------------

    @torch.jit.export
    def eval_params(self, params: list[Tensor]) -> None:
        """Make the parameters those to evaluate with; nothing if they are."""
        if self.training_mode:
            with torch.no_grad():
                self._event(1, params)
            self.training_mode = False

    @torch.jit.export
    def train_params(self, params: list[Tensor]) -> None:
        """Make the parameters those to go on training with; nothing if they are."""
        if not self.training_mode:
            with torch.no_grad():
                self._event(2, params)
            self.training_mode = True

    def _event(self, event: int, params: list[Tensor]) -> None:
        owner = self._owners(len(params), len(params))
        self._is_usual(params, params)
        chosen = self._choose(event, params, owner)
        self._unpack()
        self.stale = True
        bases = self._bases()
        for i in range(len(self.counts)):
            if self.counts[i] > 0.0 and chosen[i] != -2:
                p = params[i].detach()
                known = self._filled(bases[owner[i]], i, p)
                way = _path(chosen[i], known)
                v = _numbers(0, way, known)
                carry: list[Tensor] = []
                sums: list[float] = []
                _run(0, way, p, p.clone(), self.tensors[i], carry, sums, v, [_packed(x, p) for x in v])
                _advance(way, known, self.numbers[i])
