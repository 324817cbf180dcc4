"""Formats generated functions like a code formatter, and gives them distinct names if a file contains several."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from optlang.codegen.matrix_source import LOOP
from optlang.syntax.quoting import literal

#: The maximum line length.
WIDTH = 120
INDENT = "    "
_POWER = re.compile(r"(?<![\w.)\]])([A-Za-z_][\w.]*|\d[\w.]*) \*\* (-?[\w.]+)(?![\w.(\[])")
_NEGATIVE = re.compile(r"-([A-Za-z_][\w.]*\*\*-?[\w.]+)(?![\w(\[])")
_SAME = re.compile(r"\b(\w+) == \1\b")
#: Placeholder for a string while code is formatted.
_HELD = re.compile(r"_text(\d+)\0")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")


def spaced(code: str) -> str:
    """Return a one-line statement or expression with spaces around its operators."""
    texts: list[str] = []
    tree = _Texts(texts).visit(ast.parse(code))
    text = _SAME.sub(r"~torch.isnan(\1)", ast.unparse(tree))
    last = tree.body[-1]
    match last:
        case ast.Assign(targets=[ast.Tuple()], value=ast.Tuple(elts=[_, _, *_] as values)):  # several names
            text = f"{text.partition(' = ')[0]} = {', '.join(map(ast.unparse, values))}"
    text = _POWER.sub(r"\1**\2", _without_brackets(text))
    text = _NEGATIVE.sub(r"-(\1)", text)
    text = re.sub(r"(?<=[\[ ]):(?=int\()", ": ", text)
    text = re.sub(r"([\[ ]int\([^()]*\)):", r"\1 :", text)
    text = re.sub(r"^(\w+), = ", r"(\1,) = ", text)
    return _HELD.sub(lambda found: literal(texts[int(found[1])]), text)


def _without_brackets(text: str) -> str:
    """Return code without the redundant parentheses that ``ast.unparse`` puts around conditions."""
    for found in reversed([*re.finditer(r"\b(?:and|or) \(", text)]):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        inside = text[found.end() : end - 1]
        other = f"{text[: found.end() - 1]}{inside}{text[end:]}"
        match _parsed(inside):
            case None | ast.Module(body=[ast.Expr(value=ast.BoolOp())]):  # `a or (b and c)` is easier to read
                continue
        before, after = _parsed(text), _parsed(other)
        if before is not None and after is not None and ast.dump(before) == ast.dump(after):
            text = other
    return text


def _parsed(text: str) -> ast.Module | None:
    """Return the syntax tree of code with placeholders for strings, or None if it does not parse."""
    try:
        return ast.parse(text.replace("\0", "_"))
    except SyntaxError:
        return None


class _Texts(ast.NodeTransformer):
    """Replaces strings by placeholders, so that formatting cannot change them.

    Args:
        held: Receives the strings, in the order of the placeholders.
    """

    def __init__(self, held: list[str]) -> None:
        self.held = held

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, str):
            return node
        self.held.append(node.value)
        return ast.Name(f"_text{len(self.held) - 1}\0", ast.Load())


def _masked(code: str) -> str:
    """Return code of the same length with the contents of its strings masked."""
    return _STRING.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', code)


class Function:
    """One generated function.

    Args:
        lines: Its lines, ``def`` first.

    Attributes:
        name: Its name.
        parameters: Names of its parameters.
        calls: Names that it calls or reads.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        (node,) = ast.parse("\n".join(lines)).body
        assert isinstance(node, ast.FunctionDef)
        self.name, self.parameters = node.name, tuple(a.arg for a in node.args.args)
        self.calls = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        self.lines = list(lines)

    def text(self, name: str | None = None) -> str:
        """Return the formatted function, optionally renamed."""
        renamed = [re.sub(r"^def \w+", f"def {name or self.name}", self.lines[0]), *self.lines[1:]]
        return "\n".join(line for one in _joined(renamed) for line in formatted(one)) + "\n"


def functions(source: str) -> list[Function]:
    """Return the functions of a generated module."""
    lines = source.split("\n")
    tree = ast.parse(source)
    return [Function(lines[n.lineno - 1 : n.end_lineno]) for n in tree.body if isinstance(n, ast.FunctionDef)]


def with_loops(own: dict[str, Function]) -> dict[str, Function]:
    """Return a stage with its loop functions moved into ``update``, because other stages may use the same names."""
    loops = [function for name, function in own.items() if name.startswith(LOOP)]
    if not loops:
        return own
    head, said, *body = own["update"].lines
    inside = [f"{INDENT}{line}" if line else "" for loop in loops for line in ("", *loop.lines, "")]
    left = {name: function for name, function in own.items() if not name.startswith(LOOP)}
    return left | {"update": Function([head, said, *inside, *body])}


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Yield logical lines: an open parenthesis continues up to the line that closes it."""
    held = ""
    for line in lines:
        text = held + (line.strip() if held else line)
        code = "" if text.strip().startswith(('"""', "#")) else _masked(text)
        if sum(map(code.count, "([{")) > sum(map(code.count, ")]}")):
            held = text + " "
            continue
        held = ""
        yield text


def formatted(line: str) -> list[str]:
    """Return a logical line of a function, formatted, and split into several lines if it is too long."""
    code = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    if not code or code.startswith(("#", '"""')):
        return [line.rstrip()] if not code.startswith("#") else _comment(indent, code)
    place = _masked(code).find("  # ")
    code, remark = (code, "") if place < 0 else (code[:place], code[place:])
    if code.startswith("def "):
        return _definition(indent, code)
    if code.endswith(":"):
        body = f"{code} pass" if not code.startswith(("else", "elif", "except", "try")) else ""
        if not body:
            return [line.rstrip()]
        return [indent + _header(body) + remark]
    text = indent + spaced(code) + remark
    if len(text) <= WIDTH:
        return [text]
    return _split(indent, code)


def _header(code: str) -> str:
    """Return the first line of a compound statement."""
    return spaced(code).split("\n")[0]


def _comment(indent: str, code: str) -> list[str]:
    words, lines = code[2:].split(" "), [f"{indent}#"]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(f"{indent}#  ")
        lines[-1] += f" {word}"
    return lines


def _definition(indent: str, code: str) -> list[str]:
    """Return the first line of a function: its parameters on the same line, on a separate line, or on one line each."""
    text = indent + _header(f"{code} pass")
    if len(text) <= WIDTH:
        return [text]
    head, _, rest = text.partition("(")
    inner = rest.removesuffix("):")
    if len(indent + INDENT + inner) <= WIDTH:
        return [f"{head}(", f"{indent}{INDENT}{inner}", f"{indent}):"]
    (node,) = ast.parse(f"{code} pass").body
    assert isinstance(node, ast.FunctionDef)
    return [f"{head}(", *(f"{indent}{INDENT}{one}," for one in _parameters(node.args)), f"{indent}):"]


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    """Yield the parameters of a function as source, with their defaults."""
    optional = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    for one, default in zip(arguments.args, optional, strict=True):
        yield one.arg if default is None else f"{one.arg}={spaced(ast.unparse(default))}"
    yield from ["*"] if arguments.kwonlyargs else []
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield one.arg if default is None else f"{one.arg}={spaced(ast.unparse(default))}"


def _split(indent: str, code: str) -> list[str]:
    """Return a statement split into several lines."""
    (node,) = ast.parse(code).body
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
        pairs = zip(node.value.keys, node.value.values, strict=True)
        entries = [f"{_quoted(k)}: {spaced(ast.unparse(v))}" for k, v in pairs if k is not None]
        return [f"{indent}return {{", *(f"{indent}{INDENT}{entry}," for entry in entries), f"{indent}}}"]
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        entries = [spaced(ast.unparse(e)) for e in node.value.elts]
        return [f"{indent}return (", *(f"{indent}{INDENT}{entry}," for entry in entries), f"{indent})"]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Call):
        return _unpacked(indent, [ast.unparse(e) for e in node.targets[0].elts], ast.unparse(node.value.func))
    if isinstance(node, ast.Raise):
        head, _, rest = spaced(code).partition("(")
        return [f"{indent}{head}(", f"{indent}{INDENT}{rest.removesuffix(')')}", f"{indent})"]
    assert isinstance(node, (ast.Assign, ast.Return)), code
    return _named_parts(indent, node)


def _quoted(key: ast.expr) -> str:
    assert isinstance(key, ast.Constant)
    return literal(str(key.value))


def _unpacked(indent: str, names: Sequence[str], function: str) -> list[str]:
    """Return ``a, b, ... = c.unbind()`` as several such statements."""
    source = function.removesuffix(".unbind")
    lines, start = [], 0
    while start < len(names):
        stop = start + 1
        while stop < len(names) and len(indent + ", ".join(names[start : stop + 1])) + len(source) + 24 <= WIDTH:
            stop += 1
        part = names[start:stop]
        left = f"({part[0]},)" if len(part) == 1 else ", ".join(part)
        lines.append(f"{indent}{left} = {source}[{start or ''}:{stop if stop < len(names) else ''}].unbind()")
        start = stop
    return lines


def _named_parts(indent: str, node: ast.Assign | ast.Return) -> list[str]:
    """Return a long formula with parts of it computed first and assigned to names."""
    lines: list[str] = []
    target = spaced(ast.unparse(node.targets[0])) + " = " if isinstance(node, ast.Assign) else "return "
    stem = re.sub(r"\W", "", target.partition(" ")[0]) if isinstance(node, ast.Assign) else "result"
    value: Any = node.value
    while len(f"{indent}{target}{spaced(ast.unparse(value))}") > WIDTH:
        if isinstance(value, ast.IfExp):
            return [*lines, *_chosen(indent, target, value)]
        name = f"{stem}_part_{len(lines) + 1}"
        room = WIDTH - len(f"{indent}{name} = ")
        parts = [n for n in _always_computed(value) if n is not value]
        best = max(
            (n for n in parts if len(spaced(ast.unparse(n))) <= room or isinstance(n, ast.IfExp)),
            key=lambda n: len(ast.unparse(n)),
            default=None,
        )
        if best is None:  # the names alone are too long
            break
        lines += formatted(f"{indent}{name} = {ast.unparse(best)}")
        value = _Replace(best, name).visit(value)
    return [*lines, f"{indent}{target}{spaced(ast.unparse(value))}"]


def _chosen(indent: str, target: str, value: ast.IfExp) -> list[str]:
    """Return a conditional expression as an if statement, which computes only the selected formula."""
    cases = ((f"if {spaced(ast.unparse(value.test))}:", value.body), ("else:", value.orelse))
    return [
        line
        for head, formula in cases
        for line in (indent + head, *formatted(f"{indent}{INDENT}{target}{ast.unparse(formula)}"))
    ]


def _always_computed(value: ast.AST) -> Iterator[ast.expr]:
    """Yield the operations and calls in a formula that are computed regardless of its conditions."""
    if isinstance(value, (ast.BinOp, ast.Call, ast.IfExp)):
        yield value
    inner: Iterable[ast.AST] = ast.iter_child_nodes(value)
    if isinstance(value, ast.IfExp):
        inner = [value.test]
    elif isinstance(value, ast.BoolOp):
        inner = value.values[:1]
    elif isinstance(value, (ast.Lambda, ast.ListComp, ast.GeneratorExp)):
        inner = []
    for node in inner:
        yield from _always_computed(node)


class _Replace(ast.NodeTransformer):
    """Replaces one node by a name."""

    def __init__(self, old: ast.AST, name: str) -> None:
        self.old, self.name = old, name

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.old:
            return ast.Name(self.name, ast.Load())
        return self.generic_visit(node)


def spread(indent: str, head: str, items: Sequence[str], tail: str) -> str:
    """Return a list of items, split into several lines if it is too long."""
    line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        return line
    inside = f"{indent}{INDENT}{', '.join(items)}"
    if tail in ("):", ")") and len(inside) <= WIDTH:
        return f"{indent}{head}\n{inside}\n{indent}{tail}"
    return "\n".join([indent + head, *(f"{indent}{INDENT}{item}," for item in items), indent + tail])


class Library:
    """The functions of a file; equal functions are merged.

    Attributes:
        texts: The source of each function, by name, in order.
        parameters: Parameter names of the functions that are not helpers.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.parameters: set[str] = set()
        self._names: dict[str, str] = {}
        self._parameters: dict[str, tuple[str, ...]] = {}

    def parameters_of(self, name: str) -> tuple[str, ...]:
        """Return the parameter names of a function that has been added."""
        return self._parameters[name]

    def keep(self, function: Function) -> None:
        """Add a helper, which is already formatted and keeps its name."""
        self.texts[function.name] = _SAME.sub(r"~torch.isnan(\1)", "\n".join(function.lines)) + "\n"

    def add(self, function: Function, wanted: str, placed: int = 0) -> str:
        """Add a function and return its name: ``wanted``, unless an equal function exists or the name is taken.

        Args:
            function: The function.
            wanted: The preferred name.
            placed: The number of arguments that are passed by position, so that their names do not matter.
        """
        key = _likeness(function, placed)
        if key not in self._names:
            name, count = wanted, 1
            while name in self.texts:
                count += 1
                name = f"{wanted}_{count}"
            self._names[key] = name
            self.texts[name] = function.text(name)
            self.parameters |= {*function.parameters}
            self._parameters[name] = function.parameters
        return self._names[key]


def _likeness(function: Function, placed: int) -> str:
    """Return a key that is equal for functions that differ only in the names of their variables."""
    (node,) = ast.parse("\n".join(function.lines)).body
    assert isinstance(node, ast.FunctionDef)
    stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    by_name = {*function.parameters[placed:]}
    inner = {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)} - {node.name}
    variables = dict.fromkeys((*function.parameters[:placed], *(n for n in stored if n not in by_name)))
    if inner:  # its variables are not distinguished here
        return function.text("_")
    new = {old: f"_{i}" for i, old in enumerate(variables)}
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            each.id = new.get(each.id, each.id)
        elif isinstance(each, ast.arg):
            each.arg = new.get(each.arg, each.arg)
    node.name = "_"
    return ast.unparse(node)


# Tables ---------------------------------------------------------------------------------------------------------

#: Calls that are formatted with one argument per line.
RECORDS = ("Stage",)


def pretty(code: str) -> str:
    """Return an assignment of a table, with one entry per line if it is a record or too long for one line."""
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.Assign)
    lines = _laid_out(node.value, 0, f"{ast.unparse(node.targets[0])} = ", "")
    return "\n".join(lines) + "\n"


def _laid_out(node: ast.expr, depth: int, before: str, after: str) -> list[str]:
    """Return an expression as lines; ``before`` and ``after`` are part of the first and the last one."""
    indent = INDENT * depth
    flat = f"{indent}{before}{spaced(ast.unparse(node))}{after}"
    records = any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in RECORDS for n in ast.walk(node)
    )
    if not records and len(flat) <= WIDTH:
        return [flat]
    inner: list[str] = []
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            opening, closing = f"{name}(", ")"
            for argument in args:
                inner += _laid_out(argument, depth + 1, "", ",")
            for keyword in keywords:
                inner += _laid_out(keyword.value, depth + 1, f"{keyword.arg}=", ",")
        case ast.Tuple(elts=items):
            opening, closing = "(", ")"
            for item in items:
                inner += _laid_out(item, depth + 1, "", ",")
        case ast.Dict(keys=keys, values=values):
            opening, closing = "{", "}"
            for key, value in zip(keys, values, strict=True):
                assert key is not None
                inner += _laid_out(value, depth + 1, f"{_quoted(key)}: ", ",")
        case _:
            return [flat]
    return [f"{indent}{before}{opening}", *inner, f"{indent}{closing}{after}"]
