"""Saving and loading in the middle of things: cycles of `every`, random numbers, evaluation, shapes of their own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optimizing import optimizer_class
from stepping import eager, values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: Rules of several passes or with events, under options that put the middle of a cycle never far away.
RULES: dict[str, dict[str, Any]] = {
    "soap": {"precondition_frequency": 3},
    "shampoo": {"preconditioning_compute_steps": 3},
    "prodigy": {},
    "sgld": {"seed": 3},
    "schedulefreeadamw": {},
    "adamwema": {"decay": 0.9},
    "lookaheadadamw": {"k": 3},
    "muon": {},
    "galoreadamw": {"rank": 2, "update_proj_gap": 3},
    "dog": {},
    "avagrad": {},
    "muonwithadamw": {},
    "splus": {},
}
SHAPES = [(6, 5), (5,), (4, 5), (4,), (4, 5), (3, 2, 2), ()]


def made(name: str, cls: Any, dtype: torch.dtype, **given: Any) -> tuple[list[Any], Any]:
    """Return parameters and an optimizer with two param groups."""
    shapes = [s for s in SHAPES if name not in ("muon", "splus") or len(s) == 2]
    ps = [torch.nn.Parameter(values(s, dtype, i)) for i, s in enumerate(shapes)]
    return ps, cls([{"params": ps[:2]}, {"params": ps[2:]}], **given)


def members(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def go_on(optimizer: Any, steps: range, missing: bool = False) -> None:
    """Make steps whose gradients follow from their numbers; some are missing, if so asked."""
    for step in steps:
        for i, p in enumerate(members(optimizer)):
            p.grad = None if missing and (3 * step + i) % 5 == 0 else values(tuple(p.shape), p.dtype, 50 * step + i)
        optimizer.step()


def through_a_file(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumed(name: str, optimizer: Any) -> Any:
    """Return an optimizer that goes on from a checkpoint, on parameters of its own."""
    saved = through_a_file([optimizer.state_dict(), [p.detach() for p in members(optimizer)]])
    ps, other = made(name, type(optimizer), saved[1][0].dtype)
    for p, value in zip(ps, saved[1], strict=True):
        p.data.copy_(value)
    other.load_state_dict(saved[0])
    return other


def compare(ours: Any, theirs: Any) -> None:
    """Check that two optimizers and their parameters are the same to the bit."""
    for p, q in zip(members(ours), members(theirs), strict=True):
        assert torch.equal(p, q)
        assert ours.state.get(p, {}).keys() == theirs.state.get(q, {}).keys()
        for key, value in ours.state.get(p, {}).items():
            assert value.dtype is theirs.state[q][key].dtype
            assert torch.equal(value, theirs.state[q][key]), key
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def trial(name: str, cls: Any, dtype: torch.dtype, missing: bool, middle: int) -> None:
    """Stop in the middle, also in evaluation, and go on in three ways."""
    _, optimizer = made(name, cls, dtype, **RULES[name])
    go_on(optimizer, range(middle), missing)
    optimizer.eval()
    others = [resumed(name, optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for other in others:
        compare(optimizer, other)
    for one in (optimizer, *others):
        if one._events:
            with pytest.raises(RuntimeError):
                one.step()
        one.train()
        go_on(one, range(middle, middle + 7), missing)
    for other in others:
        compare(optimizer, other)


@pytest.mark.parametrize(
    ("dtype", "middle", "missing"),
    [(torch.float32, 1, False), (torch.float64, 4, True), (torch.float32, 5, True), (torch.bfloat16, 5, False)],
)
@pytest.mark.parametrize("name", RULES)
def test_resuming_is_as_if_never_stopped(name: str, dtype: torch.dtype, middle: int, missing: bool) -> None:
    trial(name, eager(name), dtype, missing, middle)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", [name for name in RULES if name != "splus"])
def test_compiled_steps_resume_as_if_never_stopped(name: str) -> None:
    trial(name, optimizer_class(name, backend="auto"), torch.float32, True, 4)


def test_the_largest_seed_survives() -> None:
    _, optimizer = made("sgld", eager("sgld"), torch.float32, seed=2**64 - 1)
    go_on(optimizer, range(3))
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"][0]["seed"] == 2**64 - 1 and saved["state"][0]["step"] == 3


# What does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "place"),
    [
        ("soap", "L", 0),
        ("soap", "QR", 2),
        ("soap", "exp_avg", 1),
        ("shampoo", "inv_pre_cond_0", 3),
        ("galoreadamw", "P", 4),
    ],
)
def test_states_of_other_shapes_are_refused_and_nothing_is_loaded(name: str, key: str, place: int) -> None:
    _, optimizer = made(name, eager(name), torch.float64, **RULES[name])
    go_on(optimizer, range(2))
    saved = optimizer.state_dict()
    wrong = saved["state"][place][key]
    saved = copy.deepcopy(saved)
    saved["state"][place][key] = torch.zeros(wrong.shape[0] + 1, *wrong.shape[1:], dtype=wrong.dtype)
    saved["param_groups"][0]["lr"] = 99.0
    other = made(name, eager(name), torch.float64)[1]
    go_on(other, range(1))
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match=rf"{key}.*has shape"):
        other.load_state_dict(saved)
    compare(other, before)
    go_on(other, range(1, 3))


def test_the_rank_of_a_checkpoint_comes_with_it() -> None:
    _, optimizer = made("galoreadamw", eager("galoreadamw"), torch.float64, rank=3)
    go_on(optimizer, range(2))
    other = made("galoreadamw", eager("galoreadamw"), torch.float64, rank=1)[1]
    go_on(other, range(4))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["rank"] == 3
    for q, p in zip(members(other), members(optimizer), strict=True):
        q.data.copy_(p.detach())
    go_on(optimizer, range(2, 5))
    go_on(other, range(2, 5))
    compare(optimizer, other)


def test_the_name_of_a_parameter_is_in_the_refusal() -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = eager("soap")(net.named_parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["L"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"'L' of shape \(3, 3\) for parameter 'weight'"):
        optimizer.load_state_dict(saved)


def test_numbers_in_common_are_plain_and_what_a_checkpoint_lacks_is_kept_or_started() -> None:
    _, optimizer = made("prodigy", eager("prodigy"), torch.float64)
    go_on(optimizer, range(3))
    saved = optimizer.state_dict()
    assert all(type(group[key]) is float for group in saved["param_groups"] for key in ("d", "d_max", "d_numerator"))
    for group in saved["param_groups"]:
        del group["d_numerator"]
    other = made("prodigy", eager("prodigy"), torch.float64)[1]
    other.load_state_dict(saved)
    go_on(other, range(3, 4))
    assert other.param_groups[0]["d"] >= optimizer.param_groups[0]["d"]

    sgld = made("sgld", eager("sgld"), torch.float64, seed=5)[1]
    go_on(sgld, range(2))
    saved = sgld.state_dict()
    for group in saved["param_groups"]:
        del group["seed"]
    sgld.load_state_dict(saved)
    assert [group["seed"] for group in sgld.param_groups] == [5, 5]
    saved["param_groups"][0]["seed"] = -1
    with pytest.raises(ValueError, match="loaded state dict: seed must be an integer"):
        sgld.load_state_dict(saved)


def test_a_checkpoint_of_adamw_loads_into_rules_made_of_it() -> None:
    _, usual = made("adamw", eager("adamw"), torch.float64)
    go_on(usual, range(3))
    for name in ("adamwclip", "adamwema", "lookaheadadamw"):
        _, other = made(name, eager(name), torch.float64, weight_decay=0.5)
        for p, q in zip(members(usual), members(other), strict=True):
            q.data.copy_(p.detach())
        other.load_state_dict(usual.state_dict())
        assert other.param_groups[0]["weight_decay"] == 1e-2  # that of the checkpoint
        other.eval()  # nothing has been averaged yet
        other.train()
        go_on(other, range(3, 5))
        assert all(float(state["step"]) == 5 for state in other.state.values())
        assert all(torch.isfinite(p).all() for p in members(other))
