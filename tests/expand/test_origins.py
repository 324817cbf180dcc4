"""Where the pieces of a composed rule were written, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rule_strategies_inner import seeded
from test_composing import SAME

import optlang.rules
from optlang.checker.check import check_text
from optlang.cli.check import _as_data
from optlang.core.substitute import placed
from optlang.core.texts import rule_text
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.source import Origin, Source, Span
from optlang.syntax.parse import parse
from optlang.syntax.walk import nodes_in

Place = tuple[str, int, int]

SMOOTH = """transform smooth(u, decay = 0.9 in [0, 1)):
    state m
    m = decay*m + (1 - decay)*u
    return m + wrong
"""
MIDDLE = """use "smooth.opt"
hyper rate = 0.1

v = smooth(g)
p -= rate*v
"""
RULE = """optimizer Outer
inner B = "middle.opt"(rate = 0.2)
B(p, g)
if t > 3:
    B(p, 2*g)
"""


@pytest.fixture
def rule(tmp_path: Path) -> Source:
    """A rule with a mistake in a transform that its inner rule uses."""
    for name, text in {"smooth.opt": SMOOTH, "middle.opt": MIDDLE, "rule.opt": RULE}.items():
        (tmp_path / name).write_text(text)
    return Source(RULE, str(tmp_path / "rule.opt"))


def place(source: Source, span: Span) -> Place:
    """Return a place as people name it, and check that it is one."""
    assert 0 <= span.start <= span.end <= len(source.text)
    return Path(source.name).name, *source.position(span.start)


def said(source: Source, code: str) -> list[tuple[Diagnostic, Place, list[tuple[str, Place]]]]:
    """Return the findings of a code, where each was written, and the uses that brought it in."""
    found = [d for d in check_text(source)[1] if d.code == code]
    return [(d, place(d.source, d.span), [(p, place(s, u)) for p, s, u in d.uses]) for d in found if d.span]


def test_in_the_body_of_a_transform() -> None:
    text = "optimizer T\nhyper lr = 0.1\ntransform f(u):\n    state s\n    s = s + uu\n    return s\np -= lr*(g |> f)\n"
    ((found, where, uses),) = said(Source(text, "t.opt"), "E201")
    assert (where, uses) == (("t.opt", 5, 13), [("f", ("t.opt", 7, 9))])
    assert found.source.excerpt(found.span) == "uu"  # type: ignore[arg-type]


def test_in_an_argument_of_a_transform() -> None:
    """What is given for a parameter stays where it was written."""
    text = "optimizer T\nhyper lr = 0.1\ntransform f(u):\n    return u |> momentum(gg)\np -= lr*(g |> f)\n"
    ((_, where, uses),) = said(Source(text, "t.opt"), "E201")
    assert (where, uses) == (("t.opt", 4, 26), [("f", ("t.opt", 5, 9))])


def test_in_a_transform_of_the_library_that_a_transform_uses() -> None:
    text = "optimizer T\nhyper lr = 0.1\nrequire ndim == 2\ntransform f(u):\n    return u |> momentum\n"
    ((found, where, uses),) = said(Source(f"{text}p -= lr*norm(f(g @ g.T))*g\n", "t.opt"), "E313")
    assert where == ("momentum.opt", 8, 9) and uses == [("momentum", ("t.opt", 5, 12)), ("f", ("t.opt", 6, 14))]
    assert found.source.excerpt(found.span) == "beta*b + (1 - dampening)*u"  # type: ignore[arg-type]
    ((sentence, declared),) = found.related
    assert sentence == "`b` has the shape of its initial value, a 5 x 7 matrix" and declared.source is not None
    assert place(declared.source, declared) == ("momentum.opt", 7, 11)


def test_in_a_rule_that_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "base.opt").write_text("hyper lr = 0.1\n\nstate m = nothing\nm = g\np -= lr*m\n")
    ((_, where, uses),) = said(Source('use "base.opt"\n', str(tmp_path / "rule.opt")), "E201")
    assert (where, uses) == (("base.opt", 3, 11), [("base.opt", ("rule.opt", 1, 1))])


def test_in_an_inner_rule(tmp_path: Path) -> None:
    (tmp_path / "in.opt").write_text("hyper lr = 0.1\n\nv = g @ p\np -= lr*norm(v)*g\n")
    text = 'optimizer T\ninner B = "in.opt"\nrequire ndim == 2\nif lr > 0.05:\n    B(p, g)\n'
    ((_, where, uses),) = said(Source(text, str(tmp_path / "rule.opt")), "E313")
    assert (where, uses) == (("in.opt", 3, 5), [("in.opt", ("rule.opt", 5, 5))])


def test_two_deep(rule: Source) -> None:
    ((found, where, uses),) = said(rule, "E201")  # once, though the rule is called twice
    assert where == ("smooth.opt", 4, 16)
    assert uses == [("smooth", ("middle.opt", 4, 5)), ("middle.opt", ("rule.opt", 3, 1))]
    folder = str(Path(rule.name).parent)
    assert found.render().replace(f"{folder}/", "") == (
        "error[E201]: unknown name `wrong`\n"
        "  --> smooth.opt:4:16\n"
        "4 |     return m + wrong\n"
        "  |                ^^^^^ not declared and never assigned\n"
        "  --> middle.opt:4:5: in `smooth`, used here\n"
        "4 | v = smooth(g)\n"
        "  |     ^^^^^^^^^\n"
        "  --> rule.opt:3:1: in `middle.opt`, used here\n"
        "3 | B(p, g)\n"
        "  | ^^^^^^^\n"
        "help: declare it: `hyper wrong` if the user passes it, `state wrong` if it is kept between steps"
    )


def test_as_data(rule: Source) -> None:
    data = json.loads(json.dumps(_as_data(rule.name, *check_text(rule))))
    (found,) = [d for d in data["diagnostics"] if d["code"] == "E201"]
    assert Path(found["file"]).name == "smooth.opt" and found["line"] == 4
    uses = [(use["piece"], Path(use["file"]).name, use["line"], use["column"]) for use in found["uses"]]
    assert uses == [("smooth", "middle.opt", 4, 5), ("middle.opt", "rule.opt", 3, 1)]


def test_mistakes_in_the_use_itself_of_a_rule_inside(rule: Source) -> None:
    """What is found while pieces are put together is brought in by the same uses."""
    path = Path(rule.name).with_name("middle.opt")
    path.write_text(MIDDLE.replace("smooth(g)", "smooth(g, decay = 2)"))
    with pytest.raises(OptlangError) as raised:
        optlang.compile(rule)
    (found,) = [d for d in raised.value.diagnostics if d.code == "E404"]
    assert place(found.source, found.span) == ("middle.opt", 4, 23)  # type: ignore[arg-type]
    assert [(piece, place(s, span)) for piece, s, span in found.uses] == [("middle.opt", ("rule.opt", 2, 1))]


def test_findings_stand_in_the_order_of_the_rule(tmp_path: Path) -> None:
    (tmp_path / "base.opt").write_text("\n\n\nhyper rate = 0.1, unused = 1\np -= rate*g\n")
    text = 'hyper lr = 0.1, before = 1\nuse "base.opt"\nhyper after = 1\np -= lr*g\n'
    found = said(Source(text, str(tmp_path / "rule.opt")), "W602")
    assert [(where[0], d.message) for d, where, _ in found] == [
        ("rule.opt", "hyperparameter `before` is never used"),
        ("base.opt", "hyperparameter `unused` is never used"),
        ("rule.opt", "hyperparameter `after` is never used"),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_that_does_not_suit_a_piece(tmp_path: Path) -> None:
    (tmp_path / "in.opt").write_text("hyper lr = 0.1\n\nv = p.T @ p\np -= lr*norm(v)*g\n")
    source = Source('optimizer T\ninner B = "in.opt"\nB(p, g)\n', str(tmp_path / "rule.opt"))
    with pytest.raises(ValueError, match=r"`p\.T` \(line 3 of .*in\.opt\)"):
        optlang.compile(source, backend="eager")([torch.nn.Parameter(torch.ones(2))])


# What the tree of a composed rule is ----------------------------------------------------------------------------


def composed(tmp_path: Path) -> Iterator[Source]:
    """Yield rules that are made of others."""
    for name in ("Grafting", "Lookahead", "AdamWEMA", "OrthoGrad", "SAM"):
        path = optlang.rules.path(name)
        yield Source(path.read_text(encoding="utf-8"), path.name)
    yield from (Source(text) for text, _ in SAME.values())
    for seed in range(12):
        for file, text in (files := seeded(seed)).items():
            (tmp_path / file).write_text(text)
        yield Source(files["rule.opt"], str(tmp_path / "rule.opt"))


def without_places(items: Any) -> Any:
    return placed(items, lambda span: Span(0, 0))


def test_the_tree_is_that_of_its_text(tmp_path: Path) -> None:
    """A composed rule is printed to a text with the same meaning, and every node knows its line in that text."""
    for source in composed(tmp_path):
        rule, _ = check_text(source)
        assert rule is not None
        again = parse(Source(rule_text(rule)))
        assert without_places(again.items) == without_places(rule.tree.items)
        for item, printed in zip(rule.tree.items, again.items, strict=True):
            lines = [node.span.line for node in nodes_in(item)]
            assert lines == [again.source.position(node.span.start)[0] for node in nodes_in(printed)]


def test_every_place_leads_to_the_rule(tmp_path: Path) -> None:
    for source in composed(tmp_path):
        rule, _ = check_text(source)
        assert rule is not None
        found = list(nodes_in(rule.tree.items))
        assert len({id(node) for node in found}) == len(found)  # no node stands in two places
        for node in found:
            assert node.span.source is not None and node.span.end <= len(node.span.source.text)
            outermost = Diagnostic("E000", "", source, node.span).outermost
            assert outermost[0] == source


def test_places() -> None:
    text, other = Source("p -= f(g)"), Source("return u/2")
    own = Origin(text)
    whole, call = Span(0, 9, own), Span(5, 9, own)
    inside = Span(7, 10, Origin(other, "f", call))
    assert whole.holds(call) and whole.holds(inside) and call.holds(inside) and not inside.holds(call)
    assert not Span(0, 4, own).holds(inside)
    assert sorted([Span(9, 9, own), inside, call]) == [call, inside, Span(9, 9, own)]
    elsewhere = Origin(other, "f", Span(0, 1, own))
    assert inside.origin is not None
    assert inside.moved(inside.origin, elsewhere) == Span(7, 10, elsewhere)
    deeper = Span(0, 1, Origin(text, "h", inside))
    assert deeper.moved(inside.origin, elsewhere) == Span(0, 1, Origin(text, "h", Span(7, 10, elsewhere)))
    assert call.moved(inside.origin, elsewhere) == call
