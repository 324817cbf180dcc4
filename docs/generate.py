"""What the documentation makes from the code: pages of functions, diagnostics and rules, and a section on passes."""

import re
from itertools import groupby
from pathlib import Path

import torch

import optlang
from optlang import codes, rules, transforms
from optlang.backends.loading.modules import load_module
from optlang.checker.check import check_text
from optlang.compiler import compile_source, example_variant, passes_of
from optlang.diagnostics import OptlangError
from optlang.expand.histories import initial_text
from optlang.functions.table import FACT_NAMES, TABLE, TENSOR_NAMES, TIME_NAMES, Builtin
from optlang.kinds import Level
from optlang.rule import Hyper, HyperType, Rule, State, Value
from optlang.source import Source
from optlang.syntax.latex import rule_latex
from optlang.syntax.tree import Tree

TYPES = {
    HyperType.NUMBER: "number",
    HyperType.OPTIONAL: "number or `None`",
    HyperType.FLAG: "`True` or `False`",
    HyperType.TEXT: "string",
    HyperType.OPTIONAL_TEXT: "string or `None`",
}
DIAGNOSTIC_GROUPS = {
    "E1": "Syntax",
    "E2": "Names",
    "E3": "Kinds of values",
    "E4": "Declarations",
    "E5": "Limits",
    "E8": "Targets",
    "E9": "Not supported yet",
    "W6": "Warnings",
}
#: The rule that the section on passes follows through the compiler.
EXAMPLE = "AdamW"


def write_all(folder: Path) -> None:
    """Write every generated page; one that did not change keeps its time, so that Sphinx can skip it."""
    pages = {
        "functions.md": functions_page(),
        "diagnostics.md": diagnostics_page(),
        "transforms.md": transforms_page(),
        "rules/index.md": rules_page(),
        **{f"rules/{rules.path(name).stem}.md": rule_page(name) for name in rules.names()},
    }
    for old in folder.rglob("*.md"):
        if str(old.relative_to(folder)) not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def fence(text: str, language: str = "") -> str:
    """Return a code block that may itself hold backquotes."""
    return f"~~~~{language}\n{text.strip(chr(10))}\n~~~~\n"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


# Functions --------------------------------------------------------------------------------------------------


def functions_page() -> str:
    """Return the page of builtin functions and names, from the table the compiler reads."""
    parts = ["# Functions and names\n", "Every rule can use these without declaring them.\n"]
    parts += ["## Names\n", "Rules can read these; only `p` and `g` can be assigned.\n"]
    names = {**TENSOR_NAMES, **TIME_NAMES, **FACT_NAMES}
    parts.append(table(["name", "meaning"], [[f"`{name}`", meaning] for name, meaning in names.items()]))
    for group, members in groupby(TABLE, key=lambda row: row.group):
        functions = list(members)
        parts.append(f"## {group}\n")
        parts.append(table(["function", "meaning"], [_function_row(row) for row in functions]))
        for row in functions:
            if row.block:
                parts += [f"`{row.name}({row.signature})` is\n", fence(row.definition or "", "opt")]
    parts.append(
        "Functions with a definition are written in the language itself and expanded before compilation; they cost "
        "nothing over the formula. If a function has several results, `a, b = f(x)` assigns all of them; `f(x)[0]` or, "
        "by name, `f(x).values` is one of them.\n"
    )
    return "\n".join(parts)


def _function_row(row: Builtin) -> list[str]:
    signature = f"{row.signature}, dim" if row.reduction and "dim" not in row.signature else row.signature
    meaning = row.summary
    if row.results:
        meaning += f" Returns {', '.join(f'`{name}`' for name in row.results)}"
        meaning += f"; alone, `{row.results[row.bare]}`." if row.bare is not None else "."
    if row.definition:
        meaning += " Defined below." if row.block else f" Defined as `{row.definition}`."
    return [f"`{row.name}({signature})`", meaning]


# Diagnostics ------------------------------------------------------------------------------------------------


def diagnostics_page() -> str:
    """Return the page of diagnostics, each with the output that its example gets."""
    parts = [
        "# Diagnostics\n",
        "Every diagnostic has a code that does not change between versions. Codes with `E` are errors, codes "
        "with `W` are warnings. `optlang explain CODE` prints the same text in a terminal.\n",
    ]
    for prefix, title in DIAGNOSTIC_GROUPS.items():
        entries = [entry for code, entry in codes.entries().items() if code.startswith(prefix)]
        if not entries:
            continue
        parts.append(f"## {title}\n")
        for entry in entries:
            parts += [f"({entry.code})=\n### {entry.code}: {entry.title}\n", entry.explanation + "\n"]
            parts += [fence(entry.example, "opt"), fence(_finding(entry.example, entry.code), "text")]
            if entry.instead:
                parts += ["Instead:\n", fence(entry.instead, "opt")]
    return "\n".join(parts)


def _finding(example: str, code: str) -> str:
    """Return what the checker prints for the example of a code."""
    source = Source(example, "example.opt")
    _, found = check_text(source)
    if not found:  # the rule is fine, and some target cannot carry it
        try:
            optlang.export(source, "plain")
        except OptlangError as error:
            found = list(error.diagnostics)
    return "\n\n".join(d.render() for d in found if d.code == code)


# Rules ------------------------------------------------------------------------------------------------------


def load(name: str) -> tuple[Source, Rule]:
    """Return the text and the checked rule of a library entry."""
    path = rules.path(name)
    source = Source(path.read_text(encoding="utf-8"), path.name)
    rule, found = check_text(source)
    if rule is None:
        raise ValueError(f"{path}: {[d.code for d in found]}")
    return source, rule


def rules_page() -> str:
    """Return the table of the library."""
    rows = []
    for name in rules.names():
        _, rule = load(name)
        summary = (rule.doc or "").strip().splitlines()[0]
        summary = summary.removeprefix(f"{name}: ")
        rows.append([f"[{name}]({rules.path(name).stem}.md)", f"`{rule.reference}`" if rule.reference else "", summary])
    stems = "\n".join(rules.path(name).stem for name in rules.names())
    return "\n".join(
        [
            "# The library\n",
            "Each rule is a formula file and a class, `optlang.rules.NAME`. All are tested against their reference "
            "implementation, if there is one, and against the interpreter of the tests.\n",
            table(["rule", "reference", "description"], rows),
            f":::{{toctree}}\n:hidden:\n\n{stems}\n:::\n",
        ]
    )


def rule_page(name: str) -> str:
    """Return the page of one rule of the library."""
    source, rule = load(name)
    parts = [f"# {name}\n", _prose(rule.doc or "")]
    if rule.reference:
        parts.append(f"Reference implementation: `{rule.reference}`\n")
    if rule.routes:
        led = (f"[{route.rule.name}]({rules.path(route.rule.name).stem}.md)" for route in rule.routes)
        parts.append(f"Routes to {', '.join(dict.fromkeys(led))}.\n")
    parts += ["## Update\n", f"$$\n{rule_latex(rule.tree)}\n$$\n", "## Hyperparameters\n", _hyper_table(name, rule)]
    if rule.requirements:
        parts.append("Also required: " + "; ".join(r.message for r in rule.requirements) + ".\n")
    if rule.states:
        parts += [
            "## State\n",
            table(
                ["name", "key", "one per", "initial value", "exists"],
                [_state_row(s, rule.tree) for s in rule.states],
            ),
        ]
    parts += ["## File\n", fence(source.text, "opt")]
    return "\n".join(parts)


def _hyper_table(name: str, rule: Rule) -> str:
    """Return the table of hyperparameters; of a rule with routes, those of the rules that it leads to."""
    headings = ["name", "default", "range", "type", "meaning"]
    if not rule.routes:
        return table(headings, [_hyper_row(h, h.name, h.key) for h in rule.hypers])
    rows = []
    for part in rules[name]._parts.parts:
        for key, hypers in part.hyper.keys.items():
            rows += [[part.compiled.name, *_hyper_row(h, key if h.part is None else h.name, key)] for h in hypers]
    return table(["rule", *headings], rows)


def _hyper_row(hyper: Hyper, name: str, key: str) -> list[str]:
    return [
        f"`{name}`" + ("" if hyper.part is None else f" (`{key}[{hyper.part}]`)"),
        _default(hyper),
        hyper.domain.text if hyper.domain else "",
        TYPES[hyper.type],
        hyper.doc or "",
    ]


def _prose(text: str) -> str:
    """Return a docstring as Markdown, its addresses as links."""
    return re.sub(r"(https?://[^\s,;)]+[^\s,;).])", r"<\1>", text.strip()) + "\n"


def _default(hyper: Hyper) -> str:
    return "required" if hyper.required else f"`{_python(hyper.default)}`"


def _python(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _state_row(state: State, tree: Tree) -> list[str]:
    source = tree.source
    scopes = {"group": "parameter group", "shared": "optimizer"}
    kind = "matrix" if state.kind.level is Level.MATRIX else state.kind
    return [
        f"`{state.name}`",
        f"`{state.key}`",
        scopes.get(state.scope, f"parameter ({kind})"),
        "0" if state.initial is None else f"`{initial_text(state, tree)}`",
        "always" if state.when is None else f"when `{source.excerpt(state.when.span)}`",
    ]


# Transforms -------------------------------------------------------------------------------------------------


def transforms_page() -> str:
    """Return the page of the library's transforms."""
    parts = [
        "# Transforms\n",
        "The building blocks of rules and chains: in a rule `g |> momentum(0.9)`, in Python "
        "`optlang.transforms.momentum(beta=0.9)`. See [composition](../language.md#composition) and "
        "[chains](../python.md#chains).\n",
    ]
    for name in transforms.names():
        text = transforms.path(name).read_text(encoding="utf-8")
        doc = getattr(transforms, name).doc
        parts += [f"## {name}\n", _prose(doc), fence(text.partition(f'"""{doc}"""')[2], "opt")]
    return "\n".join(parts)


# Passes -----------------------------------------------------------------------------------------------------


def tour_sections(page: str) -> dict[str, str]:
    """Return what the last line of the rule of a page becomes at each stage, as parts of that page."""
    found = re.search(r"```opt\n(.*?)```", page, re.DOTALL)
    assert found is not None
    source = Source(found[1], "momentum.opt")
    compiled, line = compile_source(source), len(found[1].splitlines())
    passes = dict(passes_of(compiled))
    (kernel,) = example_variant(compiled).schedule.kernels
    made = optlang.compile(source, backend="eager")
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = made([p])
    p.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    shown = {name: value.tolist() for name, value in optimizer.state[p].items()}
    functions = load_module(kernel.source, kernel.name)
    host = functions["host"](*({"beta": 0.9, "lr": 1e-3, "t": 1.0}[str(name)] for name in kernel.host_arguments))
    step = f">>> host(beta=0.9, lr=0.001, t=1)\n{host}\n"
    step += f">>> optimizer.state[p]  # after a step with the gradient [1, -2]\n{shown}"
    tree = optlang.emit(source, "tree")
    return {
        "tree": fence(tree[tree.index(f"  items: Assign op='-='    {line}:") :], "text"),
        "rule": fence(optlang.emit(source, "rule"), "text"),
        "lower": fence(passes["lower"], "text"),
        "program": fence(optlang.emit(source, "program"), "text"),
        "source": fence(_part(kernel.source, "def host", ""), "python"),
        "cpp": fence(_part(kernel.text("cpp_source"), "    #pragma omp simd", "}\n\n"), "cpp"),
        "triton": fence(_part(kernel.text("triton_source"), "def element", "\n\n"), "python"),
        "step": fence(step, "pycon"),
    }


def _part(text: str, begin: str, end: str) -> str:
    """Return a part of a text, from where something stands to before something else."""
    start = text.index(begin)
    return text[start : text.index(end, start) if end else len(text)]


def passes_section() -> str:
    """Return what each pass of the compiler does to one rule, as a part of the page on internals."""
    path = rules.path(EXAMPLE)
    source = Source(path.read_text(encoding="utf-8"), path.name)
    parts = [
        f"The step of {EXAMPLE} with its default options, after lowering and after each pass that changes it.\n",
    ]
    before = None
    for name, text in passes_of(compile_source(source)):
        parts.append(f"### {name}\n")
        parts.append(_summary_of_pass(name))
        parts.append("No change.\n" if text == before else fence(text, "text"))
        before = text
    return "\n".join(parts).strip()


def _summary_of_pass(name: str) -> str:
    """Return the first paragraph of the docstring of the module that a pass lives in."""
    from importlib import import_module

    module = "optlang.ir.lower" if name == "lower" else f"optlang.ir.passes.{name}"
    doc = import_module(module).__doc__ or ""
    return doc.strip().split("\n\n")[0].replace("``", "`") + "\n"
