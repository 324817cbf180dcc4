"""Inner rules in the interpreter, as the language page has them: each is a rule that is stepped when it is called.

Nothing is written out. The outer rule is the author's tree, and a call runs the inner rule's own statements on values
of its own: its count, its states, its hyperparameters. These stand among the outer rule's names, with the inner rule's
name and a dot in front, so that a choice on the device chooses between them as between all others.

What an inner rule may not have here: totals, group and shared states, chance, and a shape of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from interpreter import Interpreter, facts
from interpreter_formulas import Scope
from interpreter_runs import TensorRun
from interpreter_statements import Run
from interpreter_values import Array, Value

import optlang.rules
from optlang.checker.check import check_text
from optlang.diagnostics import render_all
from optlang.rule import Rule
from optlang.source import Source
from optlang.syntax import tree as ast
from optlang.syntax.parse import parse


def checked_rule(source: Source) -> Rule:
    """Return a checked rule."""
    checked, findings = check_text(source)
    assert checked is not None, render_all(findings)
    return checked


#: Of the library, whose files do not change.
library_rule = cache(checked_rule)


def rule_around(source: Source, checked: Rule) -> tuple[Rule, dict[str, Composed]]:
    """Return a rule as its author wrote it, and its inner rules by name.

    Which hyperparameters there are, and what kind of state each is, is the checker's business.
    """
    items = parse(source).items
    own = {item.name.name for decl in items if isinstance(decl, ast.StateDecl) for item in decl.items}
    statements = (ast.Assign, ast.If, ast.Apply, ast.Repeat, ast.For, ast.Every)
    rule = replace(
        checked,
        states=tuple(state for state in checked.states if state.name in own),
        functions={item.name.name: item for item in items if isinstance(item, ast.Def)},
        body=tuple(item for item in items if isinstance(item, statements)),
        requirements=(),
    )
    inner = {item.name.name: Composed.of(item, source) for item in items if isinstance(item, ast.Inner)}
    return rule, inner


class Composed(Interpreter):
    """An interpreter of a rule that may have inner rules; also an inner rule itself, which is run from outside.

    Args:
        source: The rule.
        hypers: Its hyperparameters.
        checked: The rule, if it has been checked.
    """

    def __init__(self, source: Source, hypers: Mapping[str, Any] | None = None, checked: Rule | None = None) -> None:
        rule, self.inner = rule_around(source, checked or checked_rule(source))
        super().__init__(rule, hypers)

    @classmethod
    def of(cls, item: ast.Inner, beside: Source) -> Composed:
        """Return an inner rule, with what is given for its hyperparameters."""
        if isinstance(item.rule, ast.Text):
            path = Path(beside.name).parent / item.rule.value
        else:
            path = optlang.rules.path(item.rule.name)
        source = Source(path.read_text(encoding="utf-8"), str(path))
        made = cls(source, checked=None if isinstance(item.rule, ast.Text) else library_rule(source))
        made.given = {str(argument.name): argument.value for argument in item.arguments}
        return made

    given: Mapping[str, ast.Expr] = {}

    def hypers_of(self, run: Run, scope: Scope) -> dict[str, Value]:
        """Return the hyperparameters of an inner rule: what is given for them, or else their defaults."""
        found = dict(self.hypers)
        for key, node in self.given.items():
            parts = self.rule.keys[key]
            if isinstance(node, ast.Tuple):
                found |= {h.name: run.value(x, scope) for h, x in zip(parts, node.items, strict=True)}
            elif parts[0].part is not None:  # another tuple
                assert isinstance(node, ast.Name)
                others = run.rule.keys[node.name]
                found |= {h.name: run.setting.hypers[x.name] for h, x in zip(parts, others, strict=True)}
            else:
                found[key] = run.value(node, scope)
        return found

    # As the rule of an optimizer -----------------------------------------------------------------------------

    def started(self, index: int, run: TensorRun, scope: Scope) -> None:
        """Give the inner rules their values, before the step: kept ones, or those of a tensor that is new."""
        run.inner = self.inner
        for name, inner in self.inner.items():
            inner.begin_inside(run, name, scope)
        scope.names.update({name: value for name, value in self.state[index].items() if "." in name})

    # As an inner rule ----------------------------------------------------------------------------------------

    def begin_inside(self, run: TensorRun, name: str, scope: Scope) -> None:
        """Put the names of this inner rule among those of the outer rule, as they are before any call."""
        p, g = np.asarray(scope.names["p"]), scope.names["g"]
        sub, inside = self.entered(run, scope, p, g, 0.0)
        scope.names[f"{name}.t"] = 0.0
        for one, inner in self.inner.items():
            inner.begin_inside(sub, one, inside)
        for state in self._states("tensor"):
            if state.when is None or sub.truth(sub.value(state.when, inside)):
                inside.names[f"{name}.{state.name}"] = self._start(state, sub, inside)
        scope.names.update({key: value for key, value in inside.names.items() if key.startswith(f"{name}.")})
        scope.names.update(
            {f"{name}.{key}": v for key, v in inside.names.items() if "." in key and f"{name}." not in key}
        )

    def entered(self, run: TensorRun, scope: Scope, p: Array, g: Value, t: float) -> tuple[TensorRun, Scope]:
        """Return a run through this inner rule, and what names mean in it before any statement, states aside."""
        setting = replace(self._setting(None), hypers=self.hypers_of(run, scope))
        sub = TensorRun(setting, p.shape, {})
        sub.inner = self.inner
        raw = {"p": np.array(p, dtype=np.float64), "g": np.broadcast_to(np.asarray(g, dtype=np.float64), p.shape)}
        names: dict[str, Value] = {**setting.hypers, **facts(p.shape), "t": t, "first": t == 1, **raw}
        kept, self.hypers = self.hypers, dict(setting.hypers)
        names.update(self._constants(raw))
        self.hypers = kept
        return sub, Scope(names)

    def step_inside(self, run: TensorRun, name: str, scope: Scope, p: Value, g: Value) -> Value:
        """Make a step of this inner rule; return what becomes of ``p``."""
        t = float(np.asarray(scope.names[f"{name}.t"])) + 1
        sub, inside = self.entered(run, scope, np.asarray(p), g, t)
        held = {key[len(name) + 1 :]: value for key, value in scope.names.items() if key.startswith(f"{name}.")}
        for state in self._states("tensor"):
            if state.when is None or sub.truth(sub.value(state.when, inside)):
                old = held.get(state.name)
                sub.states[state.name] = self._start(state, sub, inside) if t == 1 or old is None else old
        inside.names.update(sub.states)
        inside.names.update({key: value for key, value in held.items() if "." in key})
        sub.run(self.rule.body, inside)
        scope.names[f"{name}.t"] = t
        for key, value in inside.names.items():
            if key in sub.states or "." in key:
                scope.names[f"{name}.{key}"] = value
        return inside.names["p"]

    def member(self, run: Run, name: str, word: str, scope: Scope) -> Value:
        """Return a hyperparameter or a state of this inner rule; the latter by its name or its key."""
        hypers = self.hypers_of(run, scope)
        if word in hypers:
            return hypers[word]
        state = next(state for state in self.rule.states if word in (state.name, state.key))
        return scope.names[f"{name}.{state.name}"]
