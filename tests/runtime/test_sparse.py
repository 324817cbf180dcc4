"""``sparse="lazy"``: only the rows that a sparse gradient touches are updated."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from optimizing import optimizer_class

import optlang

ROWS, COLUMNS = 12, 3
LAZY: dict[str, Any] = {"sparse": "lazy"}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch's own remarks on sparse tensors


def table(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> torch.nn.Parameter:
    """Return a parameter, always the same."""
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=dtype))


def sparse(rows: Sequence[int], seed: int, p: torch.Tensor) -> torch.Tensor:
    """Return a gradient of some rows, which may be listed twice."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((len(rows), *p.shape[1:]), generator=generator, dtype=torch.float64).to(p.dtype)
    return torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.long), values, p.shape)


def touched(step: int) -> list[int]:
    """Return the rows of a step: others each time, some of them twice, none at all in one step."""
    if step == 11:
        return []
    return torch.randint(0, ROWS, (5,), generator=torch.Generator().manual_seed(step)).tolist()


def follow(optimizer: Any, p: torch.Tensor, steps: Sequence[int] = range(30)) -> None:
    for step in steps:
        p.grad = sparse(touched(step), step, p)
        optimizer.step()


def contents(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in state.items()}


def assert_equal(p: torch.Tensor, q: torch.Tensor, ours: dict[str, Any], theirs: dict[str, Any], atol: float) -> None:
    torch.testing.assert_close(p, q, rtol=0, atol=atol)
    a, b = contents(ours), contents(theirs)
    assert set(a) == set(b)
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=0, atol=atol)


# What it computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"betas": (0.5, 0.8), "eps": 1e-3}, {"maximize": True, "lr": 0.1}],
    ids=["defaults", "other", "maximize"],
)
@pytest.mark.parametrize("backend", ["eager", pytest.param("auto", marks=pytest.mark.compiler)])
def test_equals_sparse_adam_of_torch(backend: str, options: dict[str, Any]) -> None:
    p, q = table(), table()
    ours = optimizer_class("sparseadam", backend=backend)([p], **LAZY, **options)
    theirs = torch.optim.SparseAdam([q], **options)
    follow(ours, p)
    follow(theirs, q)
    assert not torch.equal(p, table())
    assert_equal(p, q, ours.state[p], theirs.state[q], 1e-12)


def test_an_embedding_of_torch() -> None:
    a = torch.nn.Embedding(ROWS, COLUMNS, sparse=True, dtype=torch.float64)
    b = copy.deepcopy(a)
    ours = optimizer_class("sparseadam")(a.parameters(), **LAZY)
    theirs = torch.optim.SparseAdam(b.parameters())
    for step in range(5):
        for net, optimizer in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            net(torch.tensor([[step, 1], [1, 5]])).square().sum().backward()
            assert net.weight.grad.is_sparse
            optimizer.step()
    torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}),
        ("adamw", {"amsgrad": True, "maximize": True}),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("lion", {"weight_decay": 0.1}),
    ],
    ids=["adamw", "amsgrad", "sgd", "lion"],
)
def test_it_is_a_dense_step_of_these_rows(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    rows = [7, 2, 9]
    p = table(dtype)
    q = torch.nn.Parameter(p.detach()[rows].clone())
    lazy, dense = optimizer_class(name)([p], **LAZY, **options), optimizer_class(name)([q], **options)
    for step in range(10):
        q.grad = sparse([0, 1, 2], step, q).to_dense()
        p.grad = sparse(rows, step, p)
        lazy.step()
        dense.step()
    assert torch.equal(p.detach()[rows], q.detach())
    for key, value in dense.state[q].items():
        held = lazy.state[p][key]
        assert torch.equal(held[rows] if held.dim() else held, value)


@pytest.mark.parametrize("name", ["adamw", "sgd", "sparseadam", "lion", "adagrad"])
def test_rows_that_are_not_touched_stay_as_they_are(name: str) -> None:
    p = table()
    optimizer = optimizer_class(name)([p], **LAZY, **({"momentum": 0.9} if name == "sgd" else {}))
    follow(optimizer, p, range(3))
    before = {"p": p.detach().clone(), **{key: value.clone() for key, value in optimizer.state[p].items()}}
    p.grad = sparse([4, 4, 8], 100, p)
    optimizer.step()
    rest = [row for row in range(ROWS) if row not in (4, 8)]
    for key, value in {"p": p.detach(), **optimizer.state[p]}.items():
        if value.dim():
            assert torch.equal(value[rest], before[key][rest])
            assert not torch.equal(value[4], before[key][4])


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 2, 3)])
def test_rows_of_other_shapes(shape: tuple[int, ...]) -> None:
    p, q = table(shape=shape), table(shape=shape)
    ours, theirs = optimizer_class("sparseadam")([p], **LAZY), torch.optim.SparseAdam([q])
    follow(ours, p)
    follow(theirs, q)
    torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_a_table_that_is_not_contiguous() -> None:
    p, q = torch.nn.Parameter(table().detach().T.contiguous().T), table()
    assert not p.is_contiguous()
    ours, theirs = optimizer_class("adamw")([p], **LAZY), optimizer_class("adamw")([q], **LAZY)
    follow(ours, p)
    follow(theirs, q)
    assert torch.equal(p, q)


def test_a_gradient_without_rows_counts_as_a_step_and_changes_nothing_else() -> None:
    p = table()
    optimizer = optimizer_class("adamw")([p], **LAZY)
    follow(optimizer, p, [11])
    assert optimizer.state[p]["step"] == 1 and not optimizer.state[p]["exp_avg"].any()
    assert torch.equal(p, table())


def test_a_state_that_starts_from_the_gradient() -> None:
    rule = "optimizer Started\nhyper lr = 0.1\nstate m = g\nm = (m + g)/2\np -= lr*m\n"
    p, q = table(), table()
    lazy, dense = optimizer_class(rule)([p], **LAZY), optimizer_class(rule)([q])
    p.grad, q.grad = sparse([1, 1, 3], 0, p), sparse([1, 1, 3], 0, q).to_dense()
    lazy.step()
    dense.step()
    assert torch.equal(p, q)


def test_dense_gradients_beside_sparse_ones_and_in_their_place() -> None:
    p, other = table(), table()
    q, twin = table(), table()
    lazy, dense = optimizer_class("adamw")([p, other], **LAZY), optimizer_class("adamw")([q, twin])
    for step in range(8):
        everything = sparse(range(ROWS), step, p)  # touches all rows, so that both are the same step
        p.grad = everything if step % 3 else everything.to_dense()
        other.grad = sparse(range(ROWS), 50 + step, p).to_dense() if step != 4 else None
        q.grad, twin.grad = everything.to_dense(), None if other.grad is None else other.grad.clone()
        lazy.step()
        dense.step()
    assert torch.equal(p, q) and torch.equal(other, twin)
    assert lazy.state[p]["step"] == 8 and lazy.state[other]["step"] == 7


def test_a_step_without_a_gradient_leaves_the_table_alone() -> None:
    p = table()
    optimizer = optimizer_class("sparseadam")([p], **LAZY)
    follow(optimizer, p, range(2))
    before, p.grad = p.detach().clone(), None
    optimizer.step()
    assert torch.equal(p, before) and optimizer.state[p]["step"] == 2
    follow(optimizer, p, range(2, 30))
    q = table()
    follow(torch.optim.SparseAdam([q]), q)
    torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_rows_follow_the_values_in_the_param_groups() -> None:
    p, q = table(), table()
    ours, theirs = optimizer_class("sparseadam")([p], **LAZY), torch.optim.SparseAdam([q])
    for steps, lr in ((range(5), 1e-3), (range(5, 9), 0.5)):
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = lr
        follow(ours, p, steps)
        follow(theirs, q, steps)
    torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_it_may_be_asked_for_in_one_group() -> None:
    p, q = table(), table()
    optimizer = optimizer_class("adamw")([{"params": [p], "sparse": "lazy"}, {"params": [q]}])
    p.grad, q.grad = sparse([1], 0, p), sparse([1], 0, q).to_dense()
    optimizer.step()
    assert torch.equal(p[2], table()[2]) and not torch.equal(q[2], table()[2])  # by weight decay
    assert "sparse" not in optimizer.param_groups[1]


@pytest.mark.compiler
def test_the_preparation_compiles_what_rows_need() -> None:
    cls = optlang.compile("optimizer Prepared\nhyper lr = 0.1\nstate m\nm = (m + g)/2\np -= lr*m\n")
    p = table()
    optimizer: Any = cls([p], **LAZY)
    p.grad = sparse([1, 2], 0, p)
    optimizer.warmup()
    count = optlang.runtime.kernels.compiled_count(cls)
    optimizer.step()
    assert count == optlang.runtime.kernels.compiled_count(cls) == 1
    assert torch.equal(p[0], table()[0]) and not torch.equal(p[1], table()[1])


# Copies and checkpoints -----------------------------------------------------------------------------------------


def saved(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint as it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["sparseadam", "adamw"])
def test_a_checkpoint_in_the_middle(name: str) -> None:
    p = table()
    first = optimizer_class(name)([p], **LAZY)
    follow(first, p, range(10))
    q = torch.nn.Parameter(p.detach().clone())
    second = optimizer_class(name)([q])  # the checkpoint says how
    second.load_state_dict(saved(first.state_dict()))
    both = copy.deepcopy([p, first])
    follow(first, p, range(10, 30))
    follow(second, q, range(10, 30))
    follow(both[1], both[0], range(10, 30))
    assert torch.equal(p, q) and torch.equal(p, both[0])
    assert_equal(p, q, first.state[p], second.state[q], 0)


def test_checkpoints_of_torch_and_back() -> None:
    p, q = table(), table()
    theirs = torch.optim.SparseAdam([p])
    follow(theirs, p, range(10))
    q.data.copy_(p.data)
    ours = optimizer_class("sparseadam")([q], **LAZY)
    ours.load_state_dict(saved(theirs.state_dict()))
    assert ours.param_groups[0]["sparse"] == "lazy"
    follow(theirs, p, range(10, 20))
    follow(ours, q, range(10, 20))
    back = torch.nn.Parameter(q.detach().clone())
    third = torch.optim.SparseAdam([back])
    third.load_state_dict(ours.state_dict())
    follow(theirs, p, range(20, 30))
    follow(third, back, range(20, 30))
    torch.testing.assert_close(p, back, rtol=0, atol=1e-12)


# A class for sparse gradients ----------------------------------------------------------------------------------


def test_a_class_for_sparse_gradients_needs_no_telling() -> None:
    p, q = table(), table()
    ours, theirs = optimizer_class("sparseadam")([p], lr=0.1), torch.optim.SparseAdam([q], lr=0.1)
    assert ours.param_groups[0]["sparse"] == "lazy"
    follow(theirs, q, range(5))
    p.data.copy_(q.data)
    ours.load_state_dict(saved(theirs.state_dict()))
    follow(ours, p, range(5, 10))
    follow(theirs, q, range(5, 10))
    assert_equal(p, q, ours.state[p], theirs.state[q], 1e-12)


def test_a_class_for_sparse_gradients_refuses_dense_ones() -> None:
    p = table()
    optimizer = optimizer_class("sparseadam")([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"parameter 0 .* has a dense gradient, but SparseAdam needs sparse gradients"):
        optimizer.step()
    assert torch.equal(p, table()) and not optimizer.state
    optimizer_class("sparseadam")([p], sparse=None).step()
    assert not torch.equal(p, table())
    with pytest.raises(ValueError, match="SparseAdam requires dense parameters"):
        optimizer_class("sparseadam")([torch.zeros(3, layout=torch.sparse_coo)])


# What is refused ------------------------------------------------------------------------------------------------


def test_without_it_a_sparse_gradient_is_an_error_that_names_it() -> None:
    first, p = table(), table()
    first.grad, p.grad = torch.ones_like(first), sparse([1], 0, p)
    optimizer = optimizer_class("adamw")([("first", first), ("embedding", p)])
    with pytest.raises(ValueError, match=r"parameter 'embedding' has a sparse gradient .*sparse=\"lazy\""):
        optimizer.step()
    assert torch.equal(first, table()) and torch.equal(p, table()) and not optimizer.state
    unnamed = optimizer_class("adamw")([first, p])
    with pytest.raises(ValueError, match=r"parameter 1 \(of shape \(12, 3\)\) has a sparse gradient"):
        unnamed.step()


def test_a_gradient_that_becomes_sparse_is_an_error_too() -> None:
    p = table()
    optimizer = optimizer_class("adamw")([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    for g in (sparse([1], 0, p), torch.ones_like(p).to_sparse()):
        p.grad = g
        with pytest.raises(ValueError, match="has a sparse gradient"):
            optimizer.step()
    assert torch.equal(p, before) and optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("started", [False, True])
def test_gradients_that_are_sparse_within_rows(started: bool) -> None:
    first, p = table(), table()
    optimizer = optimizer_class("adamw")([first, p], **LAZY)
    first.grad = torch.ones_like(first)
    if started:
        p.grad = sparse([1], 0, p)
        optimizer.step()
    before = copy.deepcopy([first, p])
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(ValueError, match=r"parameter 1 \(of shape \(12, 3\)\) has a gradient that is sparse in 2 "):
        optimizer.step()
    assert torch.equal(first, before[0]) and torch.equal(p, before[1])
    p.grad = sparse([2], 0, p)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1 + started and not torch.equal(first, before[0])


@pytest.mark.parametrize("name", ["lamb", "muon", "adafactor", "adamwclip"])
def test_rules_that_look_at_more_than_one_element_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot have sparse=\"lazy\": .* does not update each element independently"):
        optimizer_class(name)([table()], **LAZY)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("every 2: p -= lr*g\n", r"does not make the same step every time .`every`."),
        ("p -= lr*(g + randn())\n", "draws random numbers for whole tensors"),
        ("every 2: p -= lr*g/norm(g)\n", "does not update each element independently"),
        ("p -= lr*g/gnorm(g)\n", "does not update each element independently"),
    ],
)
def test_the_reason_is_the_true_one(step: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot have sparse=\"lazy\": A {why}; give it dense gradients"):
        optimizer_class(f"optimizer A\nsparse\nhyper lr = 0.1\n{step}")([table()])


def test_a_rule_that_comes_to_look_at_more_is_refused() -> None:
    rule = "optimizer Both\nhyper lr = 0.1, scaled = false\nif scaled: g = g/(norm(g) + 1)\np -= lr*g\n"
    p = table()
    optimizer = optimizer_class(rule)([p], **LAZY)
    p.grad = sparse([1], 0, p)
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["scaled"] = True
    with pytest.raises(ValueError, match=r"parameter 0 .* has a sparse gradient, but Both does not update"):
        optimizer.step()
    assert torch.equal(p, before)


def test_a_route_to_a_rule_of_elements() -> None:
    cls = optimizer_class("muonwithadamw")
    with pytest.raises(ValueError, match=r"Muon: parameter 0 .* cannot have sparse=\"lazy\""):
        cls([table()], lr=0.1, **LAZY)
    p, q = table(), table()
    optimizer = cls([{"params": [p], "adam": True, "sparse": "lazy"}, {"params": [q]}], lr=0.1)
    p.grad, q.grad = sparse([1], 0, p), torch.ones_like(q)
    optimizer.step()
    assert torch.equal(p[0], table()[0]) and not torch.equal(p[1], table()[1])


@pytest.mark.parametrize("switch", ["capturable", "differentiable"])
def test_switches_that_do_not_go_together(switch: str) -> None:
    AdamW = optimizer_class("adamw")
    with pytest.raises(ValueError, match=rf"sparse=\"lazy\" and {switch}=True cannot be used together"):
        AdamW([table()], **LAZY, **{switch: True})
    p = table()
    optimizer = AdamW([p], **LAZY)
    p.grad = sparse([1], 0, p)
    optimizer.param_groups[0][switch] = True
    with pytest.raises(ValueError, match="cannot be used together"):
        optimizer.step()
    assert torch.equal(p, table())


def test_other_values_are_refused_and_none_is_none() -> None:
    AdamW = optimizer_class("adamw")
    for value in ("eager", True, 1):
        with pytest.raises(ValueError, match=r"AdamW: sparse must be \"lazy\" or None"):
            AdamW([table()], sparse=value)
    assert "sparse" not in AdamW([table()], sparse=None).param_groups[0]
    assert AdamW([table()], **LAZY).param_groups[0]["sparse"] == "lazy"
