"""Between the checker and the runtime, what something is is said by its class: no name is taken apart to find out.

Tests of how a text begins or ends are for what is text: generated code, numbers in it, messages of other programs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "optlang"
TAKING_APART = {"startswith", "endswith", "partition", "rpartition", "removeprefix", "removesuffix"}

#: Where names are handed on: folders, and modules.
FOLDERS = ("checker", "core", "backends", "codegen", "ir", "runtime", "targets")
MODULES = ("artifact", "compiler", "identity", "inputs")

#: What may take a text apart: function by file, and the text that it is.
TEXTS = {
    ("codegen/cpp_writer.py", "literal"): "a number as C++",
    ("backends/loading/slow.py", "cause"): "what a compiler says",
    ("backends/loading/toolchain.py", "_capabilities"): "/proc/cpuinfo",
    ("codegen/naming.py", "next_version"): "a name with a number behind it, for people",
    ("codegen/spelling.py", "fill"): "a piece of Python",
    ("core/texts.py", "_head"): "a docstring",
    ("ir/builder.py", "symbol"): "a name with a number behind it, for people",
    ("ir/expressions.py", "_stem"): "a name with a number behind it, for people",
    ("runtime/counterpart.py", "of"): "the path of a class of torch",
    ("runtime/optimizer.py", "_public"): "an attribute of the user's",
    ("targets/module/__init__.py", "assembled"): "a piece of Python",
    ("targets/module/choice.py", "chooser"): "a line of Python",
    ("targets/module/choice.py", "_common"): "a condition as Python",
    ("targets/module/__init__.py", "only_refuses"): "a piece of Python",
    ("targets/module/forms.py", "result"): "a line of Python",
    ("targets/module/forms.py", "respelled"): "a line of Python",
    ("targets/module/forms.py", "_word"): "a condition as Python",
    ("targets/module/texts.py", "_docstring"): "a docstring",
    ("targets/torchscript/__init__.py", "_runtime"): "a line of Python",
    ("targets/torchscript/dialect.py", "spelling"): "a piece of Python",
    ("targets/plain.py", "_wrapped"): "a line of a docstring",
}
#: Files that are about nothing but text.
FORMATTING = (
    "targets/_python.py",
    "targets/module/merge.py",
    "targets/module/trim.py",
    "targets/module/trimmed_file.py",
)


def files() -> list[Path]:
    """Return the modules in which names are handed on."""
    inside = [path for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    return sorted([*inside, *(PACKAGE / f"{module}.py" for module in MODULES)])


def taking_apart(node: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """Yield the functions that take a text apart, with the line."""
    for inner in ast.iter_child_nodes(node):
        name = inner.name if isinstance(inner, ast.FunctionDef) else function
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in TAKING_APART:
            yield name, inner.lineno
        yield from taking_apart(inner, name)


def test_no_name_is_taken_apart() -> None:
    found = {}
    for path in files():
        name = path.relative_to(PACKAGE).as_posix()
        if name not in FORMATTING:
            for function, line in taking_apart(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault((name, function), line)
    assert {place: line for place, line in found.items() if place not in TEXTS} == {}
    assert set(TEXTS) <= set(found), "these take no text apart any more"


@pytest.mark.parametrize(
    ("code", "places"),
    [
        ("def f(name):\n    return name.startswith('group.')", [("f", 2)]),
        ("kind, _, rest = name.partition(' ')", [("", 1)]),
        ("def f(name):\n    return isinstance(name, GroupKey)", []),
    ],
)
def test_the_test_itself(code: str, places: list[tuple[str, int]]) -> None:
    assert list(taking_apart(ast.parse(code))) == places
