"""The source of a Python file after parts of its syntax tree have been removed."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from optlang.targets._python import INDENT, WIDTH, spaced

#: Fields of statements that are blocks.
BLOCKS = ("body", "orelse", "finalbody")


class TrimmedFile:
    """The source of the runtime.

    Args:
        source: Its text.
    """

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        self.tree = ast.parse(source)
        self.above: dict[ast.AST, list[str]] = {}
        self.heads: dict[ast.AST, tuple[str, list[str]]] = {}
        self._note(self.tree.body, 0)

    def _note(self, body: list[ast.stmt], end: int) -> None:
        """Record the first lines of statements, and the comment lines above each, which belong to it."""
        for node in body:
            first, last = _first_line(node), node.end_lineno or 0
            for inner in _own_blocks(node):
                start = _first_line(inner[0]) - 1
                while not self.lines[start - 1].partition("  #")[0].endswith(":"):
                    start -= 1
                last = min(last, start)
                self._note(inner, start)
            self.above[node] = self.lines[end : first - 1]
            self.heads[node] = _head(node), self.lines[first - 1 : last]
            end = node.end_lineno or 0

    def text(self, node: ast.stmt, depth: int) -> str:
        """Return a definition without the lines above it."""
        return "\n".join(self._statement(node, depth)) + "\n"

    def _block(self, body: list[ast.stmt], depth: int) -> list[str]:
        """Return the lines of a block."""
        lines: list[str] = []
        for node in body:
            for line in self._lines_above(node):
                if line or (lines and lines[-1]):
                    lines.append(INDENT * depth + line if line else "")
            if isinstance(node, ast.AnnAssign) and lines and lines[-1].endswith('"""'):
                lines.append("")
            lines += self._statement(node, depth)
        return lines

    def _lines_above(self, node: ast.stmt) -> list[str]:
        outer = getattr(node, "outer", None)
        above = [] if outer is None else self._lines_above(outer)
        return [*above, *(line.strip() for line in self.above.get(node, ()))]

    def _statement(self, node: ast.stmt, depth: int, word: str = "") -> list[str]:
        """Return the lines of a statement; ``word`` is put before it."""
        indent, lines = INDENT * depth, self._opening(node, depth, word)
        for name in BLOCKS:
            block = getattr(node, name, None)
            if not isinstance(block, list) or not block:
                continue
            if name == "orelse" and len(block) == 1 and isinstance(block[0], ast.If):
                lines += self._statement(block[0], depth, "el")
                continue
            lines += {"body": [], "orelse": [f"{indent}else:"], "finalbody": [f"{indent}finally:"]}[name]
            lines += self._block(block, depth + 1)
            if name == "body":
                for handler in getattr(node, "handlers", ()):
                    said = self.lines[handler.lineno - 1].strip()
                    lines += [indent + said, *self._block(handler.body, depth + 1)]
        return lines

    def _opening(self, node: ast.stmt, depth: int, word: str) -> list[str]:
        """Return the first lines of a statement: those of the source, or unparsed if it has changed."""
        head, (before, lines) = _head(node), self.heads.get(node, ("", []))
        indent = INDENT * depth
        if _is_docstring(node):
            lines = list(_said(lines, getattr(node, "unread", ())))
            return [indent + line[len(lines[0]) - len(lines[0].lstrip()) :] if line else "" for line in lines]
        if head == before:
            own = len(lines[0]) - len(lines[0].lstrip())
            copied = [(indent + line[own:]).rstrip() for line in lines]
            copied[0] = indent + word + copied[0].lstrip().removeprefix(word)
            marks = [line for line in copied if line.lstrip().startswith("@")]
            copied = copied[len(marks) :]
            joined = _joined(copied)
            return [*marks, *([joined] if len(joined) <= WIDTH and not _spread(copied) else copied)]
        assert "f'" not in head, f"an f-string in what changes: {head}"
        decorators = [indent + line for line in head.split("\n") if line.startswith("@")]
        code = head.split("\n")[-1]
        opened = code.endswith(":")
        printed = spaced(f"{code} pass").split("\n")[0] if opened else spaced(code)
        remark = lines[-1].partition("  #") if lines else ("", "", "")
        if remark[1] and len(indent + printed + "".join(remark[1:])) <= WIDTH:
            printed += "".join(remark[1:])
        return [*decorators, *_laid_out(indent, word + printed)]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _said(lines: list[str], unread: Collection[str]) -> Iterator[str]:
    """Yield the lines of a docstring without the entries for some fields."""
    silent = False
    for line in lines:
        name, colon, _ = line.strip().partition(": ")
        depth = len(line) - len(line.lstrip())
        if depth == 2 * len(INDENT) or not line.strip():
            silent = bool(colon) and name in unread
        elif depth < 2 * len(INDENT):
            silent = False
        if not silent:
            yield line


def _first_line(node: ast.stmt) -> int:
    return int(min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]))


def _own_blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """Yield the blocks of a statement."""
    for name in BLOCKS:
        block = getattr(node, name, None)
        if isinstance(block, list) and block:
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body


def _head(node: ast.stmt) -> str:
    """Return a statement without its blocks."""
    blocks = {name: getattr(node, name, None) for name in (*BLOCKS, "handlers")}
    if not isinstance(blocks["body"], list):
        return ast.unparse(node)
    if isinstance(node, ast.Try):
        return "try:"
    alone = type(node)(**{**{name: getattr(node, name) for name in node._fields}, "body": [ast.Pass()]})
    if "orelse" in node._fields:
        alone.orelse = []  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(alone)).rpartition("\n")[0]


def _spread(lines: list[str]) -> bool:
    """Return whether a statement must stay on several lines, as indicated by a trailing comma or a comment."""
    return len(lines) > 1 and (lines[-2].endswith(",") or any("  #" in line for line in lines))


def _joined(lines: list[str]) -> str:
    """Return a statement of several lines as one line."""
    text = lines[0]
    for line in lines[1:]:
        inner = line.strip()
        text += inner if text[-1] in "([{" or inner[0] in ")]}" else f" {inner}"
    return text


def _laid_out(indent: str, code: str) -> list[str]:
    """Return a statement on one line, or with the contents of its last parentheses on one line, or on one line each."""
    if len(indent + code) <= WIDTH:
        return [indent + code]
    node = ast.parse(f"{code} pass" if code.endswith(":") else code).body[0]
    match node:
        case ast.FunctionDef(args=arguments):
            place, parts = code.index("(") + 1, list(_parameters(arguments))
            end = code.rindex(")")
        case ast.Expr(value=ast.Call(args=args)) | ast.Assign(value=ast.Call(args=args)):
            place, parts = len(code) - len(", ".join(map(_plainly, args))) - 1, list(map(_plainly, args))
            end = len(code) - 1
        case _:
            raise AssertionError(code)
    inside = f"{indent}{INDENT}{code[place:end]}"
    inner = [inside] if len(inside) <= WIDTH else [f"{indent}{INDENT}{part}," for part in parts]
    return [indent + code[:place], *inner, indent + code[end:]]


def _plainly(node: ast.expr) -> str:
    return spaced(ast.unparse(node))


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    """Yield the parameters of a function."""
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    for one, default in zip(arguments.args, defaults, strict=True):
        yield ast.unparse(one) if default is None else f"{ast.unparse(one)} = {ast.unparse(default)}"
