"""Saving, loading, copying."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, parameter, train

AdamW = optimizer_class(ADAMW)
SGD = optimizer_class("sgd")
Mixed = optimizer_class(MIXED)

PAIRS = {
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
    "SGD": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "NAdam": (optimizer_class("nadam"), torch.optim.NAdam, {"lr": 0.1}),
    "Adagrad": (optimizer_class("adagrad"), torch.optim.Adagrad, {"lr": 0.1}),
    "Adafactor": (optimizer_class("adafactor"), torch.optim.Adafactor, {"lr": 0.1}),
    "ASGD": (optimizer_class("asgd"), torch.optim.ASGD, {"lr": 0.1}),
    "RMSprop": (optimizer_class("rmsprop"), torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
}


def trained(cls: Any, options: dict[str, Any], steps: int = 4) -> tuple[torch.nn.Module, Any]:
    net = model()
    optimizer = cls(net.parameters(), **options)
    train(net, optimizer, steps)
    return net, optimizer


def through_a_file(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", PAIRS)
def test_resuming_is_as_if_never_stopped(name: str) -> None:
    cls, _, options = PAIRS[name]
    net, optimizer = trained(cls, options)
    again = copy.deepcopy(net)
    resumed = cls(again.parameters(), lr=123.0)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(net, optimizer, 3, seed=9)
    train(again, resumed, 3, seed=9)
    assert difference(list(net.parameters()), list(again.parameters())) == 0.0
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_of_torch_load(name: str) -> None:
    ours, theirs, options = PAIRS[name]
    net, optimizer = trained(theirs, options)
    again = copy.deepcopy(net)
    resumed = ours(again.parameters())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert "foreach" in resumed.param_groups[0]  # what we do not know is kept
    train(net, optimizer, 3, seed=9)
    train(again, resumed, 3, seed=9)
    assert difference(list(net.parameters()), list(again.parameters())) < 1e-8


@pytest.mark.parametrize("name", PAIRS)
def test_ours_load_into_torch(name: str) -> None:
    ours, theirs, options = PAIRS[name]
    net, optimizer = trained(ours, options)
    again = copy.deepcopy(net)
    resumed = theirs(again.parameters())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(net, optimizer, 3, seed=9)
    train(again, resumed, 3, seed=9)
    assert difference(list(net.parameters()), list(again.parameters())) < 1e-8


def test_a_state_dict_is_plain_and_small() -> None:
    optimizer = AdamW([parameter(2, seed=i) for i in range(50)])
    optimizer.step()
    saved = optimizer.state_dict()
    step = saved["state"][7]["step"]
    assert step.untyped_storage().nbytes() == 8
    assert list(saved["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    step.fill_(99)
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    whole = io.BytesIO()
    torch.save(optimizer, whole)
    assert len(whole.getvalue()) < 200_000


def test_loading_shares_nothing_and_casts_nothing() -> None:
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p])
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = torch.full((3,), 0.25)
    saved["state"][0]["step"] = 7
    reference = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["exp_avg"].dtype is torch.float32
    assert saved["state"][0]["exp_avg"].data_ptr() != optimizer.state[p]["exp_avg"].data_ptr()
    optimizer.step()
    assert torch.equal(saved["state"][0]["exp_avg"], reference["state"][0]["exp_avg"])
    assert optimizer.state[p]["step"] == 8
    assert optimizer.state[p]["step"].dtype is torch.float64


def test_host_and_group_states_survive() -> None:
    net, optimizer = trained(Mixed, {"momentum": 0.5})
    again = copy.deepcopy(net)
    resumed = Mixed(again.parameters())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(net, optimizer, 3, seed=9)
    train(again, resumed, 3, seed=9)
    assert difference(list(net.parameters()), list(again.parameters())) == 0.0
    assert resumed.param_groups[0]["seen"] == 7.0


def test_older_checkpoints_lack_keys() -> None:
    net, optimizer = trained(AdamW, {})
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["eps"]
    for state in saved["state"].values():
        del state["step"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["eps"] == 1e-8
    train(net, optimizer, 1)
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    saved["state"] = {}
    optimizer.load_state_dict(saved)
    train(net, optimizer, 1)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_checkpoints_that_do_not_fit_are_refused_whole() -> None:
    net, optimizer = trained(AdamW, {})
    good = optimizer.state_dict()

    def spoilt(change: Any) -> dict[str, Any]:
        bad = copy.deepcopy(good)
        change(bad)
        return bad

    first = next(iter(net.parameters()))
    kept = optimizer.state[first]["exp_avg"].clone()
    cases = {
        r"'exp_avg' of shape \(2,\) for parameter 0 \(of shape \(4, 5\)\)": lambda s: s["state"][0].update(
            exp_avg=torch.zeros(2)
        ),
        "lr must be >= 0": lambda s: s["param_groups"][0].update(lr=-1.0),
        "different number of parameter groups": lambda s: s["param_groups"].append(s["param_groups"][0]),
        "doesn't match the size": lambda s: s["param_groups"][0].update(params=[0]),
        "'step' of shape": lambda s: s["state"][0].update(step=torch.ones(2)),
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(spoilt(change))
        assert torch.equal(optimizer.state[first]["exp_avg"], kept)
        assert optimizer.param_groups[0]["lr"] == 1e-3


def test_hooks_of_saving_and_loading() -> None:
    _, optimizer = trained(AdamW, {})
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "extra": 1})
    saved = optimizer.state_dict()
    assert seen == ["pre"]
    assert saved["extra"] == 1
    optimizer.register_load_state_dict_pre_hook(lambda o, s: {**s, "state": {}})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(saved)
    assert seen == ["pre", "loaded"]
    assert not optimizer.state


def test_a_hook_of_saving_may_return_anything() -> None:
    net, optimizer = trained(AdamW, {})
    optimizer.register_state_dict_post_hook(lambda o, s: {"optimizer": s, "version": 1})
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "keys": list(s)})
    saved = optimizer.state_dict()
    then = text_of(saved)
    assert saved["keys"] == ["optimizer", "version"]
    assert float(saved["optimizer"]["state"][0]["step"]) == 4
    train(net, optimizer, 1)
    assert text_of(saved) == then


def test_hyperparameters_in_a_state_dict_are_of_its_moment() -> None:
    net, optimizer = trained(AdamW, {"lr": torch.tensor(0.1), "betas": [0.9, torch.tensor(0.99)]})
    saved = optimizer.state_dict()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(net, optimizer, 1)
    schedule.step()
    optimizer.param_groups[0]["betas"][0] = 0.5
    optimizer.param_groups[0]["betas"][1].fill_(0.5)
    assert saved["param_groups"][0]["lr"] == torch.tensor(0.1)
    assert saved["param_groups"][0]["betas"] == [0.9, torch.tensor(0.99)]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1)
    lr = torch.tensor(0.1, requires_grad=True)
    assert SGD([parameter(2)], lr=lr).state_dict()["param_groups"][0]["lr"].requires_grad


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_by_themselves(how: str) -> None:
    net, optimizer = trained(Mixed, {"momentum": 0.5})
    optimizer.note = "kept"  # public attributes survive
    both = (net, optimizer)
    if how == "deepcopy":
        again, resumed = copy.deepcopy(both)
        assert type(resumed) is type(optimizer)
    elif how == "pickle":
        again, resumed = pickle.loads(pickle.dumps(both))
    else:
        buffer = io.BytesIO()
        torch.save(both, buffer)
        buffer.seek(0)
        again, resumed = torch.load(buffer, weights_only=False)
    assert resumed.note == "kept"
    assert type(resumed).__name__ == "Mixed"
    assert repr(resumed) == repr(optimizer)
    train(net, optimizer, 3, seed=9)
    train(again, resumed, 3, seed=9)
    assert difference(list(net.parameters()), list(again.parameters())) == 0.0
    resumed.add_param_group({"params": [parameter(2)]})
    assert "differentiable" not in resumed.param_groups[1]


def test_a_shallow_copy_steps_the_same_parameters() -> None:
    net, optimizer = trained(AdamW, {})
    alone, reference = trained(AdamW, {})
    other = copy.copy(optimizer)
    for i in range(3):
        train(net, other if i == 1 else optimizer, 1, seed=i)
        train(alone, reference, 1, seed=i)
    assert difference(list(net.parameters()), list(alone.parameters())) == 0.0


def test_named_parameters_survive() -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"][0] == "0.weight"
    plain = AdamW(net.parameters())
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["param_names"][0] == "0.weight"


def test_a_class_without_a_way_to_rebuild_it_says_so() -> None:
    from optlang.compiler import compile_source
    from optlang.runtime.optimizer_class import make_class
    from optlang.source import Source

    lonely = make_class(compile_source(Source("p -= lr*g")), backend="eager", module="nowhere")
    with pytest.raises((pickle.PicklingError, ModuleNotFoundError, AttributeError), match="nowhere"):
        pickle.dumps(lonely([parameter(2)], lr=0.1))


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copy_does_not_step_the_original_through_a_scheduler(how: str) -> None:
    p = parameter(3)
    optimizer = AdamW([p], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)  # puts its own `step` on the optimizer
    if how == "pickle":
        p2, twin = pickle.loads(pickle.dumps((p, optimizer)))
    else:
        p2, twin = (p, copy.copy(optimizer)) if how == "copy" else copy.deepcopy((p, optimizer))
    p2.grad = torch.ones_like(p2)
    before = p2.detach().clone()
    twin.step()
    assert not torch.equal(p2, before)
    assert set(twin.state) == {p2}
    assert how == "copy" or not optimizer.state


def test_a_class_is_found_again_after_pickling() -> None:
    optimizer = AdamW([parameter(3)], lr=0.1)
    assert type(pickle.loads(pickle.dumps(optimizer))) is AdamW


@pytest.mark.parametrize("bad", [{}, "checkpoint", {"state": {}}])
def test_what_is_no_state_dict_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="'state' and 'param_groups'"):
        AdamW([parameter(3)]).load_state_dict(bad)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    _, sgd = trained(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    _, optimizer = trained(AdamW, {})
    with pytest.raises(ValueError, match=r"momentum_buffer.*exp_avg.*another optimizer"):
        optimizer.load_state_dict(sgd.state_dict())


# Of one moment -------------------------------------------------------------------------------------------------

ONE_MOMENT = {
    "AdamW": (AdamW, {}),
    "Mixed": (Mixed, {"momentum": 0.5}),
    "Adafactor": (optimizer_class("adafactor"), {}),
    "Prodigy": (optimizer_class("prodigy"), {}),
    "ScheduleFreeSGD": (optimizer_class("schedulefreesgd"), {}),
    "capturable": (AdamW, {"capturable": True}),
}


def text_of(saved: Any) -> str:
    with torch._tensor_str.printoptions(profile="full", precision=17):
        return str(saved)


@pytest.mark.parametrize("name", ONE_MOMENT)
def test_a_state_dict_is_of_one_moment(name: str) -> None:
    cls, options = ONE_MOMENT[name]
    net, optimizer = trained(cls, {"lr": 0.1, **options})
    held, again = optimizer.state_dict(), optimizer.state_dict()
    then = text_of(held)
    train(net, optimizer, 1)
    later = optimizer.state_dict()
    between = text_of(later)
    twin = copy.copy(optimizer)
    train(net, twin, 1)
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        optimizer.train()
    train(net, optimizer, 1)
    assert text_of(held) == text_of(again) == then and text_of(later) == between
    assert text_of(optimizer.state_dict()) not in (then, between)
    held["state"][0] = None
    optimizer.load_state_dict(again)
    assert text_of(optimizer.state_dict()) == then


def test_a_state_dict_that_is_let_go_costs_no_memory() -> None:
    p = parameter(50)
    optimizer = AdamW([p])
    optimizer.step()
    own = optimizer.state[p]["exp_avg"]
    held = optimizer.state_dict()["state"][0]["exp_avg"]
    assert held.data_ptr() == own.data_ptr()
    optimizer.step()
    assert held.data_ptr() != own.data_ptr() and optimizer.state[p]["exp_avg"] is own
    assert not optimizer._lent._held
    held.zero_()
    assert own.any()


def test_the_state_of_a_tensor_that_has_been_replaced_is_named() -> None:
    old, new = parameter(4), parameter(3)
    optimizer = AdamW([old])
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = new
    optimizer.step()
    with pytest.raises(ValueError, match=r"AdamW: .* a tensor of shape \(4,\), which is in no parameter group"):
        optimizer.state_dict()
    del optimizer.state[old]
    assert list(optimizer.state_dict()["state"]) == [0]
