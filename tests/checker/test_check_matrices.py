"""The checker on matrices, sums over the model, chance, loops, events and routes: what is sound passes silently."""

from __future__ import annotations

import random

import pytest
from test_check import HEAD, checked, codes, found_in, mutate, rename, tokens
from trajectories import library_compiled

import optlang
from optlang.checker.check import check_text
from optlang.checker.show import show_rule
from optlang.core import definitions
from optlang.core.known import known_before
from optlang.core.needs import needs
from optlang.declarations.infer import describe
from optlang.diagnostics import render_all
from optlang.functions.table import BUILTINS
from optlang.kinds import ELEMENT, HOST, SCALAR, Level
from optlang.source import Source
from optlang.syntax.tree import Return, StateScope

#: Rules without a fault, each about one thing.
SOUND: dict[str, str] = {
    # Matrices
    "shampoo": (
        "require ndim == 2\nstate L = zeros(rows, rows), R = zeros(cols, cols)\nL += g @ g.T; R += g.T @ g\n"
        "p -= lr*beta*(inv_root(L, 4) @ g @ inv_root(R, 4))"
    ),
    "basis": (
        "require ndim == 2\nstate L = zeros(rows, rows), Q = eye(rows)\nL = beta*L + g @ g.T\n"
        "if first: Q = eigh(L).vectors\nelif t % 10 == 0: Q = qr(L @ Q)\np -= lr*(Q @ (Q.T @ g))"
    ),
    "shapes that differ from branch to branch": (
        "require ndim == 2\nif first:\n    A = g @ g.T\n    u = A @ g\nelse:\n    A = g.T @ g\n    u = g @ A\n"
        "p -= lr*beta*u"
    ),
    "filters": "state m\nm = beta*m + g\nif ndim >= 2: u = newton_schulz(matrix(m))\nelse: u = m\np -= lr*u",
    "filters in a choice": "p -= lr*beta*(newton_schulz(matrix(g)) if ndim >= 2 else g)",
    "any dimensions": "require ndim >= 1\nM = matrix(g)\np -= lr*beta*(M/(norm(M, dim=-1) + 1e-8))",
    "sides of filters": (
        "require ndim >= 2\nstate L = zeros(rows(matrix(p)), rows(matrix(p)))\n"
        "L = beta*L + matrix(g) @ matrix(g).T\np -= lr*(inv_root(L, 4) @ matrix(g))"
    ),
    "square only": "require ndim == 2 and rows == cols\np -= lr*beta*trace(g)*g",
    "vectors only": "require ndim == 1\nstate L = zeros(numel, numel)\nL = beta*L + outer(g, g)\np -= lr*(L @ g)",
    "three dimensions only": "require ndim == 3\nu = g[0, :, :]\np -= lr*beta*(g + norm(u @ u.T))",
    "five dimensions only": "require ndim == 5\nu = g[:, :, 0, 0, 0]\np -= lr*beta*(g + norm(u @ u.T))",
    "four dimensions apart": (
        "if ndim == 4:\n    u = g[:, :, 0, 0]\n    p -= lr*beta*(g + norm(u @ u.T))\nelse: p -= lr*beta*g"
    ),
    "rows and columns": (
        "require ndim == 2\nr = mean(g^2, dim=-1)\nc = mean(g^2, dim=-2)\n"
        "p -= lr*beta*g/(sqrt((r @ c)/(mean(r) + 1e-8)) + 1e-8)"
    ),
    "reduced state": (
        "require ndim == 2\nstate r = 0*mean(g, dim=-1)\nr = beta*r + mean(g^2, dim=-1)\np -= lr*(r @ (r.T @ g))"
    ),
    "vector times matrix": "require ndim == 2\nw = diag(g @ g.T)\np -= lr*beta*g*mean(w @ g)",
    "simplex": "p = project_simplex(p - lr*beta*g)",
    "simplices": "require ndim >= 1\np = project_simplex(p - lr*g, beta, dim=-1)",
    "groups of filters": "require ndim == 4\np = prox_group_lasso(p - lr*g, beta, dim=(1, 2, 3))",
    "groups of a matrix": "require ndim >= 1\np = prox_group_lasso(matrix(p - lr*g), lr*beta, dim=0)",
    "no dimension": "p = project_l2_ball(p - lr*beta*g, 1, none)",
    "sums of what is sorted": "require ndim == 2\np -= lr*beta*g*max(cumsum(flip(sort(flatten(abs(g)))))/numel)",
    "sorted columns": "require ndim == 2\ns, o = sort(g, 0)\np -= lr*beta*(s + 0*cumsum(o, 0))",
    "elements of a matrix": "require ndim == 2\nA = g @ g.T\np -= lr*beta*((A*(abs(A) > mean(A))) @ g)",
    "where": "require ndim == 2\nA = g @ g.T\np -= lr*beta*(where(A > 0, A, 0) @ g)",
    "order": "require ndim == 2\no = argsort(diag(g @ g.T))\np -= lr*beta*g[o, :]",
    "order through a function": (
        "require ndim == 2\ndef pick(x, o) = x[:, o]\no = sort(diag(g.T @ g)).order\np -= lr*beta*pick(g, flip(o))"
    ),
    "largest": "require ndim == 2\nv, i = topk(diag(g @ g.T), 2)\np -= lr*beta*g*mean(g[i, :])*max(v)",
    "more than there are": "hyper k = 100 >= 1\nrequire ndim == 2\np -= lr*beta*g*mean(topk(g, min(k, cols)))",
    "low rank": (
        "hyper rank = 128 >= 1\nrequire ndim == 2\nU, S, Vh = svd(g)\nr = min(rank, rows, cols)\n"
        "p -= lr*beta*((U[:, :r] @ diag(S[:r])) @ Vh[:r, :])"
    ),
    "low rank in a function": (
        "hyper rank = 128 >= 1\nrequire ndim == 2\ndef low(x, k):\n    U, S, Vh = svd(x)\n"
        "    m = min(k, rows(x), cols(x))\n    return (U[:, :m] @ diag(S[:m])) @ Vh[:m, :]\np -= lr*beta*low(g, rank)"
    ),
    "sizes from the group": (
        "require ndim == 2\nstate P = zeros(group.rank, cols)\nP = beta*P + 1\nA = P*group.scale\n"
        "p -= lr*g*mean(A @ A.T)"
    ),
    "results by name and number": "require ndim == 2\nA = g @ g.T\np -= lr*beta*g*max(eigh(A)[0])*max(eigh(A).values)",
    # Known before the first step
    "size from a local": (
        "require ndim == 2\nr = min(3, rows)\nstate P = zeros(r, cols)\nP = beta*P + g[:r, :]\np -= lr*mean(P)*g"
    ),
    "local below the state": (
        "require ndim == 2\nstate P = zeros(r, cols)\nP = beta*P\nr = min(3, rows)\np -= lr*mean(P + g[:r])*g"
    ),
    "state under a local": (
        "hyper largest = 1000\nleft = ndim == 2 and rows <= largest\nstate L = zeros(rows, rows) when left\n"
        "if left:\n    L = beta*L + g @ g.T\n    p -= lr*(inv_root(L, 4) @ g)\nelse: p -= lr*g"
    ),
    "number as a condition": "r = min(4, rows)\nif r > 2: u = g\nif r > 2: p -= lr*beta*u\nelse: p -= lr*beta*g",
    "local in a function": "tall = rows >= cols\ndef f(x) = x if tall else 2*x\np -= lr*beta*f(g)",
    "rank or none": (
        "hyper rank = none >= 1\nrequire ndim == 2\nr = min(rank ?? 4, rows)\n"
        "state P = zeros(r, cols) when rank != none\nif rank != none:\n    P = beta*P + g[:r, :]\n    g *= mean(P)\n"
        "p -= lr*g"
    ),
    # The whole model
    "clip": "g *= min(1, beta/(gnorm(g) + 1e-8))\np -= lr*g",
    "shared": (
        "shared state d = 1e-6\nstate s\ns += g\nd = max(d, total(s*g)/(total(abs(s)) + 1e-8))\np -= lr*beta*d*g"
    ),
    "shared count": "shared state n = 0\nn += 1\np -= lr*beta*g/n",
    "total in a condition": "if total(g^2) > 1: g *= beta\np -= lr*g",
    "total in a number of the tensor": "state c: scalar = 0\nc = beta*c + total(abs(g))\np -= lr*g/(1 + c)",
    "total in a function": "def share(x) = norm(x)/(gnorm(x) + 1e-8)\np -= lr*beta*share(g)*g",
    # Chance
    "noise": "p += -lr*g*beta + sqrt(2*lr)*randn()",
    "masks": "p -= lr*beta*g*bernoulli(0.5)*rademacher() + 0*rand()",
    "chance of each element": "p -= lr*beta*g*bernoulli(sigmoid(g))",
    "sketch": (
        "hyper r = 4 >= 1\nrequire ndim == 2\nq = qr(g @ randn(cols, min(r, cols)))\np -= lr*beta*(q @ (q.T @ g))"
    ),
    # Loops
    "every": (
        "hyper k = 5\nstate s\nevery k from 3 or first:\n    s = g\n    u = norm(g)\n    s /= u + 1e-8\np -= lr*beta*s"
    ),
    "every in a group": "group state n = 0\nevery 10: n += 1\np -= lr*beta*g/(n + 1)",
    "repeat": "hyper n = 3\nX = g\nrepeat n:\n    Y = X*2\n    X = Y - X\np -= lr*beta*X",
    "repeat a shape": (
        "require ndim == 2\ndef ns(x, a = 3.4, b = -4.7) = a*x + b*(x @ x.T @ x)\nX = g/(norm(g) + 1e-8)\n"
        "repeat 5: X = ns(X)\np -= lr*beta*X"
    ),
    "transposed twice": "require ndim == 2\nX = g\nrepeat 2: X = X.T\np -= lr*beta*X",
    "repeat in a function": "hyper n = 3\ndef f(x, k):\n    repeat k: x = x/2\n    return x\np -= lr*beta*f(g, n + 1)",
    "for": "hyper betas = (b1 = 0.9, b2 = 0.99)\nc = 1\nfor b in betas: c *= 1 - b^t\np -= lr*beta*c*g",
    "for in a function": (
        "hyper betas = (b1 = 0.9, b2 = 0.99)\ndef f(x):\n    for b in betas: x *= 1 - b^t\n    return x\n"
        "p -= lr*beta*f(g)"
    ),
    # Events
    "events": (
        "state z = p\non eval:\n    u = p\n    p = z\n    z = u\non train:\n    u = p\n    p = z\n    z = u\n"
        "z = (1 - beta)*p + beta*z\np -= lr*g"
    ),
    "events under an option": (
        "hyper average = true\nstate z = p when average\non eval:\n    if average: p = z\n"
        "on train:\n    if average: p = z\nif average: z = p\np -= lr*g*beta"
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_rules_check_silently(name: str) -> None:
    checked(f"{HEAD}{SOUND[name]}\n")


def test_no_rule_of_the_library_is_complained_about() -> None:
    for name in optlang.rules.names():
        found = library_compiled(name).warnings
        assert not found, render_all(found)


# What the checked rule says -------------------------------------------------------------------------------------


def test_kinds_of_states() -> None:
    rule = checked(
        HEAD + "require ndim == 2\nshared state d = 1\ngroup state n = 0\nstate c: scalar = 0\nstate m\n"
        "state L = zeros(rows, rows), P = zeros(rows, cols), w = diag(g @ g.T)\nstate k: scalar = trace(g @ g.T)\n"
        "d = max(d, gnorm(g))\nn += 1\nc += norm(g)\nm += g\nL += g @ g.T\nP += g\nw += diag(L)\nk += 1\n"
        "p -= lr*beta*d/n*(c + k)*(L @ m + P)*mean(w)\n"
    )
    kinds = {s.name: s.kind for s in rule.states}
    assert (kinds["d"], kinds["n"], kinds["c"], kinds["m"], kinds["k"]) == (HOST, HOST, SCALAR, ELEMENT, SCALAR)
    assert {kinds[name].level for name in ("L", "P", "w")} == {Level.MATRIX}
    assert {s.name: s.scope for s in rule.states}["d"] is StateScope.SHARED
    assert [r.of_tensors for r in rule.requirements] == [True]
    assert "`d`: state, one number for the whole optimizer, starts at 1" in describe(rule)
    assert "shared state d: host = 1" in show_rule(rule)


def test_state_that_is_a_matrix_for_some_tensors_only() -> None:
    rule = checked(
        HEAD + "wide = ndim == 2\nstate m = zeros(2, cols) if wide else 0*p\n"
        "m = beta*m + (g[:2, :] if wide else g)\np -= lr*g*mean(m)\n"
    )
    assert rule.states[0].kind.level is Level.MATRIX


def test_events_and_routes() -> None:
    rule = checked(HEAD + SOUND["events"])
    assert {event: len(body) for event, body in rule.events.items()} == {"eval": 3, "train": 3}
    routes = checked("optimizer Both\nroute SGD when ndim < 2 or group.plain\nroute AdamW otherwise\n").routes
    assert [(route.rule.name, route.when is None) for route in routes] == [("SGD", False), ("AdamW", True)]


def test_requirements_of_tensors_are_told_from_others() -> None:
    rule = checked(HEAD + "require lr > 0\nrequire ndim >= 1 and beta < 1\np -= lr*beta*g\n")
    assert [r.of_tensors for r in rule.requirements] == [False, True]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hyper rank = 4\nr = min(rank, rows)\nstate P = zeros(r, cols)\nP = beta*P\np -= lr*g*mean(P)", {"rank"}),
        ("hyper n = 3\nrepeat n: g = g/2\np -= lr*beta*g", {"n"}),
        ("hyper n = 3\ndef f(x, k):\n    repeat k: x = x/2\n    return x\np -= lr*beta*f(g, n)", {"n"}),
        ("hyper n = 3\nrequire ndim == 2\np -= lr*beta*newton_schulz(g, n)", {"n"}),
        ("hyper k = 3\nrequire ndim == 2\np -= lr*beta*g*mean(topk(g, min(k, cols)))", {"k"}),
        ("hyper k = 3\nrequire ndim == 2\np -= lr*beta*g*mean(g[:k, :])", {"k"}),
        ("hyper k = 3\nbig = numel > 10*k\nif big: p -= lr*beta*g\nelse: p -= lr*g", {"k"}),
        ("hyper k = 3\nevery k: g = beta*g\np -= lr*g", set()),
    ],
)
def test_static_questions_read(text: str, names: set[str]) -> None:
    found = needs(checked(f"{HEAD}{text}\n")).choosing
    assert found >= names and "lr" not in found


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("p -= lr*beta*g", False),
        ("p -= lr*beta*g*randn()", True),
        ("every 10: g = beta*g\np -= lr*g", True),
        ("def f(x):\n    every 10: x = beta*x\n    return x\np -= lr*f(g)", True),
        ("require ndim == 2\np -= lr*beta*newton_schulz(g)", False),
        ("p -= lr*beta*g*cosine(100)", True),
    ],
)
def test_what_needs_the_count_of_steps(text: str, reads: bool) -> None:
    assert needs(checked(f"{HEAD}{text}\n")).time is reads


def test_locals_known_before_the_first_step() -> None:
    rule = checked(
        HEAD + "a = 2*beta\nb = min(a, rows)\nc = rows(matrix(p)) if ndim >= 2 else 1\nd = half(c)\n"
        "def half(x) = floor(x/2)\ne = a*t\nf = norm(g)\nh = 1\nh = 2\nif beta > 0.5: i = 3\nelse: i = 4\nj = d + 1\n"
        "k = group.size\nl = sigmoid(a)\np -= lr*(a + b + c + d + e + f + h + i + j + k + l)*g\n"
    )
    hypers, states = {h.name for h in rule.hypers}, {s.name for s in rule.states}
    assert list(known_before(rule.body, hypers, states, rule.functions)) == ["a", "b", "c", "d", "j", "k", "l"]


def test_functions_of_the_language_that_are_blocks() -> None:
    blocks = [name for name, row in BUILTINS.items() if row.block]
    assert blocks
    for name in blocks:
        body = definitions.body(name)
        assert body and isinstance(body[-1], Return) and definitions.definition(name) is None
    assert definitions.body("clamp") is None and definitions.definition("clamp") is not None


# Shapes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("p -= lr*beta*(g @ g.T @ g)", "ndim == 2"),
        ("p -= lr*beta*newton_schulz(matrix(g))", "ndim >= 1"),
        ("if ndim == 1: p -= lr*g\nelse: p -= lr*beta*(g @ g.T @ g)", "ndim == 1 or ndim == 2"),
        ("p -= lr*beta*g*mean(g[0, :])", "ndim >= 2"),
        ("require ndim <= 2\np -= lr*beta*(g @ g.T @ g)", "ndim == 2"),
        ("require ndim <= 2\np -= lr*beta*mean(outer(g, g))*g if ndim < 2 else lr*g", "ndim >= 1"),
    ],
)
def test_rule_for_some_shapes_only(text: str, condition: str) -> None:
    (found,) = found_in(f"{HEAD}{text}\n")
    assert found.code == "W612" and f"`require {condition}`" in (found.help or "")


def test_shapes_are_told_for_a_sample() -> None:
    (found,) = found_in(HEAD + "state L = zeros(rows, rows)\nL = beta*L + g.T @ g\np -= lr*(L @ g)\n")
    assert found.code == "E313" and found.label == "for a parameter of shape 5 x 7"
    assert found.related and found.related[0][0] == "`L` has the shape of its initial value, a 5 x 5 matrix"


def test_what_holds_for_square_matrices_only_says_so() -> None:
    (found,) = found_in(HEAD + "require ndim == 2\np -= lr*beta*(g @ g)\n")
    assert found.code == "E313" and "`require rows == cols`" in (found.help or "")
    (found,) = found_in(HEAD + "p -= lr*beta*g*mean(g[0, 0, :])\n")
    assert found.code == "E313" and "`require ndim >= 3`" in (found.help or "")


def test_a_mistake_for_tall_matrices_is_found() -> None:
    assert codes(HEAD + "require ndim == 2\nA = g.T @ g if rows > cols else g @ g.T\np -= lr*beta*(A @ g)\n") == [
        "E313"
    ]
    checked(
        HEAD + "require ndim == 2\ntall = rows > cols\nA = g.T @ g if tall else g @ g.T\n"
        "p -= lr*beta*(g @ A if tall else A @ g)\n"
    )


def test_a_mistake_for_a_small_rank_is_found() -> None:
    text = "hyper rank = 128 >= 1\nrequire ndim == 2\nr = min(rank, rows)\nstate P = zeros(r, cols)\n"
    assert codes(HEAD + text + "P = beta*P + g\np -= lr*mean(P)*g\n") == ["E313"]


def test_what_no_sample_meets_is_not_judged_by_shape() -> None:
    checked(HEAD + "require ndim == 12\nu = g[0, 0, 0, 0, 0, 0, 0, 0]\np -= lr*beta*norm(u)*g\n")
    assert codes(HEAD + "require ndim == 12\np -= lr*beta*nn*g\n") == ["E201"]


# Robustness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_mutated_rules_never_crash_the_checker(seed: int) -> None:
    dice = random.Random(seed)
    texts = [f"{HEAD}{text}\n" for text in SOUND.values()]
    donors = [token for text in texts for token in tokens(text) if token.strip()]
    donors += ["none", "true", '"x"', "inf", "group", "dim", "T", "S", "[", "]", ":", "@", "-1", "100", "eigh", "first"]
    for i in range(60):
        text = (mutate if i % 2 else rename)(dice.choice(texts), dice, donors)
        rule, found = check_text(Source(text))
        assert (rule is None) is any(d.is_error for d in found), text
        assert all(d.help for d in found), text
        assert render_all(found) or rule is not None
