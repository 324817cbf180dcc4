"""Rules as Python files that need torch only: they take the steps of the compiled class, to the last bit."""

from __future__ import annotations

import ast
import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from history_rules import RULES
from targets_made import made_class, text_of
from trajectories import cases, feed, gradients, library_class, library_evaluates, row, shapes, start, tensors

import optlang
import optlang.rules
from optlang.diagnostics import OptlangError

pytestmark = pytest.mark.slow

#: Rules that no module can be made of, with what is said of them.
REFUSED = {"MuonWithAdamW": ("`route`", 10), "LBFGS": ("`flat`", 18)}
NAMES = [name for name in optlang.rules.names() if name not in REFUSED]
EVENTS = [name for name in NAMES if library_evaluates(name)]
every_rule = pytest.mark.parametrize("name", NAMES)


def pair(name: str, case: dict[str, Any], dtype: torch.dtype, groups: int = 1) -> tuple[Any, Any, list[Any], list[Any]]:
    """Return the compiled class's optimizer and the module's, on equal parameters, and these."""
    optimizers, members = [], []
    for cls in (library_class(name), made_class(name, case)):
        own = [tensors(start(shapes(name)), dtype) for _ in range(groups)]
        optimizer = cls([{"params": params, **case, "lr": case["lr"] / (i + 1)} for i, params in enumerate(own)])
        for group in optimizer.param_groups:
            if "seed" in group:
                group["seed"] = 7
        optimizer._asked = library_class(name)._asked
        optimizers.append(optimizer)
        members.append([p for params in own for p in params])
    return optimizers[0], optimizers[1], members[0], members[1]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def same_states(ours: Any, theirs: Any) -> bool:
    """Whether two state dicts hold the same, under the same keys."""
    a, b = ours.state_dict(), theirs.state_dict()
    if {k: set(v) for k, v in a["state"].items()} != {k: set(v) for k, v in b["state"].items()}:
        return False
    pairs = [(v, b["state"][k][key]) for k, held in a["state"].items() for key, v in held.items()]
    groups = zip(a["param_groups"], b["param_groups"], strict=True)
    # How sparse gradients are taken is a matter of the class; a module takes dense ones.
    same = all({**x, "sparse": None} == {**y, "sparse": None} for x, y in groups)
    return same and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)


@pytest.mark.sampled
@every_rule
def test_steps_are_those_of_the_compiled_class(name: str) -> None:
    narrow = NAMES.index(name) % 2 == 0
    settings = [(cases(name)[0], torch.float32), (cases(name)[-1], torch.bfloat16 if narrow else torch.float64)]
    for case, dtype in settings:
        case = {**case, **(row(name).half if dtype.itemsize == 2 else {})}
        compiled, made, ours, theirs = pair(name, case, dtype, groups=2)
        for number, step in enumerate(gradients(shapes(name), steps=4, missing=dtype != torch.float32)):
            for optimizer, params in ((compiled, ours), (made, theirs)):
                for group in optimizer.param_groups:  # as a scheduler does
                    group["lr"] *= 0.9
                feed(optimizer, params, [list(step) * 2])
            assert same(ours, theirs), (case, dtype, number)
        assert same_states(compiled, made)


@pytest.mark.sampled
@every_rule
def test_checkpoints_go_both_ways(name: str) -> None:
    history = gradients(shapes(name), steps=3)
    compiled, made, ours, theirs = pair(name, cases(name)[0], torch.float32)
    feed(compiled, ours, history[:2])
    feed(made, theirs, history[:2])
    first, second = copy.deepcopy(compiled.state_dict()), copy.deepcopy(made.state_dict())
    crossed = pair(name, cases(name)[0], torch.float32)
    for optimizer, params, source, saved in (
        (crossed[0], crossed[2], theirs, second),
        (crossed[1], crossed[3], ours, first),
    ):
        with torch.no_grad():
            for p, q in zip(params, source, strict=True):
                p.copy_(q)
        optimizer.load_state_dict(saved)
        feed(optimizer, params, history[2:])
    feed(compiled, ours, history[2:])
    assert same(ours, crossed[2]) and same(ours, crossed[3])


@pytest.mark.parametrize("name", EVENTS)
def test_evaluates_what_the_compiled_class_evaluates(name: str) -> None:
    compiled, made, ours, theirs = pair(name, cases(name)[0], torch.float32)
    for step in gradients(shapes(name), steps=3):
        feed(compiled, ours, [step])
        feed(made, theirs, [step])
        for mode in ("train", "eval", "eval", "train"):
            getattr(compiled, mode)()
            getattr(made, mode)()
            assert same(ours, theirs)
            assert same_states(compiled, made)
    made.eval()
    with pytest.raises(RuntimeError, match="train"):
        feed(made, theirs, gradients(shapes(name), steps=1))


# The file -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled
@every_rule
def test_imports_torch_and_the_standard_library(name: str) -> None:
    tree = ast.parse(text_of(name, "module"))
    roots = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    roots |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
def test_is_formatted_and_free_of_lint(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    (tmp_path / f"{name.lower()}.py").write_text(text_of(name, "module"), encoding="utf-8")
    for arguments in (["check"], ["format", "--diff"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_runs_where_optlang_is_not(tmp_path: Path) -> None:
    names = ("AdamW", "Prodigy", "SOAP", "SAM")
    for name in names:
        (tmp_path / f"mine_{name}.py").write_text(text_of(name, "module"), encoding="utf-8")
    code = (
        "import importlib, sys\n"
        "for name in ('optlang', 'lark'): sys.modules[name] = None\n"  # sympy is what torch itself needs
        "import torch\n"
        f"for name in {names}:\n"
        "    p = torch.nn.Parameter(torch.ones(4, 6))\n"
        "    optimizer = getattr(importlib.import_module('mine_' + name), name)([p], lr=0.01)\n"
        "    def closure():\n"
        "        optimizer.zero_grad()\n"
        "        loss = (p * p).sum()\n"
        "        loss.backward()\n"
        "        return loss\n"
        "    for _ in range(5): optimizer.step(closure)\n"
        "    print(name, float((p * p).sum()) < 24)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [f"{name} True" for name in names], done.stderr


# The class ----------------------------------------------------------------------------------------------------


def test_says_what_is_out_of_range_as_the_compiled_class_does() -> None:
    wrong: list[dict[str, Any]] = [
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"eps": "small"},
        {"amsgrad": 1},
        {"lr": float("nan"), "eps": -1},
    ]
    for keywords in wrong:
        said = []
        for cls in (library_class("AdamW"), made_class("AdamW")):
            with pytest.raises(ValueError) as raised:
                cls(tensors(start(((2,),)), torch.float32), **keywords)
            said.append(str(raised.value))
        assert said[0] == said[1]


def test_refuses_before_anything_is_changed() -> None:
    optimizer = made_class("Muon")(tensors(start(((4, 6),)), torch.float32))
    with pytest.raises(ValueError, match="Muon is for matrices"):
        optimizer.add_param_group({"params": tensors(start(((4,),)), torch.float32)})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="made for"):
        made_class("Muon")(tensors(start(((4, 6),)), torch.float32), ns_steps=3)
    p = torch.nn.Parameter(torch.ones(3, 2))
    sparse = made_class("AdamW")([p])
    p.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        sparse.step()
    assert not sparse.state


def test_takes_complex_and_transposed_parameters() -> None:
    for make in (lambda: torch.randn(3, 4, dtype=torch.complex64), lambda: torch.randn(4, 3).T):
        torch.manual_seed(0)
        ours = torch.nn.Parameter(make())
        theirs = torch.nn.Parameter(ours.detach().clone(memory_format=torch.preserve_format))
        compiled, made = library_class("Adam")([ours]), made_class("Adam")([theirs])
        for _ in range(3):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
            compiled.step()
            made.step()
        assert torch.equal(ours, theirs)


def test_can_be_copied_and_pickled_with_its_module() -> None:
    made = made_class("AdamW")(tensors(start(((4, 6),)), torch.float32), compiled=True)
    assert copy.deepcopy(made).compiled is True
    sys.modules[made_class("AdamW").__module__] = sys.modules[__name__]
    assert made.__getstate__()["compiled"] is True
    assert pickle.dumps(made.state_dict())


@pytest.mark.compiler
def test_updates_may_be_compiled() -> None:
    results = []
    for compiled in (False, True):
        params = tensors(start(((4, 6), (5,))), torch.float32)
        optimizer = made_class("AdamW")(params, lr=0.01, compiled=compiled)
        feed(optimizer, params, gradients(((4, 6), (5,)), steps=4))
        results.append(params)
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(eager, fused)


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_it_cannot_carry(name: str) -> None:
    with pytest.raises(OptlangError) as raised:
        optlang.export(optlang.rules.path(name), "module")
    (diagnostic, *_), (construct, line) = raised.value.diagnostics, REFUSED[name]
    assert diagnostic.code == "E801" and diagnostic.message.endswith(f" does not support {construct}")
    assert f":{line}:" in str(raised.value)


@pytest.mark.parametrize("name", ["only some steps", "backwards, into entries", "states along the way"])
def test_histories_are_carried(name: str) -> None:
    text = f"optimizer Kept\nhyper lr = 0.05, n = 3\n{RULES[name]}"
    scope: dict[str, Any] = {"__name__": "kept"}
    exec(optlang.export(text, "module"), scope)
    ours, theirs = (tensors(start(), torch.float32) for _ in range(2))
    optimizers = optlang.compile(text, backend="eager")(ours), scope["Kept"](theirs)
    for step in gradients(steps=6, missing=True):
        for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
            feed(optimizer, params, [step])
    assert same(ours, theirs) and same_states(*optimizers)
