"""Merges the two halves of an update, coefficients and tensors, of several variants into one pair of functions.

Coefficients are identified by their formulas, so that those of several variants have the same name. Two that never
occur together and have the same role in the updates share a name, whose value is then computed differently for each
variant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import combinations

from optlang.targets._python import INDENT, Function
from optlang.targets._questions import Trace
from optlang.targets.module.merge import (
    Block,
    Unit,
    Unmergeable,
    lines,
    merged,
    names,
    or_else,
    renamed,
    stored,
    tidied,
    units,
)
from optlang.targets.module.merge import asked as asked_in

_SYMBOL = re.compile(r"\b_symbol\d+\b")


@dataclass
class Half:
    """One variant's pair.

    Attributes:
        trace: The questions that select it, with their answers.
        host: The function that computes its coefficients.
        update: The function that updates tensors.
        tensors: The number of its parameters that are tensors.
        is_packed: Whether it takes its coefficients as one tensor.
    """

    trace: Trace
    host: Function
    update: Function
    tensors: int
    is_packed: bool
    host_body: list[Unit] = field(default_factory=list)
    update_body: list[Unit] = field(default_factory=list)
    coefficients: dict[str, str] = field(default_factory=dict)  # symbol -> return expression

    def __post_init__(self) -> None:
        *self.host_body, last = units(self.host.lines[2:])
        value = ast.parse(last.text).body[0]
        assert isinstance(value, ast.Return) and isinstance(value.value, ast.Tuple)
        self.returned = [ast.unparse(e) for e in value.value.elts]
        self.update_body = units(self.update.lines[2:])
        if not self.is_packed:
            self.names = list(self.update.parameters[self.tensors :])
            return
        match ast.parse(self.update_body[0].text).body[0]:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Call(func=ast.Attribute(attr="unbind"))):
                self.names = [ast.unparse(e) for e in names]
                self.update_body = self.update_body[1:]
            case _:  # it reads none
                self.names, self.returned = [], []

    @property
    def packed(self) -> tuple[str, ...]:
        """The name of the tensor of coefficients, if they are packed."""
        return self.update.parameters[-1:] if self.is_packed else ()


def tidy(update: Function) -> Function:
    """Return a tensor function in idiomatic form."""
    body = tidied(units(update.lines[2:]), update.parameters)
    return Function([*update.lines[:2], *lines(body)])


class Pairs:
    """Merges the pairs of some variants.

    Args:
        halves: The pairs.
        optional: Names of hyperparameters that may be None.
    """

    def __init__(self, halves: Sequence[Half], optional: Collection[str]) -> None:
        self.halves, self.optional = halves, optional
        self.symbols: dict[str, str] = {}  # by formula
        self.plain: dict[str, str] = {}  # symbols of values that are passed on unchanged
        self.leaves: dict[str, set[int]] = {}
        self.packed = max((name for half in halves for name in half.packed), key=len, default="")
        if any(self.packed in half.update.calls - {*half.packed} for half in halves):
            raise Unmergeable
        for place, half in enumerate(halves):
            self._name(place, half)
        self._share()

    def _name(self, place: int, half: Half) -> None:
        """Assign symbols to the coefficients of a pair, and to their inputs."""
        formulas: dict[str, str] = {}
        new: dict[str, str] = {}
        for unit in half.host_body:
            match ast.parse(unit.text).body[0]:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    formulas[name] = f"({renamed(Unit(ast.unparse(value)), formulas).text})"
                    new[name] = self._symbol(formulas[name], place)
                case _:
                    raise Unmergeable
        own: dict[str, str] = {}
        for name, text in zip(half.names, half.returned, strict=True):
            (read,) = names(text) - {"float"} or {""}
            if text not in (read, f"float({read})"):
                raise Unmergeable
            symbol = new.get(read) or self._symbol(f"{read} of {text}", place)
            if read not in new:
                self.plain[symbol] = read
            own[name] = symbol
            half.coefficients[symbol] = text.replace(read, symbol)
        half.host_body = [renamed(unit, new) for unit in half.host_body]
        fixed = {*half.update.parameters, *own}
        new = own | dict.fromkeys(half.packed, self.packed)
        half.update_body = [renamed(unit, new) for unit in tidied(half.update_body, fixed)]

    def _symbol(self, formula: str, place: int) -> str:
        symbol = self.symbols.setdefault(formula, f"_symbol{len(self.symbols)}")
        self.leaves.setdefault(symbol, set()).add(place)
        return symbol

    def _share(self) -> None:
        """Let coefficients that have the same role in different variants share a symbol."""
        joined: dict[str, str] = {}  # removed symbols, by their replacements

        def now(symbol: str) -> str:
            while symbol in joined:
                symbol = joined[symbol]
            return symbol

        for a, b in combinations(self.halves, 2):
            one, other = ([unit.text for unit in half.update_body] for half in (a, b))
            here, there = ([_SYMBOL.sub("_", text) for text in texts] for texts in (one, other))
            for i, j, count in SequenceMatcher(None, here, there, autojunk=False).get_matching_blocks():
                for x, y in zip(one[i : i + count], other[j : j + count], strict=True):
                    for before, beside in zip(_SYMBOL.findall(x), _SYMBOL.findall(y), strict=True):
                        first, second = now(before), now(beside)
                        if first != second and not self.leaves[first] & self.leaves[second]:
                            self._join(first, second)
                            joined[second] = first

    def _join(self, kept: str, gone: str) -> None:
        """Replace one symbol by another."""
        for half in self.halves:
            for symbol in (kept, gone):
                if symbol in half.coefficients and symbol in self.plain:
                    half.host_body.append(
                        Unit(f"{symbol} = {half.coefficients[symbol].replace(symbol, self.plain[symbol])}")
                    )
                    half.coefficients[symbol] = symbol
            new = {gone: kept}
            half.host_body = [renamed(unit, new) for unit in half.host_body]
            half.update_body = [renamed(unit, new) for unit in half.update_body]
            if gone in half.coefficients:
                text = half.coefficients.pop(gone)
                half.coefficients[kept] = text.replace(gone, kept)
        self.plain.pop(kept, None)
        self.plain.pop(gone, None)
        self.leaves[kept] |= self.leaves.pop(gone)

    # The functions ------------------------------------------------------------------------------------------

    def functions(self, tensors: Sequence[str]) -> tuple[Function, Function]:
        """Return the function of coefficients and the function of tensors, whose parameters are given."""
        traces = [half.trace for half in self.halves]
        host = merged(traces, [half.host_body for half in self.halves])
        update = merged(traces, [half.update_body for half in self.halves])
        order = list(dict.fromkeys(symbol for half in self.halves for symbol in half.coefficients))
        order.sort(key=lambda symbol: symbol in self.plain)
        asked = asked_in(update)
        spelling = self._spelling(order, asked)
        packed = [self.packed] if self.packed else []
        own = [spelling[symbol] for symbol in order]
        known = {*tensors, *packed, *(() if packed else own)}
        local = {name for half in self.halves for unit in half.update_body for name in stored(unit.text)}
        if asked & (local | known | set(own)):
            raise Unmergeable
        return self._host(host, order, spelling), self._update(
            update, [*tensors, *(packed or own)], own, sorted(asked), spelling
        )

    def _spelling(self, order: Sequence[str], asked: Collection[str]) -> dict[str, str]:
        """Return the names of the symbols."""
        used = {n for half in self.halves for f in (half.host, half.update) for n in f.calls | set(f.parameters)}
        used -= {n for half in self.halves for n in half.names if re.fullmatch(r"c\d+", n)}
        used = {n for n in used if not re.fullmatch(r"x\d+", n)}
        found: dict[str, str] = {}
        counts = {"c": 0, "x": 0}
        for symbol in [*order, *(s for s in self.leaves if s not in order)]:
            if symbol in self.plain and self.plain[symbol] not in asked:
                found[symbol] = self.plain[symbol]
                continue
            letter = "c" if symbol in order else "x"
            while True:
                counts[letter] += 1
                name = f"{letter}{counts[letter]}"
                if name not in used:
                    break
            found[symbol] = name
        return found

    def _host(self, block: Block, order: Sequence[str], spelling: Mapping[str, str]) -> Function:
        returned, absent = [], []
        for symbol in order:
            texts = {half.coefficients[symbol] for half in self.halves if symbol in half.coefficients}
            if len(texts) > 1:
                raise Unmergeable
            (text,) = texts
            everywhere = all(symbol in half.coefficients for half in self.halves)
            if symbol in self.plain:
                text = text.replace(symbol, self.plain[symbol])
                if not everywhere and self.plain[symbol] in self.optional:
                    text = f"0.0 if {text} is None else {text}"
            elif not everywhere:
                absent.append(symbol)
            returned.append(text)
        chosen = or_else(block, absent)
        body = list(lines(chosen))
        given = {name for item in chosen if isinstance(item, Unit) for name in stored(item.text)}
        absent = [symbol for symbol in absent if symbol not in given]
        if absent:
            body.insert(0, f"{INDENT}{' = '.join(absent)} = 0.0")
        if not returned and self.packed:
            returned = ["0.0"]
        body.append(f"{INDENT}return ({', '.join(returned)}{',' if len(returned) == 1 else ''})")
        code = [_spelled(line, spelling) for line in body]
        local = {n for half in self.halves for unit in half.host_body for n in names(unit.text) if _SYMBOL.fullmatch(n)}
        read = names("\n".join(line.strip() for line in _flat(code)))
        parameters = [n for n in dict.fromkeys(p for half in self.halves for p in half.host.parameters) if n in read]
        parameters += sorted(asked_in(block) - set(parameters))
        said = f'{INDENT}"""Coefficients of one step, in float64."""'
        assert not local & set(parameters)
        return Function([f"def host({', '.join(parameters)}):", said, *code])

    def _update(
        self, block: Block, parameters: list[str], own: list[str], asked: list[str], spelling: Mapping[str, str]
    ) -> Function:
        body = [_spelled(line, spelling) for line in lines(block)]
        if self.packed and own:
            comma = "," if len(own) == 1 else ""
            body.insert(0, f"{INDENT}{', '.join(own)}{comma} = {self.packed}.unbind()")
        return Function([f"def update({', '.join([*parameters, *asked])}):", self.halves[0].update.lines[1], *body])


def _spelled(line: str, spelling: Mapping[str, str]) -> str:
    return _SYMBOL.sub(lambda match: spelling[match[0]], line)


def _flat(code: Sequence[str]) -> list[str]:
    """Return the lines of a function as a separate block."""
    return ["\n".join(line[len(INDENT) :] for line in code)]
