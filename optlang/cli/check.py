"""``optlang check``: find errors in rules without running them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optlang.cli.output import Files, Refusal, plural, print_diagnostics, read_source
from optlang.diagnostics import Diagnostic

if TYPE_CHECKING:
    from optlang.rule import Rule
    from optlang.source import Source

NAME = "check"


def command(
    files: Files,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check rules and print what is wrong with them.

    For a rule that declares nothing, also prints what was inferred. Needs no torch and no compiler. A file that cannot
    be read does not keep the others from being checked.
    """
    from optlang.checker.check import check_file

    results: list[tuple[Source, Rule | None, list[Diagnostic]]] = []
    refusals: list[str] = []
    data: list[dict[str, Any]] = []
    for file in files:
        try:
            source = read_source(file)
        except Refusal as refusal:
            refusals.append(str(refusal))
            data.append(_as_data(file, None, [], str(refusal)))
            continue
        results.append((source, *check_file(source)))
        data.append(_as_data(source.name, *results[-1][1:]))
    found = [d for _, _, diagnostics in results for d in diagnostics]
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        for result in results:
            _print_result(*result)
        _print_total(len(results), found)
    if refusals:
        raise Refusal("\noptlang: ".join(refusals))
    errors = sum(d.is_error for d in found)
    if errors or (strict and found):
        raise typer.Exit(1)


def _print_result(source: Source, rule: Rule | None, diagnostics: list[Diagnostic]) -> None:
    from optlang.declarations.infer import describe

    print_diagnostics(diagnostics, sys.stdout)
    if rule is None:
        return
    print(f"{source.name}: ok{f' ({rule.name})' if rule.name else ''}")
    if rule.inferred:
        for sentence in describe(rule):
            print(f"  {sentence}")


def _print_total(files: int, found: list[Diagnostic]) -> None:
    """Print the summary line, if there is more to say than one "ok"."""
    errors = sum(d.is_error for d in found)
    warnings = len(found) - errors
    if files > 1 or found:
        counts = [plural(errors, "error")] if errors or not warnings else []
        counts += [plural(warnings, "warning")] if warnings else []
        print(f"{plural(files, 'rule')} checked: {', '.join(counts)}")


def _as_data(
    file: str, rule: Rule | None, diagnostics: list[Diagnostic], unreadable: str | None = None
) -> dict[str, Any]:
    from optlang.declarations.infer import describe

    data = {
        "file": file,
        "ok": rule is not None,
        "name": rule.name if rule else None,
        "inferred": describe(rule) if rule and rule.inferred else [],
        "diagnostics": [d.as_dict() for d in diagnostics],
    }
    return data if unreadable is None else {**data, "unreadable": unreadable}
