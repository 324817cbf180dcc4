"""Optimizers that send each parameter to the rule for it."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import difference, model, optimizer_class, parameter
from stepping import eager, values

import optlang
import optlang.rules
from optlang.runtime.kernels import compiled_count
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = [(3, 4), (4,), (5, 2), (), (4, 4), (6,)]
TITLES = {name.lower(): name for name in optlang.rules.names()}


def mixed(first: str, second: str) -> Any:
    """Return a class that sends matrices to one rule and everything else to another."""
    text = f"optimizer Mixed\nroute {TITLES[first]} when ndim == 2\nroute {TITLES[second]} otherwise\n"
    return eager(text)


def parameters(shapes: Any = tuple(SHAPES), dtype: torch.dtype = torch.float64) -> list[Any]:
    return [torch.nn.Parameter(values(s, dtype, i)) for i, s in enumerate(shapes)]


def give(ps: list[Any], step: int, missing: Any = ()) -> None:
    for i, p in enumerate(ps):
        p.grad = None if i in missing else values(tuple(p.shape), p.dtype, 50 * step + i)


#: Pairs of rules that have everything in common that two may have: keys, sums, numbers of the group and of all.
PAIRS = [
    ("muon", "adamw"),
    ("dog", "prodigy"),
    ("prodigy", "dadaptadam"),
    ("adamwclip", "dog"),
    ("adamwclip", "avagrad"),
    ("schedulefreesgd", "schedulefreeadamw"),
    ("shampoo", "nadam"),
    ("soap", "lookaheadadamw"),
    ("nadam", "asgd"),
    ("galoreadamw", "adafactor"),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_each_tensor_is_updated_as_by_its_own_rule_alone(first: str, second: str) -> None:
    ps, qs = parameters(), parameters()
    routed = mixed(first, second)([{"params": ps[:3]}, {"params": ps[3:]}])
    alone = [
        eager(first)([{"params": [qs[0], qs[2]]}, {"params": [qs[4]]}]),
        eager(second)([{"params": [qs[1]]}, {"params": [qs[3], qs[5]]}]),
    ]
    # Steps in which one rule, or one group of one, has nothing to do, count for the others only.
    missing: list[tuple[int, ...]] = [(), (0, 2, 4), (), (1, 3, 5), (3, 4, 5), (2,), (0, 1, 2, 3, 4, 5), ()]
    for step, without in enumerate(missing):
        give(ps, step, without)
        give(qs, step, without)
        routed.step()
        for one in alone:
            one.step()
        for event in ("eval", "train") if routed._events and step == 2 else ():
            for one in (routed, *alone):
                getattr(one, event)()
        assert difference(ps, qs) == 0, f"step {step}"
    for p, q in zip(ps, qs, strict=True):
        state = next(one.state[q] for one in alone if q in one.state)
        assert routed.state[p].keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in routed.state[p].items())


def test_keys_that_clash_have_the_name_of_the_rule() -> None:
    cls = eager("muonwithadamw")
    keys = {"lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"}
    keys |= {"adamw_lr", "betas", "adamw_eps", "adamw_weight_decay", "amsgrad", "maximize"}
    optimizer = cls(parameters(), adamw_lr=0.5, lr=0.25)
    assert set(optimizer.param_groups[0]) - {"params"} == keys
    assert set(cls.__signature__.parameters) == {"params", *keys}
    assert all(f"{key} (" in cls.__doc__ for key in keys)
    ps = optimizer.param_groups[0]["params"]
    before = [p.detach().clone() for p in ps]
    give(ps, 0)
    optimizer.step()
    assert float((ps[1] - before[1]).detach().abs().max()) == pytest.approx(0.5, rel=0.1)  # the first step of Adam
    for keyword, message in (("adamw_betas", "unexpected keyword argument 'adamw_betas'"), ("beta1", "part of betas")):
        with pytest.raises(TypeError, match=message):
            cls(parameters(), **{keyword: 0.5})
    with pytest.raises(ValueError, match=r"AdamW: .*lr must be >= 0"):
        cls(parameters(), adamw_lr=-1)
    clash = mixed("schedulefreesgd", "schedulefreeadamw")(parameters())
    assert {"lr_max", "schedulefreeadamw_lr_max", "weight_sum", "schedulefreeadamw_weight_sum"} <= set(
        clash.param_groups[0]
    )


def test_a_key_that_is_thrown_moves_tensors_to_the_other_rule() -> None:
    ps = parameters([(3, 4), (4, 3)])
    optimizer = eager("muonwithadamw")([{"params": ps[:1]}, {"params": ps[1:], "adam": True}])
    give(ps, 0)
    optimizer.step()
    assert list(optimizer.state[ps[0]]) == ["momentum_buffer"]
    assert list(optimizer.state[ps[1]]) == ["step", "exp_avg", "exp_avg_sq"]
    q = torch.nn.Parameter(ps[0].detach().clone())
    adamw = eager("adamw")([q])
    optimizer.param_groups[0]["adam"] = True
    saved = copy.deepcopy(optimizer.state_dict())  # thrown, but no step made yet
    for step in (1, 2):
        give(ps, step)
        q.grad = ps[0].grad.clone()
        optimizer.step()
        adamw.step()
        assert torch.equal(ps[0], q)
    optimizer.param_groups[0]["adam"] = False
    muon_q = torch.nn.Parameter(ps[0].detach().clone())
    muon = eager("muon")([muon_q])
    muon.state[muon_q]["momentum_buffer"] = optimizer.state[ps[0]]["momentum_buffer"].clone()
    give(ps, 3)
    muon_q.grad = ps[0].grad.clone()
    optimizer.step()
    muon.step()
    assert torch.equal(ps[0], muon_q)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["adam"] is True
    optimizer.step()


def test_checkpoints_and_copies_go_on() -> None:
    ps = parameters()
    cls = mixed("prodigy", "schedulefreeadamw")
    optimizer = cls([{"params": ps[:3]}, {"params": ps[3:]}])
    for step in range(3):
        give(ps, step)
        optimizer.step()
    optimizer.eval()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    qs = [torch.nn.Parameter(p.detach().clone()) for p in ps]
    loaded = cls([{"params": qs[:3]}, {"params": qs[3:]}])
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    others = [loaded, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for one in (optimizer, *others):
        one.train()
        members = list(itertools.chain.from_iterable(group["params"] for group in one.param_groups))
        for step in range(3, 6):
            give(members, step)
            one.step()
        assert difference(members, ps) == 0
    saved = optimizer.state_dict()
    del saved["state"][1]["z"], saved["state"][1]["exp_avg_sq"]
    saved["state"][1]["foreign"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"foreign for parameter 1 .*another optimizer"):
        loaded.load_state_dict(saved)


def test_a_tensor_that_no_rule_takes() -> None:
    text = "optimizer Only\nroute Muon when ndim == 2 and rows > 2\nroute AdamW when ndim == 1\n"
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Only: no route takes parameter '1\.weight' \(of shape \(2, 3\)\)"):
        eager(text)(net.named_parameters())
    optimizer = eager(text)(net[0].named_parameters())
    with pytest.raises(ValueError, match=r"no route takes parameter 'weight'"):
        optimizer.add_param_group({"params": [("weight", net[1].weight)]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [("other", net[1].bias)]})
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = net[1].bias.detach().clone()
    optimizer.step()
    assert not torch.equal(before, net[1].bias)


def test_routes_are_tried_in_order_and_keys_of_the_user_count() -> None:
    text = """optimizer Ordered
route Lion when group.kind == 2
route SignSGD when numel > 4 and group.kind
route SGD when ndim == 0
route Muon when ndim == 2
route AdamW otherwise
"""
    shapes: Any = [(3, 4), (), (5,)]
    groups = [{"params": parameters(shapes), "kind": kind} for kind in (0, 1, 2)] + [{"params": parameters(shapes)}]
    optimizer = eager(text)(groups, lr=0.1)
    found = [[plan.name for plan in optimizer._current_plans() if any(q is p for q in plan.parameters)]
             for group in groups for p in group["params"]]  # fmt: skip
    none = [["Muon"], ["SGD"], ["AdamW"]]
    assert found == none + [["SignSGD"], ["SGD"], ["SignSGD"]] + [["Lion"]] * 3 + none


def test_schedulers_act_on_lr_and_hooks_run_once() -> None:
    ps = parameters()
    optimizer = eager("muonwithadamw")(ps, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    for step in range(3):
        give(ps, step)
        optimizer.step()
        schedule.step()
    assert seen == [0.1, 0.05, 0.025] and optimizer.param_groups[0]["adamw_lr"] == 1e-3
    before = copy.deepcopy(([p.detach() for p in ps], optimizer.state_dict()))
    ps[1].grad = ps[1].grad.to_sparse()  # refused by the second rule, after the first has been prepared
    with pytest.raises(ValueError, match=r"AdamW: parameter 1 .* sparse gradient"):
        optimizer.step()
    assert str(before) == str(([p.detach() for p in ps], optimizer.state_dict()))


def test_random_rules_in_routes_have_one_seed() -> None:
    ps, qs = parameters(), parameters()
    runs = [mixed("sgld", "adamw")(members, seed=4, lr=0.1) for members in (ps, qs)]
    for step, (members, one) in itertools.product(range(2), zip((ps, qs), runs, strict=True)):
        give(members, step)
        one.step()
    assert difference(ps, qs) == 0
    twice = eager("optimizer Twice\nroute SGLD when ndim == 2\nroute SGLD otherwise\n")
    optimizer = twice([parameter(3, 3), parameter(9)], seed=4, lr=0.5, sgld_lr=0.25)
    optimizer.step()
    assert optimizer.param_groups[0]["seed"] == 4


@pytest.mark.compiler
def test_compiled_routes() -> None:
    a, b = model(torch.float32), model(torch.float32)
    cls = optlang.compile("muonwithadamw")
    ours, plain = cls(a.parameters()), optimizer_class("muonwithadamw")(b.parameters())
    ours.warmup()
    count = compiled_count(cls)
    for step in range(4):
        give(list(a.parameters()), step)
        give(list(b.parameters()), step)
        ours.step()
        plain.step()
    assert compiled_count(cls) == count and difference(list(a.parameters()), list(b.parameters())) < 1e-5


MINE = "hyper lr = 0.1, momentum = 0.5\nrequire ndim == 2\nstate m\nm = momentum*m + g\np -= lr*m\n"


def test_routes_to_files(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "my-muon.opt").write_text(MINE)
    text = 'optimizer Mine\nroute AdamW when ndim < 2\nroute "rules/my-muon.opt" when ndim == 2\n'
    (tmp_path / "mine.opt").write_text(text)
    assert optlang.check(tmp_path / "mine.opt") == []
    assert 'route "rules/my-muon.opt" when ndim == 2' in format_tree(parse(Source(text)))
    cls = optlang.compile(tmp_path / "mine.opt", backend="eager")
    ps, qs = parameters([(3, 4), (4,)]), parameters([(3, 4), (4,)])
    routed = cls(ps, my_muon_lr=0.3)
    alone = [eager(MINE)(qs[:1], lr=0.3), eager("adamw")(qs[1:])]
    for step in range(3):
        for members, optimizers in ((ps, [routed]), (qs, alone)):
            give(members, step)
            for one in optimizers:
                one.step()
    assert difference(ps, qs) == 0
    copied = pickle.loads(pickle.dumps(routed))
    assert type(copied) is cls and copied.param_groups[0]["my_muon_lr"] == 0.3
    assert "momentum" in optlang.emit(tmp_path / "mine.opt", "source")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read other.opt: No such file or directory"),
        ("p -= lrr*", "other.opt has errors"),
        ("hyper lr = 1\np -= lrr*g\n", "other.opt has errors"),
        ('optimizer A\nroute "other.opt" otherwise\n', "`other.opt` has routes itself"),
        ('optimizer A\nroute "mine.opt" otherwise\n', "`other.opt` has routes itself"),
        ('optimizer A\ninner B = "other.opt"\nB(p, g)\n', "other.opt has errors"),
        ("transform smooth(u):\n    state m\n    m = 0.9*m + u\n    return m\n", "`other.opt` has no update"),
        ("def damped(u) = u/2\n", "`other.opt` has no update"),
        ("optimizer A\nhyper lr = 0.1\n", "`other.opt` has no update"),
    ],
)
def test_files_that_cannot_be_routed_to(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "other.opt").write_text(text)
    (tmp_path / "mine.opt").write_text('optimizer Mine\nroute "other.opt" otherwise\n')
    (found,) = optlang.check(tmp_path / "mine.opt")
    assert (found.code, found.message) == ("E215", message)
    assert found.source.excerpt(found.span) == '"other.opt"'  # type: ignore[arg-type]
