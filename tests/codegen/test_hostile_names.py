"""Names of a rule that mean something where it is written to: in classes, exported files and their functions."""

import types
import warnings
from typing import Any

import pytest
import torch

import optlang
from optlang.compiler import compile_source
from optlang.diagnostics import OptlangError
from optlang.source import Source
from optlang.targets import Order, torchscript

#: Python's names, those of the templates, and those that generated functions give to what they compute.
NAMES = (
    *("super", "zip", "ValueError", "float", "math", "torch", "hyperparameters", "shape", "params", "state"),
    *("compiled", "defaults", "seed", "p_1", "m_1", "lambda"),
)
RULES = {
    "rule": "optimizer {0}\nhyper lr = 0.1\nstate m\nm = 0.9*m + g/3\np -= lr*m/(1 - 0.9^t)\n",
    "hyper": "optimizer T\nhyper {0} = 0.1 >= 0\nstate m\nm = 0.9*m + g/3\np -= {0}*m/(1 - 0.9^t)\n",
    "flag": "hyper lr = 0.1\nhyper {0} = false\nstate m\nm = 0.9*m + g/3\nif not {0}: m0 = m/(1 - 0.9^t)\n"
    "else: m0 = m\np -= lr*m0\n",
    "state": "optimizer T\nhyper lr = 0.1\nstate {0}\n{0} = 0.9*{0} + g/3\np -= lr*{0}/(1 - 0.9^t)\n",
    "local": "optimizer T\nhyper lr = 0.1\nstate m\nm = 0.9*m + g/3\n{0} = m/(1 - 0.9^t)\np -= lr*{0}\n",
    "function": "hyper lr = 0.1\nstate m\ndef {0}(x) = x/(1 - 0.9^t)\nm = 0.9*m + g/3\np -= lr*{0}(m)\n",
}


def gradients() -> list[torch.Tensor]:
    return [torch.full((3,), 1.0 + i) for i in range(2)]


def moved_by(cls: Any) -> torch.Tensor:
    """Return a parameter after two steps of an optimizer class."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = cls([p])
    for g in gradients():
        p.grad = g
        optimizer.step()
    return p.detach()


def moved_by_function(function: Any) -> torch.Tensor:
    """Return a parameter after two calls of an exported function."""
    p, states = torch.ones(3), [{}]
    for g in gradients():
        function([p], [g], states)
    return p


def run(code: str | bytes) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "exported"}
    exec(code, scope)
    return scope


def expected() -> torch.Tensor:
    p, m = torch.ones(3), torch.zeros(3)
    for t, g in enumerate(gradients(), 1):
        m = 0.9 * m + g / 3
        p = p - 0.1 * m / (1 - 0.9**t)
    return p


@pytest.mark.parametrize("role", RULES)
def test_names_shadow_nothing(role: str) -> None:
    """Each name is right in the class and in every file, or the rule has an error; never a wrong step or a crash."""
    refused = []
    for name in NAMES:
        source = Source(RULES[role].format(name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any(d.is_error for d in optlang.check(source)):
                refused.append(name)
                continue
            torch.testing.assert_close(moved_by(optlang.compile(source, backend="eager")), expected(), msg=name)
            module = run(optlang.export(source, "module")).values()
            plain = run(optlang.export(source, "plain")).values()
        (cls,) = (x for x in module if isinstance(x, type) and issubclass(x, torch.optim.Optimizer))
        torch.testing.assert_close(moved_by(cls), expected(), msg=f"module {name}")
        function = [x for x in plain if isinstance(x, types.FunctionType)][-1]
        torch.testing.assert_close(moved_by_function(function), expected(), msg=f"plain {name}")
    assert len(refused) < 12, refused


@pytest.mark.parametrize("name", ["math", "torch", "float", "Tensor"])
def test_a_rule_may_be_called_like_what_its_file_uses(name: str) -> None:
    """The class then has an underscore behind its name, as `lambda` has as an argument."""
    code = optlang.export(RULES["rule"].format(name), "module")
    torch.testing.assert_close(moved_by(run(code)[f"{name}_"]), expected())


@pytest.mark.parametrize("role", ["hyper", "state", "local"])
def test_torchscript_takes_names_of_its_own(role: str) -> None:
    for name in ("Tensor", "List"):
        rule = compile_source(Source(RULES[role].format(name)))
        module = torchscript.scripted(torchscript.text(Order(rule, {})), rule.name)
        p = torch.ones(3)
        for g in gradients():
            module.step([p], [g])
        torch.testing.assert_close(p, expected(), msg=name)


@pytest.mark.parametrize(
    ("required", "shape"),
    [
        ("cols % 64 == 0", (2, 128)),
        ("ndim == 5", (2, 1, 2, 1, 2)),
        ("rows == 12 and cols == 12", (12, 12)),
        ("ndim == 8", (1,) * 8),
    ],
)
def test_files_for_shapes_that_a_rule_asks_for(required: str, shape: tuple[int, ...]) -> None:
    rule = f"optimizer T\nhyper lr = 0.5\nrequire {required}\np -= lr*g\n"
    cls = run(optlang.export(rule, "module"))["T"]
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    cls([p]).step()
    torch.testing.assert_close(p.detach(), torch.full(shape, 0.5))
    with pytest.raises(ValueError, match="must hold"):
        cls([torch.nn.Parameter(torch.ones(2, 3, 4))])


@pytest.mark.parametrize("target", ["module", "plain", "torchscript"])
def test_shapes_that_a_target_does_not_know_are_refused_by_line(target: str) -> None:
    with pytest.raises(OptlangError) as raised:
        optlang.export("hyper lr = 0.1\nrequire numel > 10^12\np -= lr*g\n", target)
    (found,) = raised.value.diagnostics
    assert found.code in ("E801", "E802") and found.position == (2, 9)


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("if rows > cols: a = 1\nelif rows >= cols: a = 2\nelse: a = 3", ((4, 3), (4, 4), (3, 4), (1, 1), (5,))),
        ("if numel == 1 or cols == 20: a = 1\nelse: a = 2", ((1,), (3, 20), (3, 21), (2,), (1, 1))),
    ],
    ids=["square matrices", "sizes that are compared with"],
)
def test_shapes_that_a_rule_asks_for_are_tried(body: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    rule = f"optimizer T\nhyper lr = 0.5\n{body}\np -= lr*a*g\n"
    made, exported = optlang.compile(rule, backend="eager"), run(optlang.export(rule, "module"))["T"]
    for shape in shapes:
        moved = []
        for cls in (made, exported):
            p = torch.nn.Parameter(torch.ones(shape))
            p.grad = torch.ones(shape)
            cls([p]).step()
            moved.append(p.detach())
        assert torch.equal(*moved), shape


@pytest.mark.parametrize("stage", ["source", "program"])
def test_emit_for_a_tensor_that_does_not_suit(stage: str) -> None:
    with pytest.raises(OptlangError) as raised:
        optlang.emit("hyper lr = 0.1\nrequire ndim == 2\np -= lr*newton_schulz(g)\n", stage=stage, ndim=1)
    (found,) = raised.value.diagnostics
    assert found.code == "E802" and found.position == (2, 9) and "ndim" in (found.help or "")
    with pytest.raises(OptlangError) as raised:
        optlang.emit("hyper lr = 0.1\np -= lr*(g @ g.T @ g)\n", stage=stage, ndim=1)
    assert raised.value.diagnostics[0].position[0] == 2
