"""The benchmark: its lists of shapes, its peers, and what it measures on a small case."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

import optlang
from optlang import rules
from optlang.bench import cold, peers, report, run, shapes
from optlang.bench.plan import plans_of
from optlang.bench.run import bytes_moved
from optlang.diagnostics import OptlangError
from optlang.source import Source

RULE = "optimizer Plain  # reference: torch.optim.SGD\nhyper lr = 1e-3\np -= lr*g\n"


def library(name: str) -> Source:
    return Source(rules.path(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "tensors", "numbers"),
    [
        ("gpt2", 148, 124_439_808),
        ("resnet50", 161, 25_557_032),
        ("many", 1000, 1_024_000),
        ("mlp", 6, 85_002),
        ("vit-l", 296, 304_326_632),
    ],
)
def test_shapes_are_those_of_the_real_networks(name: str, tensors: int, numbers: int) -> None:
    made = shapes.SHAPES[name]()
    assert (len(made), sum(map(math.prod, made))) == (tensors, numbers)


def test_chosen_shapes() -> None:
    assert shapes.chosen("all") == [name for name in shapes.SHAPES if name != "embedding"]
    assert shapes.chosen("mlp, many") == ["mlp", "many"]
    for names in ("gpt3", "", "all,mlp"):
        with pytest.raises(ValueError, match="--shapes"):
            shapes.chosen(names)


def test_the_peer_is_the_reference_at_its_fastest() -> None:
    assert peers.find(None, "torch.optim.AdamW").label == "torch.optim.AdamW (fused)"
    assert peers.find("foreach", "torch.optim.AdamW").options == {"foreach": True}
    assert peers.find("torch.optim:SGD", "torch.optim.AdamW").cls is torch.optim.SGD
    assert peers.find(None, "torch.optim.Adamax").label == "torch.optim.Adamax (foreach)"


@pytest.mark.parametrize(
    ("against", "reference", "message"),
    [
        (None, None, "names no reference"),
        ("fused", "torch.optim.Adamax", "no fused implementation"),
        ("torch.optim:Adamw", None, "cannot load"),
        ("no_such_module:X", None, "cannot load"),
        ("X", None, "cannot load"),
        ("math:pi", None, "not a torch.optim.Optimizer"),
    ],
)
def test_peers_that_are_none(against: str | None, reference: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peers.find(against, reference)


def test_peers_get_the_values_that_they_know() -> None:
    made = peers.find("torch.optim:SGD", None).make([torch.nn.Parameter(torch.ones(1))], {"lr": 2.0, "odd": 1})
    assert made.defaults["lr"] == 2.0


def test_a_rule_against_itself_with_states_in_fewer_bits() -> None:
    rule, settings = Source(optlang.rules.path("lion").read_text(encoding="utf-8")), run.Settings(steps=1, rounds=1)
    results = [
        run.measure(plans_of([rule], "mlp", "itself", backend="eager", store=store)[0], settings)
        for store in (None, {"exp_avg": "bf16"})
    ]
    assert max(result.difference for result in results) < 0.1
    assert results[0].bytes - results[1].bytes == 2 * 2 * results[0].numbers  # read and written


def test_a_comparison_that_takes_long_has_fewer_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    plans = plans_of([Source(RULE)], "mlp", "foreach", values={"lr": 0.5}, backend="eager")
    settings = run.Settings(rounds=3, longest=0.0)
    result = run.measure(plans[0], settings)
    assert len(result.ours) == len(result.theirs) == 1
    report.Rows(plans, settings).end([result, run.measure(plans[0], run.Settings(rounds=2))])
    assert "of more than 0 s have fewer rounds: 1 at least" in capsys.readouterr().out


def test_a_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plans = plans_of([Source(RULE)], "mlp", "foreach", values={"lr": 0.5}, backend="eager")
    settings = run.Settings(steps=2, rounds=3)
    rows = report.Rows(plans, settings)
    results = report.measure_all(plans, settings, rows.show)
    (result,) = results
    assert isinstance(result, run.RowResult)
    assert (result.rule, result.peer, result.tensors) == ("Plain", "torch.optim.SGD (foreach)", 6)
    assert len(result.ours) == len(result.theirs) == 3 and min(result.ours) > 0
    assert min(result.ratios) <= result.ratio <= max(result.ratios)
    assert result.difference < 1e-5
    out, err = capsys.readouterr()
    assert "Plain" in out and "mlp (6 tensors, 0.1 M)" in out and f"{result.ratio:.2f}" in out
    assert err == "[1/1] Plain mlp\n"
    rows.end(results)
    assert "medians of 3 rounds" in capsys.readouterr().out
    assert json.loads(report.as_json(result))["ours"] == [*result.ours]
    assert json.loads(report.as_json(dataclasses.replace(result, difference=math.inf)))["difference"] is None
    pytest.importorskip("matplotlib")
    report.draw(results, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 5_000


def test_both_sides_start_from_equal_tensors_of_their_own() -> None:
    (plan,) = plans_of([Source(RULE)], "mlp", None, backend="eager")
    start = run._tensors(plan)
    one, other = run._copies(start), run._copies(start)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad)
        assert a.data_ptr() != b.data_ptr() and a.grad.data_ptr() != b.grad.data_ptr()


def test_a_wrong_rule_is_noticed_by_the_difference() -> None:
    (plan,) = plans_of([Source(RULE.replace("lr*g", "2*lr*g"))], "mlp", None, backend="eager")
    assert run.measure(plan, run.Settings(steps=1, rounds=1)).difference == pytest.approx(1.0, rel=1e-3)


def test_plans_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="--dtype"):
        plans_of([Source(RULE)], "mlp", None, dtype="int8")
    with pytest.raises(ValueError, match="--device"):
        plans_of([Source(RULE)], "mlp", None, device="nonsense")
    with pytest.raises(OptlangError):
        plans_of([Source("p -= lr*")], "mlp", None)


def test_rows_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "embedding", lambda: [(50, 4)])
    monkeypatch.setitem(shapes.TOUCHED, "embedding", 8)
    source = Source(rules.path("sparseadam").read_text(encoding="utf-8"))
    (plan,) = plans_of([source], "embedding", None, backend="eager")
    (start,) = run._tensors(plan)
    assert start.grad.is_sparse and start.grad._nnz() == 8
    result = run.measure(plan, run.Settings(steps=2, rounds=1))
    touched = len(start.grad.coalesce()._indices()[0])
    assert result.peer == "torch.optim.SparseAdam" and result.difference < 1e-5
    assert result.bytes == 28 * 4 * touched


@pytest.mark.slow
def test_first_steps_in_new_processes() -> None:
    (plan,) = plans_of([Source(RULE)], "mlp", None, backend="eager")
    found = cold.first_steps(plan)
    assert 0.05 < found.warm < 60 and 0.05 < found.cold < 60
    assert found.memory is None or 0 <= found.memory < 2**26
    with pytest.raises(RuntimeError, match="new process failed"):
        cold.first_steps(dataclasses.replace(plan, values={"nonsense": 1.0}))


def test_first_steps_have_a_closure_if_they_need_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        cold.main(*command[-2:])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(cold.subprocess, "run", here)
    monkeypatch.setitem(shapes.SHAPES, "mlp", lambda: [(6, 4), (6,)])
    for name in ("sam", "adahessian"):
        (plan,) = plans_of([library(name)], "mlp", "torch.optim:SGD", backend="eager")
        assert cold.first_steps(plan).warm > 0


def test_a_package_has_a_peer_of_the_same_name_or_none() -> None:
    pytest.importorskip("pytorch_optimizer")
    assert peers.find("pytorch_optimizer", None, "LAMB").label == "pytorch_optimizer.Lamb (foreach)"
    with pytest.raises(peers.NoPeer, match="of its own that is called NAdam2"):
        peers.find("pytorch_optimizer", None, "NAdam2")
    with pytest.raises(peers.NoPeer):
        peers.find("pytorch_optimizer", None, "ASGD ")
    left_out: dict[str, str] = {}
    lion = Source(rules.path("lion").read_text(encoding="utf-8"))
    plans = plans_of([Source(RULE), lion], "mlp", "pytorch_optimizer", backend="eager", left_out=left_out)
    assert [plan.name for plan in plans] == ["Lion"] and [*left_out] == ["Plain"]
    with pytest.raises(ValueError, match="no optimizer of its own that is called Plain"):
        plans_of([Source(RULE)], "mlp", "pytorch_optimizer", backend="eager", left_out={})


def test_bytes_that_a_step_moves() -> None:
    p = torch.nn.Parameter(torch.ones(10))
    p.grad = torch.ones(10)
    optimizer = optlang.compile("adamw", backend="eager")([p])
    optimizer.step()
    assert bytes_moved(optimizer) == 28 * 10  # p, m, v in and out, g in


def test_a_peer_that_fails_is_named() -> None:
    (plan,) = plans_of([Source(RULE)], "mlp", "torch.optim:SparseAdam", backend="eager")
    with pytest.raises(ValueError, match=r"torch\.optim\.SparseAdam cannot step on mlp: .*dense gradients"):
        run.measure(plan, run.Settings(steps=1, rounds=1))


def test_sparse_gradients_have_a_peer_of_their_own() -> None:
    (plan,) = plans_of([Source(RULE)], "embedding", None, backend="eager")
    assert plan.peer.cls is torch.optim.SparseAdam


def test_a_peer_that_clips_and_keeps_a_mean() -> None:
    peer = peers.find("averaged", None)
    members = [torch.nn.Parameter(torch.ones(3))]
    optimizer = peer.make(members, {"lr": 0.5, "weight_decay": 0.0, "decay": 0.5, "beta": 0.9})
    members[0].grad = torch.full((3,), 100.0)
    for _ in range(2):
        optimizer.step()
    assert members[0].grad.norm() <= 1.0 + 1e-6
    (mean,) = optimizer.average.module.parameters()
    torch.testing.assert_close(mean.detach(), (torch.full((3,), 0.5) + members[0].detach()) / 2)


# what does not go as usual ------------------------------------------------------------------------------------

#: Rules that were refused, or whose peers were: whether steps take a closure, and how far apart both may end.
ODD = {
    "sam": (True, 1e-3),
    "lbfgs": (True, 0.2),  # rounding grows from iteration to iteration, 20 a step
    "adahessian": (True, 1e-3),
    "sophiah": (True, None),  # signs against normal numbers
    "cautiousadamw": (False, 2e-1),  # it divides by one more than the peer: by much where tensors are small
    "orthograd": (False, 1e-3),
    "muon": (False, 0.2),  # in bfloat16
    "adago": (False, None),
}


@pytest.mark.parametrize("name", ODD)
def test_every_kind_of_rule_has_its_steps_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, tolerance = ODD[name]
    source = library(name)
    if "pytorch_optimizer" in source.text:
        pytest.importorskip("pytorch_optimizer")
    monkeypatch.setitem(shapes.SHAPES, "mlp", lambda: [(6, 4), (6,), (3, 6)])
    (plan,) = plans_of([source], "mlp", None, backend="eager")
    assert plan.calls is calls
    result = run.measure(plan, run.Settings(steps=2, rounds=1))
    assert result.tensors == (2 if name in ("muon", "adago") else 3)
    assert result.closure is calls
    assert math.isfinite(result.difference)
    if tolerance is not None:
        assert result.difference < tolerance


def test_rules_of_matrices_are_measured_on_matrices(capsys: pytest.CaptureFixture[str]) -> None:
    muon, adamw = plans_of([library("muon"), library("adamw")], None, None, backend="eager")
    assert (muon.shapes, len(muon.members), muon.refused) == ("matrices", 48, None)
    assert (adamw.shapes, len(adamw.members)) == ("resnet50", 161)
    (plan,) = plans_of([library("sparseadam")], None, None, backend="eager")
    assert plan.shapes == "embedding"
    left_out: dict[str, str] = {}
    assert len(plans_of([library("sparseadam"), library("sgd")], "mlp", None, backend="eager", left_out=left_out)) == 1
    assert "does not take the gradients" in left_out["SparseAdam"]
    (plan,) = plans_of([library("muon")], "resnet50", None, backend="eager")
    assert (plan.members, plan.total) == (((1000, 2048),), 161)


def test_a_comparison_that_fails_is_a_row_and_the_others_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    needs = "optimizer Deep\nhyper lr = 1e-3\nrequire ndim == 3\np -= lr*g\n"
    sources = [Source(needs), Source(RULE)]
    plans = plans_of(sources, "mlp", "torch.optim:SGD", backend="eager")
    wrong = plans_of([Source(RULE)], "mlp", "torch.optim:SparseAdam", backend="eager")
    settings = run.Settings(steps=1, rounds=1)
    seen: list[str] = []
    results = report.measure_all(
        [*plans, *wrong, plans[1]], settings, lambda result: seen.append(report.as_json(result))
    )
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Failure", "RowResult", "Failure", "RowResult"]
    first, _, third, _ = map(json.loads, seen)
    assert "does not suit the rule" in first["refused"] and first["rule"] == "Deep"
    assert "SparseAdam cannot step on mlp" in third["refused"]
    rows = report.Rows(plans, settings)
    for result in results:
        rows.show(result)
    rows.end(results)
    out = capsys.readouterr().out
    assert out.count("refused:") == 2 and out.count("mlp (6 tensors, 0.1 M)") == 2 and "1 round " in out


def test_rows_are_printed_as_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plans_of([Source(RULE)], "mlp", None, backend="eager") * 2
    order: list[str] = []

    def outcome(plan: run.Comparison, *_: object) -> run.Failure:
        order.append("measured")
        return run.Failure(plan.name, plan.peer.label, plan.shapes, "no")

    monkeypatch.setattr(report, "outcome", outcome)
    report.measure_all(plans, run.Settings(), lambda _: order.append("shown"))
    assert order == ["measured", "shown"] * 2


def test_settings_are_looked_at_before_anything_is_measured() -> None:
    for values, message in (({"lrr": 1.0}, "no such hyperparameter"), ({"beta1": 0.5}, "a part of betas")):
        with pytest.raises(ValueError, match=message):
            plans_of([library("adamw")], "mlp", None, backend="eager", values=values)
    (plan,) = plans_of([library("adamw")], "mlp", None, backend="eager", values={"lr": -1.0})
    assert plan.refused is not None and "lr" in plan.refused


def test_pictures_are_looked_at_before_anything_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.check_picture(tmp_path / "ratios.svg")
    with pytest.raises(ValueError, match=r"no \.xyz"):
        report.check_picture(tmp_path / "ratios.xyz")
    with pytest.raises(OSError, match="cannot be written"):
        report.check_picture(tmp_path / "absent" / "ratios.png")


def test_sparse_gradients_and_a_closure_do_not_go_together() -> None:
    (plan,) = plans_of([library("sam")], "embedding", "torch.optim:SGD", backend="eager")
    result = run.outcome(plan, run.Settings(steps=1, rounds=1))
    assert isinstance(result, run.Failure)
