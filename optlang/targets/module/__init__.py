"""A rule as one Python file that needs only torch: the optimizer class, and the functions of its step.

The functions are those that the compiled class runs (see :mod:`optlang.artifact`), so both take the same steps, up to
the order of summation. The rest is copied from ``runtime.py``, trimmed to what the rule needs.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optlang.artifact import FACTS as FACT_NAMES
from optlang.artifact import Variant
from optlang.codegen.naming import python_name
from optlang.core.needs import needs
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.identity import Count, DimensionSize
from optlang.inputs import Loss, Progress, ValueName
from optlang.rule import Hyper, HyperType, Range, Values
from optlang.syntax.quoting import docstring, literal
from optlang.syntax.tree import StateScope
from optlang.targets import Order, _refusals, refusal
from optlang.targets._python import INDENT, Library, pretty, spread
from optlang.targets._questions import Explorer, Unspoken, open_ways
from optlang.targets.module import texts
from optlang.targets.module.choice import chooser
from optlang.targets.module.forms import Form, Forms, constant, listing, mapping, pieces
from optlang.targets.module.trim import OPTIMIZER, ModuleNeeds, flags, trimmed

SUFFIX = ".py"
NAME = "module"
#: The maximum number of variants in a file: further options become constants.
MOST = 12


def emit(order: Order) -> str:
    """Return the file.

    Raises:
        OptlangError: If the rule uses constructs that such a file does not support.
    """
    compiled, found = order.compiled, list(refused(order))
    if found:
        raise OptlangError(found)
    try:
        return _File(order).text()
    except Unspoken as unspoken:
        help = "choose it with --set, or emit the source of one variant with --stage source"
        raise OptlangError([refusal(compiled, NAME, str(unspoken), None, help)]) from None


def refused(order: Order) -> Iterator[Diagnostic]:
    """Yield an error for each construct that such a file does not support."""
    for route in order.compiled.rule.routes:
        help = "emit the rules that it leads to, and use an optimizer for each"
        yield refusal(order.compiled, NAME, "`route`", route.span, help)
    yield from _refusals.whole_vectors(order.compiled, NAME)
    yield from _refusals.derived_defaults(order.compiled, NAME)


@dataclass
class _File:
    """Builds a file."""

    order: Order
    library: Library = field(default_factory=Library)
    features: set[str] = field(default_factory=set)

    def text(self) -> str:
        """Return the file."""
        order, compiled = self.order, self.order.compiled
        ways, opened = open_ways(compiled, order.values, MOST)
        if not ways:
            raise OptlangError([_refusals.no_shape(compiled, NAME)])
        self.forms = forms = Forms(compiled, self.library)
        variants = forms.variants(ways)
        events = {event: Explorer(compiled, order.values, event).ways(opened, 1000) or [] for event in self.rule.events}
        event_variants = {event: forms.variants(found) for event, found in events.items()}
        everything = [*variants, *(v for those in event_variants.values() for v in those)]
        staged = any(not v.schedule.direct for v in everything)
        chosen = forms.of(ways, variants, staged)
        for event, found in events.items():
            chosen_there = forms.of(found, event_variants[event], staged, event)
            self.choosers.append(self.chooser(f"form_on_{event}", f"Return what `on {event}` is.", chosen_there))
            self.constants += chosen_there
        self.choosers.insert(0, self.chooser("form_of", CHOOSES, chosen))
        self.constants = [*chosen, *self.constants]
        self.note_features(variants, staged)
        self.settled = sorted((n for n in compiled.static_names if n not in opened), key=str)
        return self.assembled()

    choosers: list[str] = field(default_factory=list)
    constants: list[Form] = field(default_factory=list)

    @property
    def rule(self) -> Any:
        """The checked rule."""
        return self.order.compiled.rule

    def chooser(self, name: str, what: str, forms: Sequence[Form]) -> str:
        """Return the function that selects a form."""
        explorer = Explorer(self.order.compiled, {})
        requirements = [(explorer.text(r.condition, ()), r.message) for r in self.rule.requirements if r.of_tensors]
        return chooser(name, what, forms, requirements)

    def note_features(self, variants: Sequence[Variant], staged: bool) -> None:
        """Determine which features the file needs."""
        rule, found = self.rule, self.forms.features
        counted = [v.counts_steps for v in variants]
        said = {
            "STAGED": staged,
            "FORMS": True,
            "CHOOSES": True,
            "COUNTS": any(counted),
            "HELD": all(v.counts_steps or v.slots for v in variants),
            "COUNTS_DIFFER": any(counted) and not all(counted),
            "TIME": any(counted) or "t" in self.forms.read,
            "FIRST": "first" in self.forms.read,
            "EVENTS": bool(rule.events),
            "DRAWS": needs(rule).draws,
            "ALONE": any(stage.alone for v in variants for stage in v.schedule.stages),
            "ASKED": bool(needs(rule).calls),
            "COMPLEX": not all(form.fields.get("real") for form in self.constants),
            "LOSS": Progress.LOSS in self.forms.read,
            "LOSS_AT_POINTS": any(isinstance(name, Loss) for name in self.forms.read),
            "COUNTS_GROUP": any(v.counts_group for v in variants),
            "FACTS": bool(self.facts()),
            "START_READS": any(len(self.library.parameters_of(form.texts()["start"])) > 2 for form in self.constants),
            "IEEE": bool(self.common) or self.forms.reads_late or self.raises(),
        }
        said |= texts.hyper_features(self.order)
        said["ARRIVES"] = said["LOSS"] or "LATE" in found or any(s.scope is StateScope.SHARED for s in self.common)
        self.features = found | {name for name, holds in said.items() if holds}

    @property
    def common(self) -> list[Any]:
        """The states stored in parameter groups."""
        return [s for s in self.rule.states if s.scope is not StateScope.TENSOR]

    def facts(self) -> list[str | DimensionSize]:
        """Return the names of the facts that are read."""
        read = self.forms.read | self.library.parameters | set(re.findall(r"\w+", "\n".join(self.choosers)))
        return [name for name in (*FACT_NAMES, "shape") if name in read and name in texts.FACTS]

    def raises(self) -> bool:
        """Return whether Python may raise an error in scalar arithmetic: tested with values in range."""
        scope: dict[str, Any] = {"math": math, "torch": torch}
        exec("\n\n".join(self.library.texts.values()), scope)  # our compiler's output
        trials = [self.trial({})]
        for hyper in self.rule.hypers:
            for value in _ends(hyper):
                trials.append(self.trial({hyper.name: value}))
        for function, names in self.forms.hosts:
            exec(function.text("run"), scope)  # our compiler's output
            run = scope["run"]
            for values in trials:
                for t in (1.0, 2.0, 3.0, 5.0, 10.0, 100.0, 1e6):
                    known = {**values, "t": t, Count.GROUP: t, "first": t == 1.0}
                    try:
                        run(*(known.get(name, 2.0) for name in names))
                    except (ArithmeticError, ValueError):
                        return True
                    except TypeError:  # a variant in which this is a number
                        continue
        return False

    def trial(self, values: Values) -> dict[ValueName, Any]:
        """Return hyperparameters and facts for a test run."""
        defaults = {**self.order.compiled.defaults(), **self.order.values, **values}
        return {name: 1.0 if value is None else value for name, value in defaults.items()}

    # Text ---------------------------------------------------------------------------------------------------

    def assembled(self) -> str:
        """Return the whole text."""
        compiled = self.order.compiled
        tables = self.tables()
        common = self.common_fields()
        differing = {key for form in self.constants for key in (*form.texts(), *(["paths"] if form.paths else []))}
        differing -= set(common)
        if not differing:
            self.features -= {"FORMS"} | (set() if self.only_refuses() else {"CHOOSES"})
        only_states = differing == {"states"} and not self.rule.events
        if only_states:
            doc = "Return the keys of the states of a parameter, by name."
            self.choosers = [self.choosers[0].replace("def form_of(", "def keys_of(").replace(CHOOSES, doc)]
        known = {name: name in self.features or name in tables for name in flags()} | {"ONLY_STATES": only_states}
        known["REFUSES"] = "raise " in "".join(self.choosers)
        known |= {f"{owner}.{key}": True for owner in ("form", "self.form") for key in common}
        replaced = {f"form_on_{e}": "None" for e in ("train", "eval") if e not in self.rule.events}
        replaced |= {
            "GROUP_TIME": literal(self.forms.spelled(Count.GROUP)),
            "LOSS_NOW": literal(self.forms.spelled(Progress.LOSS)),
        }
        replaced |= {} if "IEEE" in self.features else {"computed": "call"}
        if "states" in common:
            tables |= texts.tables(("STATES", "Keys of the states of a tensor, by name", common["states"]))
        for key, text in common.items():
            replaced |= {f"{owner}.{key}": NAMED.get(key, text) for owner in ("form", "self.form")}
        if "paths" in common and "PATHS" not in self.features:
            replaced["self.form.paths[0]"] = NAMED["paths"]
        names = {"form": "keys", "form_of": "keys_of", "_form": "_keys"} if only_states else {}
        replaced |= {"form.states": "keys"} if only_states else {}
        given = ("form_of", "keys_of", "form_on_train", "form_on_eval", *GIVEN)
        left = trimmed(ModuleNeeds(compiled.name, known, replaced, names, given, self.records(only_states)))
        own_tables = texts.hyper_tables(self.order, self.forms.spelled, left.columns.get("HYPERPARAMETERS"))
        tables["HYPERPARAMETERS"] = own_tables["HYPERPARAMETERS"]
        constants = self.form_texts(left.fields, common, only_states)
        body = [*tables.values(), *left.pieces.values(), *self.given(), *self.library.texts.values()]
        body += [*constants, *self.choosers]
        said = texts.class_text(self.order)
        members = "\n".join([*said, *left.members])
        cls = python_name(compiled.name)
        taken = texts.global_names("\n".join(["import torch", *body, f"class {cls}_:", members]))
        cls = cls if cls not in taken else python_name(cls, taken)
        body.append(f"class {cls}(torch.optim.{OPTIMIZER}):\n{members}")
        blocks = ("def ", "class ", "@")
        whole, before = "", ""
        for part in body:
            apart = part.startswith(blocks) or before.startswith(blocks)
            whole, before = f"{whole}{chr(10) * (2 if apart else 1)}{part}", part
        return texts.head(self.order, self.settled) + texts.imports(whole) + whole

    def common_fields(self) -> dict[str, str]:
        """Return the fields that all forms share, except the stages, which are not generated yet."""
        first, *others = self.constants
        found = dict(first.texts().items() & set.intersection(*({*form.texts().items()} for form in self.constants)))
        if first.paths and all(form.paths == first.paths for form in others):
            found["paths"] = ""
        states, tensors = (ast.literal_eval(found.get(key, "()")) for key in ("states", "tensors"))
        if states and tuple(states) == tensors:
            found["tensors"] = NAMED["states"]
        return found

    def form_texts(
        self, kept: Mapping[str, Collection[str]], common: Mapping[str, str], only_states: bool
    ) -> list[str]:
        """Return the constants of the forms, and of the stages that they share."""
        found = []
        if "paths" in common:
            paths = self.constants[0].stages({})
            text = listing(paths) if "PATHS" in self.features else paths[0]
            found.append(constant(NAMED["paths"], text, kept))
        if "shared" in common:
            found.append(pretty(f"{NAMED['shared']} = {common['shared']}"))
        if only_states:
            found += dict.fromkeys(pretty(f"{form.name} = {form.texts()['states']}") for form in self.constants)
        elif "FORMS" in self.features:
            forms = {form.name: form for form in self.constants}.values()
            stages = [text for form in forms for path in form.stages({}) for text in pieces(path)]
            several = dict.fromkeys(text for text in stages if stages.count(text) > 1)
            names = {text: f"STAGE_{i}" for i, text in enumerate(several, 1)}
            found += [constant(name, text, kept) for text, name in names.items()]
            found += [form.text(kept, names) for form in forms]
        return found

    def only_refuses(self) -> bool:
        """Let the function that selects the only form reject unsupported cases; return whether there are any."""
        returned = f"return {self.constants[0].name}"
        (chooses,) = self.choosers
        chooses = chooses.replace(CHOOSES, "Raise an error for what the file was not made for.")
        chooses = chooses.removesuffix(f"{INDENT}{returned}\n").replace(returned, "return")
        self.choosers = [chooses] if "raise" in chooses else []
        return bool(self.choosers)

    def records(self, only_states: bool) -> set[str]:
        """Return the record classes of the constants in the file."""
        named = {"FORMS": "Form", "STAGED": "Stage", "AT_POINTS": "Point", "CURVED": "Direction"}
        return {name for feature, name in named.items() if feature in self.features} - (
            {"Form"} if only_states else set()
        )

    def given(self) -> list[str]:
        """Return the functions that replace those of the runtime's example rule."""
        found = []
        if self.facts():
            facts = [f"{literal(str(name))}: {texts.FACTS[name]}" for name in self.facts()]
            doc = docstring("Return what the formulas read of a tensor besides its values.")
            found.append(f"def facts(p):\n{INDENT}{doc}\n{spread(INDENT, 'return {', facts, '}')}\n")
        return found + ([texts.in_groups(self.order, self.common)] if self.common else [])

    def tables(self) -> dict[str, str]:
        """Return the tables of hyperparameters and of parameter-group values, by name."""
        shared = [literal(s.key) for s in self.common if s.scope is StateScope.SHARED]
        kept = ((python_name(s.name), literal(s.key)) for s in self.common)
        totals = [literal(n) for n in sorted(self.forms.totals)]
        return texts.hyper_tables(self.order, self.forms.spelled) | texts.tables(
            ("KEPT", "Keys of the states that param groups keep, by name", mapping(kept) if self.common else ""),
            ("SHARED", "Those of them that are one for all groups", listing(shared) if shared else ""),
            ("TOTALS", "Sums over all parameters", listing(totals) if totals else ""),
        )


#: The docstring of the function that selects a form.
CHOOSES = "Return the form of the rule that updates a parameter."
#: Constants for values that all forms share, by field.
NAMED = {"states": "STATES", "paths": "STAGES", "shared": "SHARED_VALUES"}
#: Definitions in the runtime that a rule replaces.
GIVEN = ("start", "host", "update", "in_groups", "facts")


def _ends(hyper: Hyper) -> list[float]:
    """Return the closed ends of a hyperparameter's range."""
    domain = hyper.domain
    if hyper.type in (HyperType.FLAG, HyperType.TEXT, HyperType.OPTIONAL_TEXT) or not isinstance(domain, Range):
        return []
    ends = [(domain.low, domain.low_closed), (domain.high, domain.high_closed)]
    return [end for end, closed in ends if closed and math.isfinite(end)]
