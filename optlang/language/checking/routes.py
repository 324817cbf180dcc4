"""Rules that send tensors to other rules: ``route R when COND``, and nothing else."""

from __future__ import annotations

from optlang.language.checking.places import ROUTE
from optlang.language.checking.resolve import Resolver
from optlang.language.evaluate import NotStatic, evaluate
from optlang.language.library import rule_names
from optlang.language.suggest import did_you_mean
from optlang.language.tree import Expr, OptimizerDecl, Route, Text, Tree, Unsupported


def check_routes(tree: Tree, resolver: Resolver) -> None:
    """Check a rule that has routes: their order, rules and conditions, and that there is nothing else."""
    findings = resolver.findings
    routes = [item for item in tree.items if isinstance(item, Route)]
    for item in tree.items:
        if isinstance(item, Unsupported):
            resolver.unsupported(item)
        elif not isinstance(item, (Route, OptimizerDecl)):
            findings.add(
                "E412",
                "a rule that routes has routes and nothing else",
                item.span,
                label="does not belong here",
                help="write it in a rule of its own, in another file: tensors are updated by the rule they are sent to",
                related=(("a route", routes[0].span),),
            )
            break
    if not any(isinstance(item, OptimizerDecl) for item in tree.items):
        findings.add(
            "E412",
            "a rule that routes needs a name",
            routes[0].span,
            label="expected `optimizer NAME` before this",
            help="write for example `optimizer MuonWithAdamW` on the first line",
        )
    last: Route | None = None
    for route in routes:
        _check_rule(route, resolver)
        if last is not None:
            findings.add(
                "E412",
                "this route is never taken",
                route.span,
                label="every tensor has been sent somewhere before",
                help="`otherwise` comes last",
                related=(("takes all that is left", last.span),),
            )
            break
        if route.when is None:
            last = route
        else:
            _check_condition(route.when, resolver)
            last = route if _always(route.when) and not isinstance(route.when, Text) else None


def _check_rule(route: Route, resolver: Resolver) -> None:
    """Check that a route leads to a rule of the library."""
    name, known = route.rule.name, rule_names()
    if name not in known:
        near = did_you_mean(name, known)
        resolver.findings.add(
            "E215",
            f"the library has no rule `{route.rule.text}`",
            route.rule.span,
            label="not a rule of the library",
            help=near or "`optlang list` prints the rules of the library",
        )
    elif known[name]:
        resolver.findings.add(
            "E215",
            f"`{route.rule.text}` routes itself",
            route.rule.span,
            label="not a rule with an update of its own",
            help="a route leads to a rule with an update: write out the routes of the other rule here",
        )


def _check_condition(condition: Expr, resolver: Resolver) -> None:
    """Check that a condition can be answered when a tensor is given to the optimizer."""
    resolver.expression(condition, ROUTE)
    if isinstance(condition, Text):
        resolver.findings.add(
            "E305",
            "a string is not a condition",
            condition.span,
            label="expected a comparison, or a key of the group",
            help="compare facts of the tensor: `ndim >= 2`",
        )


def _always(condition: Expr) -> bool:
    """Whether a condition holds whatever the tensor."""
    try:
        return bool(evaluate(condition, {}))
    except NotStatic:
        return False
