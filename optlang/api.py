"""The Python interface: ``compile``, ``check`` and ``emit``.

A rule is passed as its text, a file (a path, or a string that ends in ``.opt``), or its name in the library.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optlang import rules
from optlang.checker.check import check_text
from optlang.classes import class_of
from optlang.core.texts import rule_text, text_of
from optlang.diagnostics import Diagnostic, OptlangError, raise_errors
from optlang.expand.exchange import exchanged
from optlang.identity import GivenName
from optlang.rule import Value, Values
from optlang.source import Source, read_text
from optlang.syntax.library import rule_of
from optlang.syntax.quoting import remark
from optlang.syntax.suggest import nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from optlang.compiler import CompiledRule

#: A rule: its text, a path (or a string that ends in ``.opt``), a name of the library, or a source.
Rule = str | os.PathLike[str] | Source
#: A replacement for an inner rule: a name of the library, or a path (or a string that ends in ``.opt``).
Inner = str | Path

#: The value of a hyperparameter; a tuple if the key of the param group holds several (``betas``).
Given = Value | tuple[Value, ...]

BAR = "=" * 20
STAGES = ("tree", "plain", "rule", "program", "source", "cpp")


def load(rule: Rule) -> Source:
    """Return the source of a rule.

    Args:
        rule: The rule's text, a path, a string that ends in ``.opt``, the name of a rule of the library, or a source,
            which is returned as it is.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnicodeDecodeError: If it is not UTF-8.
        ValueError: If a single word is not the name of a rule of the library.
    """
    if isinstance(rule, Source):
        return rule
    if not isinstance(rule, str | os.PathLike):
        raise TypeError(f"a rule must be its text, a path or the name of a library rule, not {type(rule).__name__}")
    if isinstance(rule, os.PathLike) or (rule.strip().endswith(".opt") and "\n" not in rule.strip()):
        return Source(read_text(Path(rule)), os.fspath(rule))
    if rule.lower() in map(str.lower, rules.names()):
        file = rules.path(rule)
        return Source(file.read_text(encoding="utf-8"), file.name)
    if rule.strip().isidentifier():
        close = nearest(rule, rules.names())
        hint = f"did you mean {close!r}?" if close else f"there are {', '.join(rules.names())}"
        raise ValueError(f"{rule!r} is neither a rule (it assigns nothing) nor the name of one in the library; {hint}")
    return Source(rule)


def compile(
    rule: Rule,
    *,
    name: str | None = None,
    inner: Inner | Mapping[str, Inner] | None = None,
    backend: str = "auto",
) -> type[Optimizer]:
    """Return an optimizer class for a rule.

    The class is a ``torch.optim.Optimizer`` whose keyword arguments are the rule's hyperparameters. Kernels are
    compiled at its first step.

    Args:
        rule: The rule's text, a path, a string that ends in ``.opt``, or the name of a rule of the library.
        name: Class name; by default the name that the rule declares, or ``Rule``.
        inner: Rules that replace its inner rules, by the names of the inner rules: names of the library or paths.
            For a rule with one inner rule, a single name or path.
        backend: ``"auto"`` (the fastest for the device), ``"cpp"`` (C++ kernels on the CPU), ``"inductor"``
            (``torch.compile``) or ``"eager"`` (plain torch operations).

    Returns:
        The class. The same arguments return the same class.

    Raises:
        OptlangError: If the rule has errors; ``diagnostics`` holds all findings.
        ValueError: If the name, the backend or an inner rule does not exist.

    Example:
        >>> Momentum = optlang.compile("v = beta*v + g; p -= lr*v")
        >>> optimizer = Momentum(model.parameters(), lr=0.1, beta=0.9)
    """
    if name is not None and not name.isidentifier():
        raise ValueError(f"{name!r} cannot be the name of a class")
    source = load(rule) if inner is None else exchanged(load(rule), inner)
    cls = class_of(source, name, backend)
    for diagnostic in cls._compiled.warnings:  # type: ignore[attr-defined]
        warnings.warn(f"\n{diagnostic.render()}", stacklevel=2)
    return cls


def check(rule: Rule) -> list[Diagnostic]:
    """Return all findings for a rule, an empty list if there are none. Never raises for an invalid rule."""
    return check_text(load(rule))[1]


def emit(
    rule: Rule,
    stage: str = "source",
    values: Mapping[str, Given] | None = None,
    ndim: int = 2,
) -> str:
    """Return the text of a rule at a stage of the compiler.

    Args:
        rule: As for :func:`compile`.
        stage: ``tree`` (syntax), ``plain`` (with transforms and inner rules expanded), ``rule`` (roles of names),
            ``program`` (the optimised formulas), ``source`` (the Python that runs) or ``cpp`` (the C++ kernels).
        values: Hyperparameters that select the variant (``{"amsgrad": True}``), by their names in the formulas or their
            keys in the parameter group; the others have their defaults.
        ndim: Number of dimensions of the tensor.

    Raises:
        OptlangError: If the rule has errors.
        ValueError: If the stage or a hyperparameter does not exist.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
    source = load(rule)
    if stage == "tree":
        from optlang.checker.show import show_tree
        from optlang.syntax.parse import parse

        return show_tree(parse(source))
    checked, diagnostics = check_text(source)
    raise_errors(diagnostics)
    assert checked is not None
    if stage == "plain":
        return rule_text(checked)
    if stage == "rule":
        from optlang.checker.show import show_rule

        return show_rule(checked)
    from optlang.artifact import Variant
    from optlang.compiler import compile_source, example_variant, program_text

    if checked.routes:
        texts = []
        for route in checked.routes:
            when = "otherwise" if route.when is None else f"when {text_of(checked.tree, route.when)}"
            title = f"{remark(f'{BAR} {route.title} {when} {BAR}', '//' if stage == 'cpp' else '#')}\n"
            texts += [title, emit(rule_of(route.rule, checked.tree.source), stage, None, ndim)]
        return "\n".join(texts)
    compiled = compile_source(source)
    chosen = _values(compiled, values or {})
    if stage == "program":
        return program_text(compiled, chosen, ndim)
    mark, text = ("//", Variant.cpp_text) if stage == "cpp" else ("#", Variant.text)
    texts = [text(example_variant(compiled, chosen, ndim))]
    for event in checked.events:
        title = f"{mark} {'-' * 20} on {event} {'-' * 20}\n"
        texts += [title, text(example_variant(compiled, chosen, ndim, event))]
    return "\n".join(texts)


def export(
    rule: Rule,
    target: str,
    path: str | os.PathLike[str] | None = None,
    values: Mapping[str, Given] | None = None,
    ndim: int = 2,
    store: str | Mapping[str, str] | None = None,
) -> str | bytes:
    """Return a rule as a standalone file that does not need optlang, and write it to ``path``.

    Args:
        rule: As for :func:`compile`.
        target: Kind of file; see the guide on targets.
        path: Where to write the file; None only returns it.
        values: Hyperparameters to fix in the file.
        ndim: Number of dimensions of the tensors, for targets that support only one.
        store: Formats of the states, ``fp32`` or ``bf16``, as for the optimizer.

    Raises:
        OptlangError: If the rule has errors or the target does not support it; ``diagnostics`` holds all findings.
        ValueError: If the target, a hyperparameter or a format does not exist.
    """
    from optlang.compiler import compile_source
    from optlang.targets import Order
    from optlang.targets import target as target_of
    from optlang.targets._stored import kept_as

    emitting = target_of(target)
    compiled = kept_as(compile_source(load(rule)), store, target)
    content: str | bytes = emitting.emit(Order(compiled, _values(compiled, values or {}), ndim))
    if path is not None:
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return content


def _values(compiled: CompiledRule, given: Mapping[str, Given]) -> Values:
    """Return hyperparameters by their names in the formulas; raise if one does not exist or is out of range."""
    keys = compiled.rule.keys
    known = {hyper.name for hyper in compiled.rule.hypers}
    values: dict[GivenName, Value] = {}
    for name, value in given.items():
        parts = value if isinstance(value, tuple) else (value,)
        names = [name] if name in known else [hyper.name for hyper in keys.get(name, ())]
        if not names:
            raise ValueError(f"the rule has no hyperparameter {name!r}{_near(name, [*known, *keys])}")
        if len(parts) != len(names):
            raise ValueError(f"{name!r} expects {len(names)} values ({', '.join(names)}), got {len(parts)}")
        values.update(zip(names, parts, strict=True))
    problems = compiled.problems({**compiled.defaults(), **values})
    if problems:
        raise ValueError("; ".join(problems))
    return values


def _near(word: str, known: Iterable[str]) -> str:
    close = nearest(word, known)
    return f"; did you mean {close!r}?" if close else ""


__all__ = ["STAGES", "OptlangError", "check", "compile", "emit", "export", "load"]
