"""Classes of the library in the place of those of the same name in torch.optim: groups, checkpoints, arguments."""

from __future__ import annotations

import collections
import copy
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizing import difference, optimizer_class, parameter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import optlang
import optlang.rules

#: Rules by the name of the class that they stand for.
NAMES = [
    name
    for name in optlang.rules.names()
    if f"# reference: torch.optim.{name}\n" in optlang.rules.path(name).read_text(encoding="utf-8")
]
#: Keys that some versions of torch do not have, or none.
OTHERWISE = {"LBFGS": {"maximize"}, "SparseAdam": {"sparse"}}
#: Those that step on dense gradients without a closure.
DENSE = [name for name in NAMES if name not in ("SparseAdam", "LBFGS")]
FULL = StateDictOptions(full_state_dict=True)

every_name = pytest.mark.parametrize("name", NAMES)
every_dense = pytest.mark.parametrize("name", DENSE)


def theirs(name: str) -> Any:
    return getattr(torch.optim, name)


def ours(name: str) -> Any:
    return optimizer_class(name.lower())


def network() -> torch.nn.Module:
    """Return a small model of matrices, with a frozen one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(3, 5, bias=False), torch.nn.Tanh(), torch.nn.Linear(5, 2, bias=False)]
        net = torch.nn.Sequential(*layers, torch.nn.Linear(2, 2, bias=False)).double()
    net[3].weight.requires_grad_(False)
    return net


def train(net: torch.nn.Module, optimizer: Any, steps: int = 2, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    optimizer.zero_grad()


def close(name: str) -> float:
    """Return how far apart steps may lead: Muon computes in bfloat16."""
    return 1e-3 if name == "Muon" else 1e-9


# Param groups -------------------------------------------------------------------------------------------------


@every_name
def test_param_groups_have_the_keys_and_values_of_torch(name: str) -> None:
    p = parameter(3, 4)
    one, other = ours(name)([p]).param_groups[0], theirs(name)([p]).param_groups[0]
    told = OTHERWISE.get(name, set())
    assert set(one) - told == set(other) - told
    for key in set(other) - told - {"params"}:
        assert repr(one[key]) == repr(other[key]), key  # 0 is not 0.0


@every_name
def test_takes_the_switches_that_torch_takes(name: str) -> None:
    p = parameter(3, 4)
    for key in ("foreach", "fused", "capturable", "differentiable"):
        for value in (True, False):
            if key in inspect.signature(theirs(name)).parameters and not (key == "capturable" and value):
                assert ours(name)([p], **{key: value}).param_groups[0][key] is value
                group = {"params": [p], key: value}
                assert ours(name)([group]).param_groups[0][key] is value
        assert (key in inspect.signature(ours(name)).parameters) == (key in inspect.signature(theirs(name)).parameters)


@every_name
def test_takes_by_place_what_torch_takes_there(name: str) -> None:
    p, last = parameter(3, 4), {"foreach": True, "maximize": True, "amsgrad": True, "adjust_lr_fn": "original"}
    arguments = list(inspect.signature(theirs(name)).parameters.values())[1:]
    given = [last.get(a.name, a.default) for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD]
    one, other = ours(name)([p], *given).param_groups[0], theirs(name)([p], *given).param_groups[0]
    told = {"params", *OTHERWISE.get(name, ())}
    assert {k: v for k, v in one.items() if k not in told} == {k: v for k, v in other.items() if k not in told}
    if name != "LBFGS":  # which has one more here than in some versions of torch
        with pytest.raises(TypeError, match="arguments after params"):
            ours(name)([p], *given, None)


def test_the_decay_of_adamw_is_what_it_is() -> None:
    p = parameter(3)
    AdamW, Adam = ours("AdamW"), ours("Adam")
    with pytest.raises(ValueError, match="decoupled_weight_decay is always True"):
        AdamW([{"params": [p], "decoupled_weight_decay": False}])
    with pytest.raises(TypeError, match="unexpected keyword argument 'decoupled_weight_decay'"):
        AdamW([p], decoupled_weight_decay=True)
    saved = AdamW([p]).state_dict()
    for cls in (Adam, torch.optim.Adam):
        one = cls([p])
        one.load_state_dict(saved)
        assert one.param_groups[0]["decoupled_weight_decay"] is True
    back = AdamW([p])
    back.load_state_dict(torch.optim.Adam([p]).state_dict())
    assert back.param_groups[0]["decoupled_weight_decay"] is True


def test_classes_of_other_names_have_no_such_keys() -> None:
    text = optlang.rules.path("AdamW").read_text(encoding="utf-8").replace("optimizer AdamW", "optimizer Mine")
    for cls in (optimizer_class("lion"), optimizer_class(text)):
        keys = set(cls([parameter(3)]).param_groups[0])
        assert not {"foreach", "fused", "capturable", "decoupled_weight_decay"} & keys


# Checkpoints --------------------------------------------------------------------------------------------------


def in_memory(net: torch.nn.Module, saved: Any, other: Any, target: Any, folder: Path) -> None:
    set_optimizer_state_dict(net, target, copy.deepcopy(saved))


def through_files(net: torch.nn.Module, saved: Any, other: Any, target: Any, folder: Path) -> None:
    dcp.save({"optimizer": saved}, checkpoint_id=folder, no_dist=True)
    read = {"optimizer": get_optimizer_state_dict(net, target)}
    dcp.load(read, checkpoint_id=folder, no_dist=True)
    set_optimizer_state_dict(net, target, read["optimizer"])


def in_full(net: torch.nn.Module, saved: Any, other: Any, target: Any, folder: Path) -> None:
    set_optimizer_state_dict(net, target, copy.deepcopy(saved), options=FULL)


def by_itself(net: torch.nn.Module, saved: Any, other: Any, target: Any, folder: Path) -> None:
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("way", [in_memory, through_files, in_full, by_itself])
@pytest.mark.parametrize("back", [False, True], ids=["from torch", "to torch"])
@every_dense
def test_checkpoints_go_both_ways(name: str, back: bool, way: Callable[..., None], tmp_path: Path) -> None:
    source, destination = (ours, theirs) if back else (theirs, ours)
    net = network()
    members = [p for p in net.parameters() if p.requires_grad]
    optimizer = source(name)(members, lr=0.01, **({"momentum": 0.9} if name == "SGD" else {}))
    train(net, optimizer)
    twin = copy.deepcopy(net)
    # Without momentum, SGD has no state, and full checkpoints without tensors are none to torch.
    started = {"momentum": 0.5} if name == "SGD" else {}
    other = destination(name)([p for p in twin.parameters() if p.requires_grad], **started)
    options = FULL if way is in_full else None
    way(twin, get_optimizer_state_dict(net, optimizer, options=options), optimizer, other, tmp_path)
    assert other.param_groups[0]["lr"] == 0.01
    train(net, optimizer, seed=1)
    train(twin, other, seed=1)
    assert difference(list(net.parameters()), list(twin.parameters())) < close(name)
    keys = [set(o.state_dict()["param_groups"][0]) for o in (optimizer, other)]
    assert keys[0] == keys[1]


#: Rules whose groups count their steps, by name or by `t` in what a group or the whole model keeps; one has no lr of 0.
COUNTING = {
    "group.t": ("optimizer Ramp\nhyper lr = 0.1\nstate m\nm = 0.9*m + g\np -= lr*min(1, group.t/20)*m", {}),
    "group state": ("optimizer Grow\nhyper lr = 0.1\ngroup state s = 1\ns *= 1 - 1/(t + 1)\np -= lr*s*g", {}),
    "schedulefreesgd": ("schedulefreesgd", {"warmup_steps": 20}),
    "prodigy": ("prodigy", {"bias_correction": True}),
    "dog": ("dog", {}),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("way", [in_memory, through_files, in_full, by_itself])
@pytest.mark.parametrize("name", COUNTING)
def test_checkpoints_keep_what_a_group_counts(name: str, way: Callable[..., None], tmp_path: Path) -> None:
    if name == "group state" and way is in_full:
        pytest.skip("full checkpoints without tensors are none to torch")
    rule, options = COUNTING[name]
    cls = optimizer_class(rule)
    net = network()
    optimizer = cls([p for p in net.parameters() if p.requires_grad], **options)
    assert optimizer.param_groups[0]["step"] == 0.0
    train(net, optimizer)
    twin = copy.deepcopy(net)
    other = cls([p for p in twin.parameters() if p.requires_grad], **options)
    saved = get_optimizer_state_dict(net, optimizer, options=FULL if way is in_full else None)
    way(twin, saved, optimizer, other, tmp_path)
    assert other.param_groups[0]["step"] == 2.0
    train(net, optimizer, seed=1)
    train(twin, other, seed=1)
    assert difference(list(net.parameters()), list(twin.parameters())) == 0


@every_name
def test_checkpoints_without_such_keys_load(name: str) -> None:
    p = parameter(3, 4)
    optimizer = ours(name)([p])
    usual = copy.deepcopy(optimizer.state_dict()["param_groups"][0])
    saved = optimizer.state_dict()
    for key in ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay"):
        saved["param_groups"][0].pop(key, None)
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"][0] == usual
    optimizer.add_param_group({"params": [parameter(3, 4)]}) if name != "LBFGS" else None
    assert set(optimizer.param_groups[-1]) == {*usual}


# Whole numbers ------------------------------------------------------------------------------------------------

COUNTED = """
optimizer Counted
hyper lr = 1 >= 0, n = 3 >= 1, k = 2.0, m = 1e1, times = (first_ = 4, second = 0.5), most = 2*3 - 1, none_ = none
state v

repeat n: v = v/2 + g
p -= lr*v*k*m*first_*second*most*(none_ ?? 1)
"""


def test_whole_numbers_stay_whole() -> None:
    Counted = optimizer_class(COUNTED)
    p = parameter(3)
    shown = repr({k: v for k, v in Counted([p]).param_groups[0].items() if k != "params"})
    assert shown == ("{'lr': 1, 'n': 3, 'k': 2.0, 'm': 10.0, 'times': (4, 0.5), 'most': 5, 'none_': None}")
    assert "n (int, optional)" in Counted.__doc__ and "lr (float, optional)" in Counted.__doc__
    optimizer = Counted([{"params": [p], "n": 2.0, "lr": 0.0, "k": 3, "times": [1, 2.0]}], none_=1)
    for _ in range(2):  # what says how many is an int, and other values keep the type they were given
        group = optimizer.param_groups[0]
        assert repr([group[k] for k in ("n", "lr", "k", "times", "none_")]) == "[2, 0.0, 3, [1, 2.0], 1]"
        saved = optimizer.state_dict()
        saved["param_groups"][0]["n"] = 2.0  # as older checkpoints have it
        optimizer.load_state_dict(saved)
    optimizer.step()
    with pytest.raises(ValueError, match="n"):
        Counted([p], n=2.5).step()


@pytest.mark.parametrize("name", ["Muon", "AdaMuon", "NorMuon"])
def test_counts_of_the_library_are_whole(name: str) -> None:
    assert type(ours(name)([parameter(3, 4)], ns_steps=3.0).param_groups[0]["ns_steps"]) is int


# Numbers of other kinds ---------------------------------------------------------------------------------------

numpy = pytest.importorskip("numpy")


class Number(float):
    """What a configuration library may give for a number."""


VALUES = {
    "a number of NumPy": ("lr", numpy.float32(0.5), 0.5),
    "a double of NumPy": ("lr", numpy.float64(0.5), 0.5),
    "an array": ("lr", numpy.array([0.5]), 0.5),
    "a number of another class": ("lr", Number(0.5), 0.5),
    "a flag of NumPy": ("amsgrad", numpy.bool_(True), True),
    "a list class": ("betas", collections.UserList([numpy.float64(0.5), 0.75]), [0.5, 0.75]),
    "a tuple": ("betas", (numpy.float64(0.5), 0.75), (0.5, 0.75)),
    "a key of one's own": ("tag", numpy.int64(3), 3),
    "a text of NumPy": ("tag", numpy.str_("head"), "head"),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_in_groups_are_those_of_python(what: str) -> None:
    key, given, expected = VALUES[what]
    AdamW, p = ours("AdamW"), parameter(3)
    optimizer = AdamW([{"params": [p], key: given}])
    if key != "tag":
        assert repr(AdamW([p], **{key: given}).param_groups[0][key]) == repr(expected)
    assert repr(optimizer.param_groups[0][key]) == repr(expected)
    optimizer.step()
    optimizer.param_groups[0][key] = given  # as a scheduler does
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert repr(saved["param_groups"][0][key]) == repr(expected)
    saved["param_groups"][0][key] = given  # from a checkpoint of another optimizer
    optimizer.load_state_dict(saved)
    assert repr(optimizer.param_groups[0][key]) == repr(expected)


def test_lists_of_ones_own_stay_the_same_objects() -> None:
    mine, betas = ["a"], [0.9, 0.99]
    optimizer = ours("AdamW")([{"params": [parameter(3)], "mine": mine}], betas=betas)
    optimizer.state_dict()
    assert optimizer.param_groups[0]["mine"] is mine and optimizer.param_groups[0]["betas"] is betas


# States -------------------------------------------------------------------------------------------------------


def test_adagrad_has_its_states_from_the_start() -> None:
    for start in (0, 0.5):
        p, q = parameter(3), torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
        one = ours("Adagrad")([p, q, frozen], initial_accumulator_value=start)
        other = theirs("Adagrad")([p, q], initial_accumulator_value=start)
        assert list(one.state) == [p, q]
        for held, expected in zip(one.state.values(), other.state.values(), strict=True):
            assert float(held["step"]) == 0
            assert torch.equal(held["sum"], expected["sum"]) and held["sum"].dtype is expected["sum"].dtype
        one.share_memory()
        assert one.state[p]["sum"].is_shared() and not one.state[p]["step"].is_shared()
        one.add_param_group({"params": [parameter(2)], "initial_accumulator_value": 2.0})
        assert len(one.state) == 3
    assert not ours("AdamW")([p]).state and not hasattr(ours("AdamW"), "share_memory")


def _worker(optimizer: Any, p: torch.nn.Parameter) -> None:
    p.grad = torch.ones_like(p)
    optimizer.step()


def test_processes_share_the_states_of_adagrad() -> None:
    p = torch.nn.Parameter(torch.zeros(3).share_memory_())
    optimizer = ours("Adagrad")([p], lr=0.1)
    optimizer.share_memory()
    context = torch.multiprocessing.get_context("fork")
    for _ in range(2):
        process = context.Process(target=_worker, args=(optimizer, p))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert optimizer.state[p]["sum"].tolist() == [2.0] * 3
    expected = -0.1 - 0.1 / 2**0.5
    assert p.tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("name", ["Adafactor", "AdamW", "Muon"])
def test_states_are_in_the_order_of_the_parameters(name: str) -> None:
    shapes: list[tuple[int, ...]] = [(3, 2), (2, 3), (2, 2)] if name == "Muon" else [(3,), (2, 3), (4,), (3, 2)]
    members = [parameter(*shape) for shape in shapes]
    late = members[1]
    gradient, late.grad = late.grad, None
    orders = []
    for cls in (ours(name), theirs(name)):
        optimizer = cls([{"params": members[:2]}, {"params": members[2:]}])
        late.grad = None
        optimizer.step()
        late.grad = gradient
        optimizer.step()
        orders.append([id(p) for p in optimizer.state])
    assert orders[0] == orders[1]


# Arguments of a step ------------------------------------------------------------------------------------------


def test_hooks_see_the_arguments_as_they_were_given() -> None:
    seen = []
    for cls in (ours("AdamW"), theirs("AdamW")):
        optimizer = cls([parameter(3)])
        calls: list[Any] = []
        optimizer.register_step_pre_hook(lambda o, args, kwargs, calls=calls: calls.append((len(args), list(kwargs))))
        optimizer.register_step_post_hook(lambda o, args, kwargs, calls=calls: calls.append((len(args), list(kwargs))))
        optimizer.step()
        optimizer.step(lambda: torch.ones(()))
        optimizer.step(closure=lambda: torch.ones(()))
        optimizer.step(closure=None)
        seen.append(calls)
    assert seen[0] == seen[1]
    assert list(inspect.signature(ours("AdamW").step).parameters) == ["self", "closure"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'closures'"):
        ours("AdamW")([parameter(3)]).step(closures=None)


# Parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "MuonWithAdamW", "SAM", "Prodigy", "SOAP", "Lookahead"])
def test_frozen_integers_are_left_alone(name: str, dtype: torch.dtype) -> None:
    results = []
    for frozen in (False, True):
        p, q = parameter(3, 4), torch.nn.Parameter(torch.ones(8, 1).to(dtype), requires_grad=False)
        members = [q, p] if frozen else [p]
        optimizer = ours(name)(members, lr=0.01)
        optimizer.warmup()

        def closure(p: torch.nn.Parameter = p, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        saved = optimizer.state_dict()
        assert len(saved["state"]) == (name != "SAM") and q.eq(torch.ones(8, 1).to(dtype)).all()
        optimizer.load_state_dict(saved)
        optimizer.step(closure)
        results.append(p.detach().clone())
    assert torch.equal(*results)


def test_integers_with_gradients_are_refused_by_the_step() -> None:
    p, q = parameter(3), torch.nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    optimizer = ours("AdamW")([("weight", p), ("packed", q)])
    q.grad = torch.zeros(2, dtype=torch.int64)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"'packed' has type torch\.int64; only floating-point and complex"):
        optimizer.step()
    assert torch.equal(p, before) and not optimizer.state
