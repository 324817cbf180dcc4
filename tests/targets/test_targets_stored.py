"""Files for use without optlang whose states are kept as ``store`` asks."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from scripted import reloaded, step

import optlang
from optlang.api import load
from optlang.cli import app
from optlang.compiler import compile_source, example_variant
from optlang.diagnostics import OptlangError
from optlang.storage import Fixed, Own
from optlang.targets._stored import kept_as

TARGETS = ("module", "torchscript", "aoti", "plain")


def loaded(text: str | bytes) -> Any:
    made = types.ModuleType("made")
    exec(compile(text, "<made>", "exec"), made.__dict__)
    return made


def values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("store", ["fp32", {"exp_avg": "bf16"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Lion", "LAMB", "NAdam"])
def test_a_module_keeps_states_as_the_class_does(name: str, dtype: torch.dtype, store: Any) -> None:
    made = loaded(optlang.export(optlang.rules.path(name), "module", store=store))
    ps, qs = ([torch.nn.Parameter(values(s, 1).to(dtype)) for s in ((70, 70), (5,))] for _ in range(2))
    theirs = optlang.compile(optlang.rules.path(name), backend="eager")(qs, lr=0.01, store=store)
    ours = getattr(made, name)(ps, lr=0.01)
    for number in range(4):
        for p, q in zip(ps, qs, strict=True):
            p.grad = values(p.shape, number).to(dtype)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(ps, qs, strict=True):
        for key, value in theirs.state[q].items():
            if value.dim():
                assert ours.state[p][key].dtype is value.dtype, key
        assert torch.allclose(p, q, rtol=2.0**-7 if dtype is torch.bfloat16 else 1e-4, atol=1e-5)
    assert ours.state[ps[0]]["exp_avg"].dtype is (torch.float32 if store == "fp32" else torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_keeps_states_as_the_class_does() -> None:
    ours = reloaded(optlang.export(optlang.rules.path("AdamW"), "torchscript", store={"exp_avg": "bf16"}))
    p, q = (torch.nn.Parameter(values((70, 70), 1)) for _ in range(2))
    theirs = optlang.compile(optlang.rules.path("AdamW"), backend="eager")([q], store={"exp_avg": "bf16"})
    for number in range(3):
        g = values(p.shape, number)
        step(ours, [p], [g.numpy()])
        q.grad = g
        theirs.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert ours.state(key, 0).dtype is theirs.state[q][key].dtype
    assert theirs.state[q]["exp_avg"].dtype is torch.bfloat16
    assert torch.allclose(p, q, rtol=0, atol=2e-4)  # what is in 16 bits is rounded at other places


@pytest.mark.parametrize("target", ["plain", "module"])
def test_sources_say_the_type(target: str) -> None:
    text = optlang.export(optlang.rules.path("Lion"), target, store="bf16")
    assert isinstance(text, str) and "bfloat16" in text
    plain = optlang.export(optlang.rules.path("Lion"), target)
    assert isinstance(plain, str) and "bfloat16" not in plain


def test_variants_that_are_on_disk_are_not_taken() -> None:
    text = "optimizer OnDisk\nhyper lr = 0.1\nstate m\nm = 0.9*m + g\np -= lr*m"
    compiled = compile_source(load(text))
    compiled.keep(example_variant(compiled))
    retyped = kept_as(compile_source(load(text)), {"m": "bf16"}, "module")
    retyped.keep(example_variant(retyped))
    again = compile_source(load(text))
    formats = [example_variant(each).slots[0].format for each in (retyped, again)]
    assert formats == [Fixed("bfloat16"), Own()]


@pytest.mark.parametrize("target", TARGETS)
def test_codes_are_refused_by_line(target: str) -> None:
    with pytest.raises(OptlangError) as raised:
        optlang.export(optlang.rules.path("AdamW"), target, store="8bit")
    first, second = raised.value.diagnostics
    assert first.code == second.code == "E801"
    said = f"the target `{target}` does not support state `m` kept in fp8, blocks of 256"
    assert said in first.message and "state `v` kept in log8" in second.message
    line = first.source.text[: first.span.start].count("\n") + 1
    assert "m as exp_avg" in first.source.text.splitlines()[line - 1]
    assert "keep it in bf16 or fp32" in (first.help or "")


RULED = """
optimizer Ruled
hyper lr = 0.1
state m
state s
store m: {}
m = 0.9*m + 0.1*g
s = 0.9*s + 0.1*g^2
p -= lr*m/(sqrt(s) + 1e-8)
"""


def test_what_a_rule_says_is_carried_or_refused_by_line() -> None:
    made = loaded(optlang.export(RULED.format("bf16"), "module"))
    p = torch.nn.Parameter(torch.ones(70, 70))
    p.grad = torch.ones_like(p)
    optimizer = made.Ruled([p])
    optimizer.step()
    assert optimizer.state[p]["m"].dtype is torch.bfloat16 and optimizer.state[p]["s"].dtype is torch.float32
    for format, said in (("int8", "state `m` kept in int8"), ("bf16 when ndim > 1", "`store m` with `when`")):
        with pytest.raises(OptlangError) as raised:
            optlang.export(RULED.format(format), "module")
        (found,) = raised.value.diagnostics
        assert said in found.message and found.source.text[: found.span.start].splitlines()[-1].startswith("store")
        made = loaded(optlang.export(RULED.format(format), "module", store={"m": "fp32"}))
        assert "bfloat16" not in str(optlang.export(RULED.format(format), "module", store="off"))
    with pytest.raises(OptlangError, match="does not support `store p`"):
        optlang.export("store p: kahan\np -= 0.1*g", "module")


def test_what_does_not_exist_is_said() -> None:
    for store, said in (
        ({"m": "bf16"}, "store names a state 'm', but the rule has 'exp_avg'"),
        ("bf8", "store must be one of"),
        ({"exp_avg": "bf8"}, "unknown format 'bf8'"),
    ):
        with pytest.raises(ValueError, match=said):
            optlang.export(optlang.rules.path("AdamW"), "module", store=store)
    with pytest.raises(ValueError, match="'row_var' cannot be kept in bf16, because it is not shaped like"):
        optlang.export(optlang.rules.path("Adafactor"), "module", store={"row_var": "bf16"})
    with pytest.raises(OptlangError, match="does not support state `m` kept in float16"):
        optlang.export(optlang.rules.path("AdamW"), "module", store={"exp_avg": "fp16"})


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(optlang.rules.path("AdamW"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app.main(("emit", path, *arguments))
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    code, said, _ = run("--target", "module", "--store", "exp_avg=bf16")
    assert code == 0 and "torch.bfloat16" in said
    code, _, said = run("--target", "module", "--store", "8bit")
    assert code == 1 and "state `m` kept in fp8" in said
    code, _, said = run("--store", "bf16")
    assert code != 0 and "--store needs --target" in said
