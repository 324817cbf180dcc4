"""The library's transforms: each against its formula, written down here once more in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import optlang
from optlang.checker.check import check_text
from optlang.source import Source
from optlang.syntax.parse import parse
from optlang.syntax.unparse import format_tree

SHAPES = ((4, 6), (3, 2, 2, 3), (5,), ())
STEPS, LR = 7, 0.1

#: What comes in for one tensor, the parameter, the gradient, the step, what the transform keeps; and all gradients.
Step = Callable[[Tensor, Tensor, Tensor, int, dict[str, Any], list[Tensor]], Tensor]


def units(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim())) if x.dim() > 1 else tuple(range(x.dim()))


def unit_norm(x: Tensor) -> Tensor:
    return x.square().sum(units(x), keepdim=True).sqrt() if x.dim() else x.abs()


def momentum(beta: float, dampening: float = 0, nesterov: bool = False) -> Step:
    def step(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
        s["b"] = beta * s.get("b", 0) + (1 - dampening) * u
        return u + beta * s["b"] if nesterov else s["b"]

    return step


def ema(decay: float, debias: bool) -> Step:
    def step(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
        s["m"] = decay * s.get("m", 0) + (1 - decay) * u
        return s["m"] / (1 - decay**t) if debias else s["m"]

    return step


def adam(beta1: float, beta2: float, eps: float, amsgrad: bool) -> Step:
    def step(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
        s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * u
        s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * u * u
        s["vmax"] = torch.maximum(s.get("vmax", torch.zeros_like(u)), s["v"])
        v = s["vmax"] if amsgrad else s["v"]
        return s["m"] / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)

    return step


def rms(decay: float, eps: float, centered: bool) -> Step:
    def step(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
        s["v"] = decay * s.get("v", 0) + (1 - decay) * u * u
        s["m"] = decay * s.get("m", 0) + (1 - decay) * u
        return u / ((s["v"] - s["m"] ** 2 if centered else s["v"]).sqrt() + eps)

    return step


def adagrad(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    s["sum"] = s.get("sum", 0.3) + u * u
    return u / (s["sum"].sqrt() + 1e-10)


def lion(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    m = s.get("m", torch.zeros_like(u))
    s["m"] = 0.95 * m + 0.05 * u
    return torch.sign(0.8 * m + 0.2 * u)


def adaptive(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    limit = 0.2 * unit_norm(p).clamp(min=1e-3)
    size = unit_norm(u)
    return torch.where(size > limit, u * limit / size, u)


def centralized(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    return u - u.mean(units(u), keepdim=True) if u.dim() > 1 else u


def cautious(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    mask = (u * g > 0).double()
    return u * mask * mask.numel() / (mask.sum() + 1)


def trust(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    return u * 0.5 * p.norm() / (u.norm() + 0.01)


def orthogonal(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    if u.dim() < 2:
        return u / u.norm().clamp(min=1e-7)
    x = u.flatten(1)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(4):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    x = x.T if tall else x
    return (0.2 * math.sqrt(max(x.shape)) * x).reshape(u.shape)


def schedule(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    return u * (t / 2 if t < 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * min(1, (t - 2) / 3))) / 2)


def clip_norm(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    return u * min(1.0, 1.5 / (u.norm().item() + 1e-6))


def clip_all(u: Tensor, p: Tensor, g: Tensor, t: int, s: dict[str, Any], every: list[Tensor]) -> Tensor:
    return u * min(1.0, 2 / (math.sqrt(sum(x.square().sum().item() for x in every)) + 1e-6))


#: For each call of a transform, its formula.
CASES: dict[str, Step] = {
    "clip_by_value(0.3)": lambda u, *_: u.clamp(-0.3, 0.3),
    "clip_by_norm(1.5)": clip_norm,
    "clip_by_global_norm(2)": clip_all,
    "adaptive_clip(0.2)": adaptive,
    "centralize": centralized,
    "momentum(0.8)": momentum(0.8),
    "momentum(0.8, 0.1)": momentum(0.8, 0.1),
    "momentum(0.8, nesterov = true)": momentum(0.8, nesterov=True),
    "nesterov(0.8)": momentum(0.8, nesterov=True),
    "ema(0.8)": ema(0.8, True),
    "ema(0.8, debias = false)": ema(0.8, False),
    "scale_by_adam(0.8, 0.9, 1e-3)": adam(0.8, 0.9, 1e-3, False),
    "scale_by_adam(0.8, 0.9, 1e-3, amsgrad = true)": adam(0.8, 0.9, 1e-3, True),
    "scale_by_rms(0.9, 1e-3)": rms(0.9, 1e-3, False),
    "scale_by_rms(0.9, 1e-3, centered = true)": rms(0.9, 1e-3, True),
    "scale_by_adagrad(0.3)": adagrad,
    "scale_by_lion(0.8, 0.95)": lion,
    "scale_by_trust_ratio(0.5, 0.01)": trust,
    "scale_by_warmup_cosine(5, 2, 0.1)": schedule,
    "scale(2)": lambda u, *_: 2 * u,
    "add_decayed_weights(0.1)": lambda u, p, *_: u + 0.1 * p,
    "add_noise(0)": lambda u, *_: u,
    "cautious": lambda u, p, g, t, s, every: cautious(u - 0.5, p, g, t, s, every),
    "normalize(0.1)": lambda u, *_: u / (u.norm() + 0.1),
    'orthogonalize(4, "rms", half = false)': orthogonal,
    "average_of(0.9)": lambda u, p, g, t, s, every: s.update(a=0.9 * s.get("a", s["p"]) + 0.1 * u) or s["a"],
}


def random(steps: int, seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(steps)]


@pytest.mark.parametrize("call", CASES)
def test_does_what_its_formula_says(call: str) -> None:
    before = "(g - 0.5)" if call == "cautious" else "g"  # else every element would agree with the gradient
    cls = optlang.compile(f"optimizer T\nhyper lr = {LR}\np -= lr*({before} |> {call})\n", backend="eager")
    ours = [torch.nn.Parameter(p.clone()) for p in random(1, 0)[0]]
    theirs = [p.clone() for p in random(1, 0)[0]]
    kept: list[dict[str, Any]] = [{"p": p.clone()} for p in theirs]
    optimizer = cls(ours)
    for t, gradients in enumerate(random(STEPS, 1), start=1):
        for p, g in zip(ours, gradients, strict=True):
            p.grad = g
        optimizer.step()
        for p, g, state in zip(theirs, gradients, kept, strict=True):
            p -= LR * CASES[call](g, p, g, t, state, gradients)
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).abs().max() < 1e-12 * max(1.0, q.abs().max().item())


def test_every_transform_has_a_formula() -> None:
    assert {call.partition("(")[0] for call in CASES} == set(optlang.transforms.names())


def test_noise_is_normal_and_fades() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(200_000, dtype=torch.float64))
    optimizer = optlang.chain(optlang.transforms.add_noise(eta=4, gamma=1), backend="eager")([p], lr=1.0)
    for t in range(1, 4):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        step = before - p.detach()
        assert step.mean().item() == pytest.approx(1, abs=0.02)
        assert step.var().item() == pytest.approx(4 / t, rel=0.02)


@pytest.mark.parametrize("name", optlang.transforms.names())
def test_file_is_as_the_formatter_writes_it_and_checks_clean(name: str) -> None:
    path = optlang.transforms.path(name)
    source = Source(path.read_text(encoding="utf-8"), path.name)
    rule, found = check_text(source)
    assert rule is not None and found == []
    assert format_tree(parse(source)) == source.text
    assert parse(source).doc is not None


@pytest.mark.parametrize("call", CASES)
def test_what_it_is_written_out_to_is_an_ordinary_rule(call: str) -> None:
    plain = optlang.emit(f"optimizer T\nhyper lr = {LR}\np -= lr*(g |> {call})\n", stage="plain")
    assert "|>" not in plain and "transform" not in plain
    rule, found = check_text(Source(plain))
    assert rule is not None and found == []
    assert format_tree(parse(Source(plain))) == plain
    assert optlang.emit(plain, stage="plain") == plain
