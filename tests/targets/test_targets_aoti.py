"""The target ``aoti``: packages that take the steps of the compiled classes, or a refusal by line.

Compiling takes about eight seconds a rule. What is compiled is therefore run as it is traced, for every rule, and
compiled for a few; for all of them with ``OPTLANG_EVERY_PACKAGE=1`` (ten minutes).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import by_formula
from targets_made import check_refused_by_line
from trajectories import (
    cases,
    difference,
    feed,
    gradients,
    library_class,
    library_compiled,
    library_rule,
    start,
    tensors,
)

import optlang.rules
from optlang.targets import Order, aoti

NAMES = optlang.rules.names()
#: With sums over the tensor; with a state on the host; with means over rows and columns. AdamW is in test_cpp.py.
COMPILED = [pytest.param(name, marks=pytest.mark.thorough) for name in ("LAMB", "NAdam", "Adafactor")]
EVERY = bool(os.environ.get("OPTLANG_EVERY_PACKAGE"))


def order_of(name: str) -> Order:
    compiled = library_compiled(name)
    return Order(compiled, by_formula(compiled.rule, cases(name)[0]))


def is_carried(name: str) -> bool:
    return not aoti.refused(Order(library_compiled(name), {}))


def both(
    name: str, contract: aoti.Contract, model: Any, begin_states: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return where a model and the class take two matrices of different shapes, one of which misses gradients."""
    shapes = [(4, 6), (7, 3)]
    begin, history = start(shapes), gradients(shapes, missing=True)
    theirs = tensors(begin, torch.float32)
    feed(library_class(name)(theirs, **cases(name)[0]), theirs, history)
    ours = [torch.tensor(x, dtype=torch.float32) for x in begin]
    held: dict[int, tuple[Any, Any]] = {}
    counts = [0.0, 0.0]
    meta = contract.metadata()
    names, defaults = meta["numbers"].split(), [float(x) for x in meta["defaults"].split()]
    layout = contract.variant.layout
    for one in history:
        for i, g in enumerate(one):
            if g is None:
                continue
            p = ours[i].view(layout.shape(shapes[i]))
            g = torch.tensor(g, dtype=torch.float32).view(p.shape)
            if i not in held:
                *states, numbers = begin_states(p, g)
                held[i] = states, numbers
            states, numbers = held[i]
            counts[i] += 1
            values = dict(zip(names, defaults, strict=True))
            values |= {"t": counts[i], "first": float(counts[i] == 1), "ndim": 2.0, "numel": float(p.numel())}
            values |= {"rows": float(shapes[i][0]), "cols": float(shapes[i][1]), "eps_of": 2.0**-23}
            values |= {"_lead": float(shapes[i][0])}
            values |= dict(zip(contract.hosted, numbers.tolist(), strict=True))
            packed = torch.tensor([values[name] for name in names] or [0.0], dtype=torch.float64)
            result = model(p, g, *states, packed)
            held[i] = states, (result if contract.hosted else numbers)
    return [p.double().numpy() for p in ours], [p.detach().double().numpy() for p in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_takes_the_steps_of_the_class(name: str) -> None:
    if not is_carried(name):
        pytest.skip("the rule cannot be carried")
    contract = aoti.Contract(order_of(name))
    with torch.no_grad():
        ours, theirs = both(name, contract, contract.model(), contract.start())
    assert difference(ours, theirs) < 1e-6


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", [name for name in NAMES if is_carried(name)] if EVERY else COMPILED)
def test_packages_take_the_steps_of_the_class(name: str, tmp_path: Path) -> None:
    from torch._inductor.package import load_package

    order, path = order_of(name), tmp_path / "rule.pt2"
    path.write_bytes(aoti.emit(order))
    contract = aoti.Contract(order)
    model = torch._inductor.aoti_load_package(str(path))
    assert contract.metadata().items() <= model.get_metadata().items()
    begin = load_package(str(path), "start")

    def step(*arguments: torch.Tensor) -> Any:
        results = model(*arguments)
        return results[0] if isinstance(results, tuple | list) and results else results

    ours, theirs = both(name, contract, step, begin)
    assert difference(ours, theirs) < 1e-6


def test_what_cannot_be_carried_is_refused_by_line() -> None:
    check_refused_by_line([name for name in NAMES if not is_carried(name)], "aoti", aoti.emit)


def test_refusals_name_the_construct() -> None:
    told = {
        "Muon": "matrices (`newton_schulz`)",
        "AdamWClip": "a sum over the whole model (`gnorm`)",
        "SAM": "the closure (`grad`)",
        "SGLD": "random numbers (`randn`)",
        "MuonWithAdamW": "`route`",
        "ScheduleFreeAdamW": "a state of the parameter group (`lr_max`)",
    }
    for name, construct in told.items():
        found = aoti.refused(Order(library_compiled(name), {}))
        assert any(d.message.endswith(f" does not support {construct}") for d in found), [d.message for d in found]


def test_the_contract_names_what_a_step_is_computed_from() -> None:
    meta = aoti.Contract(order_of("NAdam")).metadata()
    assert meta["numbers"].split()[:1] == ["lr"] and "t" in meta["numbers"].split()
    assert meta["returned"] and meta["states"] == "exp_avg exp_avg_sq" and meta["layout"] == "flat"
    assert aoti.Contract(order_of("Adafactor")).metadata()["layout"] == "front=0 back=2"
    assert library_rule("Adafactor").name == "Adafactor"
