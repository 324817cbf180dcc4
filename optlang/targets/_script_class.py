"""The part of a TorchScript module that is the same for every rule: hyperparameters, groups, states, checks."""

from __future__ import annotations

#: Functions that the generated ones call.
COMMON = '''
def _arithmetic(p) -> int:
    """The number type in which a parameter is updated."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _packed(numbers: List[float], p):
    """Numbers as a tensor; `torch.tensor` of a list rounds to 32 bits on the way."""
    if p.dtype == torch.float64:
        return torch.cat([torch.full([1], x, dtype=torch.float64, device=p.device) for x in numbers])
    return torch.tensor(numbers, dtype=torch.float32, device=p.device)


def _eps_of(p) -> float:
    """Machine epsilon of the type that a parameter is stored in."""
    if p.dtype == torch.float64:
        return 2.220446049250313e-16
    if p.dtype == torch.bfloat16:
        return 0.0078125
    if p.dtype == torch.float16:
        return 0.0009765625
    return 1.1920928955078125e-07


def _size(p, place: int) -> float:
    """Size of a dimension; 1 where there is none."""
    if place < 0:
        place = place + p.dim()
    return float(p.size(place)) if 0 <= place and place < p.dim() else 1.0


def _reduced(p, dims: List[int]) -> List[int]:
    """Shape of a tensor with some of its sizes 1."""
    sizes: List[int] = []
    for i in range(p.dim()):
        sizes.append(p.size(i))
    for dim in dims:
        sizes[dim] = 1
    return sizes


def _shaped(x, sizes: List[int]):
    """A result in a shape: of as many numbers, or of one number that is spread."""
    count = 1
    for size in sizes:
        count = count * size
    return x.reshape(sizes) if x.numel() == count else x.expand(sizes)


def _put(target, result) -> None:
    """Write a result that has one dimension more in front."""
    target.copy_(_shaped(result[0], target.shape))
'''

#: The class; what stands between at-signs is the rule's.
MODULE = '''
class @NAME@(torch.nn.Module):
    """@TITLE@

    ``step(params, grads)`` updates the parameters of all groups, which follow one another in the lists.
    """

    names: List[str]
    fixed: Dict[str, str]
    parts: Dict[str, str]
    tensor_names: List[str]
    number_names: List[str]
    asked: List[bool]
    hypers: List[List[float]]
    sizes: List[int]
    group_states: List[List[float]]
    group_steps: List[float]
    shared_states: List[float]
    tensors: List[List[Tensor]]
    numbers: List[List[float]]
    counts: List[float]
    variants: List[int]
    shapes: List[List[int]]
    types: List[int]
    stale: bool
    training_mode: bool

    def __init__(self):
        super().__init__()
        self.names = @NAMES@
        self.fixed = @FIXED@
        self.parts = @PARTS@
        self.asked = @ASKED@
        self.tensor_names = @TENSORS@
        self.number_names = @NUMBERS@
        self.hypers = [@DEFAULTS@]
        self.sizes = [-1]
        self.group_states = [[]]
        self.group_steps = [0.0]
        self.shared_states = []
        self.tensors = []
        self.numbers = []
        self.counts = []
        self.variants = []
        self.shapes = []
        self.types = []
        self.stale = False
        self.training_mode = True

    @torch.jit.export
    def hyper_names(self) -> List[str]:
        """Names of the hyperparameters that may be set."""
        return self.names

    @torch.jit.export
    def hyper(self, name: str, group: int = 0) -> float:
        """Value of a hyperparameter in a group."""
        place = self._place(name)
        if group < 0 or group >= len(self.hypers):
            raise ValueError("@RULE@: there is no group " + str(group))
        return self.hypers[group][place]

    @torch.jit.export
    def set_hyper(self, name: str, value: float, group: int = -1) -> None:
        """Set a hyperparameter in a group, or in all of them."""
        place = self._place(name)
        problem = _problem(place, value)
        if problem != "":
            raise ValueError("@RULE@: " + problem)
        if group < -1 or group >= len(self.hypers):
            raise ValueError("@RULE@: there is no group " + str(group))
        for i in range(len(self.hypers)):
            if group == -1 or group == i:
                self.hypers[i][place] = value
        self.stale = self.stale or self.asked[place]

    def _place(self, name: str) -> int:
        for i in range(len(self.names)):
            if self.names[i] == name:
                return i
        if name in self.fixed:
            raise ValueError(
                "@RULE@: " + name + " is fixed at " + self.fixed[name]
                + " in this file; emit the rule anew with --set " + name + "=VALUE"
            )
        if name in self.parts:
            raise ValueError("@RULE@: " + name + " is set part by part: " + self.parts[name])
        raise ValueError("@RULE@: there is no hyperparameter " + name + "; there are " + ", ".join(self.names))

    @torch.jit.export
    def set_groups(self, sizes: List[int]) -> None:
        """Say how many parameters each group has; later calls may only add groups behind the others."""
        held = len(self.counts)
        for size in sizes:
            if size < 0:
                raise ValueError("@RULE@: a group cannot have " + str(size) + " parameters")
        if held > 0:
            before = 0
            for i in range(len(self.sizes)):
                if i >= len(sizes) or (self.sizes[i] >= 0 and sizes[i] != self.sizes[i]):
                    raise ValueError("@RULE@: groups that have made steps cannot change their sizes")
                before = before + sizes[i]
            if before != held:
                raise ValueError("@RULE@: groups that have made steps cannot change their sizes")
        if len(sizes) == 0:
            raise ValueError("@RULE@: there must be a group")
        while len(self.hypers) < len(sizes):
            self.hypers.append(@DEFAULTS@)
            none: List[float] = []
            self.group_states.append(none)
            self.group_steps.append(0.0)
        while len(self.hypers) > len(sizes):
            self.hypers.pop()
            self.group_states.pop()
            self.group_steps.pop()
        self.sizes = sizes

    @torch.jit.export
    def groups(self) -> List[int]:
        """How many parameters each group has; -1 for one that has all there are."""
        return self.sizes

    @torch.jit.export
    def state_names(self) -> List[str]:
        """Names of the states of a parameter."""
        return self.tensor_names + self.number_names + ["step"]

    @torch.jit.export
    def state(self, name: str, parameter: int) -> Tensor:
        """A state of a parameter, by its place in the lists; of no elements where there is none."""
        if parameter < 0 or parameter >= len(self.counts):
            raise ValueError("@RULE@: there is no parameter " + str(parameter) + " with states")
        if name == "step":
            return torch.tensor(self.counts[parameter], dtype=torch.float64)
        for i in range(len(self.tensor_names)):
            if self.tensor_names[i] == name:
                return self.tensors[parameter][i]
        for i in range(len(self.number_names)):
            if self.number_names[i] == name:
                return torch.tensor(self.numbers[parameter][i], dtype=torch.float64)
        raise ValueError("@RULE@: there is no state " + name + "; there are " + ", ".join(self.state_names()))

    def _check(self, params: List[Tensor], grads: List[Tensor]) -> List[int]:
        """Return the group of each parameter; raise what is wrong with the arguments."""
        if len(params) != len(grads):
            raise ValueError(
                "@RULE@: " + str(len(params)) + " parameters, but " + str(len(grads)) + " gradients; "
                + "give an empty tensor where there is none"
            )
        owner: List[int] = []
        for i in range(len(self.sizes)):
            count = len(params) if self.sizes[i] < 0 else self.sizes[i]
            for _ in range(count):
                owner.append(i)
        if len(owner) != len(params):
            raise ValueError(
                "@RULE@: the groups have " + str(len(owner)) + " parameters, but " + str(len(params)) + " were given"
            )
        if len(params) < len(self.counts) or (self.sizes[0] < 0 and 0 < len(self.counts) and
                                              len(params) != len(self.counts)):
            raise ValueError(
                "@RULE@: " + str(len(self.counts)) + " parameters have made steps, but " + str(len(params))
                + " were given"
            )
        for i in range(len(params)):
            p = params[i]
            g = grads[i]
            who = "@RULE@: parameter " + str(i) + " of shape " + str(p.shape)
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
        for i in range(len(self.hypers)):
            for j in range(len(self.names)):
                if math.isnan(self.hypers[i][j]):
                    raise ValueError("@RULE@: " + self.names[j] + " has no value yet; set it with set_hyper")
            unmet = _unmet(self._known(i))
            if unmet != "":
                raise ValueError("@RULE@: " + unmet)
        return owner

    def _known(self, group: int) -> List[float]:
        """Values by place: those of a group, and zeros for what belongs to a tensor or comes later."""
        known = self.hypers[group].copy()
        for _ in range(@KNOWN@ - len(known)):
            known.append(0.0)
        return known

    def _choose(self, event: int, params: List[Tensor], owner: List[int]) -> List[int]:
        """Return the variant of each parameter; raise if one has none."""
        chosen: List[int] = []
        for i in range(len(params)):
            p = params[i]
            known = self._known(owner[i])
            _fill(known, p)
            unsuited = _unsuited(known)
            if unsuited != "":
                raise ValueError(
                    "@RULE@: parameter " + str(i) + " of shape " + str(p.shape) + " does not suit the rule: " + unsuited
                )
            variant = _variant(event, p.dim(), known)
            if variant < 0:
                raise ValueError(
                    "@RULE@: this file has no formulas for parameter " + str(i) + " of shape " + str(p.shape)
                    + " with these hyperparameters; emit the rule anew with --set for those that choose formulas"
                )
            chosen.append(variant)
        return chosen

    def _bases(self) -> List[List[float]]:
        """Return the known values of each group, states of groups and of the whole optimizer among them."""
        bases: List[List[float]] = []
        for i in range(len(self.hypers)):
            known = self._known(i)
            if len(self.group_states[i]) == 0:
                self.group_states[i] = _start_group(known)
            if len(self.shared_states) == 0:
                self.shared_states = _start_shared(known)
            for j in range(len(self.group_states[i])):
                known[@GROUP@ + j] = self.group_states[i][j]
                known[@GROUP@ + @GROUPS@ + j] = self.group_states[i][j]
            for j in range(len(self.shared_states)):
                known[@SHARED@ + j] = self.shared_states[j]
                known[@SHARED@ + @SHARES@ + j] = self.shared_states[j]
            known[@GROUP_TIME@] = self.group_steps[i]
            bases.append(known)
        return bases

    def _filled(self, base: List[float], i: int, p: Tensor) -> List[float]:
        """Return the known values of a parameter."""
        known = base.copy()
        known[@TIME@] = self.counts[i] + 1.0
        known[@TIME@ + 1] = 1.0 if self.counts[i] == 0.0 else 0.0
        _fill(known, p)
        for j in range(len(self.numbers[i])):
            known[@HOSTED@ + j] = self.numbers[i][j]
        return known

    @torch.jit.export
    def step(self, params: List[Tensor], grads: List[Tensor]) -> None:
        """Update the parameters that have gradients; nothing is changed if something is wrong."""
        with torch.no_grad():
            self._step(params, grads)

    def _step(self, params: List[Tensor], grads: List[Tensor]) -> None:
        if not self.training_mode:
            raise ValueError("@RULE@: the parameters are those to evaluate with; call train_params before step")
        owner = self._check(params, grads)
        if self.stale or len(self.counts) < len(params):
            self._begin(params, self._choose(0, params, owner))
        active: List[int] = []
        for i in range(len(params)):
            if grads[i].numel() > 0:
                active.append(i)
        if len(active) == 0:
            return
        bases = self._bases()
        self._advance_groups(bases, active, owner)
        codes: List[int] = []
        knowns: List[List[float]] = []
        carries: List[List[Tensor]] = []
        for i in active:
            known = self._filled(bases[owner[i]], i, params[i])
            if not self._begun(i):
                _start(self.variants[i], params[i], grads[i], known, self.tensors[i], self.numbers[i])
                known = self._filled(bases[owner[i]], i, params[i])
            knowns.append(known)
            codes.append(_path(self.variants[i], known))
            carry: List[Tensor] = []
            carries.append(carry)
        first = bases[0].copy()
        for i in range(len(self.group_steps)):
            first[@GROUP_TIME@] = max(first[@GROUP_TIME@], bases[i][@GROUP_TIME@])
        sums: List[float] = []
        for _ in range(@SUMS@):
            sums.append(0.0)
        for level in range(@LEVELS@):
            if @SUMS@ + @SHARES@ > 0:
                _late(level, self.variants[0], first, sums)
                for base in bases:
                    for j in range(@SUMS@):
                        base[@TOTALS@ + j] = first[@TOTALS@ + j]
                    for j in range(@SHARES@):
                        base[@SHARED@ + @SHARES@ + j] = first[@SHARED@ + @SHARES@ + j]
            if level > 0 or @SUMS@ + @SHARES@ > 0:
                knowns = [self._filled(bases[owner[i]], i, params[i]) for i in active]
            self._run(level, params, grads, active, codes, knowns, carries, sums)
        if @SUMS@ + @SHARES@ > 0:
            _late(@LEVELS@, self.variants[0], first, sums)
            for base in bases:
                for j in range(@SUMS@):
                    base[@TOTALS@ + j] = first[@TOTALS@ + j]
                for j in range(@SHARES@):
                    base[@SHARED@ + @SHARES@ + j] = first[@SHARED@ + @SHARES@ + j]
            for j in range(@SHARES@):
                self.shared_states[j] = first[@SHARED@ + @SHARES@ + j]
        for k in range(len(active)):
            i = active[k]
            if len(self.number_names) > 0:
                known = self._filled(bases[owner[i]], i, params[i])
                _advance(codes[k], known, self.numbers[i])
            self.counts[i] = self.counts[i] + 1.0

    def _begin(self, params: List[Tensor], chosen: List[int]) -> None:
        """Take note of the parameters and of their variants."""
        for i in range(len(params)):
            if i < len(self.counts):
                self.variants[i] = chosen[i]
            else:
                self.variants.append(chosen[i])
                self.counts.append(0.0)
                self.shapes.append(params[i].shape)
                self.types.append(params[i].dtype)
                tensors: List[Tensor] = []
                for _ in range(len(self.tensor_names)):
                    tensors.append(torch.empty([0], dtype=params[i].dtype, device=params[i].device))
                numbers: List[float] = []
                for _ in range(len(self.number_names)):
                    numbers.append(math.nan)
                self.tensors.append(tensors)
                self.numbers.append(numbers)
        self.stale = False

    def _begun(self, i: int) -> bool:
        """Whether a parameter has every state of its variant."""
        if self.counts[i] == 0.0:
            return False
        for j in _tensors_of(self.variants[i]):
            if self.tensors[i][j].numel() == 0:
                return False
        for j in _numbers_of(self.variants[i]):
            if math.isnan(self.numbers[i][j]):
                return False
        return True

    def _advance_groups(self, bases: List[List[float]], active: List[int], owner: List[int]) -> None:
        """Compute what belongs to groups that have gradients."""
        last = -1
        for i in active:
            group = owner[i]
            if group != last:
                last = group
                self.group_steps[group] = self.group_steps[group] + 1.0
                bases[group][@GROUP_TIME@] = self.group_steps[group]
                if @GROUPS@ > 0:
                    self.group_states[group] = _group(self.variants[i], bases[group])
                    for j in range(@GROUPS@):
                        bases[group][@GROUP@ + @GROUPS@ + j] = self.group_states[group][j]

    def _run(
        self,
        level: int,
        params: List[Tensor],
        grads: List[Tensor],
        active: List[int],
        codes: List[int],
        knowns: List[List[float]],
        carries: List[List[Tensor]],
        sums: List[float],
    ) -> None:
        """Run the passes of a level; tensors of which the same is known share coefficients."""
        last: List[float] = []
        code = -1
        dtype = -1
        v: List[List[float]] = []
        c: List[Tensor] = []
        for k in range(len(active)):
            i = active[k]
            p = params[i]
            known = knowns[k]
            if code != codes[k] or dtype != p.dtype or known != last or c[0].device != p.device:
                v = _numbers(level, codes[k], known)
                c = [_packed(x, p) for x in v]
                if len(c) == 0:
                    c = [torch.empty([0], device=p.device)]
                code = codes[k]
                dtype = p.dtype
                last = known
            _run(level, code, p, grads[i], self.tensors[i], carries[k], sums, v, c)
'''

#: Methods of rules with other parameters for evaluation than for training.
EVENTS = '''
    @torch.jit.export
    def eval_params(self, params: List[Tensor]) -> None:
        """Make the parameters those to evaluate with; nothing if they are."""
        if self.training_mode:
            with torch.no_grad():
                self._event(1, params)
            self.training_mode = False

    @torch.jit.export
    def train_params(self, params: List[Tensor]) -> None:
        """Make the parameters those to go on training with; nothing if they are."""
        if not self.training_mode:
            with torch.no_grad():
                self._event(2, params)
            self.training_mode = True

    def _event(self, event: int, params: List[Tensor]) -> None:
        owner = self._check(params, params)
        chosen = self._choose(event, params, owner)
        bases = self._bases()
        for i in range(len(self.counts)):
            if self.counts[i] > 0.0 and chosen[i] != -2:
                p = params[i]
                known = self._filled(bases[owner[i]], i, p)
                code = _path(chosen[i], known)
                v = _numbers(0, code, known)
                c = [_packed(x, p) for x in v]
                carry: List[Tensor] = []
                sums: List[float] = []
                _run(0, code, p, p.clone(), self.tensors[i], carry, sums, v, c)
                _advance(code, known, self.numbers[i])
'''
