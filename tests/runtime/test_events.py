"""``optimizer.eval()`` and ``optimizer.train()``: parameters to evaluate with, and back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from optimizing import difference, model, optimizer_class, parameter, train
from stepping import SHAPES, Twins, eager, values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HEAD = "optimizer E; hyper lr = 0.1\nstate z = p\n"
#: Rules whose events read every kind of thing.
RULES = {
    "group states": HEAD
    + "group state w = 0\non eval: p = p + w*z\non train: p = p - w*z\nw += 1; p -= lr*g; z = z + g",
    "shared states": HEAD
    + "shared state w = 0\non eval: p = p + w*z\non train: p = p - w*z\nw += total(g^2); p -= lr*g; z = z + g",
    "host states": HEAD + "state c: scalar = 1\non eval: p = p + c*z\non train: p = p - c*z\nc *= 1.5; p -= lr*g",
    "host states that change": HEAD
    + """state c: scalar = 1
on eval:
    p = p + c*z
    c = c + 1
on train:
    c = c - 1
    p = p - c*z
c *= 1.5
p -= lr*g""",
    "numbers of tensors": HEAD
    + """state c: scalar = 1
on eval:
    p = p + c*z
    c = c + 1
on train:
    c = c - 1
    p = p - c*z
c = norm(g)
p -= lr*g""",
    "norms": HEAD + "on eval: p = p + norm(z)\non train: p = p - norm(z)\nz = 0.9*z + 0.1*p\np -= lr*g/(1 + norm(g))",
    "sizes": HEAD + "on eval: p = p + z*rows/(1 + numel)\non train: p = p - z*rows/(1 + numel)\np -= lr*g",
    "sums in the step": HEAD + "on eval: p = p + z\non train: p = p - z\nz = lerp(z, p, 0.1)\np -= lr*g/(1 + gnorm(g))",
    "every in the step": HEAD + "on eval: p = p + z\non train: p = p - z\nevery 2: z = lerp(z, p, 0.1)\np -= lr*g",
    "matrices in the step": HEAD
    + """state L = zeros(rows(matrix(p)), rows(matrix(p))) when ndim >= 2
on eval: p = p + z
on train: p = p - z
u = g
if ndim >= 2:
    L = lerp(L, matrix(g) @ matrix(g).T, 0.1)
    u = L @ matrix(g)
z = lerp(z, p, 0.1)
p -= lr*u""",
    "matrices in the events": HEAD
    + """state L = zeros(rows(matrix(p)), rows(matrix(p))) when ndim >= 2
on eval:
    if ndim >= 2: p = p + L @ matrix(z)
on train:
    if ndim >= 2: p = p - L @ matrix(z)
if ndim >= 2: L = lerp(L, matrix(g) @ matrix(g).T, 0.1)
p -= lr*g""",
    "hyperparameters": HEAD + "on eval: p = p + lr*z\non train: p = p - lr*z\np -= lr*g",
    "no states": "optimizer E; hyper lr = 0.1\non eval: p = p*2\non train: p = p/2\np -= lr*g",
    "no parameter": HEAD + "on eval: z = z*2\non train: z = z/2\np -= lr*g*z",
}
NAMES = ("schedulefreeadamw", "schedulefreesgd", "schedulefreeradam", "adamwema")


@pytest.mark.parametrize("name", [*RULES, *NAMES])
def test_events_are_those_of_the_interpreter(name: str) -> None:
    twins = Twins(RULES.get(name, name), [{"shapes": SHAPES[:4], "lr": 0.05}, {"shapes": SHAPES[4:]}])
    for event in ("train", "eval", "eval", "train"):  # before any step there is nothing to do
        twins.switch(event)
        twins.agree()
    twins.step(0, lambda i, k: k == 0)  # the first of each group has no state yet
    for event in ("eval", "eval", "train", "train", "eval"):
        twins.switch(event)
        twins.agree(1e-9, 1e-10)
    for step in range(1, 6):
        twins.switch("train")
        twins.step(step, lambda i, k, step=step: step == 2 and i == 1)
        if step % 2:
            twins.switch("eval")
        twins.agree(1e-9, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_eval_and_train_bring_back_what_was_there(name: str) -> None:
    net = model()
    optimizer = eager(name)(net.parameters())
    train(net, optimizer, 8)
    before = [p.detach().clone() for p in net.parameters()]
    versions = [p._version for p in net.parameters()]
    optimizer.eval()
    assert all(p._version > v for p, v in zip(net.parameters(), versions, strict=True))
    evaluated = [p.detach().clone() for p in net.parameters()]
    assert difference(before, evaluated) > 1e-6
    optimizer.eval()
    assert difference(evaluated, list(net.parameters())) == 0
    optimizer.train()
    optimizer.train(True)
    assert difference(before, list(net.parameters())) < 1e-15
    optimizer.train(False)
    assert difference(evaluated, list(net.parameters())) < 1e-15
    optimizer.train()
    train(net, optimizer, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_evaluation_is_refused_and_changes_nothing(name: str) -> None:
    net = model()
    optimizer = eager(name)(net.parameters())
    train(net, optimizer, 2)
    optimizer.eval()
    parameters, state = copy.deepcopy(([p.detach() for p in net.parameters()], optimizer.state_dict()))
    called = []
    for arguments in ((), (lambda: called.append(1),)):
        with pytest.raises(RuntimeError, match=r"weights for evaluation; call optimizer\.train\(\) before step\(\)"):
            optimizer.step(*arguments)
    assert not called and difference(parameters, list(net.parameters())) == 0
    assert str(state) == str(optimizer.state_dict())
    optimizer.train()
    optimizer.step()


def test_a_rule_without_events_ignores_them() -> None:
    net = model()
    optimizer = eager("adamw")(net.parameters())
    train(net, optimizer, 1)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.eval()
    optimizer.train()
    optimizer.eval()
    assert difference(before, list(net.parameters())) == 0 and "train_mode" not in optimizer.param_groups[0]
    train(net, optimizer, 1)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_checkpoints_know_the_mode(name: str) -> None:
    net = model()
    optimizer = eager(name)(net.parameters())
    train(net, optimizer, 3)
    optimizer.eval()
    assert optimizer.state_dict()["param_groups"][0]["train_mode"] is False
    loaded = eager(name)([torch.nn.Parameter(p.detach().clone()) for p in net.parameters()])
    loaded.load_state_dict(optimizer.state_dict())
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), loaded]
    optimizer.train()
    for other in others:
        with pytest.raises(RuntimeError):
            other.step()
        other.train()
        assert difference(other.param_groups[0]["params"], list(net.parameters())) == 0
    optimizer.load_state_dict(eager(name)(model().parameters()).state_dict())
    assert optimizer.param_groups[0]["train_mode"] is True


def test_groups_that_come_in_evaluation_are_in_evaluation() -> None:
    ps = [parameter(3, seed=i) for i in range(2)]
    optimizer = eager("adamwema")(ps[:1])
    optimizer.step()
    optimizer.eval()
    optimizer.add_param_group({"params": ps[1:]})
    assert optimizer.param_groups[1]["train_mode"] is False
    optimizer.train()
    optimizer.step()
    assert float(optimizer.state[ps[1]]["step"]) == 1
    before = ps[1].detach().clone()
    optimizer.eval()
    optimizer.train()
    assert torch.equal(before, ps[1])


def test_states_that_lie_otherwise_are_exchanged_too() -> None:
    p = torch.nn.Parameter(values((2, 3, 4, 5), torch.float64, 0).contiguous(memory_format=torch.channels_last))
    q = torch.nn.Parameter(p.detach().contiguous())
    ours, usual = eager("adamwema")([p]), eager("adamwema")([q])
    for step in range(2):
        p.grad = q.grad = values((2, 3, 4, 5), torch.float64, step + 1)
        ours.step()
        usual.step()
    for state in (ours.state[p], usual.state[q]):
        state["average"] = state["average"].contiguous()  # as a checkpoint may have it
    for event in ("eval", "train", "eval"):
        getattr(ours, event)()
        getattr(usual, event)()
        assert difference([p, ours.state[p]["average"]], [q, usual.state[q]["average"]]) == 0
    gapped = torch.zeros(4, 6, dtype=torch.float64)[:, ::2]
    r = torch.nn.Parameter(gapped)
    r.grad = torch.ones(4, 3, dtype=torch.float64)
    other = eager("schedulefreesgd")([r])
    other.step()
    other.step()
    before = r.detach().clone()
    other.eval()
    assert difference([before], [r]) > 1e-3
    other.train()
    assert difference([before], [r]) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128])
def test_number_types(dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.ones(5, dtype=dtype))
    optimizer = eager("adamwema")([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    before, average = p.detach().clone(), optimizer.state[p]["average"].clone()
    optimizer.eval()
    assert torch.equal(p, average) and torch.equal(optimizer.state[p]["average"], before)
    optimizer.train()
    assert torch.equal(p, before)


def test_flags_thrown_between_steps_and_events() -> None:
    p = parameter(4)
    optimizer = eager("schedulefreeadamw")([p])
    optimizer.step()
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["ams_bound"] = True  # a state that is not there yet, and that no event needs
    optimizer.eval()
    assert difference([p], [before]) > 0
    optimizer.train()
    assert difference([p], [before]) < 1e-15
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[p]


def test_schedulers_and_capturable_steps() -> None:
    net, other = model(), model()
    usual, ours = eager("adamwema")(net.parameters()), eager("adamwema")(other.parameters(), capturable=True)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (usual, ours)]
    for _ in range(3):
        for n, o, schedule in ((net, usual, schedules[0]), (other, ours, schedules[1])):
            train(n, o, 1)
            schedule.step()
            o.eval()
        assert difference(list(net.parameters()), list(other.parameters())) < 1e-15
        usual.train()
        ours.train()
    assert usual.param_groups[0]["lr"] == 1e-3 / 8


def test_an_error_in_an_event_changes_nothing() -> None:
    ps = [parameter(3), parameter(2)]
    optimizer = eager(RULES["hyperparameters"].replace("lr = 0.1", "lr = 0.1 >= 0"))([{"params": [p]} for p in ps])
    optimizer.step()
    before = [p.detach().clone() for p in ps]
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.eval()
    assert difference(before, ps) == 0 and all(group["train_mode"] for group in optimizer.param_groups)


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["schedulefreeadamw", "adamwema"])
def test_compiled_events_are_the_same(name: str) -> None:
    a, b = model(torch.float32), model(torch.float32)
    ours, plain = optimizer_class(name, backend="auto")(a.parameters()), eager(name)(b.parameters())
    for step in range(3):
        train(a, ours, 1, seed=step)
        train(b, plain, 1, seed=step)
        for event in ("eval", "train"):
            getattr(ours, event)()
            getattr(plain, event)()
            assert difference(list(a.parameters()), list(b.parameters())) < 1e-6
