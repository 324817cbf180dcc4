"""Reports measurements: progress, a table, JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from optlang.bench.plan import Comparison, described
from optlang.bench.run import Failure, RowResult, Settings, outcome

#: The columns of numbers and their widths; the columns of first steps are optional.
NUMBERS = {"ours ms": 9, "peer ms": 9, "ratio": 6, "min-max": 15, "stream": 6}
FIRST_STEPS = {"cold s": 6, "warm s": 6, "extra MiB": 9}
LAST = {"kernels": 7, "difference": 10}

#: The difference above which two optimizers do not take the same steps.
APART = 1e-2

Outcome = RowResult | Failure


def measure_all(
    plans: Sequence[Comparison], settings: Settings, show: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Run all comparisons; ``show`` is called with each result.

    Progress is written to standard error: as a bar on a terminal, otherwise as one line per comparison.
    """
    parts = settings.rounds + 1 + settings.first_step
    found = []
    with _progress(len(plans), parts) as advance:
        for number, plan in enumerate(plans):
            name = f"{plan.name} {plan.shapes}"
            advance(number, name, None)
            found.append(outcome(plan, settings, lambda word, number=number, name=name: advance(number, name, word)))  # type: ignore[misc]
            show(found[-1])
    return found


@contextmanager
def _progress(plans: int, parts: int) -> Iterator[Callable[[int, str, str | None], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        quiet = os.environ.get("OPTLANG_QUIET", "0") not in ("", "0")

        def line(number: int, name: str, word: str | None) -> None:
            if word is None and not quiet:
                print(f"[{number + 1}/{plans}] {name}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=plans * parts)

        def move(number: int, name: str, word: str | None) -> None:
            if word is None:
                bar.update(task, completed=number * parts, description=name)
            else:
                bar.update(task, advance=1, description=f"{name}: {word}")

        yield move


class Rows:
    """A table that is printed row by row.

    Args:
        plans: The comparisons, which determine the widths of the columns.
        settings: The measurement settings.
    """

    def __init__(self, plans: Sequence[Comparison], settings: Settings) -> None:
        self.settings = settings
        labels = [described(p.shapes, len(p.members), sum(map(math.prod, p.members))) for p in plans]
        self.texts = {
            "rule": max(len(x) for x in ("rule", *(p.name for p in plans))),
            "peer": max(len(x) for x in ("peer", *(p.peer.label for p in plans))),
            "shapes": max(len(x) for x in ("shapes", *labels)),
        }
        self.numbers = {**NUMBERS, **(FIRST_STEPS if settings.first_step else {}), **LAST}
        # A row must not be wrapped to the width that is assumed for a pipe.
        wide = sum(self.texts.values()) + sum(self.numbers.values()) + 2 * (len(self.texts) + len(self.numbers))
        usual = Console()
        self.console = usual if usual.is_terminal else Console(width=max(wide, 120))
        self.begun = False

    def show(self, result: Outcome) -> None:
        """Print a row, after the heading if it is the first."""
        if not self.begun:
            self._print([*self.texts, *self.numbers], style="bold")
            self.begun = True
        if isinstance(result, Failure):
            self._print([result.rule, result.peer, result.label])
            self.console.print(f"  [red]refused:[/] {escape(result.refused)}", highlight=False, soft_wrap=True)
        else:
            self._print(_row(result, self.settings.first_step))
        self.console.file.flush()

    def _print(self, cells: Sequence[str], style: str = "") -> None:
        table = Table(box=None, pad_edge=False, show_header=False)
        for width in self.texts.values():
            table.add_column(width=width, no_wrap=not self.console.is_terminal)
        for width in self.numbers.values():
            table.add_column(width=width, no_wrap=True, justify="right")
        table.add_row(*cells, style=style)
        self.console.print(table, highlight=False)

    def end(self, results: Sequence[Outcome]) -> None:
        """Print an explanation of the columns."""
        measured = [result for result in results if isinstance(result, RowResult)]
        if not measured:
            return
        first = measured[0]
        rounds, fewest = (found([len(result.ours) for result in measured]) for found in (max, min))
        self._note(
            f"{first.dtype} on {first.device}, {_count(first.threads, 'thread')}; medians of {_count(rounds, 'round')} "
            "taken in turns; a ratio below 1 is faster than the peer; stream: our bandwidth against that of x *= 1"
        )
        if fewest < rounds:
            self._note(f"comparisons of more than {self.settings.longest:g} s have fewer rounds: {fewest} at least")
        if any(result.closure for result in measured):
            self._note("a step of what computes the loss again takes as long as that, too, on both sides")
        if any(result.difference > APART for result in measured):
            self._note(f"where the difference is above {APART:g}, the two do not take the same steps")
        if self.settings.first_step:
            self._note(
                "cold, warm: seconds from `import torch` to the end of the first step in a new process, with empty "
                "caches and with what that left; extra: its peak of memory beyond parameters, gradients and state"
            )

    def _note(self, text: str) -> None:
        self.console.print(f"[dim]{text}[/]", highlight=False)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _row(result: RowResult, has_first: bool) -> list[str]:
    ratio = result.ratio
    color = "green" if ratio <= 1 else "yellow" if ratio <= 1.1 else "red"
    difference = f"{result.difference:.1e}"
    return [
        result.rule,
        result.peer,
        result.label,
        f"{statistics.median(result.ours):.2f}",
        f"{statistics.median(result.theirs):.2f}",
        f"[{color}]{ratio:.2f}[/]",
        f"{min(result.ratios):.2f}-{max(result.ratios):.2f}",
        f"{result.bandwidth:.0%}",
        *(_first(result) if has_first else []),
        str(result.compiled),
        difference if result.difference <= APART else f"[yellow]{difference}[/]",
    ]


def _first(result: RowResult) -> list[str]:
    """Return the cells for first steps in new processes."""
    first = result.first
    if first is None:
        return ["", "", ""]
    memory = "" if first.memory is None else f"{first.memory / 2**20:.1f}"
    return [f"{first.cold:.1f}", f"{first.warm:.2f}", memory]


def as_json(result: Outcome) -> str:
    """Return all results as a line of JSON."""
    found = dataclasses.asdict(result)
    if isinstance(result, RowResult):
        found |= {"ratio": result.ratio, "bandwidth": result.bandwidth}
        found["difference"] = result.difference if math.isfinite(result.difference) else None  # JSON has no infinity
    return json.dumps(found, allow_nan=False)


def check_picture(path: Path) -> None:
    """Raise an error now if a picture could not be drawn later.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If matplotlib cannot write files of this kind.
        OSError: If the folder does not exist or is not writable.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    kind = path.suffix[1:].lower() or "png"
    if kind not in kinds:
        raise ValueError(f"a picture is no .{kind}; there are {', '.join(sorted(kinds))}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError("it cannot be written")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw a picture of the ratios as bars with their spread.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    results = [result for result in outcomes if isinstance(result, RowResult)]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{result.rule}, {result.shapes}\nvs {result.peer}" for result in results]
    middles = [result.ratio for result in results]
    spread = [
        [middle - min(result.ratios) for middle, result in zip(middles, results, strict=True)],
        [max(result.ratios) - middle for middle, result in zip(middles, results, strict=True)],
    ]
    colors = ["#2a7f62" if middle <= 1 else "#c08a2d" for middle in middles]
    axes.barh(labels, middles, xerr=spread, color=colors, height=0.6, capsize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.5, 1.3 * max(middles)))  # a single disturbed round must not set the scale
    axes.set_xlabel("time of a step, relative to the peer (below 1 is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
