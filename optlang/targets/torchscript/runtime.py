"""What is around the formulas of a rule in a TorchScript module, as Python that runs and that ``torch.jit.script`` takes.

A module has all of it. What stands in capitals, and the functions of the first part, are written for each rule (see
:mod:`optlang.targets.torchscript`); the rule that stands here for others is gradient descent.
"""

import math
from typing import Final

import torch
from torch import Tensor

# The rule ---------------------------------------------------------------------------------------------------------

#: Its name.
NAME: str = "Descent"
#: The hyperparameters that may be set, their defaults, and which of them choose between formulas.
HYPERS: list[str] = ["lr"]
DEFAULTS: list[float] = [0.1]
ASKED: list[bool] = [False]
#: The hyperparameters that are chosen for good, with their values, and the parts of those that have parts.
FIXED: dict[str, str] = {}
PARTS: dict[str, str] = {}
#: The states of a parameter: tensors, and numbers.
TENSORS: list[str] = []
NUMBERS: list[str] = []
#: The places of those of each variant among them, and whether its steps update every element from itself alone.
TENSORS_OF: list[list[int]] = [[]]
NUMBERS_OF: list[list[int]] = [[]]
ELEMENTWISE: list[bool] = [True]
#: Whether the stages of each way use all threads for one tensor.
ALONE: list[bool] = [False]
#: How many values are known of a tensor, and where some begin: states of its group, of the whole optimizer, sums over
#: the model, the steps of the tensor (before them, those of the group), and its states that are numbers.
KNOWN: int = 12
GROUP: int = 1
SHARED: int = 1
TOTALS: int = 1
TIME: int = 2
HOSTED: int = 12
#: How many states groups have, and the whole optimizer; how many sums there are, and how many levels of stages.
GROUPS: int = 0
SHARES: int = 0
SUMS: int = 0
LEVELS: int = 1


def _problem(place: int, x: float) -> str:
    """What is wrong with the value of a hyperparameter."""
    return "lr must not be NaN" if math.isnan(x) else ""


def _unmet(_known: list[float]) -> str:
    """What is required of hyperparameters and does not hold."""
    return ""


def _unsuited(_known: list[float]) -> str:
    """What is required of a tensor and does not hold."""
    return ""


def _fill(known: list[float], p: Tensor) -> None:
    """Put down the facts of a tensor that are asked for."""
    known[4] = float(p.dim())


def _variant(event: int, dim: int, _known: list[float]) -> int:
    """Which formulas are for a tensor; -1 if there are none, -2 if an event has none."""
    return 0


def _start(variant: int, p: Tensor, g: Tensor, known: list[float], s: list[Tensor], n: list[float]) -> None:
    """Put initial values where a tensor has no states yet."""
    return


def _path(variant: int, known: list[float]) -> int:
    """Number of the way of a step."""
    return 0


def _numbers(level: int, way: int, known: list[float]) -> list[list[float]]:
    """Coefficients of the stages of a level."""
    return [[known[0]]]


def _run(
    level: int,
    way: int,
    p: Tensor,
    g: Tensor,
    s: list[Tensor],
    carry: list[Tensor],
    sums: list[float],
    v: list[list[float]],
    c: list[Tensor],
) -> None:
    """Run the stages of a level on one tensor."""
    p.sub_(c[0][0] * g)


def _advance(way: int, known: list[float], n: list[float]) -> None:
    """Compute what states that are numbers become."""
    return


def _group(variant: int, known: list[float]) -> list[float]:
    """New values of the states of a group."""
    return [0.0]


def _start_group(_known: list[float]) -> list[float]:
    """Initial values of the states of a group."""
    none: list[float] = []
    return none


def _start_shared(_known: list[float]) -> list[float]:
    """Initial values of the states of the whole optimizer."""
    none: list[float] = []
    return none


def _late(level: int, variant: int, known: list[float], sums: list[float]) -> None:
    """Put down sums over the model and states of the whole optimizer that are known once a level is done."""
    return


# What functions of rules call -------------------------------------------------------------------------------------


def _arithmetic(p: Tensor) -> torch.dtype:
    """The number type in which a parameter is updated."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _packed(numbers: list[float], p: Tensor) -> Tensor:
    """Numbers as a tensor; `torch.tensor` of a list rounds to 32 bits on the way."""
    if p.dtype == torch.float64:
        return torch.cat([torch.full([1], x, dtype=torch.float64, device=p.device) for x in numbers])
    return torch.tensor(numbers, dtype=torch.float32, device=p.device)


def _eps_of(p: Tensor) -> float:
    """Machine epsilon of the type that a parameter is stored in."""
    if p.dtype == torch.float64:
        return 2.220446049250313e-16
    if p.dtype == torch.bfloat16:
        return 0.0078125
    if p.dtype == torch.float16:
        return 0.0009765625
    return 1.1920928955078125e-07


def _size(p: Tensor, place: int) -> float:
    """Size of a dimension; 1 where there is none."""
    if place < 0:
        place = place + p.dim()
    return float(p.size(place)) if 0 <= place and place < p.dim() else 1.0


def _reduced(p: Tensor, dims: list[int]) -> list[int]:
    """Shape of a tensor with some of its sizes 1."""
    sizes: list[int] = []
    for i in range(p.dim()):
        sizes.append(p.size(i))
    for dim in dims:
        sizes[dim] = 1
    return sizes


def _shaped(x: Tensor, sizes: list[int]) -> Tensor:
    """A result in a shape: of as many numbers, or of one number that is spread."""
    count = 1
    for size in sizes:
        count = count * size
    return x.reshape(sizes) if x.numel() == count else x.expand(sizes)


def _put(target: Tensor, result: Tensor) -> None:
    """Write a result that has one dimension more in front."""
    target.copy_(_shaped(result[0], target.shape))


# Chunks -----------------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> int:
    """How many rows of a tensor are worked on at a time: on a processor, as much as stays in a core's cache.

    So much is also what torch gives to one thread.
    """
    if x.device.type != "cpu":
        return x.size(0)
    return max(1, 32768 * x.size(0) // x.numel())


def _lifted(x: list[Tensor]) -> list[Tensor]:
    """Tensors with a dimension at least, so that there are rows."""
    return x if x[0].dim() > 0 else [t.reshape([1]) for t in x]


def _memory(x: Tensor, rows: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Memory for some chunks of a tensor."""
    return torch.empty([count, rows] + x.shape[1:], dtype=dtype, device=x.device).unbind(0)


def _part(x: Tensor, i: int, n: int) -> Tensor:
    """What belongs to n rows from i of a tensor that may be reduced along them."""
    return x if x.dim() == 0 or x.size(0) == 1 or x.size(0) == n else x.narrow(0, i, n)


def _add(whole: Tensor, part: Tensor, i: int) -> None:
    """Add what the rows from i give to sums, or put it where these are of each row."""
    if part.dim() == 0 or whole.size(0) == 1:
        whole.add_(part)
    else:
        whole.narrow(0, i, part.size(0)).copy_(part)


def _extend(whole: Tensor, part: Tensor, i: int, largest: bool) -> None:
    """Do so for the largest or the smallest numbers."""
    if part.dim() == 0 or whole.size(0) == 1:
        whole.copy_(torch.maximum(whole, part) if largest else torch.minimum(whole, part))
    else:
        whole.narrow(0, i, part.size(0)).copy_(part)


def _run_pieces(
    level: int, way: int, p: Tensor, g: Tensor, s: list[Tensor], v: list[list[float]], c: list[Tensor]
) -> list[torch.jit.Future[None]]:
    """Run the stages of a level on pieces of a large tensor, each in a task."""
    tasks: list[torch.jit.Future[None]] = []
    piece = 262144  # eight chunks: a task takes a small part of their time
    for i in range(0, p.numel(), piece):
        n = min(piece, p.numel() - i)
        pieces = [t if t.numel() == 0 else t.view(-1).narrow(0, i, n) for t in s]
        carry: list[Tensor] = []
        sums: list[float] = []
        part = p.view(-1).narrow(0, i, n)
        tasks.append(torch.jit.fork(_run, level, way, part, g.view(-1).narrow(0, i, n), pieces, carry, sums, v, c))
    return tasks


def _dense(p: Tensor, s: list[Tensor]) -> bool:
    """Whether all tensors lie in memory in the order of their elements."""
    dense = p.is_contiguous()
    for t in s:
        dense = dense and t.is_contiguous()
    return dense


class ScriptedRule(torch.nn.Module):
    """An optimizer: ``step(params, grads)`` updates the parameters of all groups, which follow one another in the lists.

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
    known_count: Final[int]
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
        self.rule = NAME + ": "
        self.names, self.defaults, self.asked = HYPERS, DEFAULTS, ASKED
        self.fixed, self.parts = FIXED, PARTS
        self.tensor_names, self.number_names = TENSORS, NUMBERS
        self.tensors_of, self.numbers_of, self.elementwise, self.alone = TENSORS_OF, NUMBERS_OF, ELEMENTWISE, ALONE
        self.hypers = [DEFAULTS.copy()]
        self.sizes = [-1]
        self.group_states = [[]]
        self.group_steps = [0.0]
        self.shared_states = []
        self.tensors, self.numbers = [], []
        self.counts, self.variants, self.shapes, self.types = [], [], [], []
        self.active, self.owner, self.cohorts, self.single, self.packed = [], [], [], [], []
        self.packs, self.lengths, self.flats, self.views = [], [], [], []
        self.stale = False
        self.training_mode = True
        self.known_count, self.levels, self.sums = KNOWN, LEVELS, SUMS
        self.group_place, self.groups_count = GROUP, GROUPS
        self.shared_place, self.shares = SHARED, SHARES
        self.totals_place, self.time, self.hosted = TOTALS, TIME, HOSTED

    # Hyperparameters and groups -----------------------------------------------------------------------------

    @torch.jit.export
    def hyper_names(self) -> list[str]:
        """Names of the hyperparameters that may be set."""
        return self.names

    @torch.jit.export
    def hyper(self, name: str, group: int = 0) -> float:
        """Value of a hyperparameter in a group."""
        place = self._place(name)
        if group < 0 or group >= len(self.hypers):
            raise ValueError(self.rule + "there is no group " + str(group))
        return self.hypers[group][place]

    @torch.jit.export
    def set_hyper(self, name: str, value: float, group: int = -1) -> None:
        """Set a hyperparameter in a group, or in all of them."""
        place = self._place(name)
        problem = _problem(place, value)
        if problem != "":
            raise ValueError(self.rule + problem)
        if group < -1 or group >= len(self.hypers):
            raise ValueError(self.rule + "there is no group " + str(group))
        for i in range(len(self.hypers)):
            if group == -1 or group == i:
                self.hypers[i][place] = value
        self.stale = self.stale or self.asked[place]

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
            before = 0
            for i in range(len(self.sizes)):
                if i >= len(sizes) or (self.sizes[i] >= 0 and sizes[i] != self.sizes[i]):
                    raise ValueError(self.rule + "groups that have made steps cannot change their sizes")
                before += sizes[i]
            if before != held:
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
        if count < held or (self.sizes[0] < 0 and 0 < held and count != held):
            told = str(held) + " parameters have made steps, but " + str(count) + " were given"
            raise ValueError(self.rule + told)
        return owner

    def _refuse(self, i: int, p: Tensor, g: Tensor) -> None:
        """Raise what is wrong with a parameter or its gradient, if something is."""
        who = self.rule + "parameter " + str(i) + " of shape " + str(p.shape)
        if not p.is_floating_point():
            raise ValueError(who + " is neither of real numbers nor of a type with fractions")
        if i < len(self.counts):
            if self.shapes[i] != p.shape:
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
            if not usual or self.shapes[i] != p.shape or self.types[i] != p.dtype:
                self._refuse(i, p, g)
            if g.numel() > 0:
                if not g.is_same_size(p) or g.dtype != p.dtype or g.device != p.device:
                    self._refuse(i, p, g)
                usual = usual and self.active[i]
            elif usual and self.active[i]:
                usual = False
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
        known = self.hypers[group].copy()
        for _ in range(self.known_count - len(known)):
            known.append(0.0)
        return known

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
        self.cohorts.clear()
        self.single.clear()
        self.packed.clear()
        self.packs.clear()
        self.lengths.clear()
        self.flats.clear()
        self.views.clear()

    def _begin(self, params: list[Tensor], chosen: list[int]) -> None:
        """Take note of the parameters and of their variants."""
        for i in range(len(params)):
            if i < len(self.counts):
                self.variants[i] = chosen[i]
            else:
                self.variants.append(chosen[i])
                self.counts.append(0.0)
                self.shapes.append(params[i].shape)
                self.types.append(params[i].dtype)
                none = torch.empty([0], dtype=params[i].dtype, device=params[i].device)
                self.tensors.append([none for _ in self.tensor_names])
                self.numbers.append([math.nan for _ in self.number_names])
        self.stale = False

    def _begun(self, i: int) -> bool:
        """Whether a parameter has every state of its variant."""
        if self.counts[i] == 0.0:
            return False
        for j in self.tensors_of[self.variants[i]]:
            if self.tensors[i][j].numel() == 0:
                return False
        for j in self.numbers_of[self.variants[i]]:
            if math.isnan(self.numbers[i][j]):
                return False
        return True

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
            if not self.elementwise[self.variants[i]] or p.numel() > 8192 or not _dense(p, s):
                single.append(i)
            elif total + p.numel() > 32768:
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
        flats: list[Tensor] = []
        for j in range(len(self.tensor_names)):
            flats.append(torch.cat([self.tensors[i][j].reshape(-1) for i in pack]))
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
        with torch.no_grad():
            self._step(params, grads)

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
        carries: list[list[Tensor]] = []
        for _ in params:
            none: list[Tensor] = []
            carries.append(none)
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
        first = params[self.cohorts[cohort][0]]
        v = _numbers(level, way, known)
        c = [_packed(x, first) for x in v]
        for k in self.packed[cohort]:
            views = self.views[k]
            if len(views) == 0:  # the last one is what the parameters become
                for i in self.packs[k]:
                    views.append(params[i].detach().view(-1))
                views.append(torch.cat(views))
            g = torch.cat([grads[i].reshape(-1) for i in self.packs[k]])
            carry, none = carries[self.packs[k][0]], [0.0]
            tasks.append(torch.jit.fork(_run, level, way, views[-1], g, self.flats[k], carry, none, v, c))
        for i in self.single[cohort]:
            p, g, s = params[i].detach(), grads[i], self.tensors[i]
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
