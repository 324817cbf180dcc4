"""``optlang new``: create a rule file."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from optlang.cli.output import Refusal, library_names, read_source, write_file
from optlang.source import Source
from optlang.syntax.tree import OptimizerDecl

NAME = "new"

STARTER = '''"""{name}: what it does, in one line.

Say here which paper it comes from. This text becomes the class's docstring.
"""
optimizer {name}

# Hyperparameters become constructor arguments: default, range, and what they are.
hyper lr = 1e-2 >= 0  "step size"
hyper beta = 0.9 in [0, 1)  "how much of the last direction to keep"

# State is kept for each parameter and starts at zero. `as` names it in checkpoints.
state m as momentum_buffer

# One step. `p` is the parameter, `g` its gradient, `t` counts the steps from 1.
m = beta*m + (1 - beta)*g
p -= lr * m / (1 - beta^t)
'''


def command(
    name: Annotated[str, typer.Argument(help="Name of the new rule, such as MyAdam.", show_default=False)],
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="RULE", help="Start from this rule instead.", autocompletion=library_names),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="File to write (default: NAME.opt).")
    ] = None,
) -> None:
    """Write a commented starter rule to NAME.opt; never overwrites a file."""
    class_name = _class_name(name)
    path = output or Path(f"{name}.opt")
    if path.exists():
        raise Refusal(f"{path} exists; move it away or choose another name with -o")
    text = STARTER.format(name=class_name) if origin is None else _renamed(read_source(origin), class_name)
    write_file(path, text)
    print(f"wrote {path}; try: optlang check {path}")


def _class_name(name: str) -> str:
    """Return a class name for ``name``: unchanged if it contains a capital letter, otherwise its words in CamelCase."""
    if keyword.iskeyword(name):
        raise Refusal(f"{name!r} is not a valid rule name: it is a Python keyword; try My{name.title()}")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise Refusal(f"{name!r} is not a valid rule name; use letters, digits and _, such as MyAdam")
    return name if name != name.lower() else "".join(word.capitalize() for word in name.split("_"))


def _renamed(source: Source, class_name: str) -> str:
    """Return the source of a rule under another name, without its reference.

    Raises:
        OptlangError: If the rule does not parse.
    """
    from optlang.syntax.parse import parse

    declared = next((d for d in parse(source).items if isinstance(d, OptimizerDecl)), None)
    if declared is None:
        return f"optimizer {class_name}\n\n{source.text}"
    span = declared.name.span
    rest = re.sub(
        r"^([^\n]*?)[ \t]*#[ \t]*reference:[^\n]*",
        rf"\1  # from {declared.name.text}",
        source.text[span.end :],
    )
    return source.text[: span.start] + class_name + rest
