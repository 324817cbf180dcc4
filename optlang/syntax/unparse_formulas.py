"""Expressions, simple statements and declarations as canonical text."""

from __future__ import annotations

import re

from optlang.source import Source, Span
from optlang.syntax import tree
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import nodes_in

PIPE, CHOICE, DEFAULT, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, PRIMARY = range(12)
LEVELS = {
    **{"??": DEFAULT, "or": OR, "and": AND, "+": SUM, "-": SUM},
    **{"*": PRODUCT, "/": PRODUCT, "%": PRODUCT, "@": PRODUCT, "^": POWER},
}
WORD = r"[^\W\d][\w\u0300-\u036f]*"
LAST_WORD = re.compile(rf"({WORD})\W*\Z")


def has_unsupported(node: tree.Node) -> bool:
    """Return whether a node contains a construct that has no parts to print."""
    return any(isinstance(found, tree.Unsupported) for found in nodes_in(node))


def quoted(text: str) -> str:
    """Return a string in whichever quotes it does not contain."""
    return f"'{text}'" if '"' in text else f'"{text}"'


class Formulas:
    """Prints the parts of a rule. ``source`` supplies the spelling of names; without it they are canonical."""

    def __init__(self, source: Source | None = None) -> None:
        self.source = source or Source("")

    def expression(self, node: tree.Expr, level: int = PIPE, tight: bool = False) -> str:
        """Return an expression, in parentheses if it binds more loosely than ``level``.

        Args:
            node: The expression.
            level: The loosest binding that needs no parentheses here.
            tight: Whether products are printed without spaces, because they are terms of a sum.
        """
        own, text = self._written(node, tight)
        if own >= level:
            return text
        return f"({self._written(node, False)[1]})"

    def _written(self, node: tree.Expr, tight: bool) -> tuple[int, str]:
        """Return the precedence and the text of an expression."""
        match node:
            case tree.Binary():
                return LEVELS[node.op], self._binary(node, tight)
            case tree.Unary(op="not"):
                return NOT, f"not {self.expression(node.operand, NOT)}"
            case tree.Unary():
                return SIGN, node.op + self.expression(node.operand, SIGN)
            case tree.Compare():
                words = [self.expression(node.operands[0], SUM)]
                for op, operand in zip(node.ops, node.operands[1:], strict=True):
                    words += [op, self.expression(operand, SUM)]
                return COMPARE, " ".join(words)
            case tree.Ternary():
                then, condition = self.expression(node.then, DEFAULT), self.expression(node.condition, DEFAULT)
                return CHOICE, f"{then} if {condition} else {self.expression(node.other, CHOICE)}"
            case tree.Call():
                arguments = ", ".join(map(self.argument, node.arguments))
                return PRIMARY, f"{self.expression(node.function, PRIMARY)}({arguments})"
            case tree.Pipe():
                return PIPE, f"{self.expression(node.value)} |> {self.expression(node.stage, PRIMARY)}"
            case tree.Member():
                return PRIMARY, f"{self.expression(node.value, PRIMARY)}.{self.word(node, node.name)}"
            case tree.Index():
                return PRIMARY, f"{self.expression(node.value, PRIMARY)}[{', '.join(map(self.subscript, node.items))}]"
            case tree.Slice():
                return PRIMARY, self.subscript(node)
            case tree.Tuple():
                items = ", ".join(map(self.expression, node.items))
                return PRIMARY, f"({items},)" if len(node.items) == 1 else f"({items})"
        return PRIMARY, self._atom(node)

    def _atom(self, node: tree.Expr) -> str:
        match node:
            case tree.Number() | tree.Name():
                return node.text
            case tree.Text():
                return quoted(node.value)
            case tree.Bool():
                return "true" if node.value else "false"
            case tree.Infinity():
                return "inf"
            case tree.Nothing():
                return "none"
        return self.source.excerpt(node.span)

    def _binary(self, node: tree.Binary, tight: bool) -> str:
        level = LEVELS[node.op]
        if level == POWER:
            return f"{self.expression(node.left, PRIMARY)}^{self.expression(node.right, SIGN, tight=True)}"
        inner = level == SUM or (level == PRODUCT and tight)
        left = self.expression(node.left, level, inner)
        right = self.expression(node.right, level + 1, inner)
        return left + (node.op if level == PRODUCT and tight and node.op != "@" else f" {node.op} ") + right

    def subscript(self, node: tree.Expr | tree.Slice) -> str:
        """Return one item of an index."""
        if not isinstance(node, tree.Slice):
            return self.expression(node)
        return ":".join("" if end is None else self.expression(end) for end in (node.start, node.stop))

    def argument(self, node: tree.Argument) -> str:
        """Return an argument of a call."""
        if node.name is None:
            return self.expression(node.value)
        return f"{self.keyword(node, node.name)}={self.expression(node.value)}"

    def keyword(self, node: tree.Argument, name: str) -> str:
        """Return the name of an argument, as written."""
        return self.source.excerpt(Span(node.span.start, node.value.span.start)).partition("=")[0].strip() or name

    def word(self, node: tree.Node, name: str) -> str:
        """Return the name at the end of a node, as written."""
        found = LAST_WORD.search(self.source.excerpt(node.span))
        return found[1] if found else name

    def format(self, node: tree.StoreFormat) -> str:
        """Return the storage format of states."""
        options = (
            self.expression(option.value)
            if option.name is None
            else f"{self.keyword(option, option.name)} = {self.expression(option.value)}"
            for option in node.options
        )
        text = f"{node.name.text}({', '.join(options)})" if node.options else node.name.text
        text += "" if node.bits is None else f"+{node.bits.text}"
        return text if node.rounding is None else f"{text} {node.rounding.text}"

    def simple(self, node: tree.Decl | tree.Stmt) -> str:
        """Return a statement or declaration without its block."""
        match node:
            case tree.Assign():
                targets = ", ".join(name.text for name in node.targets)
                targets += f"[{node.at.text}]" if node.at is not None else ""
                values = node.value.items if isinstance(node.value, tree.Tuple) else (node.value,)
                return f"{targets} {node.op} {', '.join(map(self.expression, values))}"
            case tree.Apply():
                return self.expression(node.call)
            case tree.Push():
                items = (f"{name.text} <- {self.expression(value)}" for name, value in node.items)
                return f"push {', '.join(items)}"
            case tree.History():
                kind = "" if node.type is None else f"{node.type} "
                names = ", ".join(name.text for name in node.names)
                return f"history {names}: {kind}size {self.expression(node.size)}"
            case tree.StoreDecl():
                names = ", ".join(name.text for name in node.names)
                when = "" if node.when is None else f" when {self.expression(node.when)}"
                return f"store {names}: {self.format(node.format)}{when}"
            case tree.Flat():
                return "flat"
            case tree.Sparse():
                return "sparse"
            case tree.Iterate():
                until = "" if node.until is None else f" until {self.expression(node.until)}"
                return f"iterate {self.expression(node.count)}{until}"
            case tree.Use():
                return f"use {self.rule_of(node)}"
            case tree.Inner():
                like = "" if node.like is None else f" like {self.expression(node.like)}"
                return f"inner {node.name.text} = {self.rule_of(node)}{like}"
            case tree.TransformDecl():
                return self.signature(node, "transform")
            case tree.Return():
                return f"return {', '.join(map(self.expression, node.values))}"
            case tree.OptimizerDecl():
                return f"optimizer {node.name.text}"
            case tree.HyperDecl():
                doc = "" if node.doc is None else f"  {quoted(node.doc)}"
                return f"hyper {', '.join(map(self.hyper, node.items))}{doc}"
            case tree.Require():
                message = "" if node.message is None else f"  {quoted(node.message)}"
                return f"require {self.expression(node.condition)}{message}"
            case tree.StateDecl():
                word = "state" if node.scope is StateScope.TENSOR else f"{node.scope.value} state"
                when = "" if node.when is None else f" when {self.expression(node.when)}"
                return f"{word} {', '.join(map(self.state, node.items))}{when}"
            case tree.Route():
                when = "otherwise" if node.when is None else f"when {self.expression(node.when)}"
                return f"route {self.rule_of(node)} {when}"
            case tree.Repeat():
                return f"repeat {self.expression(node.count)}"
            case tree.For():
                over = self.expression(node.over)
                names = ", ".join(name.text for name in node.names)
                return f"for {names} in {f'reversed({over})' if node.backwards else over}"
            case tree.Every():
                start = "" if node.start is None else f" from {self.expression(node.start)}"
                return f"every {self.expression(node.period)}{start}{' or first' if node.first else ''}"
            case tree.On():
                return f"on {node.event}"
            case tree.Def(body=body):
                return self.signature(node) + ("" if isinstance(body, tuple) else f" = {self.expression(body)}")
        return self.source.excerpt(node.span)

    def rule_of(self, node: tree.Use | tree.Inner | tree.Route) -> str:
        """Return another rule with its arguments."""
        name = quoted(node.rule.value) if isinstance(node.rule, tree.Text) else node.rule.text
        given = () if isinstance(node, tree.Route) else node.arguments
        return name + (f"({', '.join(map(self.argument, given))})" if given else "")

    def signature(self, node: tree.Def | tree.TransformDecl, word: str = "def") -> str:
        """Return the name and parameters of a function."""
        return f"{word} {node.name.text}({', '.join(map(self.parameter, node.parameters))})"

    def parameter(self, node: tree.Parameter) -> str:
        """Return a parameter of a function."""
        text = node.name.text if node.default is None else f"{node.name.text} = {self.expression(node.default)}"
        return text if node.domain is None else f"{text} {self.domain(node.domain)}"

    def hyper(self, node: tree.HyperItem) -> str:
        """Return one hyperparameter, or a tuple of them."""
        text = node.name.text
        if node.parts is not None:
            text += f" = ({', '.join(map(self.hyper, node.parts))})"
        elif node.default is not None:
            text += f" = {self.expression(node.default, SUM)}" + (" or none" if node.optional else "")
        return text if node.domain is None else f"{text} {self.domain(node.domain)}"

    def domain(self, node: tree.Domain) -> str:
        """Return the range of a hyperparameter."""
        if isinstance(node, tree.Choices):
            return f"in {{{', '.join(self.expression(x, SUM) for x in node.items)}}}"
        low, high = self.expression(node.low, SUM), self.expression(node.high, SUM)
        if node.text.startswith("in"):
            return f"in {'[' if node.low_closed else '('}{low}, {high}{']' if node.high_closed else ')'}"
        if node.text.startswith(">"):
            return f">{'=' if node.low_closed else ''} {low}"
        return f"<{'=' if node.high_closed else ''} {high}"

    def state(self, node: tree.StateItem) -> str:
        """Return one state of a declaration."""
        text = node.name.text
        if node.type is not None:
            text += f": {node.type}"
        if node.initial is not None:
            text += f" = {self.expression(node.initial)}"
        return text if node.key is None else f"{text} as {self.key(node, node.key)}"

    def key(self, node: tree.StateItem, key: str) -> str:
        """Return the key of a state, as written."""
        return re.sub(r"\s*\.\s*", ".", self.source.excerpt(node.span).rpartition(" as ")[2].strip()) or key
