"""The page on coverage: which published optimizers are in the library, are expressible, or are not yet, and why.

``coverage.csv`` has one row per optimizer, with the constructs that it needs with its default options; an empty
``needs`` means that the core of the language is enough. The rule of an optimizer is looked up in ``# reference:``
lines; the column ``rule`` names a rule where that finds none, ``same`` one that is this optimizer under another name.
``python docs/coverage.py`` writes ``coverage.md``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from optlang import rules

#: Whether the compiler supports a construct.
SUPPORTED: dict[str, bool] = {
    "matrices": True,
    "linear-algebra": True,
    "total": True,
    "shared-state": True,
    "every": True,
    "repeat": True,
    "random": True,
    "sort": True,
    "on-eval": True,
    "route": True,
    "inner": True,
    "blocks": False,
    "closure": True,
    "collectives": False,
    "dimensions": False,
    "flat": True,
    "history": True,
    "hooks": False,
    "host-decisions": False,
    "hvp": True,
    "inputs": False,
    "line-search": True,
    "lists": False,
    "loss": True,
    "names": False,
    "pairs": False,
    "several-losses": False,
    "sparse": True,
    "store": True,
}
MEANING: dict[str, str] = {
    "matrices": "products, transposes, `matrix(x)`, `newton_schulz`",
    "linear-algebra": "eigenvectors, QR, singular values, inverses and roots of matrices",
    "total": "sums over all parameters: `total(x)`, `gnorm`",
    "shared-state": "one number for the whole optimizer",
    "every": "statements that run every few steps",
    "repeat": "statements that run a fixed number of times",
    "random": "random numbers",
    "sort": "`sort`, `argsort`, `topk`, `cumsum`",
    "on-eval": "different parameters for evaluation and training",
    "route": "one rule for some tensors, another for the rest",
    "blocks": "splitting or reshaping a tensor, and joining it again",
    "closure": "gradients at other points within a step",
    "collectives": "communication between processes as part of the algorithm",
    "dimensions": "one state per dimension, in tensors with more than two dimensions",
    "flat": "all parameters as one vector",
    "history": "a buffer of past steps",
    "line-search": "a step size found by evaluating the closure",
    "hooks": "computation inside or around the backward pass",
    "host-decisions": "loops and branches that depend on the value of a tensor",
    "hvp": "products with the Hessian",
    "inner": "an arbitrary other rule, used by this one",
    "inputs": "further values passed to `step`",
    "lists": "hyperparameters that are lists, with a state per entry",
    "loss": "the value of the loss",
    "names": "names of parameters",
    "pairs": "two parameters updated together",
    "several-losses": "several losses, or per-example gradients",
    "sparse": 'sparse gradients that update only some rows (`sparse="lazy"`)',
    "store": "states and parameters stored in fewer bits",
}
#: Without this construct, an optimizer is still expressible for vectors and matrices.
BEYOND_MATRICES = "dimensions"

#: The releases that the rows describe, and which parts of a package have rows.
PACKAGES: dict[str, str] = {
    "torch.optim": "The optimizers of PyTorch 2.13.",
    "pytorch_optimizer": "The optimizers of pytorch_optimizer 4.1.0, with its wrappers of other optimizers.",
    "optax": (
        "The aliases and `optax.contrib` of optax 0.2.8, and the wrappers that are used like an optimizer, but not the "
        "transformations that they are built from. Masks are parameter groups here."
    ),
    "heavyball": (
        "The optimizers of heavyball 3.2.1, without its options that store parameters or states in fewer bits "
        "(`store`) or use products with the Hessian (`hvp`)."
    ),
}

CSV = Path(__file__).with_name("coverage.csv")
PAGE = Path(__file__).with_name("coverage.md")
COLUMNS = ("package", "name", "needs", "rule", "same", "note")
LIBRARY, WRITABLE, MATRICES, MISSING = "library", "writable", "matrices", "missing"


class Row(NamedTuple):
    """One optimizer.

    Attributes:
        package: The package it is in.
        name: Its name there.
        needs: The constructs it needs with its default options, beyond the core of the language.
        rule: The rule of the library that is this optimizer, or nothing.
        same: A rule of the library that is this optimizer under another name, or nothing.
        note: A remark for the reader.
    """

    package: str
    name: str
    needs: tuple[str, ...]
    rule: str
    same: str
    note: str

    @property
    def missing(self) -> tuple[str, ...]:
        """The constructs it needs that the compiler does not support."""
        return tuple(need for need in self.needs if not SUPPORTED[need])

    @property
    def status(self) -> str:
        """One of the four statuses above."""
        if self.missing:
            return MATRICES if self.missing == (BEYOND_MATRICES,) else MISSING
        return LIBRARY if self.rule or self.same else WRITABLE


# Reading ----------------------------------------------------------------------------------------------------


def references() -> dict[str, list[str]]:
    """Return the names of the rules that name each reference, without compiling them."""
    found: dict[str, list[str]] = {}
    for name in rules.names():
        text = rules.path(name).read_text(encoding="utf-8")
        line = re.search(r"^optimizer\b.*#\s*reference:\s*(\S+)", text, re.MULTILINE)
        if line:
            found.setdefault(line[1], []).append(name)
    return found


def rule_of(package: str, name: str, named: dict[str, list[str]]) -> str:
    """Return the rule whose reference is an optimizer, preferring one with the same name."""
    candidates = named.get(f"{package}.{name}", [])
    return min(candidates, key=lambda rule: (rule.lower() != name.rpartition(".")[2].lower(), rule), default="")


def read() -> list[Row]:
    """Return the rows of the table, each with its rule."""
    named = references()
    with CSV.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                line["package"],
                line["name"],
                tuple(line["needs"].split()),
                line["rule"] or rule_of(line["package"], line["name"], named),
                line["same"],
                line["note"],
            )
            for line in csv.DictReader(file)
        ]


# Targets ----------------------------------------------------------------------------------------------------


def targets_table() -> str:
    """Return a table of the rules that some target does not support, with the unsupported constructs."""
    from optlang.compiler import compile_source
    from optlang.source import Source
    from optlang.targets import Order, names, refusals

    lines = []
    for name in rules.names():
        path = rules.path(name)
        compiled = compile_source(Source(path.read_text(encoding="utf-8"), path.name))
        ndim = next((n for n in (2, 1, 0, 3) if _suits(compiled, n)), 2)
        for target in names():
            found = refusals(Order(compiled, {}, ndim), target)
            said = dict.fromkeys(f"{d.message.partition(' does not support ')[2]} ({_line(d)})" for d in found)
            if said:
                lines.append([_link(name), f"`{target}`", "; ".join(said)])
    return table(["rule", "target", "unsupported constructs"], lines)


def _suits(compiled: Any, ndim: int) -> bool:
    """Whether a rule supports tensors of ``ndim`` dimensions."""
    from optlang.compiler import example_facts

    return compiled.unfit(compiled.defaults(), example_facts(ndim)) is None


def _line(diagnostic: Any) -> str:
    """Return the line that a diagnostic points to."""
    span = diagnostic.span
    return "the rule" if span is None else f"line {diagnostic.source.position(span.start)[0]}"


# The page ---------------------------------------------------------------------------------------------------


def page() -> str:
    """Return the page."""
    rows = read()
    parts = [
        "# Coverage\n",
        "This page lists published optimizers: which are rules of the [library](reference/rules/index.md), which could "
        "be written as a rule today, and what blocks the others.\n",
        "“Expressible” is a judgement from reading the implementation: the compiler supports every construct that the "
        "optimizer uses with its default options. Only the rules of the library are tested against the implementation "
        "that they name. An optimizer that is listed *as* another rule was compared with that rule once, in float64.\n",
        _summary(rows),
        "The columns do not overlap. An optimizer can be *in the library* under another name. Those for *up to two "
        "dimensions only* have a state per dimension of a tensor. A rule can express that for vectors and matrices, "
        "but would have to treat a convolution filter as a matrix, which is a different algorithm.\n",
        "## Missing constructs\n",
        "How many optimizers need each construct that the compiler does not support, and how many are blocked by it "
        "alone. [Known limitations](limits.md) has the details.\n",
        _constructs(rows, lambda construct: not SUPPORTED[construct]),
        "## Supported constructs\n",
        "In addition to elementwise formulas, reductions of a tensor, conditions, schedules, and numbers stored per "
        "tensor or parameter group:\n",
        _constructs(rows, lambda construct: SUPPORTED[construct]),
    ]
    for package, about in PACKAGES.items():
        parts += [f"## {package}\n", about + "\n"]
        lines = [[f"`{row.name}`", _status(row), _details(row)] for row in rows if row.package == package]
        parts.append(table(["optimizer", "status", "needs; notes"], lines))
    parts += [
        "## Targets\n",
        "`optlang emit --target` exports a rule to a file that does not need optlang ([Targets](targets.md)). These "
        "rules of the library are not supported by every target:\n",
        targets_table(),
    ]
    parts.append("Generated by `docs/coverage.py`.\n")
    return "\n".join(parts)


def table(headings: list[str], lines: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, ["---"] * len(headings), *lines])


def _summary(rows: list[Row]) -> str:
    """Return the table of numbers for each package."""
    headings = [
        "package",
        "optimizers",
        "in the library",
        "expressible",
        "up to two dimensions only",
        "not expressible",
    ]
    lines = []
    for package in [*PACKAGES, ""]:
        statuses = [row.status for row in rows if package in ("", row.package)]
        counts = [statuses.count(status) for status in (LIBRARY, WRITABLE, MATRICES, MISSING)]
        shares = [f"{count} ({100 * count / len(statuses):.0f} %)" for count in counts]
        lines.append([f"`{package}`" if package else "all", str(len(statuses)), *shares])
    return table(headings, lines)


def _constructs(rows: list[Row], chosen: Callable[[str], bool]) -> str:
    """Return the table of some constructs, most needed first."""
    headings = ["construct", "meaning", "needed by"]
    lines = []
    for construct in filter(chosen, SUPPORTED):
        needed = sum(construct in row.needs for row in rows)
        alone = sum(row.missing == (construct,) for row in rows)
        lines.append((needed, alone, [_spelled(construct), MEANING[construct], str(needed)]))
    lines.sort(key=lambda line: (-line[0], -line[1], line[2]))
    if not any(alone for _, alone, _ in lines):
        return table(headings, [line for _, _, line in lines])
    return table([*headings, "blocked by it alone"], [[*line, str(alone)] for _, alone, line in lines])


def _status(row: Row) -> str:
    """Return the status of an optimizer as the page prints it."""
    rule = _link(row.rule) if row.rule else f"as {_link(row.same)}" if row.same else ""
    if row.status == MISSING:
        lacking = f"missing: {', '.join(map(_spelled, row.missing))}"
        return f"{rule} in part; {lacking}" if rule else lacking
    if row.status == MATRICES:
        return f"{rule or 'expressible'}, up to two dimensions"
    return rule or "expressible"


def _link(rule: str) -> str:
    """Return a rule of the library as a link to its page."""
    return f"[{rule}](reference/rules/{rules.path(rule).stem}.md)"


def _details(row: Row) -> str:
    """Return what an optimizer needs, and the note."""
    return "; ".join(filter(None, [", ".join(map(_spelled, row.needs)), row.note])).replace("|", "\\|")


def _spelled(construct: str) -> str:
    """Return the name of a construct as the page prints it."""
    return construct.replace("-", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
