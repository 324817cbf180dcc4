"""The formatter: prints a tree as canonical text.

Spacing, indentation and brackets follow from the tree. Comments, single blank lines, the spelling of names and numbers,
and ``head: statement`` on one line are kept. A statement over several lines is kept as written if it contains a comment
or would not fit on one line, and so is everything that this version does not compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.unparse_formulas import Formulas, has_unsupported
from optlang.syntax.walk import own_expressions

INDENT = "    "
WIDTH = 100


@dataclass
class Line:
    """A line of output (several for a statement kept as written) and its trailing comment."""

    code: str
    comment: str = ""

    @property
    def width(self) -> int:
        """Columns up to the comment."""
        return len(self.code.rpartition("\n")[2])


def format_tree(parsed: tree.Tree) -> str:
    """Return the rule as canonical text. Formatting is idempotent."""
    return _Formatter(parsed).text()


class _Formatter:
    def __init__(self, parsed: tree.Tree) -> None:
        self.tree = parsed
        self.source = parsed.source
        self.formulas = Formulas(parsed.source)
        self.comments = list(reversed(parsed.comments))  # in reverse, so that pop() yields the next one
        self.lines: list[Line] = []
        self.row = 0  # the last source line written

    def text(self) -> str:
        """Return the formatted rule."""
        end = len(self.source.text) + 1
        if self.tree.doc is not None:
            self.simple(self.tree.doc, 0, self.tree.items[0].span.start if self.tree.items else end)
        self.block(self.tree.items, 0, end)
        self.own_line_comments(end, 0)
        return "".join(f"{line}\n" for line in self.aligned())

    def aligned(self) -> list[str]:
        """Return the lines, with the comments of consecutive lines aligned."""
        result: list[str] = []
        for commented, run in groupby(self.lines, lambda line: bool(line.comment and line.code)):
            lines = list(run)
            column = max(line.width for line in lines) + 2
            for line in lines:
                gap = " " * (column - line.width) if commented else ""
                result.append(f"{line.code}{gap}{line.comment}".rstrip())
        return result

    # Comments and blank lines

    def row_of(self, offset: int) -> int:
        """Return the source's line number of a character."""
        return self.source.position(offset)[0]

    def begin(self, offset: int) -> None:
        """Keep one blank line if there was one before the line of ``offset``."""
        if self.lines and self.row_of(offset) > self.row + 1:
            self.lines.append(Line(""))

    def own_line_comments(self, until: int, depth: int, column: int = 0) -> None:
        """Write the comments before ``until`` that start at ``column`` or further right."""
        while self.comments and self.comments[-1].span.start < until:
            start = self.comments[-1].span.start
            if self.source.position(start)[1] < column:
                return
            self.begin(start)
            self.lines.append(Line(INDENT * depth + self.comments.pop().text))
            self.row = self.row_of(start)

    def write(self, code: str, span: Span, depth: int, until: int) -> None:
        """Write the code for ``span``, with the comments on its lines that come before ``until``."""
        self.own_line_comments(span.start, depth)
        self.begin(span.start)
        last, found = self.row_of(max(span.start, span.end - 1)), list[str]()
        while self.comments and self.comments[-1].span.start < until:
            if self.row_of(self.comments[-1].span.start) > last:
                break
            found.append(self.comments.pop().text)
        self.lines += [Line(INDENT * depth + comment) for comment in found[:-1]]
        self.lines.append(Line(INDENT * depth + code, found[-1] if found else ""))
        self.row = last

    # Statements

    def block(self, items: tuple[tree.Decl | tree.Stmt, ...], depth: int, until: int) -> None:
        """Write the statements of a block; ``until`` is the start of whatever follows it."""
        for i, item in enumerate(items):
            self.item(item, depth, items[i + 1].span.start if i + 1 < len(items) else until)

    def item(self, item: tree.Decl | tree.Stmt, depth: int, until: int) -> None:
        """Write a statement or declaration and its blocks."""
        match item:
            case tree.If():
                self.if_block(item, depth, until)
            case tree.Repeat(body=body) | tree.For(body=body) | tree.Every(body=body) | tree.On(body=body):
                self.headed(f"{self.head(item)}:", item.span.start, body, depth, until)
            case tree.Def(body=tuple() as body) | tree.TransformDecl(body=body):
                self.headed(f"{self.formulas.simple(item)}:", item.span.start, body, depth, until)
            case _:
                self.simple(item, depth, until)

    def if_block(self, item: tree.If, depth: int, until: int) -> None:
        """Write an ``if`` with all its branches."""
        starts = [item.span.start]
        bodies = [body for _, body in item.branches]
        for (_, before), (condition, _) in zip(item.branches, item.branches[1:], strict=False):
            starts.append(self.find("elif", before[-1].span.end, condition.span.start))
        if item.other is not None:
            starts.append(self.find("else", bodies[-1][-1].span.end, item.other[0].span.start))
            bodies.append(item.other)
        for i, (start, body, following) in enumerate(zip(starts, bodies, [*starts[1:], until], strict=True)):
            head = "else:"
            if i < len(item.branches):
                head = f"{'elif' if i else 'if'} {self.condition(item.branches[i][0])}:"
            self.headed(head, start, body, depth, following)

    def find(self, word: str, start: int, end: int) -> int:
        """Return the position of a keyword between two offsets, ignoring comments."""
        at = self.source.text.find(word, start, end)
        while any(x.span.start <= at < x.span.end for x in self.tree.comments):
            at = self.source.text.find(word, at + 1, end)
        return at

    def condition(self, node: tree.Expr) -> str:
        """Return the condition of a branch."""
        if has_unsupported(node):
            return self.source.excerpt(node.span)
        return self.formulas.expression(node)

    def head(self, item: tree.Repeat | tree.For | tree.Every | tree.On) -> str:
        """Return the head of a block, without the colon."""
        own = () if isinstance(item, tree.On) else own_expressions(item)
        if any(map(has_unsupported, own)):
            return self.source.excerpt(Span(item.span.start, item.body[0].span.start)).rpartition(":")[0]
        return self.formulas.simple(item)

    def headed(self, head: str, start: int, body: tuple[tree.Decl | tree.Stmt, ...], depth: int, until: int) -> None:
        """Write a head that ends with ``:`` and its block, on one line if the source has it so."""
        first = body[0].span.start
        if self.source.text[self.source.text.rfind("\n", 0, first) + 1 : first].strip():
            parts = "; ".join(self.statement(x, depth) for x in body)
            self.write(f"{head} {parts}", Span(start, body[-1].span.end), depth, until)
            return
        column = self.source.position(first)[1]
        self.write(head, Span(start, self.head_end(start, first)), depth, first)
        self.block(body, depth + 1, until)
        self.own_line_comments(until, depth + 1, column)

    def head_end(self, start: int, first: int) -> int:
        """Return the end of the head that begins at ``start``, given where its block begins."""
        comments = [x.span for x in self.tree.comments if start < x.span.start < first]
        end = first
        while end > start:
            end = len(self.source.text[:end].rstrip())
            comment = next((x for x in comments if x.end == end), None)
            if comment is None:
                return end
            end = comment.start
        return first

    def simple(self, item: tree.Text | tree.Decl | tree.Stmt, depth: int, until: int) -> None:
        """Write a statement without a block."""
        code = self.statement(item, depth)
        if "\n" in code:
            self.own_line_comments(item.span.start, depth)
            while self.comments and self.comments[-1].span.start < item.span.end:
                self.comments.pop()  # it is part of the code
        self.write(code, item.span, depth, until)

    def statement(self, item: tree.Text | tree.Decl | tree.Stmt, depth: int) -> str:
        """Return the code of a statement without a block."""
        written = self.source.excerpt(item.span)
        if isinstance(item, tree.Text):
            return written
        code = written if has_unsupported(item) else self.formulas.simple(item)
        if "\n" not in written:
            return code
        inside = any(item.span.start < x.span.start < item.span.end for x in self.tree.comments)
        if not inside and "\n" not in code and len(code) + len(INDENT) * depth <= WIDTH:
            return code
        return self.moved(item.span, depth)

    def moved(self, span: Span, depth: int) -> str:
        """Return a multi-line span as written, reindented to ``depth``."""
        line = self.source.text[self.source.text.rfind("\n", 0, span.start) + 1 : span.start]
        old = line[: len(line) - len(line.lstrip())]
        first, *rest = self.source.excerpt(span).split("\n")
        new = INDENT * depth
        shifted = [new + x[len(old) :] if x.strip() and x.startswith(old) else x for x in rest]
        return "\n".join(x.rstrip() for x in (first, *shifted))
