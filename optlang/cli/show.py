"""``optlang show``: print the formula file of a library rule or transform, or the storage of its states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optlang.cli.output import Refusal, formats_by_key, library_names, library_path, print_code, read_file

NAME = "show"

#: The parameter for which bytes are counted: a matrix large enough to be quantized, in float32.
SHAPE, TYPE = (1024, 1024), "float32"


def command(
    name: Annotated[
        str,
        typer.Argument(help="A library rule or transform.", autocompletion=library_names, show_default=False),
    ],
    path: Annotated[bool, typer.Option("--path", help="Print the path of the file instead.")] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="FORMATS",
            help="Print the format of each state instead, for 8bit, bf16, fp32, or for example "
            "exp_avg=fp8,exp_avg_sq=log8.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the formula file of a library rule or transform."""
    file = library_path(name)
    if store is not None:
        print_states(file, store)
    elif path:
        print(file)
    else:
        print_code(read_file(file).text, "opt")


def print_states(file: Path, store: str) -> None:
    """Print the states of a rule for a large matrix, with their formats and bytes per element."""
    from optlang.checker.state_behavior import slow_averages
    from optlang.compiler import compile_source, example_variant
    from optlang.storage import choice

    compiled = compile_source(read_file(file))
    slots = [slot for slot in example_variant(compiled, ndim=len(SHAPE)).slots if slot.of_elements]
    try:
        checked = choice.checked(compiled.name, formats_by_key(store), [slot.key for slot in slots])
        slow = slow_averages(compiled.rule)
        found = choice.formats(compiled.name, checked, slots, SHAPE, slow=slow)
    except ValueError as error:
        raise Refusal(str(error)) from None
    kept = [(slot.key, found.get(slot.key, slot.format)) for slot in slots]
    rows = [(key, each.label(TYPE), each.size(TYPE)) for key, each in kept]
    rows.append(("together", "", sum(each.size(TYPE) for _, each in kept)))
    first, second = (max(len(row[i]) for row in [row[:2] for row in rows]) for i in (0, 1))
    for key, label, size in rows:
        print(f"{key:<{first}}  {label:<{second}}  {size:.2f} bytes per element")
