"""Modules of rules as the library has none: they take what the class takes, and make its steps."""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scripted import reloaded

import optlang

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HEAD = "optimizer A\nhyper lr = 0.1\n"


@cache
def classes(rule: str) -> tuple[Any, Any]:
    """Return the class of a rule that is called A, and that of its module."""
    text = optlang.export(rule, "module")
    assert isinstance(text, str)
    made = types.ModuleType("made")
    exec(compile(text, "<module>", "exec"), made.__dict__)
    return optlang.compile(rule, backend="eager"), made.__dict__["A"]


def moved(cls: Any, shapes: tuple[tuple[int, ...], ...], **arguments: Any) -> list[torch.Tensor]:
    """Return parameters after three steps."""
    generator = torch.Generator().manual_seed(5)
    params = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64, generator=generator)) for s in shapes]
    optimizer = cls(params, **arguments)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


def agree(rule: str, *shapes: tuple[int, ...], **arguments: Any) -> None:
    """Assert that both classes go the same way."""
    one, other = (moved(cls, shapes, **arguments) for cls in classes(rule))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


CHOICES = 'if mode == none: p -= lr*g\nelif mode == "l2": p -= lr*(g + 0.1*p)\nelse: p -= lr*sign(g)\n'


@pytest.mark.parametrize("mode", [None, "l2", "an other"])
@pytest.mark.parametrize("start", ["mode = none", 'mode = "l2"', "mode"])
def test_choices_may_have_none(start: str, mode: str | None) -> None:
    agree(f'{HEAD}hyper {start} in {{none, "l2", "an other"}}\n{CHOICES}', (4, 3), mode=mode)


def test_muon_and_adamw_of_the_language_page() -> None:
    rule = "optimizer A\ninner M = Muon\ninner B = AdamW\nif ndim == 2: M(p, g)\nelse:         B(p, g)\n"
    agree(rule, (4, 3), (3, 4), (5,))
    _, made = classes(rule)  # which has too many forms to carry them all
    with pytest.raises(ValueError, match="this file was made for adjust_lr_fn = None"):
        moved(made, ((4, 3),), adjust_lr_fn="match_rms_adamw")
    text = optlang.export(rule, "module", values={"adjust_lr_fn": "match_rms_adamw"})
    assert "made for adjust_lr_fn = match_rms_adamw" in " ".join(str(text).split())


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ('hyper mode in {"l1", "l2"}\nif mode == "l1": p -= lr*sign(g)\nelse: p -= lr*g\n', {"mode": "l2"}),
        ("hyper beta in [0, 1)\nstate m\nm = lerp(g, m, beta)\np -= lr*m\n", {"beta": 0.5}),
        ("hyper n in {2, 3}\nrepeat n: p -= lr*g\n", {"n": 3}),
        ("hyper n > 3\nrepeat n: p -= lr*g\n", {"n": 5}),
        ("hyper n in (1, 4)\nrepeat n: p -= lr*g\n", {"n": 3}),
        ("hyper up in {true, false}\nif up: p += lr*g\nelse: p -= lr*g\n", {"up": False}),
    ],
)
def test_what_must_be_passed_need_not_be_known_before(rule: str, arguments: dict[str, Any]) -> None:
    for target in ("plain", "torchscript"):
        optlang.export(HEAD + rule, target)
    optlang.emit(HEAD + rule, "source")
    cls, made = classes(HEAD + rule)
    for one in (cls, made):
        with pytest.raises(TypeError, match=next(iter(arguments))):
            one([torch.nn.Parameter(torch.ones(2))])
    try:
        agree(HEAD + rule, (4, 3), **arguments)
    except ValueError as refused:  # how often something is repeated is settled if there are too many ways
        assert "this file was made for n = 4" in str(refused), refused


def test_a_tensor_without_the_dimension_is_refused() -> None:
    rule = HEAD + "p -= lr*g/size(g, 1)\n"
    for cls in classes(rule):
        with pytest.raises(ValueError):
            cls([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"`size.g, 1.` .line 3.: a vector of 3 has no dimension 1"):
        classes(rule)[0]([torch.nn.Parameter(torch.ones(3))])
    agree(rule, (4, 3))
    agree(HEAD + "if ndim > 0 and size(g, 0) > 3: p -= lr*g/size(g, 0)\nelse: p -= lr*g\n", (4, 3), (2,), ())
    optlang.export(rule, "torchscript")


#: Shapes with sizes of 1 at every place, such as those of 1 x 1 convolutions, and with equal sizes.
THIN = (
    *((), (1,), (5,), (1, 1), (4, 1), (1, 4), (4, 3), (4, 3, 1), (4, 1, 3), (1, 4, 3), (4, 1, 1), (1, 1, 1)),
    *((8, 4, 1, 1), (8, 4, 3, 1), (8, 4, 1, 3), (8, 1, 3, 3), (1, 4, 3, 3), (8, 4, 3, 3), (1, 1, 1, 1)),
)


@pytest.mark.parametrize(
    "rule",
    [
        "if rows > 1 and ndim == 2: p -= lr*(g @ g.T) @ g\nelse: p -= lr*g\n",
        "if ndim > 2 and rows >= 3: p -= lr*g/size(g, 1)\nelse: p -= 2*lr*g\n",
        "if ndim > 1 and rows(matrix(g)) > cols(matrix(g)): p -= lr*g\nelse: p -= 2*lr*g\n",
    ],
)
def test_takes_every_shape_that_the_class_takes(rule: str) -> None:
    agree(HEAD + rule, *THIN)
    scripted = optlang.export(HEAD + rule, "torchscript")
    for shape in ((4, 1, 3), (4, 1, 1), (8, 4, 1, 1), (8, 4, 3, 1)):
        reloaded(scripted).step([torch.ones(shape)], [torch.ones(shape)])


OPTIONAL_NUMBER = """optimizer A
hyper lr = 0.1, wd = 0
hyper clip = none >= 0
state m
if clip: g = clamp(g, -clip, clip)
if wd: p *= 1 - lr*wd
m = lerp(m, g, 0.1)
p -= lr*m
"""
#: Coefficients that differ by option stand in two statements.
SHARED = """optimizer A
hyper lr = 0.1, mom = 0.9, a = false
state m, v
k = mom*lr
if a: k = mom^2
m = k*m + g
v = k*v + abs(g)
p -= m/(1 + v)
"""


@pytest.mark.parametrize("clip", [None, 0.0, 0.5])
@pytest.mark.parametrize("wd", [0, 0.1])
def test_whether_a_number_is_none_and_whether_it_is_0_are_two_questions(clip: float | None, wd: float) -> None:
    agree(OPTIONAL_NUMBER, (4,), clip=clip, wd=wd)


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("k", ["mom*lr", "1 - mom*lr"])
def test_coefficients_of_variants_in_several_statements(a: bool, k: str) -> None:
    agree(SHARED.replace("mom*lr", k), (4,), a=a)


def test_a_tuple_must_be_one() -> None:
    _, made = classes(
        "optimizer A\nhyper lr = 0.1, betas = (b1 = 0.9, b2 = 0.99)\nstate m\nm = lerp(m, g, b1)\np -= lr*b2*m\n"
    )
    for betas in (0.9, None, "ab", (0.9,)):
        with pytest.raises(ValueError, match=r"betas must be a tuple \(b1, b2\), got "):
            made([torch.nn.Parameter(torch.zeros(3))], betas=betas)


def test_what_a_hook_makes_of_a_state_dict_is_loaded() -> None:
    _, made = classes("optimizer A\nhyper lr = 0.1\nstate m\nm = lerp(m, g, 0.5)\np -= lr*m\n")
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = made([a, b])
    a.grad, b.grad = torch.ones(3), torch.full((3,), 2.0)
    optimizer.step()
    other = made([b, a])

    def swapped(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "state": {0: saved["state"][1], 1: saved["state"][0]}}

    other.register_load_state_dict_pre_hook(swapped)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[a]["m"], optimizer.state[a]["m"])
    assert torch.equal(other.state[b]["m"], optimizer.state[b]["m"])


@pytest.mark.parametrize(
    ("rule", "group", "arguments"),
    [
        ("hyper group_k = 0.5\np -= lr*g*group.k + group_k", {"k": 2.0}, {}),
        ("p -= lr*g*group.k + group.group_k", {"k": 2.0, "group_k": 3.0}, {}),
        ("hyper group_t = 0.5\np -= lr*g*group_t*group.t", {}, {"group_t": 0.25}),
        ("hyper total_0 = 0.5\np -= lr*g*total_0/(1 + gnorm(g))", {}, {"total_0": 2.0}),
        ("hyper s_new = 0.5\ngroup state s = 0\ns = s + 1\np -= lr*g*s*s_new", {}, {}),
    ],
)
def test_values_of_one_name_are_told_apart(rule: str, group: dict[str, Any], arguments: dict[str, Any]) -> None:
    """A hyperparameter is called what the file would otherwise call a key of the group, a count or a sum."""
    one, other = (moved_group(cls, group, arguments) for cls in classes(f"{HEAD}{rule}\n"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def moved_group(cls: Any, group: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
    """Return a parameter of a group after three steps."""
    p = torch.nn.Parameter(torch.arange(1.0, 4.0, dtype=torch.float64))
    optimizer = cls([{"params": [p], **group}], **arguments)
    for step in range(3):
        p.grad = torch.full_like(p, step + 1.0)
        optimizer.step()
    return p.detach()


def test_a_hyperparameter_may_be_called_compiled() -> None:
    """It is passed by its name, as to the compiled class; the switch of the module gets another."""
    rule = f"{HEAD}hyper compiled = 0.5\np -= lr*g*compiled\n"
    agree(rule, (3,), compiled=0.25)
    _, made = classes(rule)
    assert "compiled_ (bool, optional)" in made.__doc__
    assert made([torch.nn.Parameter(torch.zeros(1))], compiled_=True).compiled is True


@pytest.mark.parametrize("kind", [float, torch.tensor, np.float32, np.float64, np.array])
def test_numbers_may_be_of_numpy_or_in_tensors(kind: Any) -> None:
    agree(f"{HEAD}hyper up = true\np -= lr*g if up else 0*g\n", (3,), lr=kind(0.25), up=True)
    _, made = classes(f"{HEAD}hyper up = true\np -= lr*g if up else 0*g\n")
    assert made([torch.nn.Parameter(torch.zeros(1))], lr=np.int64(1), up=np.bool_(False)).param_groups[0]["lr"] == 1
    with pytest.raises(ValueError, match=r"lr must be a number, got "):
        made([torch.nn.Parameter(torch.zeros(1))], lr=np.zeros(2))


def test_complex_parameters_are_refused_where_dimensions_matter() -> None:
    matrix = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))
    _, rows = classes("optimizer A\nhyper lr = 0.1\np -= lr*g/(1 + mean(abs(g), dim=-1))\n")
    with pytest.raises(ValueError, match=r"has type torch\.complex64; only real floating-point ones can be optimized"):
        rows([matrix])
    _, either = classes(
        "optimizer A\nhyper lr = 0.1\nif ndim > 1: p -= lr*g/(1 + mean(abs(g), dim=-1))\nelse: p -= lr*g\n"
    )
    with pytest.raises(ValueError, match="is complex, and the rule looks at dimensions"):
        either([matrix])
    either([torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
