"""The command ``optlang``: collects the subcommands and turns every outcome into an exit code.

0 means done, 1 that a rule has errors (or a file would change, for ``format --check``), 2 that the command
line or a file is wrong, 3 that optlang itself failed.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from optlang.cli import bench, check, emit, explain, format, list, new, show
from optlang.cli.output import Refusal
from optlang.diagnostics import OptlangError, render_all

app = typer.Typer(
    name="optlang",
    help="Write an optimizer's update rule; get a compiled torch.optim.Optimizer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="FILE is a rule file, the name of a library rule (see `optlang list`), or - for standard input.",
)
for module in (check, emit, format, list, show, explain, new, bench):
    app.command(module.NAME)(module.command)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"optlang {version('optlang-torch')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an internal failure, print the traceback here.")] = False,
) -> None:
    """Write an optimizer's update rule; get a compiled torch.optim.Optimizer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal or pipe can spell a rule
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=given)
    except Refusal as refusal:
        print(f"optlang: {refusal}", file=sys.stderr)
        sys.exit(2)
    except OptlangError as error:
        print(render_all(error.diagnostics), file=sys.stderr)
        sys.exit(1)
    except Exception:  # whatever else comes out is a fault of ours, and is reported as one
        _report_crash(given)
        sys.exit(3)


def _report_crash(arguments: Sequence[str]) -> None:
    """Say that optlang failed; keep the traceback in a file, or print it with ``--debug``."""
    story = f"optlang {' '.join(arguments)}\n\n{traceback.format_exc()}"
    print("optlang: this is a bug in optlang, not in your rule. Please report it", file=sys.stderr, end="")
    if "--debug" in arguments:
        print(f":\n{story}", file=sys.stderr)
        return
    handle, name = tempfile.mkstemp(prefix="optlang-crash-", suffix=".txt")
    os.close(handle)
    Path(name).write_text(story, encoding="utf-8")
    print(f" with the traceback in {name}", file=sys.stderr)
