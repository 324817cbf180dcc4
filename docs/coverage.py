"""The page on coverage: which published optimizers are rules of the library, can be written, or cannot yet, and why.

``coverage.csv`` has one row for each optimizer, with the constructs that it needs with its default options; nothing in
``needs`` means that the core of the language is enough. Whether the library has it is looked up in ``# reference:``
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

#: Whether the compiler takes a construct.
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
    "every": "statements that run every so often",
    "repeat": "statements that run a fixed number of times",
    "random": "random numbers",
    "sort": "`sort`, `argsort`, `topk`, `cumsum`",
    "on-eval": "other parameters for evaluation than for training",
    "route": "one rule for some tensors, another for the rest",
    "blocks": "a tensor taken apart, or seen in another shape, and joined again",
    "closure": "further gradients, at other points, within a step",
    "collectives": "exchange between processes that is part of the algorithm",
    "dimensions": "something for each dimension, in tensors with more than two",
    "flat": "all parameters as one vector",
    "history": "a buffer of the last steps",
    "line-search": "how far to go along a direction, by the closure",
    "hooks": "work inside the backward pass, or around it",
    "host-decisions": "loops and branches that depend on the value of a tensor",
    "hvp": "products with the Hessian",
    "inner": "another rule, whichever it is, used by this one",
    "inputs": "further values passed to `step`",
    "lists": "hyperparameters that are lists, with a state for each entry",
    "loss": "the value of the loss",
    "names": "what a parameter is called",
    "pairs": "two parameters updated together",
    "several-losses": "several losses, or a gradient for each example",
    "sparse": 'gradients that are sparse, of which only rows are updated (`sparse="lazy"`)',
    "store": "states and parameters stored in fewer bits",
}
#: Without this construct an optimizer can be written all the same for vectors and matrices.
BEYOND_MATRICES = "dimensions"

#: What was read: the releases that the rows are about, and what of a package has a row.
PACKAGES: dict[str, str] = {
    "torch.optim": "The optimizers of PyTorch 2.13.",
    "pytorch_optimizer": "The optimizers of pytorch_optimizer 4.1.0, with its wrappers of other optimizers.",
    "optax": (
        "The aliases and `optax.contrib` of optax 0.2.8, with the wrappers that are used like an optimizer. The "
        "transformations that it builds them from have no rows. Its masks are parameter groups here."
    ),
    "heavyball": (
        "The optimizers of heavyball 3.2.1, without its options that store parameters or states in fewer bits "
        "(`store`) or take products with the Hessian (`hvp`)."
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
        note: What a reader should know besides.
    """

    package: str
    name: str
    needs: tuple[str, ...]
    rule: str
    same: str
    note: str

    @property
    def missing(self) -> tuple[str, ...]:
        """The constructs it needs that the compiler does not take."""
        return tuple(need for need in self.needs if not SUPPORTED[need])

    @property
    def status(self) -> str:
        """Where the optimizer stands: one of the four words above."""
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
    """Return the rule whose reference is an optimizer, the one that is called like it if there are several."""
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
    """Return a table of the rules that some target cannot carry, with what is said of the first thing it cannot."""
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
    return table(["rule", "target", "what it does not support"], lines)


def _suits(compiled: Any, ndim: int) -> bool:
    """Whether a rule takes tensors of so many dimensions."""
    from optlang.compiler import example_facts

    return compiled.unfit(compiled.defaults(), example_facts(ndim)) is None


def _line(diagnostic: Any) -> str:
    """Return where a diagnostic points."""
    span = diagnostic.span
    return "the rule" if span is None else f"line {diagnostic.source.position(span.start)[0]}"


# The page ---------------------------------------------------------------------------------------------------


def page() -> str:
    """Return the page."""
    rows = read()
    parts = [
        "# Coverage\n",
        "Which published optimizers are rules of the [library](reference/rules/index.md), which could be written as a "
        "rule today, and what blocks the others. “Expressible” is a judgement, from reading the implementation: "
        "every construct that it uses, with its default options, is one that the compiler takes. Only the rules of the "
        "library have been run against the implementation that they name; an optimizer that is there *as* another was "
        "compared with that rule once, in float64.\n",
        _summary(rows),
        "The columns do not overlap. An optimizer is *in the library* under its own name or another. What is for *up "
        "to two dimensions only* keeps something for each dimension of a tensor: a rule can do that for vectors and "
        "matrices, and would have to take a filter of a convolution as a matrix, which is another algorithm.\n",
        "## What is missing\n",
        "How many optimizers need each construct that is not compiled, and how many are blocked by this alone. "
        "[Known limitations](limits.md) has the details.\n",
        _constructs(rows, lambda construct: not SUPPORTED[construct]),
        "## What is there\n",
        "Beyond formulas for each element, reductions of a tensor, conditions, schedules, and numbers kept for a "
        "tensor or a parameter group:\n",
        _constructs(rows, lambda construct: SUPPORTED[construct]),
    ]
    for package, about in PACKAGES.items():
        parts += [f"## {package}\n", about + "\n"]
        lines = [[f"`{row.name}`", _status(row), _details(row)] for row in rows if row.package == package]
        parts.append(table(["optimizer", "status", "needs; notes"], lines))
    parts += [
        "## Targets\n",
        "`optlang emit --target` writes a rule as a file for use without this package ([Targets](targets.md)). The "
        "rules of the library that are not listed here are supported by every target:\n",
        targets_table(),
    ]
    parts.append("Made by `docs/coverage.py`.\n")
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
        "expressible, not in it",
        "up to two dimensions only",
        "not yet",
    ]
    lines = []
    for package in [*PACKAGES, ""]:
        statuses = [row.status for row in rows if package in ("", row.package)]
        counts = [statuses.count(status) for status in (LIBRARY, WRITABLE, MATRICES, MISSING)]
        shares = [f"{count} ({100 * count / len(statuses):.0f} %)" for count in counts]
        lines.append([f"`{package}`" if package else "all", str(len(statuses)), *shares])
    return table(headings, lines)


def _constructs(rows: list[Row], chosen: Callable[[str], bool]) -> str:
    """Return the table of some constructs, the most wanted first."""
    headings = ["construct", "what it is", "needed by"]
    lines = []
    for construct in filter(chosen, SUPPORTED):
        needed = sum(construct in row.needs for row in rows)
        alone = sum(row.missing == (construct,) for row in rows)
        lines.append((needed, alone, [_spelled(construct), MEANING[construct], str(needed)]))
    lines.sort(key=lambda line: (-line[0], -line[1], line[2]))
    if not any(alone for _, alone, _ in lines):
        return table(headings, [line for _, _, line in lines])
    return table([*headings, "blocked by this alone"], [[*line, str(alone)] for _, alone, line in lines])


def _status(row: Row) -> str:
    """Return what the library has of an optimizer, or whether it can be written."""
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
