"""The command ``optlang``: collects the subcommands and turns every outcome into an exit code.

0 means success, 1 that a rule has errors (or a file would change, for ``format --check``), 2 that the command line, a
file or the output location is wrong, 3 that optlang itself failed, 141 that the reader of the output has closed the
pipe.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from optlang.cli import bench, check, emit, explain, format, list, new, show
from optlang.cli.output import Refusal
from optlang.diagnostics import OptlangError, render_all

#: The exit code that a shell reports for a command stopped by a closed pipe.
CLOSED_PIPE = 141


class _ClosedPipe(Exception):
    """The reader of the output has closed the pipe."""


class Commands(TyperGroup):
    """The commands; distinguishes a closed pipe from a rule with errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ClosedPipe from error


app = typer.Typer(
    name="optlang",
    cls=Commands,
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
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"optlang {version('optlang-torch')}")
        except PackageNotFoundError:
            typer.echo("optlang, from a folder where it is not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an internal error, print the traceback to the terminal.")
    ] = False,
) -> None:
    """Write an optimizer's update rule; get a compiled torch.optim.Optimizer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a rule may contain characters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    code = _run(given)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _lost(error)
    sys.exit(code)


def _run(given: Sequence[str]) -> int:
    """Run the command line and return its code."""
    try:
        app(args=given)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except Refusal as refusal:
        print(f"optlang: {refusal}", file=sys.stderr)
        return 2
    except OptlangError as error:
        print(render_all(error.diagnostics), file=sys.stderr)
        return 1
    except (_ClosedPipe, OSError) as error:
        return _lost(error)
    except Exception:  # any other error is our bug, and is reported as one
        _report_crash(given)
        return 3
    return 0


def _lost(error: Exception) -> int:
    """Report an operation that the system refused, and return its exit code; nothing more is printed."""
    with contextlib.suppress(OSError, ValueError):  # there is no reader for the remaining output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, _ClosedPipe | BrokenPipeError):
        return CLOSED_PIPE
    print(f"optlang: {error}", file=sys.stderr)
    return 2


def _report_crash(arguments: Sequence[str]) -> None:
    """Report a crash of optlang; save the traceback to a file, or print it with ``--debug``."""
    story = f"optlang {' '.join(arguments)}\n\n{traceback.format_exc()}"
    print("optlang: this is a bug in optlang, not in your rule. Please report it", file=sys.stderr, end="")
    if "--debug" in arguments:
        print(f":\n{story}", file=sys.stderr)
        return
    try:
        handle, name = tempfile.mkstemp(prefix="optlang-crash-", suffix=".txt")
        os.close(handle)
        Path(name).write_text(story, encoding="utf-8")
    except OSError:
        print(f":\n{story}", file=sys.stderr)
    else:
        print(f" with the traceback in {name}", file=sys.stderr)
