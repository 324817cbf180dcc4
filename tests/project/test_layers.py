"""The layers of the house: a module imports only from layers below its own, and libraries have their place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "optlang"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. The package itself (`import optlang`) is the front door: it may show everything.
ORDER = (
    *("source", "diagnostics", "codes", "cache", "storage", "identity"),
    *("functions", "syntax", "kinds", "rule", "core", "declarations", "expand", "checker"),
    *("inputs", "artifact", "ir", "codegen", "backends"),
    *("compiler", "runtime", "classes", "rules", "chaining", "transforms", "targets", "api", "groups_by_name"),
    *("bench", "cli", "__main__"),
)
FRONT_DOOR_FROM = {"rules", "transforms", "bench", "cli"}

# Where each library may be imported; a prefix of the module's name.
LIBRARIES = {
    "lark": ("syntax.parse",),
    "sympy": ("ir", "codegen", "compiler", "targets"),
    "filelock": ("cache",),
    "triton": ("codegen.helpers",),
    "torch": ("storage", "codegen.helpers", "backends", "runtime", "targets", "bench"),
    "numpy": ("bench",),
    "matplotlib": ("bench",),
    "typer": ("cli",),
    "rich": ("bench", "cli"),
    "pygments": ("cli",),
}


def module_name(path: Path) -> str:
    """Return the name within the package: ``syntax.parse``; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """Return every module that a file imports when it runs, with the line, wherever the import stands."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {id(inner) for node in ast.walk(tree) if only_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if is_module(name)]
            found += [(node.lineno, name) for name in modules or [str(node.module)]]
    return found


def only_for_types(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of this package (and not something defined in one)."""
    if not name.startswith("optlang."):
        return False
    path = PACKAGE.parent / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def layer(name: str) -> str:
    return name.split(".")[0]


def offences(path: Path) -> list[str]:
    """Return what a file imports against the rules."""
    name, found = module_name(path), []
    for line, imported in imports(path):
        root, _, inner = imported.partition(".")
        wrong = forbidden_inside(name, inner) if root == "optlang" else forbidden_library(name, root)
        if wrong:
            found.append(f"optlang/{path.relative_to(PACKAGE)}:{line}: imports {imported}: {wrong}")
    return found


def forbidden_inside(name: str, inner: str) -> str | None:
    """Say why a module of this package may not import another, or None."""
    if not name:
        return None
    if not inner:
        return None if layer(name) in FRONT_DOOR_FROM else "the front door is for the layers above it"
    here, there = layer(name), layer(inner)
    if there not in ORDER:
        return f"{there} has no place in the order"
    if ORDER.index(there) > ORDER.index(here):
        return f"{there} is above {here}"
    if here == "runtime" and there in ("ir", "compiler"):
        return "the runtime knows compiled rules, not the compiler"
    if name.startswith("ir.passes.") and inner.startswith("ir.passes."):
        return "a pass does not know its siblings"
    if is_backend(name) and is_backend(inner):
        return "a backend does not know its siblings"
    return None


def is_backend(name: str) -> bool:
    """Whether a module is a backend: a file right in backends/ that defines ``load``."""
    path = PACKAGE / Path(*name.split(".")).with_suffix(".py")
    if not name.startswith("backends.") or name.count(".") > 1 or not path.exists():
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "load" for node in body)


def forbidden_library(name: str, root: str) -> str | None:
    places = LIBRARIES.get(root)
    if places is None or any(name == place or name.startswith(f"{place}.") for place in places):
        return None
    return f"{root} is imported in {', '.join(places)} only"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path) or "optlang")
def test_imports_follow_the_order(path: Path) -> None:
    assert module_name(path) == "" or layer(module_name(path)) in ORDER, "a new layer needs a place in ORDER"
    assert offences(path) == []


def test_every_library_is_declared_or_standard() -> None:
    """An import of something that is neither ours, standard, nor listed above is a new dependency."""
    known = {"optlang", *LIBRARIES, *sys.stdlib_module_names}
    strangers = {imported.split(".")[0] for path in MODULES for _, imported in imports(path)} - known
    assert strangers == set()


@pytest.mark.parametrize(
    ("name", "imported", "wrong"),
    [
        ("checker.check", "optlang.ir.program", True),
        ("ir.lower", "optlang.syntax.tree", False),
        ("ir.passes.hoist", "optlang.ir.passes.prune", True),
        ("runtime.optimizer", "optlang.compiler", True),
        ("runtime.optimizer", "optlang.artifact", False),
        ("checker.check", "lark", True),
        ("syntax.parse", "lark", False),
        ("runtime.optimizer", "sympy", True),
        ("checker.check", "torch", True),
        ("backends.eager", "torch", False),
        ("checker.check", "optlang", True),
        ("cli.emit", "optlang", False),
    ],
)
def test_the_rules_themselves(name: str, imported: str, wrong: bool) -> None:
    root, _, inner = imported.partition(".")
    found = forbidden_inside(name, inner) if root == "optlang" else forbidden_library(name, root)
    assert bool(found) is wrong


@pytest.mark.parametrize("statement", ["import optlang", "import optlang.rules", "import optlang.cli.app"])
def test_light_imports_stay_light(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in ('torch', 'sympy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_checking_a_rule_needs_no_torch_and_no_sympy() -> None:
    code = (
        "from optlang.source import Source; from optlang.checker.check import check_text; import sys;"
        "rule, found = check_text(Source('p -= lr*g'));"
        "print(rule is not None, [m for m in ('torch', 'sympy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True []"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even for types: what two modules need of each other belongs into one, or into a third."""
    needed = {module_name(path): all_imports(path) for path in MODULES}
    while needed:  # take away what needs nothing that is left
        free = [name for name, others in needed.items() if not others & needed.keys()]
        assert free, f"these import each other: {sorted(needed)}"
        for name in free:
            del needed[name]


def all_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, for types too; the front door shows everything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in names if is_module(name)} or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("optlang.") for name in found} - {module_name(path), "optlang", ""}


def test_no_class_name_is_given_twice() -> None:
    """Whoever reads a name knows which class is meant; those of emitted modules are in files of their own."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "targets" / "module" / "runtime.py":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
