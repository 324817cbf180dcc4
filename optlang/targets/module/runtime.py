"""What is around the formulas of a rule in a file of the target ``module``, as Python that runs.

A file takes from here what its rule needs (see :mod:`optlang.targets.module.trim`): the names in capitals at the top
are put in as constants, branches that they close go, and so does what is not used then. The rule that stands here for
others is gradient descent.

It is longer than other files here because files are taken from one: what a rule needs of it is about a third. Some of
it does what :mod:`optlang.runtime` does for compiled classes (``Evaluation`` what ``optlang/runtime/evaluation.py``
does, ``mixed`` what ``rng.py`` does): files are used without this package, so they cannot import that.
"""

import functools
import math
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What a rule may need --------------------------------------------------------------------------------------------

#: Its name.
NAME = "Descent"
#: Whether some hyperparameters have other keys than their names, some have a range, and some may be None.
KEYS_DIFFER: bool = False
RANGES: bool = True
OPTIONAL: bool = False
#: Whether a step of one tensor is more than one function.
STAGED: bool = False
#: Whether there are several forms of the rule, and whether options or shapes choose one or are refused.
FORMS: bool = True
CHOOSES: bool = True
#: Whether some options or shapes are refused.
REFUSES: bool = True
#: Whether forms differ in nothing but their states.
ONLY_STATES: bool = False
#: Whether arithmetic on numbers may raise an error in Python (1/0).
IEEE: bool = False
#: Whether the dimensions of a tensor matter, whether some tensors are one number, and whether matrices are multiplied.
LAYOUTS: bool = False
SCALARS: bool = False
MATRICES: bool = False
#: Whether what is done to a matrix depends on its own values.
ALONE: bool = False
#: Whether tensors of few dimensions are refused, and complex ones by some forms; whether any form takes complex ones.
LEAST: bool = False
REAL: bool = False
COMPLEX: bool = True
#: Whether it reads facts about a tensor, which update it is, and whether that is the first.
FACTS: bool = False
TIME: bool = False
FIRST: bool = False
#: Whether updates are counted, and whether that depends on the form.
COUNTS: bool = False
COUNTS_DIFFER: bool = False
#: Whether every tensor has some state after a step, whether which depends on the form, and whether what it begins with
#: depends on numbers.
HELD: bool = False
STATES_DIFFER: bool = False
START_READS: bool = False
#: Whether some states are numbers on the host, and whether what they become depends on the path of a step.
HOSTED: bool = False
HOSTED_BY_PATH: bool = False
#: Whether param groups count steps, and whether they have states.
COUNTS_GROUP: bool = False
GROUPED: bool = False
#: Whether a step has several paths, whether values arrive while it runs, and whether it waits for some.
PATHS: bool = False
ARRIVES: bool = False
LATE: bool = False
#: Whether the closure is called again, whether its loss is read, where it starts or at other points, and whether it is
#: called at other points or for products with the Hessian.
ASKED: bool = False
LOSS: bool = False
LOSS_AT_POINTS: bool = False
POINTS: bool = False
AT_POINTS: bool = False
CURVED: bool = False
#: Whether it draws random numbers, and whether some are not shaped like the parameter.
DRAWS: bool = False
SIZED: bool = False
#: Whether what stages hand on may be smaller than the parameter.
REDUCES: bool = False
#: Whether there are parameters to evaluate with.
EVENTS: bool = False
#: What the step count of a param group and the loss are called among the values that functions take.
GROUP_TIME = "group_t"
LOSS_NOW = "loss_now"

# The rule --------------------------------------------------------------------------------------------------------

HYPERPARAMETERS: tuple[tuple[Any, ...], ...] = (("lr", "lr", None, "a number", ">= 0", lambda x: 0 <= x < math.inf),)
KINDS: dict[str, Callable[[Any], bool]] = {"a number": lambda x: isinstance(x, float)}
TUPLES: dict[str, tuple[str, ...]] = {}
REQUIREMENTS: tuple[tuple[str, Callable[..., bool]], ...] = ()
GROUP_KEYS: dict[str, str] = {}
KEPT: dict[str, str] = {}
SHARED: tuple[str, ...] = ()
TOTALS: tuple[str, ...] = ()


def start(p_mem: Tensor, g_mem: Tensor) -> dict[str, Any]:
    """Initial values of the states of one tensor."""
    return {}


def host(lr: float) -> tuple[float, ...]:
    """Coefficients of one step, in float64."""
    return (lr,)


def update(p_mem: Tensor, g_mem: Tensor, c: Tensor) -> None:
    """One step of one tensor, in place; c holds what host returned."""
    (lr,) = c.unbind()
    p_mem.copy_(p_mem.to(c.dtype) - lr * g_mem.to(c.dtype))


def in_groups() -> dict[str, float]:
    """Return the initial values of what a param group keeps, by key."""
    return {}


def facts(p: Tensor) -> dict[str, Any]:
    """Return what the formulas read of a tensor besides its values."""
    return {}


# What a file takes over ------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A part of a step.

    Attributes:
        host: Its coefficients, from hyperparameters, counts and sums.
        update: What it does to tensors, in place.
        tensors: Names of what it takes.
        makes: Where it leaves something for other stages: its shape is the parameter's ("element"), one number
            ("scalar"), its own ("matrix"), or the parameter's with some dimensions 1 (which).
        written: For a stage over stacks of matrices: what it returns, in order.
        view: How many dimensions in front and at the back stay apart; empty for all, None for none.
        scalars: Names of what is one number.
        needs: Names of what it waits for.
        totals: Names of the sums over all parameters that it gives a part of.
        draws: Random numbers that it reads: name, kind, and what tells them apart.
        points: What it leaves for the closure: points, and directions.
        moves: Whether it changes parameters or states.
    """

    host: Callable[..., tuple[float, ...]]
    update: Callable[..., Any]
    tensors: tuple[str, ...]
    makes: dict[str, Any] | None = None
    written: tuple[str, ...] | None = None
    view: tuple[int, ...] | None = None
    scalars: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    totals: tuple[str, ...] = ()
    draws: tuple[tuple[str, str, int], ...] = ()
    points: tuple[Any, ...] = ()
    moves: bool = True


class Form(NamedTuple):
    """What options and shapes make of the rule.

    Attributes:
        start: Initial states of a tensor, by name.
        states: Key of each state in the optimizer's state of a tensor, by name.
        host: Coefficients of a step, from hyperparameters and counts.
        update: One step of one tensor, in place.
        tensors: Names of the states that it takes.
        view: How many dimensions in front and at the back stay apart; empty for all, None for none.
        scalars: Names of the states that are one number.
        paths: The stages of each way that a step can go.
        path: Which of these ways a step goes.
        kept: Names of the states that are a number on the host.
        numbers: What these become.
        by_path: What they become on each way that a step can go.
        group: What the states of the param group become.
        changed: Names of these, before and after.
        shared: What the states of the whole optimizer become: name, name of the new value, function.
        sizes: Sizes of random numbers that are not shaped like the parameter, by name.
        least: How many dimensions a tensor must have.
        real: Whether it is for real numbers only, since it looks at dimensions.
        counts: Whether updates are counted.
    """

    start: Callable[..., dict[str, Any]]
    states: dict[str, str]
    host: Callable[..., tuple[float, ...]]
    update: Callable[..., None]
    tensors: tuple[str, ...] = ()
    view: tuple[int, ...] | None = None
    scalars: tuple[str, ...] = ()
    paths: tuple[tuple[Stage, ...], ...] = ()
    path: Callable[..., tuple[int]] | None = None
    kept: tuple[str, ...] = ()
    numbers: Callable[..., tuple[float, ...]] | None = None
    by_path: tuple[Callable[..., tuple[float, ...]], ...] = ()
    group: Callable[..., tuple[float, ...]] | None = None
    changed: tuple[tuple[str, str], ...] = ()
    shared: tuple[tuple[str, str, Callable[..., tuple[float]]], ...] = ()
    sizes: Callable[..., dict[str, Any]] | None = None
    least: int = 0
    real: bool = False
    counts: bool = False


USUAL = Form(start, {}, host, update)


def form_of() -> Form:
    """Return the form of the rule that updates a parameter."""
    return USUAL


#: What these would be if the rule had events.
form_on_train = form_on_eval = form_of


class Point(NamedTuple):
    """Tensors that say where the closure is called, and what comes of it: names."""

    at: str
    gradient: str
    loss: str


class Direction(NamedTuple):
    """Tensors that the Hessian is multiplied with, and the product: names."""

    along: str
    product: str


def plain(value: Any) -> Any:
    """Return a number as a float, that in a tensor or of NumPy too; anything else as it is."""
    if hasattr(value, "item"):
        value = value.item() if math.prod(value.shape) == 1 else repr(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in a param group, by name; it is an error if some are not what they must be."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    if TUPLES:
        for key, names in TUPLES.items():
            if not isinstance(group[key], (tuple, list)) or len(group[key]) != len(names):
                raise ValueError(f"{NAME}: {key} must be a tuple ({', '.join(names)}), got {group[key]!r}")
    for name, key, place, kind, text, fits in HYPERPARAMETERS:
        if TUPLES:
            value = values[name] = plain(group[key] if place is None else group[key][place])
            label = name if place is None else f"{name} ({key}[{place}])"
        else:
            value = values[name] = plain(group[key if KEYS_DIFFER else name])
        shown = int(value) if isinstance(value, float) and value.is_integer() else repr(value)
        if not KINDS[kind](value):
            if TUPLES:
                problems.append(f"{label} must be {kind}, got {shown}")
            else:
                problems.append(f"{name} must be {kind}, got {shown}")
        elif isinstance(value, float) and math.isnan(value):
            if TUPLES:
                problems.append(f"{label} must not be NaN")
            else:
                problems.append(f"{name} must not be NaN")
        elif RANGES and text and (value is not None or not OPTIONAL) and not fits(value):
            if TUPLES:
                problems.append(f"{label} must be {text}, got {shown}")
            else:
                problems.append(f"{name} must be {text}, got {shown}")
    if REQUIREMENTS:
        problems = problems or [message for message, holds in REQUIREMENTS if not call(holds, values)]
    if problems:
        raise ValueError(f"{NAME}: {'; '.join(problems)}")
    if GROUP_KEYS:
        for name, key in GROUP_KEYS.items():
            if key not in group:
                raise ValueError(f"{NAME} reads group.{key}: give every param group a {key!r}")
            values[name] = plain(group[key])
    return values


def in_group(group: dict[str, Any], values: dict[str, Any]) -> dict[str, float]:
    """Return what the rule keeps in a param group, by name; ``values`` are its hyperparameters."""
    initial = computed(in_groups, values)
    return {name: float(group.get(key, initial[key])) for name, key in KEPT.items()}


def call(function: Callable[..., Any], values: dict[str, Any], *first: Any, compiled: bool = False) -> Any:
    """Return what a function makes of ``first`` and of the values that its other parameters are named after."""
    names = function.__code__.co_varnames[len(first) : function.__code__.co_argcount]
    run = compiled_of(function) if compiled else function
    return run(*first, *(values[name] for name in names))


def computed(function: Callable[..., Any], values: dict[str, Any], *first: Any) -> Any:
    """Call a function of numbers; where Python raises an error for some (1/0), on tensors, which follow IEEE 754."""
    try:
        return call(function, values, *first)
    except (ArithmeticError, ValueError, TypeError):
        result = call(on_tensors(function), {name: number(x) for name, x in values.items()}, *first)
        return tuple(map(float, result)) if isinstance(result, tuple) else result


def number(x: Any) -> Any:
    """Return a number as a tensor; anything else as it is."""
    return torch.tensor(x, dtype=torch.float64) if type(x) in (int, float) else x


class TensorMath:
    """The functions of ``math`` on tensors."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(math, name)
        return (lambda *x: getattr(torch, name)(*map(number, x))) if callable(value) else value


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of numbers as one of tensors."""
    scope = {**globals(), "math": TensorMath(), "float": number, "round": torch.round}
    for name, helper in globals().items():
        if type(helper) is types.FunctionType:
            scope[name] = types.FunctionType(helper.__code__, scope, name, helper.__defaults__)
    return scope[function.__name__]  # type: ignore[no-any-return]


def real(x: Tensor) -> Tensor:
    """Return a tensor without its graph, complex numbers as pairs."""
    return torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach()


def put(x: Tensor, value: Tensor) -> None:
    """Write numbers to a tensor, pairs to a complex one."""
    x.detach().copy_(torch.view_as_complex(value.contiguous()) if x.is_complex() else value)


def viewed(x: Tensor, view: tuple[int, ...] | None) -> Tensor:
    """Return a tensor with the dimensions that stay apart, and all others as one."""
    if view is None:
        return x.reshape(-1)
    if not view:
        return x
    front, back = view
    return x.flatten(front, x.dim() - back - 1) if x.dim() > front + back else x.unsqueeze(front)


@functools.cache
def compiled_of(update: Callable[..., None]) -> Callable[..., None]:
    """Return an update as one kernel, for tensors of all sizes."""
    return torch.compile(update, dynamic=True)


def total(parts: Sequence[float]) -> float:
    """Return a sum, exact before it is rounded."""
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # infinities of both signs
        return sum(parts)


def mixed(*numbers: int) -> int:
    """Return 64 bits that look random and follow from some whole numbers (the finaliser of SplitMix64, for each)."""
    state, mask = 0, 2**64 - 1
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def apply(
    update: Callable[..., None],
    tensors: dict[str, Any],
    coefficients: Tensor,
    values: dict[str, Any],
    compiled: bool,
    view: tuple[int, ...] | None,
    scalars: Collection[str],
) -> None:
    """Run an update on views of some tensors, in place; what is not contiguous is copied in and out."""
    whole = {
        name: (real(x) if COMPLEX else x.detach()).contiguous()
        for name, x in tensors.items()
        if not STATES_DIFFER or x is not None
    }
    if LAYOUTS and SCALARS:
        views = {name: x.view(1) if name in scalars else viewed(x, view) for name, x in whole.items()}
    elif LAYOUTS:
        views = {name: viewed(x, view) for name, x in whole.items()}
    else:
        views = {name: x.view(-1) for name, x in whole.items()}
    if STATES_DIFFER:
        call(update, values, *(views.get(name) for name in tensors), coefficients, compiled=compiled)
    else:
        call(update, values, *views.values(), coefficients, compiled=compiled)
    for name, x in tensors.items():
        if (
            (not STATES_DIFFER or name in whole)
            and name != "g"
            and ((COMPLEX and x.is_conj()) or not x.is_contiguous())
        ):
            if COMPLEX:
                put(x, whole[name])
            else:
                x.detach().copy_(whole[name])


class Batch:
    """Parameters that are treated alike: of one type, and updated equally often.

    Args:
        group: Their param group.
        form: The form of the rule that updates them.
        values: Hyperparameters, counts and states on the host, by name.
    """

    def __init__(self, group: dict[str, Any], form: Form, values: dict[str, Any]) -> None:
        self.group = group
        self.values = values
        if FORMS:
            self.form = form
        self.params: list[Tensor] = []
        self.states: list[dict[str, Any]] = []
        self.tensors: list[dict[str, Tensor]] = []
        if COUNTS_GROUP or KEPT:
            self.news: dict[str, float] = {}

    def add(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> None:
        """Add a parameter with its gradient and its state."""
        self.params.append(p)
        self.states.append(state)
        if HOSTED:
            tensors = {name: state[key] for name, key in self.form.states.items() if name not in self.form.kept}
        else:
            tensors = {name: state[key] for name, key in self.form.states.items()}
        self.tensors.append({"p": p.detach(), "g": g.detach(), **tensors})

    def prepare(self) -> None:
        """Choose the stages of the coming step; nothing has been changed so far."""
        dtype = self.params[0].dtype
        wide = dtype in (torch.float64, torch.complex128) if COMPLEX else dtype is torch.float64
        self.dtype = torch.float64 if wide else torch.float32
        if PATHS:
            self.path = int(computed(self.form.path, self.values)[0]) if self.form.path else 0
            self.left = list(self.form.paths[self.path])
        else:
            self.left = list(self.form.paths[0])

    def run(self, stage: Stage, values: dict[str, Any], compiled: bool) -> None:  # noqa: D102
        if ARRIVES:
            """Run a stage; ``values`` have arrived in this step."""
        else:
            """Run a stage."""
        p = self.params[0]
        known = {**self.values, **values} if ARRIVES else self.values
        if not p.numel():
            return
        numbers = computed(stage.host, known)
        if MATRICES and stage.written is not None:
            for start, stop in self.chunks():
                self.run_stack(stage, self.tensors[start:stop], numbers, known)
            return
        for tensors in self.tensors:
            tensors.update({name: self.memory(place) for name, place in (stage.makes or {}).items()})
        dtypes = [self.tensors[0][name].dtype for name in stage.tensors]
        wide = torch.float64 in dtypes or (COMPLEX and torch.complex128 in dtypes)
        coefficients = torch.tensor(numbers, dtype=torch.float64 if wide else torch.float32, device=p.device)
        for tensors in self.tensors:
            chosen = {name: tensors[name] for name in stage.tensors}
            apply(stage.update, chosen, coefficients, known, compiled, stage.view, stage.scalars)

    def memory(self, place: Any) -> Tensor:
        """Return memory for what one stage leaves for another."""
        p = real(self.params[0]) if COMPLEX else self.params[0]
        shape: Sequence[int] = (1,) if place == "scalar" else p.shape
        if REDUCES and isinstance(place, tuple):
            dims = [d % p.dim() for d in place]
            shape = [1 if i in dims else n for i, n in enumerate(p.shape)]
        return torch.empty(shape, dtype=self.dtype, device=p.device)

    if MATRICES:

        def chunks(self) -> list[tuple[int, int]]:
            """Return which tensors go together: so few that what one operation leaves is in a cache for the next."""
            p = self.params[0]
            most = (20 if p.device.type == "cpu" else 64) * 2**20 // self.dtype.itemsize
            members = self.tensors[0]
            sizes = [members[name].numel() for name in ("p", *self.form.states) if name in members]
            each = max(1, most // max(sizes))
            return [(i, min(i + each, len(self.params))) for i in range(0, len(self.params), each)]

        def run_stack(
            self,
            stage: Stage,
            members: list[dict[str, Tensor]],
            numbers: Sequence[float],
            values: dict[str, Any],
        ) -> None:
            """Run a stage over a stack of matrices that are treated alike."""
            first = [*(self.stack(name, stage, members) for name in stage.tensors), *map(float, numbers)]
            results = call(stage.update, values, *first)
            read = {x.untyped_storage().data_ptr() for x in first if isinstance(x, Tensor)}
            for name, result in zip(stage.written or (), [apart(x, read) for x in results], strict=True):
                if ALONE and isinstance(result, tuple):
                    push(members[0][name], *result)
                    continue
                for tensors, part in zip(members, result.expand(len(members), *result.shape[1:]).unbind(), strict=True):
                    place = (stage.makes or {}).get(name)
                    if place == "matrix":
                        tensors[name] = part.to(self.dtype)
                        continue
                    if place is not None:
                        tensors[name] = self.memory(place)
                    x = tensors[name]
                    x.copy_(part.reshape(x.shape) if part.numel() == x.numel() else part.expand_as(x))

        def stack(self, name: str, stage: Stage, members: list[dict[str, Tensor]]) -> Tensor:
            """Return the tensors of a name as one, in the type of the arithmetic."""
            if SCALARS:
                parts = [x[name].reshape(()) if name in stage.scalars else x[name] for x in members]
            else:
                parts = [x[name] for x in members]
            if name == "g":
                parts = [part.contiguous() for part in parts]
            return (parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)).to(self.dtype)

    if DRAWS:

        def draw(self, stage: Stage, seed: int, places: dict[Tensor, int]) -> None:
            """Fill in the random numbers that a stage reads, of the seed, the parameter's place and its count."""
            for name, kind, site in stage.draws:
                if SIZED:
                    sizes = computed(self.form.sizes, self.values) if self.form.sizes else {}
                for p, tensors in zip(self.params, self.tensors, strict=True):
                    generator = torch.Generator(p.device)
                    generator.manual_seed(mixed(seed, places[p], int(self.values["t"]), site) >> 1)
                    own = real(p).shape if COMPLEX else p.shape
                    shape = sizes.get(name, own) if SIZED else own
                    memory = torch.empty(shape, dtype=self.dtype, device=p.device)
                    draw = memory.normal_ if kind == "randn" else memory.uniform_
                    tensors[name] = draw(generator=generator)

    def advance(self, state: dict[Tensor, Any], values: dict[str, Any], counted: bool = True) -> None:  # noqa: D102
        if ARRIVES and HOSTED:
            """Keep the states, and what the step has made of numbers; ``values`` have arrived in it."""
        else:
            """Keep the states, and what the step has made of numbers."""
        if COUNTS_GROUP or KEPT:
            self.group.update(self.news)
        if HOSTED:
            known = {**self.values, **values} if ARRIVES else self.values
            path = (self.path if len(self.form.by_path) > 1 or not FORMS else 0) if HOSTED_BY_PATH else 0
            numbers = computed(self.form.by_path[path], known) if self.form.kept else ()
        for p, own in zip(self.params, self.states, strict=True):
            if COUNTS and (counted or not EVENTS) and (self.form.counts or not COUNTS_DIFFER):
                own["step"] = torch.tensor(self.values["t"], dtype=torch.float64)
            if HOSTED:
                for name, number in zip(self.form.kept, numbers, strict=True):
                    own[self.form.states[name]] = torch.tensor(number, dtype=torch.float64)
            if own or HELD:
                state[p] = own


def apart(result: Any, read: Collection[int]) -> Any:
    """Return a result; one that is only a view of what another may be written to as a copy."""
    if ALONE and isinstance(result, tuple):
        return result[0], [apart(x, read) for x in result[1]]
    return result.clone() if result.untyped_storage().data_ptr() in read else result


def push(history: Tensor, start: int, entries: list[Tensor]) -> None:
    """Write entries into the rows of a history that come before the one where it begins then."""
    entries = entries[-len(history) :]
    for place, entry in enumerate(entries, start - len(entries)):
        history[place % len(history)].copy_(entry[0])


class Evaluation:
    """The calls of a closure in one step: where it starts, and at other points.

    Args:
        closure: Computes gradients and returns the loss; None if there is none.
        parameters: Every parameter of the optimizer.
    """

    def __init__(self, closure: Callable[[], Any] | None, parameters: list[Tensor]) -> None:
        self.closure, self.parameters = closure, parameters
        if LOSS:
            self.loss: float | None = None
        if CURVED:
            self.graph: dict[Tensor, Tensor] = {}
            self.straight = False

    def start(self) -> Any:
        """Call the closure for the first time, as any step does, and return what it returns."""
        result = None
        if self.closure is None and all(p.grad is None for p in self.parameters):
            raise TypeError(f"{NAME}.step() needs a closure that computes the gradients and returns the loss")
        if self.closure is not None:
            with torch.enable_grad():
                result = self.closure()
                if CURVED:
                    self.differentiate(result)
            if LOSS:
                self.loss = None if result is None else float(result)
        if CURVED and not self.graph:
            self.graph = {p: p.grad for p in self.parameters if p.grad is not None and p.grad.requires_grad}
        return result

    if CURVED:

        def differentiate(self, loss: Any) -> None:
            """Compute the gradients with their graph, if the closure has left that to the step."""
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                return
            if any(p.grad is not None and p.grad.requires_grad for p in self.parameters):
                return
            wanted = [p for p in self.parameters if p.requires_grad]
            try:
                found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                if "second time" not in str(error):
                    raise
                return  # the closure has called backward()
            for p, g in zip(wanted, found, strict=True):
                p.grad = None if g is None else g.detach()
                if g is not None and g.requires_grad:  # one that is constant has no curvature
                    self.graph[p] = g
            self.straight = not self.graph

    def check(self, batches: list[Batch]) -> None:
        """Raise an error, before anything is changed, if what the step is going to ask for cannot be had."""
        if LOSS and self.loss is None:
            raise TypeError(f"{NAME}.step() needs a closure that computes the gradients and returns the loss")
        points = [point for batch in batches for stage in batch.left for point in stage.points]
        if AT_POINTS:
            elsewhere = any(isinstance(point, Point) for point in points)
            if elsewhere and self.closure is None:
                raise TypeError(f"{NAME}.step() needs a closure that computes the gradients and returns the loss")
        if CURVED:
            along = any(isinstance(point, Direction) for point in points)
            if along and not self.graph and not self.straight:
                raise RuntimeError(
                    f"{NAME} multiplies with the Hessian, and the gradients have no graph: call loss.backward"
                    "(create_graph=True) before step(), or give it a closure that leaves backward() to the step"
                )

    if AT_POINTS:

        def at(self, point: Point, batches: list[Batch]) -> dict[str, Any]:
            """Call the closure where a stage has said, and return what has arrived, by name."""
            pairs = [pair for batch in batches for pair in zip(batch.params, batch.tensors, strict=True)]
            places = [(p, tensors[point.at]) for p, tensors in pairs if point.at in tensors]
            kept, gradients = [p.detach().clone() for p, _ in places], [p.grad for p in self.parameters]
            try:
                for p, there in places:
                    if COMPLEX:
                        put(p.data, there)
                    else:
                        p.data.copy_(there)
                for p in self.parameters:
                    p.grad = None
                with torch.enable_grad():
                    result: Any = self.closure() if self.closure is not None else None
                if all(p.grad is None for p in self.parameters):  # the closure leaves backward() to the step
                    wanted = [p for p in self.parameters if p.requires_grad]
                    for p, g in zip(wanted, torch.autograd.grad(result, wanted, allow_unused=True), strict=True):
                        p.grad = g
                for p, tensors in pairs:
                    if point.at in tensors:
                        tensors[point.gradient] = like(tensors[point.at], p.grad)
            finally:
                for (p, _), own in zip(places, kept, strict=True):
                    p.data.copy_(own)
                for p, own_gradient in zip(self.parameters, gradients, strict=True):
                    p.grad = own_gradient
            if LOSS_AT_POINTS:
                return {point.gradient: True, point.loss: None if result is None else float(result)}
            else:
                return {point.gradient: True}

    if CURVED:

        def along(self, direction: Direction, batches: list[Batch]) -> dict[str, Any]:
            """Multiply the Hessian with a direction, and return what has arrived, by name."""
            members = [pair for batch in batches for pair in zip(batch.params, batch.tensors, strict=True)]
            members = [(p, tensors) for p, tensors in members if direction.along in tensors]
            pairs = [(self.graph[p], tensors[direction.along], p) for p, tensors in members if p in self.graph]
            wanted = [p for p in self.parameters if p.requires_grad] if pairs else []
            found: Sequence[Any] = ()
            if pairs:
                directions = [
                    (torch.view_as_complex(z) if COMPLEX and p.is_complex() else z).to(g.dtype) for g, z, p in pairs
                ]
                graphs = [g for g, _, _ in pairs]
                found = torch.autograd.grad(graphs, wanted, directions, retain_graph=True, allow_unused=True)
            products = dict(zip(wanted, found, strict=True))
            for p, tensors in members:
                tensors[direction.product] = like(tensors[direction.along], products.get(p))
            return {direction.product: True}


def like(tensor: Tensor, value: Tensor | None) -> Tensor:
    """Return a gradient or a product in the type of a tensor; zeros where there is none."""
    return (
        torch.zeros_like(tensor)
        if value is None
        else (real(value) if COMPLEX else value.detach()).to(tensor.dtype).clone()
    )


class Optimizer(torch.optim.Optimizer):
    """Gradient descent."""

    def __init__(self, params: Any, lr: float = 0.1, *, compiled: bool = False) -> None:
        self.compiled = compiled
        super().__init__(params, {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compiled": self.compiled}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its hyperparameters and parameters are checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            values = hyperparameters(group)
            for place, p in enumerate(group["params"]):
                if not (p.is_floating_point() or (COMPLEX and p.is_complex())):
                    where = f"{NAME}: parameter {place} (of shape {tuple(p.shape)}) has type {p.dtype}"
                    if COMPLEX:
                        raise ValueError(f"{where}; only floating-point and complex ones can be optimized")
                    else:
                        raise ValueError(f"{where}; only real floating-point ones can be optimized")
                if REFUSES or LEAST or (COMPLEX and REAL):
                    self._form(form_of, place, p, values)
        except Exception:
            self.param_groups.pop()
            raise
        if KEPT:
            for key, value in computed(in_groups, values).items():
                group.setdefault(key, self.param_groups[0].get(key, value) if SHARED and key in SHARED else value)
        if EVENTS:
            group.setdefault("train_mode", self.param_groups[0].get("train_mode", True))

    def _form(self, choose: Callable[..., Form], place: int, p: Tensor, values: dict[str, Any]) -> Any:
        if ONLY_STATES:
            """Return the keys of the states of a parameter, by name; a parameter that does not fit is an error."""
        elif FORMS:
            """Return the form of the rule that updates a parameter; a parameter that does not fit is an error."""
        else:
            """Raise an error if a parameter does not fit."""
        where = f"{NAME}: parameter {place} (of shape {tuple(p.shape)})"
        if CHOOSES:
            try:
                if FORMS and not (LEAST or (COMPLEX and REAL)):
                    return computed(choose, {**values, **facts(p)} if FACTS else values)
                else:
                    form = computed(choose, {**values, **facts(p)} if FACTS else values)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if LEAST:
            least = form.least
            if p.dim() < least:
                raise ValueError(f"{where} has {p.dim()} dimensions, but the rule looks at {least} of them")
        if COMPLEX and REAL and p.is_complex() and form.real:
            raise ValueError(f"{where} is complex, and the rule looks at dimensions: it is for real ones only")
        if FORMS and (LEAST or (COMPLEX and REAL)):
            return form

    def _state(self, form: Form, p: Tensor, g: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if TIME or FIRST or HOSTED:
            """Return the state of a parameter, or its initial one; what formulas read of it is added to ``values``."""
        else:
            """Return the state of a parameter, or its initial one."""
        state = dict(self.state.get(p, {}))
        missing = [name for name, key in form.states.items() if state.get(key) is None]
        if TIME or FIRST:
            old = len(missing) < len(form.states)  # it has been updated before
        if missing:
            if COMPLEX:
                initial = (
                    computed(form.start, values, real(p), real(g)) if START_READS else form.start(real(p), real(g))
                )
            elif START_READS:
                initial = computed(form.start, values, p.detach(), g.detach())
            else:
                initial = form.start(p.detach(), g.detach())
            for name in missing:
                value = initial[name]
                if COMPLEX and p.is_complex() and isinstance(value, Tensor) and value.shape == real(p).shape:
                    value = torch.view_as_complex(value)
                state[form.states[name]] = value
        if TIME:
            values["t"] = float(state.get("step", old)) + 1.0
        if FIRST and COUNTS and not COUNTS_DIFFER:
            values["first"] = values["t"] == 1.0
        elif FIRST and COUNTS:
            values["first"] = values["t"] == 1.0 if form.counts else bool(form.states) and not old
        elif FIRST:
            values["first"] = bool(form.states) and not old
        if HOSTED:
            values.update({name: float(state[form.states[name]]) for name in form.kept})
        return state

    def _news(self, group: dict[str, Any], form: Form, values: dict[str, Any], event: bool) -> dict[str, float]:
        """Return what a param group keeps after a step; what formulas read of it is added to ``values``."""
        news: dict[str, float] = {}
        if KEPT:
            values.update(in_group(group, values))
        if COUNTS_GROUP and (not event or not EVENTS):
            values[GROUP_TIME] = news["step"] = float(group.get("step", 0.0)) + 1.0
        if GROUPED and form.group:
            for (name, new), number in zip(form.changed, computed(form.group, values), strict=True):
                values[new] = news[KEPT[name]] = number
        return news

    def _prepared(self, group: dict[str, Any], choose: Callable[..., Any] = form_of, event: bool = False) -> list[Any]:
        if STAGED:
            """Return the parameters of a group that have gradients, in batches; nothing is changed yet."""
        else:
            """Return the updates of those parameters of a group that have gradients; nothing is changed yet."""
        values = hyperparameters(group)
        if STAGED:
            batches: dict[Any, Batch] = {}
        else:
            updates: list[Callable[[], None]] = []
            coefficients: dict[Any, Tensor] = {}
        if COUNTS_GROUP or KEPT:
            news: dict[str, float] | None = None
        for place, p in enumerate(group["params"]):
            g = (p if self.state.get(p) else None) if EVENTS and event else p.grad
            if g is None:
                continue
            if g.layout is not torch.strided:
                raise ValueError(f"{NAME}: parameter {place} has a sparse gradient; make it dense")
            if REFUSES or LEAST or (COMPLEX and REAL):
                form = self._form(choose, place, p, values)
            elif CHOOSES:
                form = computed(choose, {**values, **facts(p)} if FACTS else values)
            if EVENTS:
                missing = [key for key in form.states.values() if self.state.get(p, {}).get(key) is None]
                if event and missing:
                    continue
            if (COUNTS_GROUP or KEPT) and news is None:
                news = self._news(group, form, values, event)
                if not STAGED:
                    updates.append(functools.partial(group.update, news))
            known = {**values, **facts(p)} if FACTS else dict(values) if TIME or FIRST or HOSTED else values
            state = self._state(form, p, g, known)
            if STAGED:
                if ALONE:
                    alike: Any = id(p)  # what is done may depend on the tensor's own values
                else:
                    dtypes = tuple(x.dtype for x in (p, g, *state.values()) if isinstance(x, Tensor))
                    if FORMS:
                        alike = (id(form), tuple(known.values()), p.device, dtypes, p.shape)
                    else:
                        alike = (tuple(known.values()), p.device, dtypes, p.shape)
                if alike not in batches:
                    batches[alike] = Batch(group, form, known)
                    if COUNTS_GROUP or KEPT:
                        batches[alike].news = news or {}
                batches[alike].add(p, g, state)
            else:
                tensors: dict[str, Any] = {"p": p.detach(), "g": g.detach()}
                if STATES_DIFFER:
                    tensors.update(
                        {name: state[form.states[name]] if name in form.states else None for name in form.tensors}
                    )
                else:
                    tensors.update({name: state[form.states[name]] for name in form.tensors})
                numbers = computed(form.host, known)
                types = [x.dtype for x in tensors.values() if not STATES_DIFFER or x is not None]
                wide = torch.float64 in types or (COMPLEX and torch.complex128 in types)
                alike = (numbers, p.device, wide)
                if alike not in coefficients:
                    dtype = torch.float64 if wide else torch.float32
                    coefficients[alike] = torch.tensor(numbers, dtype=dtype, device=p.device)
                if HOSTED:
                    for name, number in zip(
                        form.kept, computed(form.numbers, known) if form.numbers else (), strict=True
                    ):
                        state[form.states[name]] = torch.tensor(number, dtype=torch.float64)
                if COUNTS and (not event or not EVENTS) and (form.counts or not COUNTS_DIFFER):
                    state["step"] = torch.tensor(known["t"], dtype=torch.float64)
                updates.append(functools.partial(self._update, form, p, state, tensors, coefficients[alike], known))
        if STAGED:
            for batch in batches.values():
                batch.prepare()
            return list(batches.values())
        else:
            return updates

    if not STAGED:

        def _update(
            self,
            form: Form,
            p: Tensor,
            state: dict[str, Any],
            tensors: dict[str, Tensor],
            coefficients: Tensor,
            values: dict[str, Any],
        ) -> None:
            """Update a parameter and its states."""
            if p.numel():
                apply(form.update, tensors, coefficients, values, self.compiled, form.view, form.scalars)
            if state or HELD:
                self.state[p] = state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters.

        Args:
            closure: Computes the gradients again and returns the loss.

        Returns:
            What the closure returned, if there is one.
        """
        if EVENTS:
            training = all(group["train_mode"] for group in self.param_groups)
            if not training:
                raise RuntimeError(f"{NAME}: call optimizer.train() before step()")
        if ASKED:
            members = [p for group in self.param_groups for p in group["params"]]
            evaluation = Evaluation(closure, members)
            loss = evaluation.start()
        else:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
        if STAGED:
            batches = [batch for group in self.param_groups for batch in self._prepared(group)]
            if ASKED:
                evaluation.check(batches)
            values: dict[str, Any] = {}
            if batches or not SHARED:
                self._run(batches, values, evaluation if ASKED else None)
            for batch in batches:
                batch.advance(self.state, values)
        else:
            updates = [update for group in self.param_groups for update in self._prepared(group)]
            for update in updates:
                update()
        return loss

    if STAGED:

        def _run(self, batches: list[Batch], values: dict[str, Any], evaluation: Any = None) -> None:
            """Run the stages of some batches, each for as long as it can; then what they wait for is computed."""
            if DRAWS:
                seed = int(self.param_groups[0].get("seed", 0))
                places = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            if LOSS:
                values[LOSS_NOW] = evaluation.loss
            if TOTALS:
                totals = {name for batch in batches for stage in batch.left for name in stage.totals}
                parts: dict[str, list[float]] = {name: [] for name in totals}
                values.update({name: 0.0 for name in TOTALS if name not in totals})
            if SHARED:
                first = self.param_groups[0]
                known = hyperparameters(first)
                known.update(in_group(first, known))
                if COUNTS_GROUP:
                    steps = [batch.news.get("step", 0.0) for batch in batches]
                    known[GROUP_TIME] = max(*steps, *(float(group.get("step", 0.0)) for group in self.param_groups))
                if FORMS:
                    form = self._form(form_of, 0, first["params"][0], known)
                shared = list(form.shared)
                self._share(shared, known, values)
            if POINTS:
                points = {point for batch in batches for stage in batch.left for point in stage.points}
            if LATE:
                while any(batch.left for batch in batches):
                    for batch in batches:
                        while batch.left and all(name in values for name in batch.left[0].needs):
                            if POINTS and points and batch.left[0].moves:  # first the closure is called everywhere
                                break
                            stage = batch.left.pop(0)
                            if DRAWS:
                                batch.draw(stage, seed, places)
                            batch.run(stage, values, self.compiled)
                            if TOTALS:
                                for name in stage.totals:
                                    parts[name] += [float(x[name]) for x in batch.tensors if name in x]
                    if TOTALS:
                        waiting = {name for batch in batches for stage in batch.left for name in stage.totals}
                        values.update({name: total(parts[name]) for name in totals - waiting if name not in values})
                    if POINTS:
                        open_points = {point for batch in batches for stage in batch.left for point in stage.points}
                        for point in sorted(points - open_points):
                            if AT_POINTS and CURVED:
                                called = evaluation.at if isinstance(point, Point) else evaluation.along
                                values.update(called(point, batches))
                            elif AT_POINTS:
                                values.update(evaluation.at(point, batches))
                            else:
                                values.update(evaluation.along(point, batches))
                            points.remove(point)
                    if SHARED:
                        self._share(shared, known, values)
            else:
                for batch in batches:
                    for stage in batch.left:
                        if DRAWS:
                            batch.draw(stage, seed, places)
                        batch.run(stage, values, self.compiled)
            if SHARED:
                for group in self.param_groups:
                    group.update({KEPT[name]: values[new] for name, new, _ in form.shared})

    if SHARED:

        def _share(self, left: list[Any], known: dict[str, Any], values: dict[str, Any]) -> None:
            """Compute those states of the whole optimizer whose sums have arrived."""
            for name, new, function in list(left):
                known.update(values)
                if all(wanted in known for wanted in function.__code__.co_varnames[: function.__code__.co_argcount]):
                    (values[new],) = computed(function, known)
                    left.remove((name, new, function))

    if EVENTS:

        def eval(self) -> None:
            """Make the parameters those that are to be evaluated or saved."""
            self._switch(False)

        def train(self, mode: bool = True) -> None:
            """Make the parameters those that are trained again; ``mode=False`` is the same as :meth:`eval`."""
            self._switch(mode)

        @torch.no_grad()
        def _switch(self, training: bool) -> None:
            """Run what the rule says under ``on train`` or ``on eval``, for all parameters that have state."""
            choose: Any = form_on_train if training else form_on_eval
            groups = [group for group in self.param_groups if group["train_mode"] is not training]
            if STAGED:
                batches = [batch for group in groups if choose for batch in self._prepared(group, choose, event=True)]
                values: dict[str, Any] = {}
                if batches or not SHARED:
                    self._run(batches, values)
                for batch in batches:
                    batch.advance(self.state, values, counted=False)
            else:
                updates = [update for group in groups if choose for update in self._prepared(group, choose, event=True)]
                for update in updates:
                    update()
            for group in groups:
                group["train_mode"] = training

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; every state keeps the type that it was saved with."""
        before = [dict(group) for group in self.param_groups]
        loaded: list[dict[str, Any]] = []  # what hooks make of it
        hook = self.register_load_state_dict_pre_hook(lambda _, after_hooks: loaded.append(after_hooks))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, own in zip(self.param_groups, before, strict=True):
            group.update({**own, **group})
        saved = [i for group in loaded[0]["param_groups"] for i in group["params"]]
        members = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, members, strict=True):
            for key, value in loaded[0]["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    device = "cpu" if key == "step" else p.device
                    self.state[p][key] = value.detach().to(device, copy=True)
