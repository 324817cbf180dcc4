"""Loops over histories in C++, in the place of those in Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import optlang
from optlang.backends.loading import loops
from optlang.codegen import cpp_loops
from optlang.runtime.places import EvaluatedPoint
from optlang.runtime.stages import BatchSchedule

pytestmark = pytest.mark.compiler

#: What a rule does with a history, and what its loops in C++ take; None where there is none.
RULES = {
    "two sums, a product and numbers for the entries": (
        "for i in reversed(h):\n    a[i] = 0.5*dot(h[i], q)\n    q -= a[i]*h[i]\n"
        "for i in h: q += h[i]*(a[i] - dot(h[i], q)/9)\n",
        {"for_each_1": "VA", "for_each_2": "Va"},
    ),
    "a number that is handed on": (
        "w = sum(q)\nfor i in h:\n    w = 0.5*w + dot(h[i], q)\n    q += h[i]*w/(1 + w*w)\n",
        {"for_each_1": "NV"},
    ),
    "what is no sum": ("for i in h: q = max(q, h[i])\n", None),
    "another entry": ("for i in h: q += h[0]*dot(h[i], q)/9\n", None),
}


def schedule(optimizer: Any) -> BatchSchedule:
    """Return the stages of an optimizer's only batch."""
    ((batch,),) = (plan.batches for plan in optimizer._plans)
    assert batch.schedule is not None
    return batch.schedule  # type: ignore[no-any-return]


def functions(optimizer: Any) -> dict[str, Any]:
    """Return the loops that an optimizer has in C++, on the path of all steps but the first."""
    found: dict[str, Any] = {}
    for stages in schedule(optimizer)._paths.values():
        for plan in (plan for segment in stages for plan in segment.plans):
            names = plan.prepared.functions
            found |= {n: f for n, f in names.items() if n.startswith("for_each") and hasattr(f, "usual")}
    return found


def trained(backend: str, rule: str, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, Any]:
    """Return a parameter after steps over more entries than a history has room for, with its optimizer."""
    text = f"hyper lr = 0.1\nhyper n = 3 >= 1\nhistory h: size n\nif t > 1: push h <- g\nq = g\n{rule}p -= lr*q\n"
    generator = torch.Generator().manual_seed(count)
    p = torch.nn.Parameter(torch.randn(count, generator=generator, dtype=torch.float64).to(dtype))
    optimizer: Any = optlang.compile(text, backend=backend)([p])
    for _ in range(6):
        p.grad = torch.randn(count, generator=generator, dtype=torch.float64).to(dtype) / count**0.5
        optimizer.step()
    return p.detach(), optimizer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("name", RULES)
def test_loops_do_what_they_do_in_python(name: str, dtype: torch.dtype, tolerance: float) -> None:
    rule, takes = RULES[name]
    for count in (5, 70_000):
        found, optimizer = trained("auto", rule, dtype, count)
        wanted, _ = trained("eager", rule, dtype, count)
        assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    texts = [stage.kernel.text("cpp_loops") for stage in schedule(optimizer).own.stages if stage.kernel.matrices]
    assert set(functions(optimizer)) == set(takes or ())
    for function, begin in (takes or {}).items():
        assert any(f'{function}_takes = "{begin}' in text for text in texts)
    assert takes or not any(texts)


def some_arguments(takes: str, count: int, room: int, dtype: torch.dtype) -> list[Any]:
    """Return arguments of a loop."""
    generator = torch.Generator().manual_seed(count)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) / count**0.5

    shapes = {"x": (1, count), "V": (1, count), "O": (1, count), "a": (1, room), "A": (1, room)}
    found: list[Any] = []
    for i, letter in enumerate(takes):
        start = i and takes[i - 1 : i + 1] in ("hn", "xn")  # which row of a ring is the oldest
        if letter == "h":
            rho = i < takes.rindex("h") and takes[: i + 1].count("h") == 1
            found.append(some(1, room) if rho else some(1, room, count))
        elif letter == "b":
            found.append(torch.tensor([True]))
        else:
            found.append(torch.full((1,), 2.0, dtype=dtype) if start else some(*shapes.get(letter, (1,))))
    return found


@pytest.mark.parametrize("name", ["for_each_1", "for_each_2"])
@pytest.mark.parametrize("held", [False, True])
def test_the_ring_and_what_is_pushed_to_it(name: str, held: bool) -> None:
    p = torch.nn.Parameter(torch.randn(40))

    def closure() -> torch.Tensor:
        p.grad = None
        loss = (p**4).sum()
        loss.backward()
        return loss

    optimizer = optlang.compile("LBFGS")([p], history_size=4, max_iter=3)
    optimizer.step(closure)
    loop = functions(optimizer)[name]
    kernels = [stage.kernel for stage in schedule(optimizer).own.paths[1]]
    (text,) = (text for text in map(cpp_loops.emit, (k for k in kernels if k.matrices)) if text)
    takes = text.split(f'{name}_takes = "')[1].split('"')[0]
    for count in (0, 1, 3, 4):
        arguments = some_arguments(takes, 40, 4, torch.float32)
        arguments = [torch.tensor([held]) if letter == "b" else x for letter, x in zip(takes, arguments, strict=True)]
        copies = [x.clone() for x in arguments]
        filled = torch.tensor([float(count)])
        for got, wanted in zip(loop(filled, 4.0, *arguments), loop.usual(filled, 4.0, *copies), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        for letter, x, copy in zip(takes, arguments, some_arguments(takes, 40, 4, torch.float32), strict=True):
            assert letter in "Ob" or torch.equal(x, copy)


def test_what_a_loop_in_cpp_does_not_take_goes_the_usual_way() -> None:
    called = []

    def usual(count: Any, size: Any, q: torch.Tensor, h: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        called.append(q)
        return (q,)

    loop = loops._quick(usual, "Vhn", {torch.float32: lambda *arguments: None})
    q, h, start = torch.ones(1, 6), torch.ones(1, 3, 6), torch.ones(1)
    assert loop(torch.ones(1), 3.0, q, h, start)[0] is not q and not called
    cases = [
        (q.double(), h.double(), start.double()),
        (q, h.double(), start),
        (q, h[:, :2], start),
        (q, torch.ones(1, 3, 5), start),
        (q, torch.ones(1, 6, 3).mT, start),
        (q.expand(2, 6), h, start),
        (q.to("meta"), h.to("meta"), start.to("meta")),
    ]
    for i, case in enumerate(cases, 1):
        loop(torch.ones(1), 3.0, *case)
        assert len(called) == i


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_places_are_compared_alike(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    begin, direction = (torch.randn(5000, generator=generator, dtype=dtype) for _ in range(2))
    p, eps = torch.nn.Parameter(begin), torch.finfo(dtype).eps
    there = begin + 0.3 * direction
    cases: list[tuple[torch.Tensor, bool]] = [(there.clone(), True), (there * (1 + eps), True)]
    for value in (float(there[4321]) + 1e-3, float("nan"), float("inf")):
        cases.append((there.clone(), False))
        cases[-1][0][4321] = value
    place = EvaluatedPoint({}, 0.0, [], {id(p): direction}, 0.3)
    for value, wanted in cases:
        assert place._told([(p, value)]) is wanted
        with torch.no_grad():
            assert place.holds([(p, value)]) is wanted
    assert EvaluatedPoint({}, 0.0, []).holds([(p, begin.clone())], quick=True)
    assert place._told([(p, there.bfloat16())]) is None and place._told([(p, there.to("meta"))]) is None
