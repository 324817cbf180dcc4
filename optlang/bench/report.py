"""Showing measurements: progress, a table, JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from optlang.bench.run import Plan, Result, Settings, measure


def measure_all(plans: Sequence[Plan], settings: Settings) -> list[Result]:
    """Carry out all comparisons behind a progress bar (none if standard error is no terminal)."""
    parts = settings.rounds + 1 + settings.first_step
    with _progress(len(plans) * parts) as advance:
        return [
            measure(plan, settings, lambda word, plan=plan: advance(f"{plan.name} {plan.shapes}: {word}"))  # type: ignore[misc]
            for plan in plans
        ]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda words: bar.update(task, advance=1, description=words)


def print_table(results: Sequence[Result]) -> None:
    """Print one row for each comparison, then what the columns mean."""
    has_first = any(result.first is not None for result in results)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("rule", "peer", "shapes"):
        table.add_column(heading)
    numeric = [
        "ours ms",
        "peer ms",
        "ratio",
        "min-max",
        "stream",
        *(["cold s", "warm s", "extra MiB"] if has_first else []),
        "kernels",
        "difference",
    ]
    for heading in numeric:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_row(result, has_first))
    console = Console()
    # A pipe has no width of its own; rows must not be folded to fit an imagined one.
    console = console if console.is_terminal else Console(width=200)
    console.print(table)
    first = results[0]
    console.print(
        f"[dim]{first.dtype} on {first.device}, {first.threads} threads; medians of {len(first.ours)} rounds "
        "taken in turns; a ratio below 1 is faster than the peer; stream: our bandwidth against that of x *= 1[/]",
        highlight=False,
    )
    if has_first:
        console.print(
            "[dim]cold, warm: seconds from `import torch` to the end of the first step in a new process, with empty "
            "caches and with what that left; extra: its peak of memory beyond parameters, gradients and state[/]",
            highlight=False,
        )


def _row(result: Result, has_first: bool) -> list[str]:
    ratio = result.ratio
    color = "green" if ratio <= 1 else "yellow" if ratio <= 1.1 else "red"
    first = _first(result) if has_first else []
    return [
        result.rule,
        result.peer,
        f"{result.shapes} ({result.tensors} tensors, {_count(result.numbers)})",
        f"{statistics.median(result.ours):.2f}",
        f"{statistics.median(result.theirs):.2f}",
        f"[{color}]{ratio:.2f}[/]",
        f"{min(result.ratios):.2f}-{max(result.ratios):.2f}",
        f"{result.bandwidth:.0%}",
        *first,
        str(result.compiled),
        f"{result.difference:.1e}",
    ]


def _first(result: Result) -> list[str]:
    """Return the cells about first steps in new processes."""
    first = result.first
    if first is None:
        return ["", "", ""]
    memory = "" if first.memory is None else f"{first.memory / 2**20:.1f}"
    return [f"{first.cold:.1f}", f"{first.warm:.2f}", memory]


def _count(numbers: int) -> str:
    return f"{numbers / 1e6:.1f} M"


def as_json(results: Sequence[Result]) -> str:
    """Return everything that was measured as JSON."""
    rows = [{**dataclasses.asdict(result), "ratio": result.ratio, "bandwidth": result.bandwidth} for result in results]
    return json.dumps(rows, indent=2)


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw the ratios as bars with their spread into a picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

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
    axes.set_xlim(0, max(1.5, 1.3 * max(middles)))  # a single disturbed round does not set the scale
    axes.set_xlabel("time of a step, relative to the peer (below 1 is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
