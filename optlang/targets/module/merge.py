"""Merges functions of several variants: options become parameters, and differences become branches.

Each variant's function is a list of statements. Statements that all share appear once; those that differ are guarded by
the questions that select the variants. For the answers of a variant, the merged function runs the variant's own
statements in their order, except that assignments move from after a branch to before it if two branches can then be
merged. So results do not change.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from keyword import iskeyword

from optlang.rule import Value
from optlang.syntax.quoting import literal
from optlang.targets._python import INDENT, WIDTH, Function, spaced
from optlang.targets._questions import DIMENSIONS, Trace

#: The number of questions that are tried as the first one.
TRIED = 4


class Unmergeable(Exception):
    """The functions cannot be merged."""


@dataclass(frozen=True)
class Unit:
    """A statement, with the comments above it.

    Attributes:
        text: Its lines, without indentation.
        comments: The comments.
    """

    text: str
    comments: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Branch:
    """The statements for each answer to a question.

    Attributes:
        question: The question, as Python.
        cases: The statements for each answer.
    """

    question: str
    cases: tuple[tuple[Value, tuple[Item, ...]], ...]

    def groups(self) -> list[tuple[list[Value], Block]]:
        """Return answers grouped by equal statements, without answers that have no statements."""
        found: list[tuple[list[Value], Block]] = []
        for answer, block in self.cases:
            same = next((answers for answers, known in found if known == block), None)
            if same is None:
                found.append(([answer], block))
            else:
                same.append(answer)
        return [(answers, block) for answers, block in found if block]


Item = Unit | Branch
Block = tuple[Item, ...]


def units(lines: Sequence[str]) -> list[Unit]:
    """Return the statements of a function body."""
    indent = len(INDENT)
    body = [line[indent:] for line in lines]
    found, end = [], 0
    for node in ast.parse("\n".join(body)).body:
        above = [line for line in body[end : node.lineno - 1] if line.startswith("#") and not line.startswith("# ---")]
        end = node.end_lineno or 0
        text = "\n".join(body[node.lineno - 1 : end])
        simple = isinstance(node, ast.Assign | ast.Expr) and "#" not in text
        found.append(Unit(ast.unparse(node) if simple else text, tuple(above)))
    return found


def size(block: Iterable[Item]) -> int:
    """Return the approximate number of lines of a block."""
    total = 0
    for item in block:
        if isinstance(item, Unit):
            total += 1 + len(item.comments) + item.text.count("\n")
        else:
            total += sum(1 + size(inner) for _, inner in item.groups())
    return total


# Branches -----------------------------------------------------------------------------------------------------


def merged(traces: Sequence[Trace], bodies: Sequence[Sequence[Unit]]) -> Block:
    """Return one block for several variants.

    Args:
        traces: The questions that select each, with their answers.
        bodies: The statements of each.

    Raises:
        Unmergeable: If no question distinguishes them.
    """
    answers = [dict(trace) for trace in traces]

    @cache
    def block(members: tuple[int, ...]) -> Block:
        first = tuple(bodies[members[0]])
        if all(tuple(bodies[i]) == first for i in members):
            return first
        asked = [q for q in answers[members[0]] if all(q in answers[i] for i in members)]
        asked = [q for q in asked if len({answers[i][q] for i in members}) > 1]
        if not asked:
            raise Unmergeable
        tried = []
        for question in asked[:TRIED]:
            groups: dict[Value, list[int]] = {}
            for i in members:
                groups.setdefault(answers[i][question], []).append(i)
            tried.append(combined(question, {answer: block(tuple(those)) for answer, those in groups.items()}))
        return min(tried, key=size)

    return block(tuple(range(len(bodies))))


def combined(question: str, blocks: Mapping[Value, Block]) -> Block:
    """Return one block for the answers to a question."""
    rows: list[tuple[Item, frozenset[Value]]] = []
    for answer, block in blocks.items():
        rows = _aligned(question, rows, block, answer)
    items: list[Item] = []
    differing: list[tuple[Item, frozenset[Value]]] = []

    def branch() -> None:
        if differing:
            cases = ((a, tuple(item for item, those in differing if a in those)) for a in blocks)
            items.append(Branch(question, tuple(cases)))
            differing.clear()

    for item, those in rows:
        if len(those) == len(blocks):
            branch()
            items.append(item)
        else:
            differing.append((item, those))
    branch()
    return _gathered(question, items)


def _gathered(question: str, items: Sequence[Item]) -> Block:
    """Return a block in which branches on a question are merged if the statements in between can move before them."""
    found: list[Item] = []
    for item in items:
        place = next((i for i in range(len(found) - 1, -1, -1) if isinstance(found[i], Branch)), None)
        before = None if place is None else found[place]
        if (
            place is not None
            and isinstance(item, Branch)
            and isinstance(before, Branch)
            and item.question == before.question == question
            and [answer for answer, _ in item.cases] == [answer for answer, _ in before.cases]
            and all(_may_precede(unit, before) for unit in found[place + 1 :])
        ):
            pairs = zip(before.cases, item.cases, strict=True)
            found[place:] = [*found[place + 1 :], Branch(question, tuple((a, (*x, *y)) for (a, x), (_, y) in pairs))]
        else:
            found.append(item)
    return tuple(found)


def _may_precede(unit: Item, branch: Branch) -> bool:
    """Return whether a statement can move before a branch: both only assign variables, and different ones."""
    if not isinstance(unit, Unit) or unit.comments or not _only_assigns(unit):
        return False
    inside = list(_units_of(branch))
    if not all(_only_assigns(each) for each in inside):
        return False
    code = "\n".join(each.text for each in inside)
    return not (stored(unit.text) & names(code) or names(unit.text) & stored(code))


def _only_assigns(unit: Unit) -> bool:
    """Return whether a statement assigns a variable and has no other effect."""
    match ast.parse(unit.text).body:
        case [ast.Assign(targets=[ast.Name()], value=value)]:
            calls = [n.func for n in ast.walk(value) if isinstance(n, ast.Call)]
            return not any(isinstance(f, ast.Attribute) and f.attr.endswith("_") for f in calls)
        case _:
            return False


def _units_of(branch: Branch) -> Iterator[Unit]:
    """Yield the statements of a branch."""
    for _, block in branch.cases:
        for item in block:
            yield from [item] if isinstance(item, Unit) else _units_of(item)


def _aligned(
    question: str, rows: list[tuple[Item, frozenset[Value]]], block: Block, answer: Value
) -> list[tuple[Item, frozenset[Value]]]:
    """Return rows aligned with another block, maximizing what they share."""
    own = frozenset((answer,))
    if not rows:
        return [(item, own) for item in block]
    matches = [[_common(question, item, those, other, answer) for other in block] for item, those in rows]
    best = [[0] * (len(block) + 1) for _ in range(len(rows) + 1)]
    for i in range(len(rows) - 1, -1, -1):
        for j in range(len(block) - 1, -1, -1):
            match = matches[i][j]
            along = 0 if match is None else match[1] + best[i + 1][j + 1]
            best[i][j] = max(along, best[i + 1][j], best[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(rows) and j < len(block):
        match = matches[i][j]
        if match is not None and best[i][j] == match[1] + best[i + 1][j + 1]:
            found.append((match[0], rows[i][1] | own))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            found.append(rows[i])
            i += 1
        else:
            found.append((block[j], own))
            j += 1
    return [*found, *rows[i:], *((item, own) for item in block[j:])]


def _common(question: str, item: Item, those: frozenset[Value], other: Item, answer: Value) -> tuple[Item, int] | None:
    """Return the merge of an item of some answers with one of another answer, and how many lines this saves."""
    if item == other:
        return item, size([item])
    match item, other:
        case Branch(), Branch() if (
            item.question == other.question
            and len(those) == 1
            and [a for a, _ in item.cases] == [a for a, _ in other.cases]
        ):
            (one,) = those
            pairs = zip(item.cases, other.cases, strict=True)
            both = Branch(
                item.question, tuple((a, combined(question, {one: x, answer: y})) for (a, x), (_, y) in pairs)
            )
            saved = size([item]) + size([other]) - size([both])
            return (both, saved) if saved > 0 else None
        case _:
            return None


# Text ---------------------------------------------------------------------------------------------------------


def lines(block: Iterable[Item], depth: int = 1) -> Iterator[str]:
    """Yield the lines of a block."""
    indent = INDENT * depth
    said: tuple[str, ...] = ()
    for item in block:
        if isinstance(item, Unit):
            above = () if item.comments == said else _remarks(item, depth)
            said = item.comments or said
            yield from (indent + line if line else "" for line in (*above, *item.text.split("\n")))
        else:
            said = ()
            yield from _branch_lines(item, depth)


def _remarks(item: Unit, depth: int) -> Iterator[str]:
    """Yield the comments of a statement; inside a branch, these are lines of the rule without their condition."""
    for comment in item.comments:
        said = comment if depth == 1 else re.sub(r"^# (?:(?:if|elif) [^:]*|else):(?= \S)", "#", comment)
        if depth == 1 or re.sub(r"\s", "", said) != "#" + re.sub(r"\s", "", item.text):
            yield said


def _branch_lines(item: Branch, depth: int) -> Iterator[str]:
    """Yield the lines of a branch: ``if``, ``elif`` and ``else``; comments that begin all cases are moved above it."""
    chain, indent = _chain(item), INDENT * depth
    first = chain[0][1][0]
    said = first.comments if isinstance(first, Unit) and len(chain) > 1 else ()
    if said and all(isinstance(b[0], Unit) and b[0].comments == said for _, b in chain):
        yield from (indent + line for line in _remarks(Unit("", said), depth))
        chain = [(test, (Unit(block[0].text), *block[1:])) for test, block in chain if isinstance(block[0], Unit)]
    chosen = _chosen(chain)
    if len(indent + chosen) <= WIDTH and chosen:
        yield indent + chosen
        return
    for place, (test, block) in enumerate(chain):
        word = "if" if place == 0 else "elif"
        yield indent + (f"{word} {spaced(test)}:" if test else "else:")
        yield from lines(block, depth + 1)


def _chosen(chain: Sequence[tuple[str, Block]]) -> str:
    """Return a conditional expression that assigns a variable; empty if a branch does more than that."""
    units = [block[0] for _, block in chain if len(block) == 1]
    match [ast.parse(unit.text).body[0] for unit in units if isinstance(unit, Unit) and not unit.comments]:
        case [ast.Assign(targets=[a], value=x), ast.Assign(targets=[b], value=y)] if (
            len(chain) == 2 and not chain[1][0] and ast.unparse(a) == ast.unparse(b)
        ):
            return spaced(f"{ast.unparse(a)} = {ast.unparse(x)} if {chain[0][0]} else {ast.unparse(y)}")
        case _:
            return ""


def or_else(block: Block, absent: Collection[str]) -> Block:
    """Return a block in which variables that are 0 unless a branch computes them are assigned in one statement."""
    assigned = [name for item in block for name in _assigned(item)]
    found: list[Item] = []
    for item in block:
        chain = _chain(item) if isinstance(item, Branch) else []
        match chain:
            case [(test, (Unit(text=text),))]:
                (node,) = ast.parse(text).body
            case _:
                found.append(item)
                continue
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                name in absent and assigned.count(name) == 1 and not isinstance(value, ast.IfExp)
            ):
                found.append(Unit(f"{name} = {ast.unparse(value)} if {test} else 0.0"))
            case _:
                found.append(item)
    return tuple(found)


def _assigned(item: Item) -> list[str]:
    """Return the names that a statement or a branch assigns, with repetitions."""
    return [name for unit in ([item] if isinstance(item, Unit) else _units_of(item)) for name in stored(unit.text)]


def _chain(item: Branch) -> list[tuple[str, Block]]:
    """Return the conditions of a branch with their statements; the last case may have no condition."""
    groups = item.groups()
    every = [answer for answer, _ in item.cases]
    covered = sum(len(answers) for answers, _ in groups) == len(every)
    groups.sort(key=lambda group: (_rest(item.question, group[0]), group[0] == [False]))
    found: list[tuple[str, Block]] = []
    for place, (answers, block) in enumerate(groups):
        last = covered and 0 < place == len(groups) - 1
        only = block[0] if len(block) == 1 else None
        if last:
            found += _chain(only) if isinstance(only, Branch) else [("", block)]
            continue
        test = condition(item.question, answers, every)
        inner = _chain(only) if isinstance(only, Branch) and len(groups) == 1 else []
        if len(inner) == 1:
            test, block = _joined("and", [test, inner[0][0]]), inner[0][1]
        found.append((test, block))
    merged: list[tuple[str, Block]] = []
    for test, block in found:
        if merged and merged[-1][1] == block and test:
            merged[-1] = _joined("or", [merged[-1][0], test]), block
        else:
            merged.append((test, block))
    return merged


def _joined(word: str, tests: Sequence[str]) -> str:
    """Return conditions joined by ``and`` or ``or``, with parentheses where precedence requires them."""
    found = []
    for test in tests:
        node = ast.parse(test, mode="eval").body
        loose = isinstance(node, ast.IfExp | ast.Lambda)
        loose = loose or (word == "and" and isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or))
        found.append(f"({test})" if loose else test)
    return f" {word} ".join(found)


def _rest(question: str, answers: Collection[Value]) -> bool:
    """Return whether some answers include the catch-all answer: other numbers of dimensions."""
    return question == DIMENSIONS and None in answers


def condition(question: str, answers: Sequence[Value], every: Sequence[Value]) -> str:
    """Return the condition that the answer to a question is among some of the possible answers."""
    if set(every) <= {True, False}:
        if answers == [True]:
            return question
        node = ast.parse(question, mode="eval").body
        match node:
            case ast.Compare(left=left, ops=[ast.Is()], comparators=[right]):
                return f"{ast.unparse(left)} is not {ast.unparse(right)}"
            case _:
                return f"not {question if question.isidentifier() else f'({question})'}"
    if _rest(question, answers):
        others = [answer for answer in every if answer not in answers]
        return f"not ({condition(question, others, every)})"
    texts = [literal(int(a) if isinstance(a, float) and a.is_integer() else a) for a in answers]
    inner = question if question.isidentifier() else f"({question})"
    if len(texts) == 1:
        return f"{inner} is None" if answers == [None] else f"{inner} == {texts[0]}"
    return f"{inner} in ({', '.join(texts)})"


# Names --------------------------------------------------------------------------------------------------------


def names(code: str) -> set[str]:
    """Return the names in a piece of code."""
    return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}


class _Renaming(ast.NodeTransformer):
    def __init__(self, new: Mapping[str, str]) -> None:
        self.new = new

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.new[node.id], node.ctx) if node.id in self.new else node


def renamed(unit: Unit, new: Mapping[str, str]) -> Unit:
    """Return a statement with renamed variables."""
    if not names(unit.text) & set(new):
        return unit
    return Unit(ast.unparse(_Renaming(new).visit(ast.parse(unit.text))), unit.comments)


_VERSION = re.compile(r"(\w*?[A-Za-z])_\d+")


def unversioned(body: Sequence[Unit], fixed: Collection[str]) -> list[Unit]:
    """Return statements in which a variable keeps one name (`p_1 = c*p` as `p = c*p`).

    The old value of such a variable is freed when it is reassigned, so it needs no ``del``.

    Args:
        body: The statements, in which each name is assigned once, or reassigned immediately.
        fixed: Names that stay.
    """
    assigned: dict[str, int] = {}
    read: dict[str, int] = {}
    fixed = set(fixed)
    for place, unit in enumerate(body):
        (statement,) = ast.parse(unit.text).body
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assigned[node.id] = place
                single = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
                fixed |= set() if single else {node.id}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read[node.id] = place
    versions: dict[str, list[str]] = {}
    for name in assigned:
        found = _VERSION.fullmatch(name)
        if found and found[1] not in fixed and name not in fixed and not iskeyword(found[1]):
            versions.setdefault(found[1], []).append(name)
    new: dict[str, str] = {}
    for base, those in versions.items():
        chain = [*([base] if base in assigned else []), *those]
        ends = all(read.get(old, -1) <= assigned[later] for old, later in pairwise(chain))
        if ends and (base in assigned or base not in read):
            new |= dict.fromkeys(those, base)
    kept = (_without_deleted(unit, {*new, *new.values()}) for unit in body)
    return [unit for unit in (renamed(unit, new) for unit in kept if unit.text) if not _is_itself(unit)]


def _without_deleted(unit: Unit, those: Collection[str]) -> Unit:
    """Remove some variables from a ``del`` statement; return an empty string if none remains."""
    match ast.parse(unit.text).body[0]:
        case ast.Delete(targets=targets):
            left = [ast.unparse(target) for target in targets if ast.unparse(target) not in those]
            return Unit(f"del {', '.join(left)}" if left else "", unit.comments)
        case _:
            return unit


def rolled(body: Sequence[Unit]) -> list[Unit]:
    """Return statements with repeated sequences rolled into a loop."""
    texts, found, place = [unit.text for unit in body], [], 0
    while place < len(body):
        best = (0, 0, 0)
        for length in range(2, 13):
            turns = 1
            while texts[place : place + length] == texts[(start := place + turns * length) : start + length]:
                turns += 1
            if turns > 2:
                best = max(best, ((turns - 1) * length, length, turns))
        saved, length, turns = best
        if not saved:
            found.append(body[place])
            place += 1
            continue
        inner = "\n".join(lines(Unit(text) for text in texts[place : place + length]))
        found.append(Unit(f"for _ in range({turns}):\n{inner}", body[place].comments))
        place += turns * length
    return found


def tidied(body: Sequence[Unit], fixed: Collection[str]) -> list[Unit]:
    """Return statements in idiomatic form; ``fixed`` are names that stay."""
    return rolled(unversioned(body, fixed))


def _is_itself(unit: Unit) -> bool:
    """Return whether a statement assigns a variable to itself."""
    match ast.parse(unit.text).body[0]:
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=value)):
            return target == value
        case _:
            return False


# Functions ----------------------------------------------------------------------------------------------------


def asked(block: Iterable[Item]) -> set[str]:
    """Return the names that the questions of a block read."""
    found: set[str] = set()
    for item in block:
        if isinstance(item, Branch):
            found |= names(item.question) - {"math", "max", "min", "float"}
            found |= {name for _, inner in item.cases for name in asked(inner)}
    return found


def alike(traces: Sequence[Trace], functions: Sequence[Function]) -> Function:
    """Return one function for several variants.

    Raises:
        Unmergeable: If they cannot be merged.
    """
    first = functions[0]
    if all(function.lines == first.lines for function in functions):
        return first
    bodies = [units(function.lines[2:]) for function in functions]
    if any(body[-1] != bodies[0][-1] for body in bodies) and bodies[0][-1].text.startswith("return {"):
        bodies = [_filled(body) for body in bodies]
    block = _with_entries(merged(traces, bodies))
    parameters = list(dict.fromkeys(p for function in functions for p in function.parameters))
    parameters += sorted(asked(block) - set(parameters))
    local = {name for body in bodies for unit in body for name in stored(unit.text)}
    if asked(block) & local:
        raise Unmergeable
    return Function([f"def {first.name}({', '.join(parameters)}):", first.lines[1], *lines(block)])


def stored(code: str) -> set[str]:
    """Return the names that a piece of code assigns."""
    return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _with_entries(block: Block) -> Block:
    """Return a block in which a dict display contains the entries that are assigned right after it."""
    found: list[Item] = []
    for item in block:
        match [ast.parse(one.text).body[0] for one in (*found[-1:], item) if isinstance(one, Unit)]:
            case [
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)),
                ast.Assign(targets=[ast.Subscript(value=ast.Name(id=written), slice=key)], value=value),
            ] if (
                name == written == "initial"
                and len(text := f"{INDENT}{name} = {spaced(ast.unparse(ast.Dict([*keys, key], [*values, value])))}")
                <= WIDTH
            ):
                found[-1] = Unit(text.strip())
            case _:
                found.append(item)
    return tuple(found)


def _filled(body: Sequence[Unit]) -> list[Unit]:
    """Return statements that fill a dict entry by entry, instead of returning a dict display."""
    (node,) = ast.parse(body[-1].text).body
    assert isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
    pairs = zip(node.value.keys, node.value.values, strict=True)
    entries = [Unit(f"initial[{ast.unparse(k)}] = {ast.unparse(v)}") for k, v in pairs if k is not None]
    return [*body[:-1], Unit("initial = {}"), *entries, Unit("return initial")]
