"""The checker: roles, kinds and states of good rules, and a bad rule's errors one for each mistake."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from good_rules import GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from work import calls

from optlang.checker.check import check_text
from optlang.checker.samples import facts
from optlang.core.evaluate import evaluate
from optlang.core.needs import needs
from optlang.core.specialise import specialise
from optlang.declarations.infer import describe
from optlang.diagnostics import Diagnostic, render_all
from optlang.identity import GroupKey
from optlang.kinds import ELEMENT, HOST, SCALAR, reduced
from optlang.rule import HyperType, Rule
from optlang.source import Source
from optlang.syntax.tree import Assign, If, Name, StateScope, Stmt
from optlang.syntax.walk import expressions

HEAD = "hyper lr = 1e-3, beta = 0.9\n"


def checked(text: str) -> Rule:
    """Return a rule that must have nothing to complain about."""
    rule, found = check_text(Source(text))
    assert rule is not None and not found, render_all(found)
    return rule


def found_in(text: str) -> list[Diagnostic]:
    return check_text(Source(text))[1]


def codes(text: str) -> list[str]:
    return [d.code for d in found_in(text)]


@pytest.mark.parametrize("name", GOOD)
def test_published_rules_check_silently(name: str) -> None:
    checked(GOOD[name])


# Roles ------------------------------------------------------------------------------------------------------


def test_roles_of_a_rule_that_declares_nothing() -> None:
    rule = checked("v = beta*v + g; p -= lr*v")
    assert rule.inferred and rule.name is None
    assert [(h.name, h.required, h.type) for h in rule.hypers] == [
        ("beta", True, HyperType.NUMBER),
        ("lr", True, HyperType.NUMBER),
    ]
    assert [(s.name, s.kind, s.initial) for s in rule.states] == [("v", ELEMENT, None)]
    assert describe(rule) == ["`v`: state, zeros like p", "`beta`, `lr`: hyperparameters, required"]


@pytest.mark.parametrize(
    ("text", "states", "hypers"),
    [
        ("u = g/2; p -= lr*u", [], ["lr"]),
        ("p -= lr*m; m = beta*m + g", ["m"], ["lr", "beta"]),
        ("m += g; p -= lr*m", ["m"], ["lr"]),
        ("if first: m = g\nelse: m = beta*m + g\np -= lr*m", ["m"], ["beta", "lr"]),
        ("m = g if first else beta*m + g; p -= lr*m", ["m"], ["beta", "lr"]),
        ("def f(x, w = 0.5) = w*x + k\np -= lr*f(g)", [], ["k", "lr"]),
        ("def f(x) = x + m\nu = f(g)\nm = u\np -= lr*u", ["m"], ["lr"]),
        ("p -= lr*warmup(n)*g", [], ["lr", "n"]),
        ("β₁ = 0.9; m = β1*m + g; p -= lr*m", ["m"], ["lr"]),
    ],
)
def test_inference(text: str, states: list[str], hypers: list[str]) -> None:
    rule = checked(text)
    assert [s.name for s in rule.states] == states
    assert [h.name for h in rule.hypers] == hypers


def test_inferred_local_that_may_be_missing_is_an_error_and_no_state() -> None:
    assert codes("if norm(g) > 1: x = g\np -= lr*x") == ["E203"]


def test_declaring_one_thing_means_declaring_everything() -> None:
    assert codes("hyper lr = 1e-3\nm = beta*m + g\np -= lr*m") == ["E203", "E201"] or codes(
        "hyper lr = 1e-3\nm = beta*m + g\np -= lr*m"
    ) == ["E201", "E203"]


def test_hyperparameters() -> None:
    rule = checked(
        'hyper lr = 1e-3 >= 0 "step size"\n'
        "hyper betas = (beta1 = .9, beta2 = .999) in [0, 1)\n"
        'hyper mode = "l2" in {"l2", "none"}, clip = none > 0, nesterov = false, k\n'
        'if mode == "l2": g += p\n'
        "if nesterov: g *= 2\n"
        "p -= lr*beta1*beta2*k*min(g, clip ?? 1)\n"
    )
    by_name = {h.name: h for h in rule.hypers}
    assert [h.key for h in rule.hypers] == ["lr", "betas", "betas", "mode", "clip", "nesterov", "k"]
    assert by_name["lr"].doc == "step size" and by_name["lr"].domain is not None
    assert (by_name["beta2"].key, by_name["beta2"].part, by_name["beta2"].default) == ("betas", 1, 0.999)
    assert 1.0 not in by_name["beta2"].domain and 0.0 in by_name["beta2"].domain  # type: ignore[operator]
    types = {name: h.type.name for name, h in by_name.items()}
    assert types == {
        "lr": "NUMBER",
        "beta1": "NUMBER",
        "beta2": "NUMBER",
        "mode": "TEXT",
        "clip": "OPTIONAL",
        "nesterov": "FLAG",
        "k": "NUMBER",
    }
    assert by_name["k"].required and not by_name["clip"].required and by_name["clip"].default is None
    assert list(rule.keys) == ["lr", "betas", "mode", "clip", "nesterov", "k"]


def test_python_keyword_and_schedule_names_are_fine_for_values() -> None:
    rule = checked("hyper lambda = 1e-3, warmup = 10 >= 1\np -= lambda*min(1, t/warmup)*g\n")
    assert [h.name for h in rule.hypers] == ["lambda", "warmup"]


def test_name_docstring_reference_and_requirements() -> None:
    rule = checked(
        '"""What it is."""\noptimizer Mine  # reference: torch.optim.SGD\nhyper lr = 1e-3, k = 2\n'
        'require lr < k "too fast"\nrequire k > 0\np -= lr*k*g\n'
    )
    assert (rule.name, rule.doc, rule.reference) == ("Mine", "What it is.", "torch.optim.SGD")
    assert [r.message for r in rule.requirements] == ["too fast", "must hold: k > 0"]
    assert not rule.inferred and len(rule.body) == 1


# States and kinds -------------------------------------------------------------------------------------------


def test_kinds_of_states() -> None:
    rule = checked(
        HEAD + "state a, b = lr, c = p, d = norm(g)\n"
        "state e: scalar = 1\n"
        "state r = 0*mean(g, dim=-1) as row\n"
        "group state n = 0\n"
        "a += g; b += g; c += g; d += norm(g); e *= beta; r += mean(g, dim=-1); n += 1\n"
        "p -= lr*(a + b + c + d + e + r + n)*g\n"
    )
    kinds = {s.name: s.kind for s in rule.states}
    assert kinds == {
        "a": ELEMENT,
        "b": ELEMENT,
        "c": ELEMENT,
        "d": SCALAR,
        "e": SCALAR,
        "r": reduced([-1]),
        "n": HOST,
    }
    assert {s.name: s.key for s in rule.states}["r"] == "row"
    assert {s.name: s.scope for s in rule.states}["n"] is StateScope.GROUP


@pytest.mark.parametrize(
    "body",
    [
        "c = norm(g)",
        "c = lr*t",
        "c += mean(g^2)",
        "if norm(g) > 1: c = 2",
        "if ndim > 1: c = norm(g)\nelse: c = 3",
        "u = norm(g) if ndim > 1 else max(g)\nc = u",
    ],
)
def test_values_that_fit_a_scalar_state(body: str) -> None:
    checked(f"{HEAD}state c: scalar = 1\n{body}\np -= lr*beta*c*g\n")


def test_a_smaller_value_is_spread_over_a_larger_state() -> None:
    checked(HEAD + "state r = 0*mean(g, dim=-1)\nstate m\nr = norm(g)\nm = r + lr\np -= beta*m*g\n")


def test_group_state_may_follow_the_steps_of_its_group() -> None:
    checked(HEAD + "group state s = lr\nif t > 10: s = s*beta\ns = max(s, group.t*1e-9)\np -= s*g\n")


def test_conditions_that_exclude_each_other_are_told_apart() -> None:
    checked(
        'hyper lr = 1e-3, mode = "a" in {"a", "b", "c"}\n'
        "state x when mode == 'a'\nstate y when mode != 'a'\n"
        'if mode == "a":\n    x += g\n    u = x\nelse:\n    y += g\n    u = y\n'
        'if mode == "b": w = 2\nelif mode == "c": w = 3\n'
        'p -= lr*u*(w if mode != "a" else 1)\n'
    )


def test_value_kept_under_the_same_option_can_be_read_under_it() -> None:
    checked("hyper lr = 1e-3, k = 0 >= 0\nif k > 2: u = g/k\nif k >= 3: p -= lr*u\nelse: p -= lr*g\n")


@pytest.mark.parametrize("threshold", ["k > 2", "k != 0.5", "k >= 1 and k < 7"])
def test_value_read_under_a_weaker_option_is_found(threshold: str) -> None:
    text = f"hyper lr = 1e-3, k = 0 >= 0\nif k > 5: u = g/k\nif {threshold}: p -= lr*u\nelse: p -= lr*g\n"
    assert codes(text) == ["E203"]


def test_branches_that_no_sample_takes_are_checked_too() -> None:
    assert codes("hyper lr = 1e-3, k = 1\nif k^3 == 29.791: p -= lr*sqrt(g > 0)\nelse: p -= lr*g\n") == ["E305"]


def test_own_key_of_the_group() -> None:
    checked(HEAD + "state m when group.slow\nif group.slow: m += g\np -= lr*beta*group.scale*g\n")


def test_own_step_counter() -> None:
    rule = checked(HEAD + "state step: scalar = 0\nstep += 1\np -= lr*beta*g/(1 + step)\n")
    assert rule.states[0].key == "step"


@pytest.mark.parametrize("reader", ["t", "debias(g, beta)", "warmup(10)"])
def test_step_counter_beside_the_compilers_own(reader: str) -> None:
    assert codes(f"{HEAD}state step: scalar = 0\nstep += 1\np -= lr*beta*step*g*{reader}\n") == ["E409"]


# Functions --------------------------------------------------------------------------------------------------


def test_functions_with_several_results_and_early_return() -> None:
    rule = checked(
        HEAD + "def scale(x, limit = 1):\n    if norm(x) > limit: return x/norm(x), 1\n    y = 0.5*x\n    return y, 0\n"
        "u, hit = scale(g, limit = 2)\np -= lr*u*(1 + beta*hit)\n"
    )
    assert list(rule.functions) == ["scale"]


def test_function_reads_state_as_of_the_call() -> None:
    checked(HEAD + "state m\ndef ahead(x) = x + beta*m\nm = beta*m + g\np -= lr*ahead(g)\n")


def test_long_chain_of_functions_is_measured_without_writing_it_out() -> None:
    lines = ["def a0(x) = x + 1"] + [f"def a{i}(x) = a{i - 1}(x) + a{i - 1}(2*x)" for i in range(1, 30)]
    assert calls(lambda: codes("\n".join([*lines, "p -= lr*a29(g)"]))) < 10_000_000
    assert codes("\n".join([*lines, "p -= lr*a29(g)"])) == ["E511"]


@pytest.mark.parametrize("count", [60, 99, 1500])
def test_long_chain_of_calls_is_refused_before_any_walk_recurses_into_it(count: int) -> None:
    lines = ["def a0(x) = x"] + [f"def a{i}(x) = a{i - 1}(x)" for i in range(1, count)]
    assert codes("\n".join([*lines, f"p -= lr*a{count - 1}(g)"])) == ["E511"]


def test_deepest_chain_of_calls_that_is_allowed_passes_every_walk() -> None:
    lines = ["def a0(x) = x"] + [f"def a{i}(x):\n    return max(x, -a{i - 1}(x))" for i in range(1, 23)]
    checked("\n".join([*lines, "p -= lr*(g + a22(g)*0)"]))


def test_many_branches() -> None:
    def rule(count: int) -> str:
        branches = [f"{'elif' if i else 'if'} t < {i}: g *= {i}" for i in range(count)]
        return "\n".join([*branches, "p -= lr*g"])

    checked(rule(50))
    assert codes(rule(2000)) == ["E511"]


def test_long_rule_is_checked_in_reasonable_time() -> None:
    options = ", ".join(f"a{i} = false" for i in range(12))
    lines = [f"if a{i % 12}: g = beta*g + {i}*p\nelse: g = sin(g) + {i}" for i in range(400)]
    text = "\n".join([f"hyper lr = 1e-3, beta = 0.5, {options}", *lines, "p -= lr*g"])
    assert calls(lambda: checked(text)) < 20_000_000


def test_powers_are_measured_without_computing_them() -> None:
    assert codes("p -= 9^9^9^9*lr*g") == ["E510"]  # which otherwise would not end
    assert codes("a = 9^9\nb = a^a\np -= b*lr*g") == ["E510"]
    assert codes("def f(x) = x^x\np -= f(f(f(f(9))))*lr*g") == ["E510"]
    checked("p -= lr*g*2^-20*0.5^3*10^30")


# One finding for each mistake -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "p -= lr*nu*g + nu\np *= nu*beta\n", ["E201"]),
        (HEAD + "p -= lr*ff(g) + ff(p)*beta\n", ["E202"]),
        (HEAD + "state b when t > 1\nb += g\np -= lr*beta*b\n", ["E303"]),
        (HEAD + "require norm(g) > beta\np -= lr*g\n", ["E311"]),
        (HEAD + "def f(x, x) = x\np -= lr*beta*f(g, g)\n", ["E205"]),
        (HEAD + "hyper p = 2\np -= lr*beta*g\n", ["E206"]),
        (HEAD + "p -= lr*(g + none)*beta*max(1, none)\n", ["E304", "E304"]),
        ("use Adam\np -= lr*weight_decay*something(g)\n", ["E202"]),
        (HEAD + "input u\nw = u*g\np -= lr*beta*sqrt(w)\n", ["E901"]),
        (HEAD + "state L\nL = beta*L + g @ g.T\np -= lr*(L @ g)*trace(L)\n", ["E313"]),
        (HEAD + "A = g @ g\nB = A @ A + A\np -= lr*beta*(B @ A)\n", ["E313"]),
        (HEAD + "w, Q = eigh(g)\np -= lr*beta*(Q @ g)*max(w)\n", ["E313"]),
        (HEAD + "u = eigh(g @ g.T)\np -= lr*beta*(u @ g)\n", ["E214"]),
        (HEAD + "state b when total(g) > t\nb += g\np -= lr*beta*b\n", ["E303", "E303"]),
    ],
)
def test_one_error_for_each_mistake(text: str, expected: list[str]) -> None:
    assert codes(text) == expected


def test_all_mistakes_are_collected_in_the_order_of_the_text() -> None:
    found = found_in("hyper lr = -1 >= 0, beta = 0.9\nstate m\nm = bta*m + g\nlr = 2\nif m: u = 1\np -= clip(u)*beta\n")
    assert [d.code for d in found] == ["E404", "E201", "E204", "E202", "E203"]
    assert [d.position[0] for d in found] == sorted(d.position[0] for d in found)


def test_syntax_errors_are_returned_and_not_raised() -> None:
    rule, found = check_text(Source("p -= = 3"))
    assert rule is None and found and all(d.is_error for d in found)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("lrr", "lr"), ("Lr", "lr"), ("gradient", "g"), ("momentun", "momentum"), ("weightdecay", "weight_decay")],
)
def test_did_you_mean(wrong: str, right: str) -> None:
    head = "hyper lr = 1e-3, momentum = 0.9, weight_decay = 0\n"
    (found,) = found_in(f"{head}p -= lr*momentum*weight_decay*g*{wrong}\n")
    assert found.code == "E201" and found.help == f"did you mean `{right}`?"


def test_no_far_fetched_suggestion() -> None:
    (found,) = found_in("hyper lr = 1e-3\np -= lr*g*q\n")
    assert found.code == "E201" and "did you mean" not in (found.help or "")


# Warnings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "v = beta*v + g^2\np -= lr*g/max(sqrt(v), 1e-8)\n",
        "v = beta*v + g^2\np -= lr*(g/sqrt(v) if v > 0 else 0)\n",
        "v = beta*v + g^2\np -= lr*where(v > 0, g/sqrt(v), 0)\n",
        "v = beta*v + g^2\nif v > 0: p -= lr*g/sqrt(v)\n",
        "if not first: p -= lr*g/(sqrt(v) + 1e-8)\nv = beta*v + g^2\n",
        "v = beta*v + g^2\np -= lr*g*rsqrt(v + 1e-8)\n",
        "v = beta*v + g\np -= lr*sqrt(abs(v))*sign(v)\n",
        "v = beta*v - g\np += lr*v\n",
    ],
)
def test_no_false_alarm_on_the_first_step(body: str) -> None:
    checked(f"{HEAD}state v\n{body}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("v = beta*v + g^2\np -= lr*g/sqrt(v)\n", "where the gradient is 0"),
        ("p -= lr*g/sqrt(v)\nv = beta*v + g^2\n", "on the first step"),
        ("v += g\np -= lr*beta*v/norm(v)\n", "if the whole gradient is 0"),
        ("v += g\np -= lr*beta*v*norm(v)/norm(p)\n", "where the parameter is 0"),
        ("v += g\np -= lr*beta*v*rsqrt(v)\n", "root"),
        ("v += g\np -= lr*beta*v^0.5\n", "root"),
    ],
)
def test_breakdown_on_the_first_step(body: str, words: str) -> None:
    (found,) = found_in(f"{HEAD}state v\n{body}")
    assert found.code == "W606" and words in found.message


def test_breakdown_in_a_variant_that_is_not_the_default() -> None:
    assert codes("hyper lr = 1e-3, normalise = false\nif normalise: g /= norm(g)\np -= lr*g\n") == ["W606"]


# Robustness -------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|\*\*|[-+*/^<>=!]=|.", text)


def mutate(text: str, dice: random.Random, donors: list[str]) -> str:
    """Return a rule with a few of its tokens deleted, doubled, swapped or taken from another rule."""
    pieces = tokens(text)
    for _ in range(dice.randint(1, 4)):
        i, j = dice.randrange(len(pieces)), dice.randrange(len(pieces))
        match dice.randrange(4):
            case 0:
                del pieces[i]
            case 1:
                pieces.insert(i, pieces[i])
            case 2:
                pieces[i], pieces[j] = pieces[j], pieces[i]
            case _:
                pieces[i] = dice.choice(donors)
        if not pieces:
            break
    return "".join(pieces)


def assert_everything_has_a_value(body: tuple[Stmt, ...], known: set[str]) -> set[str]:
    """Assert that a variant reads no name before it is assigned; returns the names known after it."""
    for statement in body:
        if isinstance(statement, Assign):
            reads = [statement.value] if statement.op == "=" else [statement.value, *statement.targets]
            assert not {n.name for e in reads for n in expressions(e) if isinstance(n, Name)} - known
            known = known | {target.name for target in statement.targets}
        else:
            assert isinstance(statement, If)
            for condition, _ in statement.branches:
                assert not {n.name for n in expressions(condition) if isinstance(n, Name)} - known
            bodies = [block for _, block in statement.branches] + [statement.other or ()]
            known = set.intersection(*(assert_everything_has_a_value(block, known) for block in bodies))
    return known


def specialise_everywhere(rule: Rule) -> None:
    """Build variants of a rule: what the checker lets through, the compiler must be able to take."""
    keys = dict.fromkeys(map(GroupKey, needs(rule).group_keys), 1.0)
    flags = [h for h in rule.hypers if h.type is HyperType.FLAG]
    numbers = [h for h in rule.hypers if h.type in (HyperType.NUMBER, HyperType.OPTIONAL)]
    for shape in ((2, 3), (6,)):
        base = {h.name: h.default if not h.required else 0.5 for h in rule.hypers} | facts(shape) | keys
        inside = [n for n in numbers if n.domain is None or 0.75 in n.domain]
        changes = [{}, *({f.name: not f.default} for f in flags), *({n.name: 0.75} for n in inside)]
        for change in changes:
            values = base | change
            if all(evaluate(r.condition, values) for r in rule.requirements):
                variant = specialise(rule, values)
                known = {"p", "g", "t", "first", "group", "eps", *values, *(s.name for s in variant.states)}
                known |= {s.name for s in rule.states if s.scope is StateScope.GROUP}
                assert_everything_has_a_value(variant.body, known)


@pytest.mark.parametrize("name", GOOD)
def test_every_variant_of_a_published_rule_can_be_built(name: str) -> None:
    specialise_everywhere(checked(GOOD[name]))


def rename(text: str, dice: random.Random, donors: list[str]) -> str:
    """Return a rule with a few of its words replaced by other words: mostly sound syntax, seldom sound sense."""
    pieces = tokens(text)
    words = [i for i, piece in enumerate(pieces) if re.match(r"\w", piece)]
    signs = [i for i, piece in enumerate(pieces) if piece in "+-*/^<>"]
    for _ in range(dice.randint(1, 4)):
        if dice.random() < 0.7 or not signs:
            pieces[dice.choice(words)] = dice.choice([d for d in donors if re.match(r"\w", d)])
        else:
            pieces[dice.choice(signs)] = dice.choice(["+", "-", "*", "/", "^", "<", "??", " and ", " == "])
    return "".join(pieces)


@pytest.mark.parametrize("change", [mutate, rename])
@pytest.mark.parametrize("seed", range(6))
def test_mutated_rules_never_crash_the_checker(
    seed: int, change: Callable[[str, random.Random, list[str]], str]
) -> None:
    dice = random.Random(seed)
    donors = [token for text in GOOD.values() for token in tokens(text) if token.strip()]
    donors += ["none", "true", '"x"', "inf", "group", "dim", "mean", "norm", "first", "when", "0", "9^99"]
    for _ in range(50):
        text = change(dice.choice(list(GOOD.values())), dice, donors)
        rule, found = check_text(Source(text))
        assert (rule is None) is any(d.is_error for d in found), text
        assert render_all(found) or rule is not None
        if rule is not None:
            specialise_everywhere(rule)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=200).map(lambda b: b.decode("utf-8", errors="replace")), st.text(max_size=120)))
def test_whatever_is_no_rule_gets_diagnostics(text: str) -> None:
    rule, found = check_text(Source(text))
    assert (rule is None) == any(d.is_error for d in found)
    for diagnostic in found:
        assert diagnostic.render()


def test_a_gradient_at_another_point_is_one() -> None:
    for update in ("grad(p + 1)", "hvp(p)", "p*loss"):
        assert "W610" not in codes(f"hyper lr = 0.1\np -= lr*{update}\n")
    assert codes("hyper lr = 0.1\np -= lr*p\n") == ["W610"]
