"""Help texts, docstrings, choices, messages and comments stay texts wherever they are written."""

import ast
import builtins
import inspect
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
import torch

import optlang
from optlang.compiler import compile_source
from optlang.diagnostics import OptlangError
from optlang.source import Source
from optlang.syntax import quoting
from optlang.targets import Order, torchscript

#: As many texts as go into one rule.
EACH = 30
PARTS = [hostile.TEXTS[i : i + EACH] for i in range(0, len(hostile.TEXTS), EACH)]


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collects what texts have run, which is nothing."""
    found: list[int] = []
    monkeypatch.setattr(builtins, "hostile_text", lambda: found.append(1), raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found
    assert found == []


def assert_harmless(code: str) -> None:
    """Assert that generated Python parses, can be written, hides nothing and calls nothing that stood in a text."""
    code.encode()
    assert all(c.isprintable() or c in "\n\t" for c in code)
    assert "hostile_text" not in {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}


@pytest.mark.parametrize("text", hostile.TEXTS, ids=ascii)
def test_a_text_is_read_back_as_it_was(text: str) -> None:
    assert ast.literal_eval(quoting.literal(text)) == text
    for apart in (False, True):
        inside = f"def f():\n    {quoting.docstring(f'{text}|{text}', '    ', apart)}\n    return 1\n"
        assert_harmless(inside)
        (function,) = ast.parse(inside).body
        assert isinstance(function, ast.FunctionDef)
        found = ast.get_docstring(function, clean=False) or ""
        assert found.rstrip() == f"{text}|{text}".rstrip()
    commented = f"x = 1  {quoting.remark(text)}\ny = 2\n"
    assert_harmless(commented)
    assert len(ast.parse(commented).body) == 2


@pytest.mark.parametrize("text", hostile.TEXTS, ids=ascii)
def test_docstrings_stay_in_their_quotes(text: str) -> None:
    source = Source(f"{hostile.documented(text)}\nhyper lr = 0.1 {hostile.quoted(text)}\np -= lr*g\n", text)
    assert not any(d.is_error for d in optlang.check(source))
    code = optlang.export(source, "plain")
    assert isinstance(code, str)
    assert_harmless(code)
    scope: dict[str, object] = {}
    exec(code, scope)
    p, step = torch.ones(2), scope["rule"]
    assert callable(step)
    step([p], [torch.ones(2)], [{}])
    torch.testing.assert_close(p, torch.full((2,), 0.9))


@pytest.mark.parametrize("texts", PARTS, ids=lambda texts: ascii(texts[0]))
def test_texts_stay_texts_in_every_place(texts: tuple[str, ...]) -> None:
    source = Source(hostile.rule(texts[-1], texts), texts[0])
    found = optlang.check(source)
    assert not any(d.is_error for d in found), [d.message for d in found]
    for d in found:
        d.render(color=False).encode("utf-8", "surrogatepass")
    assert_harmless(optlang.emit(source))
    module, plain = optlang.export(source, "module"), optlang.export(source, "plain")
    script = torchscript.text(Order(compile_source(source), {}))
    for code in (module, plain, script):
        assert isinstance(code, str)
        assert_harmless(code)
    made = optlang.compile(source, backend="eager")
    inspect.signature(made)
    repr(made([torch.nn.Parameter(torch.ones(2))]))
    scope: dict[str, object] = {"__name__": "exported"}
    exec(compile(str(module), "exported", "exec"), scope)
    exported = scope["Hostile"]
    moved = []
    for cls in (made, exported):
        p = torch.nn.Parameter(torch.ones(2))
        assert callable(cls)
        optimizer = cls([p])
        p.grad = torch.ones(2)
        optimizer.step()
        moved.append(p.detach())
        assert optimizer.defaults["mode"] == hostile.quoted(texts[0])[1:-1]
        with pytest.raises(ValueError, match="mode"):
            cls([p], mode="hostile_text()")
    assert torch.equal(*moved)
    # `optlang.compile` shows what cannot be seen as escapes; the file says the same.
    assert exported.__doc__ and made.__doc__
    assert exported.__doc__.split("Args:")[0].split() == made.__doc__.split("Args:")[0].split()


def test_the_torchscript_of_a_rule_with_texts_can_be_loaded() -> None:
    texts = [t for t in hostile.TEXTS if len(t) < 100][:60]
    module = torchscript.scripted(
        torchscript.text(Order(compile_source(Source(hostile.rule("x", texts))), {})), "Hostile"
    )
    assert torchscript.saved(module)


def test_a_docstring_in_single_quotes_survives_composing() -> None:
    for doc in ('\'says """ in it\'', "'ends in \"'"):
        found = optlang.check(f"{doc}\np -= lr*(g |> momentum(0.9))\n")
        assert not any(d.is_error for d in found), [d.message for d in found]


@pytest.mark.parametrize(
    "name", ['x"""; hostile_text(); """', "hostile_text(\n)", "a\\", "\x1b[31m", "\u202e.opt", "x" * 250]
)
def test_names_of_files_are_only_shown(name: str, tmp_path: Path) -> None:
    source = Source("optimizer T\nhyper lr = 0.1\nx = lr*g\np -= lr*g\n", name)
    found = optlang.check(source)
    assert found
    shown = found[0].render(color=True)
    assert "\x1b[31m" not in found[0].render()
    assert shown.count("\n") == found[0].render().count("\n")
    assert_harmless(str(optlang.export(source, "module")))
    with pytest.raises(OptlangError) as caught:
        optlang.compile(Source("p -= lr*", name))
    assert "\n  --> " in str(caught.value)


def test_a_rule_of_hostile_texts_is_printed_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "greek.opt"
    file.write_text('optimizer Γ\nhyper lr = 0.1 "η"\nμ = 0.9*μ + g\np -= lr*βx*μ\n', encoding="utf-8")
    code = f"import sys; from optlang.cli.app import main; sys.argv = ['optlang', 'check', {str(file)!r}]; main()"
    for encoding in ("ascii", "latin-1"):
        ended = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            env={"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)},
        )
        assert b"this is a bug" not in ended.stderr + ended.stdout
        assert b"E201" in ended.stdout + ended.stderr or ended.returncode in (0, 1)
