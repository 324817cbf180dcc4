"""The documentation is complete and current."""

import ast
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import landscape
import pytest
import torch
from trajectories import library_reference

import optlang
from optlang.checker.check import check_text
from optlang.codes import entries
from optlang.diagnostics import render_all
from optlang.functions.table import TABLE
from optlang.source import Source

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.name for path in PAGES]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the generated pages."""
    folder = tmp_path_factory.mktemp("reference")
    code = "import generate, pathlib, sys; generate.write_all(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT / "docs")
    return folder


def blocks(path: Path, language: str) -> Iterator[str]:
    """Return the code blocks of a page in one language."""
    text = path.read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_rules_in_the_pages_are_rules(path: Path) -> None:
    for text in blocks(path, "opt"):
        _, found = check_text(Source(text, path.name))
        errors = [d.render() for d in found if d.is_error]
        assert errors == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_in_the_pages_is_python(path: Path) -> None:
    for text in blocks(path, "python"):
        ast.parse(text)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path: Path, reference: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        page = path.parent / target
        generated = reference / target.removeprefix("docs/").removeprefix("reference/")
        assert page.exists() or generated.exists(), f"{path.name} links to {target}"


def test_generated_pages_are_complete(reference: Path) -> None:
    functions = (reference / "functions.md").read_text(encoding="utf-8")
    assert [row.name for row in TABLE if f"`{row.name}(" not in functions] == []
    diagnostics = (reference / "diagnostics.md").read_text(encoding="utf-8")
    assert [code for code in entries() if f"### {code}: " not in diagnostics] == []
    library = (reference / "rules" / "index.md").read_text(encoding="utf-8")
    assert [name for name in optlang.rules.names() if f"[{name}]" not in library] == []
    pieces = (reference / "transforms.md").read_text(encoding="utf-8")
    assert [name for name in optlang.transforms.names() if f"\ntransform {name}(" not in pieces] == []


def test_a_rule_page_says_everything_of_its_rule(reference: Path) -> None:
    page = (reference / "rules" / "adamw.md").read_text(encoding="utf-8")
    for word in (
        "beta1",
        "`betas[0]`",
        "0.999",
        "exp_avg_sq",
        "when `amsgrad`",
        r"\sqrt",
        "torch.optim.AdamW",
    ):
        assert word in page


WRONG = """\
optimizer Wrong
hyper lr = 0.1 >= 0, beta = 0.9 in [0, 1)
state m

m = bata*m + g
p -= lr*norm(m, axis=0)
"""


def readme_sections() -> dict[str, str]:
    """Return the parts of the README that are made from the code."""
    rule = (ROOT / "examples" / "adamw.opt").read_text(encoding="utf-8")
    findings = render_all(check_text(Source(WRONG, "wrong.opt"))[1])
    homes = {"torch": "As in `torch.optim`", "pytorch_optimizer": "As in `pytorch_optimizer`", "": "Others"}
    library: dict[str, list[str]] = {home: [] for home in homes}
    for name in optlang.rules.names():
        library[(library_reference(name) or "").partition(".")[0]].append(name)
    return {
        "rule": f"```opt\n{rule}```",
        "source": f"```python\n{optlang.emit(rule).strip()}\n```",
        "mistake": f"```console\n$ cat wrong.opt\n{WRONG}\n$ optlang check wrong.opt\n{findings}\n```",
        "library": "\n".join(f"- {homes[home]}: {', '.join(names)}" for home, names in library.items() if names),
    }


def keep_current(path: Path, sections: dict[str, str], update: bool) -> None:
    """Compare the parts of a page that are made from the code with what is made now, or rewrite them."""
    text = current = path.read_text(encoding="utf-8")
    for name, made in sections.items():
        pattern = rf"(?s)(<!-- begin {name} -->\n).*?(<!-- end -->)"
        assert re.search(pattern, current), f"{path.name} has no section {name}"
        current = re.sub(pattern, lambda found, made=made: f"{found[1]}\n{made}\n\n{found[2]}", current)
    if update:
        path.write_text(current, encoding="utf-8")
    else:
        assert text == current


def test_the_parts_of_the_readme_that_are_made_are_current(request: pytest.FixtureRequest) -> None:
    keep_current(ROOT / "README.md", readme_sections(), request.config.getoption("--update-golden", default=False))


def test_the_tour_shows_what_the_compiler_prints(request: pytest.FixtureRequest) -> None:
    path = ROOT / "docs" / "tour.md"
    code = "import generate, json, sys; print(json.dumps(generate.tour_sections(sys.stdin.read())))"
    made = subprocess.run(
        [sys.executable, "-c", code],
        input=path.read_text(encoding="utf-8"),
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    sections = {name: text.strip() for name, text in json.loads(made.stdout).items()}
    keep_current(path, sections, request.config.getoption("--update-golden", default=False))


def test_the_passes_are_shown_as_they_are(request: pytest.FixtureRequest) -> None:
    path = ROOT / "docs" / "internals.md"
    code = "import generate; print(generate.passes_section())"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True)
    section = {"passes": made.stdout.strip()}
    keep_current(path, section, request.config.getoption("--update-golden", default=False))


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_pages_name_commands_that_exist(path: Path) -> None:
    from optlang.cli.app import app

    known = {command.name for command in app.registered_commands}
    text = path.read_text(encoding="utf-8")
    used = set(re.findall(r"(?:`|^\$ |\| )optlang (\w+)", text, re.MULTILINE))
    used |= {word for block in blocks(path, "bash") for word in re.findall(r"^optlang (\w+)", block, re.MULTILINE)}
    assert used <= known


@pytest.mark.slow
@pytest.mark.thorough
def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "reference" / "rules" / "adamw.html").exists()


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_files_that_pages_name_exist(path: Path) -> None:
    """`optlang/ir/passes/` and, in the table of stages, `ir/lower.py` with `program.py` beside it."""
    missing, folder = [], ROOT
    for name in re.findall(r"`((?:[\w-]+/)*(?:[\w-]+\.(?:py|opt|lark)|[\w-]+/))`", path.read_text(encoding="utf-8")):
        places = [base / name for base in (ROOT, ROOT / "optlang", folder)]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            missing.append(name)
        else:
            folder = found if found.is_dir() else found.parent
    assert [name for name in missing if "NAME" not in name] == []


def test_rules_of_the_language_page_run() -> None:
    for text in blocks(ROOT / "docs" / "language.md", "opt"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rule that shows a notation need not be a good one
            cls = optlang.compile(text, backend="eager")
        required = {key: 0.1 for key in ("beta", "lr", "power") if f"'{key}'" in missing_arguments(cls)}
        params = [p for p in map(parameter, ((6, 4), (5,), (3, 2, 2, 2), ())) if suits(cls, p, required)]
        optimizer = cls(params, **required)
        before = [p.detach().clone() for p in params]
        slopes = [p.grad for p in params]
        for _ in range(3):
            optimizer.step(landscape.closure(params, slopes) if cls._asked else None)
        optimizer.eval()
        optimizer.train()
        assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True)), text


def missing_arguments(cls: type) -> str:
    """Return what a class says of arguments that it asks for."""
    try:
        cls([torch.nn.Parameter(torch.zeros(2, 2))])
    except TypeError as error:
        return str(error)
    return ""


def parameter(shape: tuple[int, ...]) -> torch.nn.Parameter:
    """Return a parameter with a gradient."""
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return p


def suits(cls: type, p: torch.nn.Parameter, hypers: dict[str, float]) -> bool:
    """Whether a rule takes a parameter of some shape."""
    try:
        cls([p], **hypers)
    except ValueError as error:
        assert "does not suit the rule" in str(error)
        return False
    return True
