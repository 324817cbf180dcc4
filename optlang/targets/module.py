"""A rule as one Python file that needs torch only: the optimizer class, and the functions that make its step.

The functions are those that the compiled class runs (see :mod:`optlang.artifact`), so both take the same steps, up to
the order of what is added up. What is around them comes from templates, of which a file has the lines that it needs.
"""

from __future__ import annotations

import math
import re
import symtable
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optlang.artifact import DIMENSION_SIZES, Variant
from optlang.artifact import FACTS as FACT_NAMES
from optlang.backends.naming import python_name
from optlang.compiler import CompiledRule
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.inputs import Progress, ValueName
from optlang.language.checking.hypers import python_name as argument_name
from optlang.language.identity import Count, DimensionSize
from optlang.language.questions import draws, evaluations
from optlang.language.quoting import docstring, literal
from optlang.language.rule import Hyper, HyperType, OneOf, Range, Values
from optlang.language.texts import rule_text
from optlang.language.tree import StateScope
from optlang.runtime import documentation
from optlang.runtime.counterpart import Counterpart
from optlang.runtime.routing import Parts
from optlang.targets import Order, _refusals, refusal
from optlang.targets._choice import chooser
from optlang.targets._forms import Form, Forms, listing, mapping
from optlang.targets._python import INDENT, WIDTH, Library, pretty, spaced
from optlang.targets._questions import Explorer, Unspoken, open_ways
from optlang.targets._template import filled

SUFFIX = ".py"
NAME = "module"
#: Names that `__init__` of the class uses for something else.
INIT = frozenset({"self", "params", "compiled", "seed", "defaults", "super", "int", "torch", "math"})
#: How many variants a file may hold: options beyond that are settled.
MOST = 12

KINDS = {
    HyperType.NUMBER: "a number",
    HyperType.OPTIONAL: "a number or None",
    HyperType.FLAG: "True or False",
    HyperType.TEXT: "a string",
    HyperType.OPTIONAL_TEXT: "a string or None",
}
TESTS = {
    "a number": "lambda x: isinstance(x, float)",
    "a number or None": "lambda x: x is None or isinstance(x, float)",
    "True or False": "lambda x: isinstance(x, bool)",
    "a string": "lambda x: isinstance(x, str)",
    "a string or None": "lambda x: x is None or isinstance(x, str)",
}
FACTS: dict[str | DimensionSize, str] = {
    "ndim": "p.dim()",
    "numel": "p.numel()",
    "rows": "p.shape[-2] if p.dim() > 1 else 1",
    "cols": "p.shape[-1] if p.dim() > 0 else 1",
    "eps_of": "torch.finfo(p.dtype).eps",
    "shape": "tuple(p.shape)",
    **{size: f"p.shape[{size.dim}] if p.dim() > {size.dim} else 1" for size in DIMENSION_SIZES},
}


def emit(order: Order) -> str:
    """Return the file.

    Raises:
        OptlangError: If the rule uses what such a file cannot carry.
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
    """Yield an error for each construct that such a file cannot carry."""
    for route in order.compiled.rule.routes:
        help = "emit the rules that it leads to, and use an optimizer for each"
        yield refusal(order.compiled, NAME, "`route`", route.span, help)
    yield from _refusals.whole_vectors(order.compiled, NAME)
    yield from _refusals.derived_defaults(order.compiled, NAME)


@dataclass
class _File:
    """A file in the making."""

    order: Order
    library: Library = field(default_factory=Library)
    features: set[str] = field(default_factory=lambda: {"records", "helpers"})

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
            self.constants += [form.text() for form in chosen_there]
        self.choosers.insert(
            0, self.chooser("form_of", "Return the form of the rule that updates a parameter.", chosen)
        )
        self.constants = [*(form.text() for form in chosen), *self.constants]
        self.note_features(variants, chosen, staged)
        self.settled = sorted((n for n in compiled.static_names if n not in opened), key=str)
        return self.assembled()

    choosers: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)

    @property
    def rule(self) -> Any:
        """The checked rule."""
        return self.order.compiled.rule

    def chooser(self, name: str, what: str, forms: Sequence[Form]) -> str:
        """Return the function that chooses a form."""
        explorer = Explorer(self.order.compiled, {})
        requirements = [(explorer.text(r.condition, ()), r.message) for r in self.rule.requirements if r.of_tensors]
        return chooser(name, what, forms, requirements)

    def note_features(self, variants: Sequence[Variant], forms: Sequence[Form], staged: bool) -> None:
        """Find out what the file needs."""
        rule, found = self.rule, self.forms.features
        found |= {"staged"} if staged else set()
        counted = [v.counts_steps for v in variants]
        if any(counted):
            found.add("counts")
            if not all(counted):
                found |= {"counts_differ", "counting"}
                for form, counts in zip(forms, counted, strict=True):
                    form.fields["counts"] = str(counts)
                self.constants[: len(forms)] = [form.text() for form in forms]
        common = [s for s in rule.states if s.scope is not StateScope.TENSOR]
        asked = evaluations(rule)
        said = {
            "events": bool(rule.events),
            "counting": bool(rule.events),
            "draws": draws(rule),
            "alone": any(stage.alone for v in variants for stage in v.schedule.stages),
            "asked": bool(asked),
            "loss_now": Progress.LOSS in self.forms.read,
            "kept_in_groups": bool(common),
            "counts_group": any(v.counts_group for v in variants),
            "group_keys": bool(self.order.compiled.group_keys),
            "requirements": any(not r.of_tensors for r in rule.requirements),
            "tuples": any(h.part is not None for h in rule.hypers),
            "facts": bool(self.facts()),
            "ieee": bool(common) or self.forms.reads_late or self.raises(),
        }
        found |= {name for name, holds in said.items() if holds}
        if found & {"kept_in_groups", "counts_group"}:
            found.add("in_groups")
        self.features |= found

    def facts(self) -> list[str | DimensionSize]:
        """Return the names of the facts that are read."""
        read = self.forms.read | set(re.findall(r"\w+", "\n".join(self.choosers)))
        return [name for name in (*FACT_NAMES, "shape") if name in read and name in FACTS]

    def raises(self) -> bool:
        """Whether Python may raise an error in the arithmetic of single numbers: tried with values in range."""
        scope: dict[str, Any] = {"math": math, "torch": torch}
        exec("\n\n".join(self.library.texts.values()), scope)  # our own compiler's output
        trials = [self.trial({})]
        for hyper in self.rule.hypers:
            for value in _ends(hyper):
                trials.append(self.trial({hyper.name: value}))
        for function, names in self.forms.hosts:
            run = scope[self.library.add(function, function.name)]
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
        """Return hyperparameters and facts for a trial."""
        defaults = {**self.order.compiled.defaults(), **self.order.values, **values}
        return {name: 1.0 if value is None else value for name, value in defaults.items()}

    # Text ---------------------------------------------------------------------------------------------------

    def assembled(self) -> str:
        """Return the whole text."""
        words = self.words()
        body = [
            *self.tables(),
            filled("module", self.features, words),
            *([filled("evaluation", self.features, words)] if "asked" in self.features else []),
            *self.library.texts.values(),
            *self.constants,
            *self.choosers,
        ]
        cls = filled("class", self.features, words)
        taken = _globals("\n".join(["import torch", *body, cls]))
        body.append(
            cls
            if words["CLASS"] not in taken
            else filled("class", self.features, words | {"CLASS": python_name(words["CLASS"], taken)})
        )
        blocks = ("def ", "class ", "@")
        whole, before = "", ""
        for part in body:
            apart = part.startswith(blocks) or before.startswith(blocks)
            whole, before = f"{whole}{chr(10) * (2 if apart else 1)}{part}", part
        return self.head(whole) + whole

    def head(self, body: str) -> str:
        """Return the docstring of the file and its imports."""
        name = self.order.compiled.name
        doc = (self.rule.doc or f"{name}, an optimizer.").strip()
        lines = [*doc.split("\n"), "", "The file is yours, to use and to change under whatever licence you like. It"]
        lines[-1] += " needs torch only. It was generated by"
        lines.append("optlang from this rule:")
        lines += ["", *(f"    {line}".rstrip() for line in _formulas(rule_text(self.rule)))]
        if self.settled:
            values = {**self.order.compiled.defaults(), **self.order.values}
            settled = ", ".join(f"{n} = {values[n]}" for n in self.settled if n in values)
            if settled:
                lines += ["", *_wrapped(f"It was made for {settled}: other choices of these are refused.")]
        modules = [m for m in ("functools", "math", "operator", "types") if f"{m}." in body]
        names = [n for n in ("NamedTuple",) if n in body]
        imports = "".join(f"import {m}\n" for m in modules)
        imports += "from collections.abc import Callable\n" if "Callable" in body else ""
        imports += f"from typing import {', '.join(names)}\n" if names else ""
        return f"{docstring(chr(10).join(lines), apart=True)}\n\n{imports}\nimport torch\n"

    def tables(self) -> list[str]:
        """Return the tables of hyperparameters and of what is kept in groups."""
        rule = self.rule
        rows = [
            listing([literal(python_name(h.name)), literal(_key(h)), str(h.part), literal(KINDS[h.type]), *_range(h)])
            for h in rule.hypers
        ]
        kinds = mapping((kind, TESTS[kind]) for kind in dict.fromkeys(KINDS[h.type] for h in rule.hypers))
        said = "Hyperparameters: name, key in the param groups, place in its tuple, what it is, its range, and a test"
        found = [_table(said, f"HYPERPARAMETERS = {listing(rows)}"), _table("What they are", f"KINDS = {kinds}")]
        if "tuples" in self.features:
            several = [hypers for hypers in rule.keys.values() if hypers[0].part is not None]
            parts = mapping((_key(h[0]), listing(literal(python_name(x.name)) for x in h)) for h in several)
            found.append(_table("Tuples of them", f"TUPLES = {parts}"))
        if "requirements" in self.features:
            found.append(_table("What must hold of several: a message, and a test", self.requirements()))
        if "group_keys" in self.features:
            keys = listing(literal(k) for k in self.order.compiled.group_keys)
            found.append(_table("Keys that every param group must have", f"GROUP_KEYS = {keys}"))
        common = [s for s in rule.states if s.scope is not StateScope.TENSOR]
        if common:
            kept = mapping((python_name(s.name), literal(s.key)) for s in common)
            found.append(_table("Keys of the states that param groups keep, by name", f"KEPT = {kept}"))
            shared = [s for s in common if s.scope is StateScope.SHARED]
            if shared:
                keys = listing(literal(s.key) for s in shared)
                found.append(_table("Those of them that are one for all groups", f"SHARED = {keys}"))
            found.append(self.in_groups(common))
        if "totals" in self.features:
            names = listing(literal(n) for n in sorted(self.forms.totals))
            found.append(_table("Sums over all parameters", f"TOTALS = {names}"))
        return found

    def requirements(self) -> str:
        """Return the table of what must hold of several hyperparameters."""
        explorer = Explorer(self.order.compiled, {})
        rows = []
        for requirement in self.rule.requirements:
            if not requirement.of_tensors:
                condition = explorer.text(requirement.condition, ())
                names = [python_name(h.name) for h in self.rule.hypers]
                read = [n for n in names if re.search(rf"\b{re.escape(n)}\b", condition)]
                rows.append(listing([literal(requirement.message), f"lambda {', '.join(read)}: {condition}"]))
        return f"REQUIREMENTS = {listing(rows)}"

    def in_groups(self, common: Sequence[Any]) -> str:
        """Return the function of the initial values of what the groups keep."""
        explorer = Explorer(self.order.compiled, {})
        values = {s.key: "0.0" if s.initial is None else f"float({explorer.text(s.initial, ())})" for s in common}
        joined = " ".join(values.values())
        read = [n for n in (python_name(h.name) for h in self.rule.hypers) if re.search(rf"\b{re.escape(n)}\b", joined)]
        entries = "".join(f"        {literal(k)}: {spaced(v)},\n" for k, v in values.items())
        doc = docstring("Return the initial values of what a param group keeps, by key.")
        head = _spread("", "def in_groups(", read, "):")
        return f"{head}\n    {doc}\n    return {{\n{entries}    }}\n"

    def words(self) -> dict[str, str]:
        """Return what stands in the templates for words."""
        has, compiled = self.features.__contains__, self.order.compiled
        facts = [f"{literal(str(name))}: {FACTS[name]}" for name in self.facts()]
        timed = [n for n in ("t", "first") if n in self.forms.read]
        first = "count == 0.0" if has("counts") else "bool(form.states) and not old"
        if has("counts_differ"):
            first = "count == 0.0 if form.counts else bool(form.states) and not old"
        times = {"t": "t=count + 1.0", "first": f"first={first}"}
        counting = [c for c, f in (("counted", "events"), ("self.form.counts", "counts_differ")) if has(f)]
        known = "{**values, **facts(p)}" if has("facts") else "values"
        on = [e if e in self.rule.events else None for e in ("train", "eval")]
        given = [f"{literal(k)}: {_argument(k)}" for k in self.keys()]
        event_forms = [f"form_on_{e}" if e else "None" for e in on]
        return {
            "NAME": compiled.name,
            "CLASS": python_name(compiled.name),
            "DOC": self.docstring(),
            "INIT": _spread(INDENT, "def __init__(", self.signature(), "):"),
            "DEFAULTS": _spread(INDENT * 2, "defaults = {", given + self.switches(), "}"),
            "FACTS": _spread(INDENT, "return {", facts, "}"),
            "FORM_OF": f"            form = call(forms, {known})",
            "EVENT_ARGUMENT": ", event=False" if has("events") else "",
            "AND_FACTS": ", **facts(p)" if has("facts") else "",
            "AND_SHAPE": ", count, p.shape" if has("staged") else ", count",
            "FIRST": f"            known.update({', '.join(times[n] for n in timed)})" if timed else "",
            "EVALUATION": ", evaluation" if has("asked") else "",
            "EVALUATION_ARGUMENT": ", evaluation=None" if has("asked") else "",
            "EVENT_FORMS": f"{event_forms[0]} if training else {event_forms[1]}",
            "COUNTED": ", counted=True" if has("events") else "",
            "COUNTING": " and ".join(counting),
            "NOT_KEPT": " if name not in self.form.kept" if has("hosted") else "",
            "IS_TENSOR": " if name not in self.form.kept" if has("hosted") else "",
            "SCALARS": "one.scalars" if has("scalars") else "()",
            "CHOSEN": "self.chosen if len(self.form.numbers) > 1 else 0" if has("hosted_many") else "0",
        }

    def keys(self) -> list[str]:
        """Return the keys of the param groups."""
        return [_key(h[0]) for h in self.rule.keys.values()]

    def switches(self) -> list[str]:
        """Return what else param groups have, as checkpoints of the class in torch that this one stands for have it."""
        return [f"{literal(key)}: {value!r}" for key, value in Counterpart.of(self.rule).keys.items()]

    def signature(self) -> list[str]:
        """Return the parameters of ``__init__``."""
        written = {h.name: h.as_written for h in self.rule.hypers if not h.required}
        chosen = {**self.order.compiled.defaults(), **written, **self.order.values}
        required, optional = [], []
        for hypers in self.rule.keys.values():
            values = [chosen[h.name] for h in hypers]
            if any(h.required and h.name not in self.order.values for h in hypers):
                required.append(_argument(_key(hypers[0])))
            else:
                shown = literal(values[0]) if hypers[0].part is None else listing(map(literal, values))
                optional.append(f"{_argument(_key(hypers[0]))}={shown}")
        seed = ["seed=None"] if draws(self.rule) else []
        return ["self", "params", *required, *optional, "*", *seed, "compiled=False"]

    def docstring(self) -> str:
        """Return the docstring of the class, indented."""
        compiled: CompiledRule = self.order.compiled
        parts = Parts.of(compiled, "eager")
        whole = documentation.docstring(compiled, parts, draws(self.rule)).partition("\n\nNote:")[0]
        said = "    compiled (bool, optional): whether updates are compiled by ``torch.compile`` (default: False)"
        paragraphs = whole.split("\n\n")
        place = next(i for i, p in enumerate(paragraphs) if p.startswith("Args:"))
        paragraphs[place] += f"\n{said}"
        lines = "\n\n".join(paragraphs).split("\n")
        lines = [out for line in lines for out in (_hanging(line) if len(line) > WIDTH - 4 else [line])]
        return INDENT + docstring("\n".join(lines).strip(), INDENT, apart=True)


def _table(said: str, code: str) -> str:
    """Return a table with a comment."""
    return f"#: {said}.\n{pretty(code)}"


def _globals(code: str) -> set[str]:
    """Return the names that a file reads from the outermost level, those of Python among them."""
    found, waiting = set[str](), [symtable.symtable(code, "file", "exec")]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        found |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return found


def _key(hyper: Hyper) -> str:
    """Return the key of a hyperparameter in the param groups."""
    return argument_name(hyper.key)


def _argument(key: str) -> str:
    """Return the parameter of ``__init__`` for a key of the param groups."""
    return f"{key}_" if key in INIT else key


def _range(hyper: Hyper) -> list[str]:
    """Return the range of a hyperparameter as text and as a test."""
    domain = hyper.domain
    if isinstance(domain, OneOf):
        values = ", ".join(map(repr, domain.values))
        return [literal(f"one of {values}"), f"lambda x: x in {listing(map(literal, domain.values))}"]
    if not isinstance(domain, Range):
        return ["None", "None"]
    parts = []
    if domain.low > -math.inf:
        parts.append(f"{_number(domain.low)} {'<=' if domain.low_closed else '<'} x")
    high = f"{'<=' if domain.high_closed and domain.high < math.inf else '<'} {_number(domain.high)}"
    parts = [f"{parts[0]} {high}" if parts else f"x {high}"]
    return [literal(domain.text), f"lambda x: {parts[0]}"]


def _number(value: float) -> str:
    return "math.inf" if value == math.inf else repr(int(value) if value.is_integer() else value)


def _ends(hyper: Hyper) -> list[float]:
    """Return the ends of a hyperparameter's range that are inside of it."""
    domain = hyper.domain
    if hyper.type in (HyperType.FLAG, HyperType.TEXT, HyperType.OPTIONAL_TEXT) or not isinstance(domain, Range):
        return []
    ends = [(domain.low, domain.low_closed), (domain.high, domain.high_closed)]
    return [end for end, closed in ends if closed and math.isfinite(end)]


def _formulas(source: str) -> list[str]:
    """Return the lines of a rule without its docstring."""
    return re.sub(r'\A\s*"""[\s\S]*?"""\s*', "", source).rstrip().splitlines()


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH)


def _hanging(line: str) -> list[str]:
    """Return a long line of a docstring in several, the others further in."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH - 4, subsequent_indent=indent + INDENT, break_long_words=False)


def _spread(indent: str, head: str, items: Sequence[str], tail: str) -> str:
    """Return what lists some things, in several lines if it is too long for one."""
    line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        return line
    inside = f"{indent}{INDENT}{', '.join(items)}"
    if tail == "):" and len(inside) <= WIDTH:
        return f"{indent}{head}\n{inside}\n{indent}{tail}"
    return "\n".join([indent + head, *(f"{indent}{INDENT}{item}," for item in items), indent + tail])
