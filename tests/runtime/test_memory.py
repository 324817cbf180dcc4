"""What lies under a kernel's pointers: tensors without addresses, memory that is exchanged, numbers that are shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import MIXED, difference, optimizer_class, parameter
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from optlang.artifact import Kernel
from optlang.backends.loading.modules import load_module, source_for
from optlang.backends.loading.signature import LoadedKernel, Signature


def memory(t: torch.Tensor) -> torch.Tensor:
    """Return what lies at the address of a tensor, one element behind the other, as a compiled kernel sees it."""
    assert t.data_ptr() or not t.numel(), "a kernel was given an address that is not there"
    t = torch.view_as_real(t) if t.is_complex() else t
    return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage(), t.storage_offset(), (t.numel(),), (1,))


def blind(kernel: Kernel, signature: Signature) -> LoadedKernel:
    """Return a kernel that knows nothing but addresses, like one that is compiled."""
    update = load_module(source_for(kernel, signature), kernel.name)["update"]
    count = len(signature.dtypes)

    def run(tensors: list[Any]) -> None:
        for i in range(0, len(tensors) - 1, count):
            update(*map(memory, tensors[i : i + count]), tensors[-1])

    return LoadedKernel(run, "eager", many=True)


def blind_class(rule: str) -> type[torch.optim.Optimizer]:
    """Return the class of a rule for single elements whose kernels know nothing but addresses."""
    cls: Any = optimizer_class(rule, name=f"Blind{abs(hash(rule))}")
    for part in cls._parts.parts:
        part.kernels._load = blind
    return cls  # type: ignore[no-any-return]


AdamW = blind_class("adamw")
SGD = optimizer_class("sgd")
CLASSES = {"adamw": AdamW, "sgd": SGD, "lamb": optimizer_class("lamb"), "muon": optimizer_class("muon")}
each_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)


def ones(*shape: int, **options: Any) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(shape, **options))
    p.grad = torch.ones(shape, **options)
    return p


# Tensors without addresses ----------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("inside", [True, False])
def test_fake_tensors(cls: Any, inside: bool) -> None:
    mode = FakeTensorMode()
    with mode:
        p = ones(3, 4)
        optimizer = cls([p], lr=0.1)
        if inside:
            optimizer.step()
            optimizer.step()
    if not inside:
        optimizer.step()
        optimizer.step()
    assert all(v.shape == p.shape for k, v in optimizer.state[p].items() if k != "step")
    assert p.shape == (3, 4)


@each_class
def test_fake_and_real_tensors_do_not_mix(cls: Any) -> None:
    p = ones(3, 4)
    optimizer = cls([p], lr=0.1)
    for _ in range(2):  # in the first step, and in a later one
        before = p.detach().clone()
        with FakeTensorMode(), pytest.raises(ValueError, match=r"is a real tensor, .* FakeTensorMode"):
            optimizer.step()
        assert torch.equal(p, before)
        optimizer.step()
        assert not torch.equal(p, before)


def test_a_sum_over_fake_tensors_is_refused() -> None:
    with FakeTensorMode():
        optimizer = optimizer_class("prodigy")([ones(3)])
        with pytest.raises(ValueError, match=r"has no values .* sums over the whole model"):
            optimizer.step()


@each_class
def test_subclasses_that_wrap_tensors(cls: Any) -> None:
    a, b = parameter(3, 4), parameter(3, 4, seed=1)
    p = torch.nn.Parameter(TwoTensor(a.detach().clone(), b.detach().clone()))
    ours, *theirs = cls([p], lr=0.1), cls([a], lr=0.1), cls([b], lr=0.1)
    for i in range(4):
        if i == 2:  # whoever moves a model replaces what it wraps
            p.data = TwoTensor(p.a.clone(), p.b.clone())
        for q in (p, a, b):
            q.grad = None
            (q**2).sum().backward()
        for optimizer in (ours, *theirs):
            optimizer.step()
    assert difference([p.a, p.b], [a, b]) < 1e-12


@each_class
def test_parameters_on_meta(cls: Any) -> None:
    p = ones(3, 4, device="meta")
    optimizer = cls([p], lr=0.1)
    optimizer.step()
    optimizer.step()
    assert all(v.device.type == "meta" for k, v in optimizer.state[p].items() if k != "step")


@each_class
def test_zeros_that_are_only_marked_as_such(cls: Any) -> None:
    p, q = parameter(3, 4), parameter(3, 4)
    ours, theirs = cls([p], lr=0.1), cls([q], lr=0.1)
    for marked in (False, True, False, True, True):
        p.grad = torch._efficientzerotensor((3, 4), dtype=p.dtype) if marked else torch.ones_like(p)
        q.grad = torch.zeros_like(q) if marked else torch.ones_like(q)
        ours.step()
        theirs.step()
    assert difference([p], [q]) < 1e-12


def test_tensors_of_functional_transforms() -> None:
    def stepped(scale: torch.Tensor) -> torch.Tensor:
        p = torch.ones(3) * scale
        p.grad = torch.full((3,), 0.5) * scale
        optimizer = AdamW([p], lr=0.1)
        optimizer.step()
        optimizer.step()
        return p

    scales = torch.tensor([1.0, 2.0])
    expected = torch.stack([stepped(scale) for scale in scales])
    assert difference([torch.vmap(stepped)(scales)], [expected]) < 1e-6
    p, g = torch._to_functional_tensor(torch.ones(3)), torch._to_functional_tensor(torch.full((3,), 0.5))
    torch._enable_functionalization(reapply_views=True)
    try:
        p.grad = g
        optimizer = AdamW([p], lr=0.1)
        optimizer.step()
        optimizer.step()
        torch._sync(p)
    finally:
        torch._disable_functionalization()
    assert difference([torch._from_functional_tensor(p)], [expected[0]]) < 1e-6


def freed(t: torch.Tensor) -> None:
    t.untyped_storage().resize_(0)


LOST: dict[str, Callable[[Any, Any], None]] = {
    "parameter": lambda p, optimizer: freed(p),
    "gradient": lambda p, optimizer: freed(p.grad),
    "state": lambda p, optimizer: freed(optimizer.state[p]["exp_avg"]),
}


@pytest.mark.parametrize("what", LOST)
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_memory_that_was_freed_is_refused_before_anything_moves(name: str, what: str) -> None:
    p, q = ones(3, 4), ones(2)
    optimizer = CLASSES[name]([q, p])
    optimizer.step()
    before = q.detach().clone()
    LOST[what](p, optimizer)
    with pytest.raises(ValueError, match=r"parameter 1 .* needs 48 bytes, but its storage was resized to 0"):
        optimizer.step()
    assert torch.equal(q, before)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: torch.ones(1).expand(3, 4), "elements that share memory"),
        (lambda: torch.ones(3, 4).to_sparse(), "of layout torch.sparse_coo"),
        (lambda: torch.ones(3, 4).to_sparse_csr(), "of layout torch.sparse_csr"),
        (lambda: torch.ones(3, 4).to_mkldnn(), "of layout torch._mkldnn"),
    ],
)
@each_class
def test_parameters_that_cannot_be_written_one_by_one(cls: Any, made: Callable[[], Any], message: str) -> None:
    p, q = torch.nn.Parameter(made()), ones(3, 4)
    p.grad = p.detach().clone()
    with pytest.raises(ValueError, match=rf"parameter 1 .*{message}"):
        cls([q, p]).step()
    assert torch.equal(q, torch.ones(3, 4))


@each_class
def test_steps_in_inference_mode(cls: Any) -> None:
    p, q = parameter(3, 4), parameter(3, 4)
    ours, theirs = cls([p], lr=0.1), cls([q], lr=0.1)
    for inferring in (True, True, False, True, False):
        with torch.inference_mode(inferring):
            ours.step()
        theirs.step()
    assert torch.equal(p, q)
    with torch.inference_mode():
        g = torch.ones_like(p)
    p.grad, q.grad = g, torch.ones_like(q)
    ours.step()
    theirs.step()
    assert torch.equal(p, q)


@each_class
def test_parameters_made_in_inference_mode(cls: Any) -> None:
    with torch.inference_mode():
        p = torch.ones(3, 4)
        p.grad = torch.ones(3, 4)
        optimizer = cls([p], lr=0.1)
        optimizer.step()
        optimizer.step()
    q = ones(3, 4)
    theirs = cls([q], lr=0.1)
    theirs.step()
    theirs.step()
    assert torch.equal(p, q)
    with pytest.raises(ValueError, match="is an inference tensor"):
        optimizer.step()
    assert torch.equal(p, q)


# Memory that is exchanged -----------------------------------------------------------------------------------------


def twins() -> tuple[Any, Any, torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return two equal parameters, with our optimizer and torch's, after a step."""
    p, q = parameter(4, 4), parameter(4, 4)
    ours, theirs = AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1, foreach=False)
    ours.step()
    theirs.step()
    return p, q, ours, theirs


def cloned(state: dict[str, Any]) -> None:
    for value in state.values():
        value.data = value.data.clone()


def other_values(state: dict[str, Any]) -> None:
    state["step"].data = torch.tensor(50.0)
    state["exp_avg"].data = torch.zeros(4, 4, dtype=torch.float64)


def turned(state: dict[str, Any]) -> None:
    state["exp_avg"].data = state["exp_avg"].data.t()


@pytest.mark.parametrize("exchange", [cloned, other_values, turned])
def test_state_whose_memory_is_replaced(exchange: Callable[[dict[str, Any]], None]) -> None:
    p, q, ours, theirs = twins()
    for _ in range(2):
        exchange(ours.state[p])
        exchange(theirs.state[q])
        ours.step()
        theirs.step()
    assert difference([p], [q]) < 1e-12
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert difference([ours.state[p][key]], [theirs.state[q][key]]) < 1e-12


def transposed(p: Any) -> None:
    p.data = p.data.t()


def negated(p: Any) -> None:
    p.grad = torch._neg_view(p.grad)


@pytest.mark.parametrize("change", [transposed, negated])
def test_order_and_sign_of_what_lies_under_the_same_pointer(change: Callable[[Any], None]) -> None:
    p, q, ours, theirs = twins()
    for x in (p, q):
        change(x)
    for _ in range(2):
        ours.step()
        theirs.step()
    assert difference([p], [q]) < 1e-12


MARKS = {"negative": torch._neg_view, "conjugate": torch.conj}


def resolved(t: torch.Tensor) -> torch.Tensor:
    return t.resolve_conj().resolve_neg().clone()


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("what", ["parameter", "parameter later", "state"])
@pytest.mark.parametrize("cls", [*CLASSES.values(), blind_class("sgd")], ids=[*CLASSES, "blind sgd"])
def test_tensors_that_are_only_marked_as_negative_or_conjugate(cls: Any, what: str, mark: str) -> None:
    marked, dtype = MARKS[mark], torch.complex128 if mark == "conjugate" else torch.float64
    if mark == "conjugate" and cls in (CLASSES["lamb"], CLASSES["muon"]):
        pytest.skip("it is for real numbers")
    options = {"momentum": 0.9} if cls.__name__ == "SGD" else {}
    results: list[list[torch.Tensor]] = []
    for change in (marked, lambda t: resolved(marked(t))):
        p = parameter(4, 4, dtype=dtype)
        g = p.grad
        if what == "parameter":
            p = torch.nn.Parameter(change(p.detach().t()))
            p.grad = g
        optimizer = cls([p], lr=0.1, **options)
        for step in range(4):
            optimizer.step()
            if step == 1 and what == "parameter later":
                p.data = change(p.data)
            elif step == 1 and what == "state":
                held = optimizer.state[p]
                held.update({key: change(value) for key, value in held.items() if value.dim() and "sq" not in key})
        results.append([resolved(t) for t in (p.detach(), *optimizer.state[p].values())])
    assert difference(*results) == 0


@pytest.mark.parametrize("mark", MARKS)
def test_rows_and_graphs_of_marked_parameters(mark: str) -> None:
    marked, dtype = MARKS[mark], torch.complex128 if mark == "conjugate" else torch.float64
    rows, graphs = [], []
    for change in (marked, lambda t: resolved(marked(t))):
        p = torch.nn.Parameter(change(parameter(4, 2, dtype=dtype).detach()))
        index, values = torch.tensor([[2, 0]]), change(torch.ones(2, 2, dtype=dtype))
        p.grad = torch.sparse_coo_tensor(index, values, (4, 2), check_invariants=False)
        optimizer = optimizer_class("sparseadam")([p])
        optimizer.step()
        optimizer.step()
        rows.append(resolved(p.detach()))
        w = parameter(3, dtype=dtype)
        q = change(w.clone())
        optimizer = SGD([q], lr=0.1, momentum=0.9, differentiable=True)
        for _ in range(2):
            q.grad = change(w)
            optimizer.step()
        graphs.append(torch.autograd.grad(q.abs().square().sum(), w)[0].resolve_conj())
    assert torch.equal(*rows)
    assert torch.equal(*graphs)


# Numbers that somebody else put there -----------------------------------------------------------------------------


def given(p: Any, optimizer: Any, step: torch.Tensor) -> None:
    optimizer.state[p].update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))


@pytest.mark.parametrize(
    "step",
    [
        torch.tensor(0.0),
        torch.tensor(0.0, dtype=torch.float64),
        torch.zeros(1),
        torch.tensor(0.0).share_memory_(),
        torch.zeros(2)[1],
    ],
    ids=["float32", "float64", "one element", "shared", "part"],
)
def test_a_count_that_is_given_is_written_in_place(step: torch.Tensor) -> None:
    step = copy.deepcopy(step) if not step.is_shared() else torch.tensor(0.0).share_memory_()
    p, q, r = parameter(3), parameter(3), parameter(2)
    ours, theirs = AdamW([p, r], lr=0.1), torch.optim.AdamW([q], lr=0.1, foreach=False)
    given(p, ours, step)
    given(q, theirs, torch.tensor(0.0))
    for i in range(5):
        if i == 3:  # what is written to it counts
            step.fill_(9.0)
            theirs.state[q]["step"].fill_(9.0)
        ours.step()
        theirs.step()
        assert ours.state[p]["step"] is step
        assert step == theirs.state[q]["step"]
    assert difference([p], [q]) < 1e-12
    assert ours.state[r]["step"] == 5
    step.fill_(0.0)
    saved = ours.state_dict()["state"][0]["step"]
    assert saved == 0
    assert saved.is_shared() is step.is_shared()


def test_workers_that_share_a_count_count_together() -> None:
    step = torch.tensor(0.0).share_memory_()
    p, q = parameter(3), parameter(3)
    workers = [AdamW([p], lr=0.1), AdamW([p], lr=0.1)]
    given(p, workers[0], step)
    workers[1].state[p].update(workers[0].state[p])
    theirs = torch.optim.AdamW([q], lr=0.1)
    for worker in (0, 1, 1, 0, 1):
        workers[worker].step()
        theirs.step()
    assert step == 5
    assert difference([p], [q]) < 1e-12


def test_other_numbers_that_are_given_are_written_in_place() -> None:
    p, q = parameter(3), parameter(3)
    Mixed = optimizer_class(MIXED)
    ours, theirs = Mixed([p]), Mixed([q])
    prod = torch.tensor(1.0, dtype=torch.float64)
    ours.state[p].update(step=torch.tensor(0.0), prod=prod)
    for _ in range(3):
        ours.step()
        theirs.step()
    assert ours.state[p]["prod"] is prod
    assert prod == theirs.state[q]["prod"]
    assert torch.equal(p, q)
