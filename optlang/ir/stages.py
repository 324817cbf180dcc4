"""Splits the program of a step into stages that run in order.

A stage ends where it needs a sum over the whole model to which it has only contributed, and where elementwise work and
matrix work alternate. Elementwise work runs before the matrices only if a matrix depends on it; the rest waits until
after, so that at most two elementwise stages surround a matrix stage. A value that no early stage needs moves to a
later one if that reduces memory traffic.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import count

import sympy as sp

from optlang.inputs import Asked, Contribution, Handed, IterationControl, Total, ValueName
from optlang.ir import algebra
from optlang.ir.program import Input, Program, Store, Value
from optlang.kinds import ELEMENT, Kind, Level

#: When a value is computed: after how many barriers; then before (0), among (1) or after (2) the matrices there.
Place = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """One stage of a step.

    Attributes:
        program: Its program; the stores are stores of the step, contributions to totals, and values passed to later
            stages.
        matrices: Whether it is a matrix stage.
        needs: Names of the late inputs it reads.
        carried: Names and kinds of the values passed to later stages.
    """

    program: Program
    matrices: bool
    needs: tuple[ValueName, ...]
    carried: tuple[tuple[Handed, Kind], ...]


def split(program: Program, late: Mapping[ValueName, frozenset[Contribution]]) -> tuple[tuple[Piece, ...], Program]:
    """Return the stages of a step, and a program that computes its host states alone.

    Args:
        program: The step, with its values in order.
        late: The inputs that arrive in the middle of the step, with the contributions each waits for.
    """
    work = _Split(program, late)
    return work.stages(), work.numbers()


class _Split:
    """Assigns the values of a step to stages."""

    def __init__(self, program: Program, late: Mapping[ValueName, frozenset[Contribution]]) -> None:
        self.program = program
        self.kinds = program.kinds()
        self.tensor = {v.symbol: v for v in program.tensor}
        self.order = {v.symbol: i for i, v in enumerate(program.tensor)}
        self.host = {v.symbol: v for v in program.host}
        self.inputs = {i.symbol: i for i in program.inputs}
        self.stores = [s for s in program.stores if s.kind.on_device]
        self.totals = {s.target: s.expr for s in self.stores if isinstance(s.target, Contribution)}
        # The closure is not evaluated before it is known whether the step continues at all.
        asked = frozenset((IterationControl.STOP,)) & self.totals.keys()
        self.late = {n: own | asked if own and not isinstance(n, Total) else own for n, own in late.items()}
        self.evaluates = any(isinstance(t, Asked | IterationControl) for t in self.totals)
        self.readers: dict[sp.Symbol, list[sp.Symbol]] = {}
        for value in program.tensor:
            for symbol in value.expr.free_symbols:
                self.readers.setdefault(symbol, []).append(value.symbol)
        self.place: dict[sp.Symbol, Place] = {}
        self._barriers: dict[sp.Symbol, int] = {}
        self.carries: dict[sp.Symbol, sp.Symbol] = {}  # values passed between stages, under names shared by all paths
        self._put()
        self._join()
        self._sink()

    # Places -------------------------------------------------------------------------------------------------

    def _barrier(self, symbol: sp.Symbol) -> int:
        """Return how many barriers precede the value of a symbol."""
        if symbol not in self._barriers:
            found = 0
            if symbol in self.inputs:
                for total in self.late.get(self.inputs[symbol].name, ()):
                    part = self.totals.get(total)
                    below = max(map(self._barrier, part.free_symbols), default=0) if part is not None else 0
                    found = max(found, 1 + below)
            else:
                value = self.tensor.get(symbol) or self.host[symbol]
                found = max(map(self._barrier, value.expr.free_symbols), default=0)
            self._barriers[symbol] = found
        return self._barriers[symbol]

    def _is_of_matrices(self, value: Value) -> bool:
        """Return whether a value can only be computed in a matrix stage."""
        kinds = [self.kinds[s] for s in value.expr.free_symbols]
        return value.matrices or any(kind.level is Level.MATRIX for kind in (value.kind, *kinds))

    def _put(self) -> None:
        """Assign every value its earliest possible place."""
        among = {v.symbol for v in self.program.tensor if self._is_of_matrices(v)}
        barrier = {v.symbol: self._barrier(v.symbol) for v in self.program.tensor}
        for value in reversed(self.program.tensor):  # a matrix made of sizes alone is computed at its first read
            if not any(self.kinds[s].on_device for s in value.expr.free_symbols):
                readers = [barrier[s] for s in self.readers.get(value.symbol, ())]
                barrier[value.symbol] = min(readers, default=barrier[value.symbol])
        after_matrices: set[sp.Symbol] = set()  # values that depend on a matrix of the same stage
        for value in self.program.tensor:
            before = (s for s in value.expr.free_symbols if s in barrier and barrier[s] == barrier[value.symbol])
            if any(s in among or s in after_matrices for s in before):
                after_matrices.add(value.symbol)
        feeding: set[sp.Symbol] = set()  # values that a matrix of the same stage depends on
        for value in reversed(self.program.tensor):
            if value.symbol in among or value.symbol in feeding:
                feeding |= {s for s in value.expr.free_symbols if s in barrier and barrier[s] == barrier[value.symbol]}
        # Whether the step continues at all is decided before any matrix work.
        halting = {s for t, e in self.totals.items() if isinstance(t, IterationControl) for s in e.free_symbols}
        for value in reversed(self.program.tensor):
            if value.symbol in halting:
                halting |= value.expr.free_symbols
        feeding |= halting - after_matrices - among
        for value in self.program.tensor:  # a mere copy of a matrix result needs no separate stage
            if value.expr in among and barrier[value.expr] == barrier[value.symbol]:
                among.add(value.symbol)
        busy = {barrier[s] for s in among}
        for symbol, stage in barrier.items():
            if symbol in among or (symbol in after_matrices and symbol in feeding):
                self.place[symbol] = (stage, 1)
            elif stage in busy and symbol not in feeding:
                self.place[symbol] = (stage, 2)
            else:
                self.place[symbol] = (stage, 0)

    def _join(self) -> None:
        """Compute elementwise functions of matrix results in the matrix stage if that reduces traffic."""
        for value in self.program.tensor:
            stage, part = self.place[value.symbol]
            operands = [s for s in value.expr.free_symbols if self.kinds[s].on_device]
            if part == 2 and operands and all(self.place.get(s) == (stage, 1) for s in operands):
                before = self._traffic()
                self.place[value.symbol] = (stage, 1)
                if self._traffic() >= before:
                    self.place[value.symbol] = (stage, 2)

    def _sink(self) -> None:
        """Move values to later elementwise stages as long as that reduces memory traffic."""
        stored = {s.expr for s in self.stores if isinstance(s.target, Contribution)}
        for value in reversed(self.program.tensor):
            here = self.place[value.symbol]
            users = [self.place[s] for s in self.readers.get(value.symbol, ())]
            # Where stores wait for the closure, a reduction stays early: later it would need another sweep.
            if here[1] == 1 or value.symbol in stored or (value.reduces and self.evaluates):
                continue
            # Stores have places without values when they are deferred until the closure has been evaluated.
            places = {*self.place.values(), *self._store_places().values()}
            last = min(users) if users else max(places)
            for later in sorted(p for p in places if here < p <= last and p[1] != 1):
                for moved in ({value.symbol}, self._made_for(value, stored)):
                    traffic, was = self._traffic(), {s: self.place[s] for s in moved}
                    self.place |= dict.fromkeys(moved, later)
                    if self._traffic() <= traffic:
                        break
                    self.place |= was

    def _made_for(self, value: Value, stored: Collection[sp.Expr]) -> set[sp.Symbol]:
        """Return a value and the values beside it that only it uses, except reductions, which are cheap to pass on."""
        found, open = {value.symbol}, [value]
        while open:
            for symbol in open.pop().expr.free_symbols:
                beside = self.place.get(symbol) == self.place[value.symbol] and symbol not in stored
                if symbol in found or not beside or self.tensor[symbol].reduces:
                    continue
                if found.issuperset(self.readers[symbol]):
                    found.add(symbol)
                    open.append(self.tensor[symbol])
        return found

    # Memory -------------------------------------------------------------------------------------------------

    def _store_places(self) -> dict[ValueName, Place]:
        """Return where each target is stored: with its value, but not before the last read of the old value."""
        symbols = {i.name: s for s, i in self.inputs.items()}
        last = max(self.place.values(), default=(0, 0))
        first = self._first_stores()
        found: dict[ValueName, Place] = {}
        # A value pushed to a history may be the old value of a state, which is then stored afterwards.
        for store in sorted(self.stores, key=lambda s: s.expr.is_Symbol):
            free = store.expr.free_symbols
            read = [s for s in free if s in self.place or self.kinds[s].on_device or self._barrier(s)]
            born = max((self.place.get(s, (self._barrier(s), 0)) for s in read), default=(-1, 0))
            old = None if isinstance(store.target, Contribution) else symbols.get(store.target)
            readers = [self.place[s] for s in self.readers.get(old, ())] if old is not None else []
            for other in self.stores:  # a state that takes the old value of this one
                if old is not None and other is not store and old in other.expr.free_symbols:
                    readers.append(last if other.expr.is_Symbol else found.get(other.target, last))
            # A contribution that is a single number (an element count) waits for nothing.
            place = max([born, *readers, (0, 0) if isinstance(store.target, Contribution) else first])
            # An elementwise stage cannot store matrices.
            is_matrix = store.kind.level is Level.MATRIX
            found[store.target] = (place[0] + place[1] // 2, 1) if is_matrix else place
        return found

    def _first_stores(self) -> Place:
        """Return the earliest place where states and the parameter may be stored."""
        first = min(self.place.values(), default=(0, 0))
        if self.evaluates:  # nothing is changed before the last evaluation of the closure
            points = [e for t, e in self.totals.items() if isinstance(t, Asked | IterationControl)]
            after = (1 + max(map(self._barrier, e.free_symbols), default=0) for e in points)
            first = max(first, (max(after, default=0), 0))
        return first

    def _sources(
        self, place: Place, stores: Mapping[ValueName, Place]
    ) -> tuple[dict[sp.Symbol, ValueName], list[Value], list[Store]]:
        """Return the symbols a stage reads from memory (with the tensors that hold them), its values and its stores."""
        values = [v for v in self.program.tensor if self.place[v.symbol] == place]
        mine = [s for s in self.stores if stores[s.target] == place]
        inside = {v.symbol for v in values}
        wanted: dict[sp.Symbol, None] = {}
        for expr in (*(v.expr for v in values), *(s.expr for s in mine)):
            for symbol in sorted(expr.free_symbols - inside, key=str):
                wanted.setdefault(symbol)
        reads: dict[sp.Symbol, ValueName] = {}
        in_state = {s.expr: s.target for s in self.stores if not isinstance(s.target, Contribution)}
        for symbol in wanted:
            if symbol in self.inputs:
                if self.inputs[symbol].kind.on_device:
                    reads[symbol] = self.inputs[symbol].name
            elif symbol in self.tensor:
                target = in_state.get(symbol)
                held = target is not None and stores[target] < place
                reads[symbol] = target if held and target is not None else Handed(str(self.carries.get(symbol, symbol)))
        return reads, values, mine

    def _traffic(self) -> int:
        """Return how many element tensors all stages read and write."""
        stores = self._store_places()
        count, carried = 0, set[Handed]()
        for place in sorted(set(self.place.values()) | set(stores.values())):
            reads, _, mine = self._sources(place, stores)
            count += sum(1 for s in reads if self.kinds[s] == ELEMENT)
            carried |= {name for s, name in reads.items() if isinstance(name, Handed) and self.kinds[s] == ELEMENT}
            count += sum(1 for s in mine if s.kind == ELEMENT)
        return count + len(carried)

    # Splitting ----------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Piece, ...]:
        """Return the stages in order."""
        stores = self._store_places()
        places = sorted(set(self.place.values()) | set(stores.values()))
        sources = {place: self._sources(place, stores) for place in places}
        carried = {s for reads, _, _ in sources.values() for s, n in reads.items() if isinstance(n, Handed)}
        taken = {str(s) for s in self.kinds}
        for symbol in sorted(carried, key=lambda s: self.order[s]):
            # Version numbers differ between paths (`matmul_3`), and would make the source of identical stages differ.
            stem = re.sub(r"_\d+$", "", str(symbol))
            name = next(n for n in (f"carried_{stem}{i or ''}" for i in count()) if n not in taken)
            taken.add(name)
            self.carries[symbol] = sp.Symbol(name)
        sources = {place: self._sources(place, stores) for place in places}
        return tuple(self._stage(place, *sources[place], carried) for place in places)

    def _stage(
        self,
        place: Place,
        reads: Mapping[sp.Symbol, ValueName],
        values: list[Value],
        mine: list[Store],
        carried: set[sp.Symbol],
    ) -> Piece:
        left = [v for v in values if v.symbol in carried]
        # A condition is passed on as a number, 0 or 1.
        numbers = {v.symbol: sp.Symbol(f"{self.carries[v.symbol]}_number") for v in left if v.boolean}
        values = [*values, *(Value(n, algebra.call("number", s), self.kinds[s]) for s, n in numbers.items())]
        stores = [*mine]
        for v in left:
            stores.append(Store(Handed(str(self.carries[v.symbol])), numbers.get(v.symbol, v.symbol), v.kind))
        host = self._host(
            {s for v in values for s in v.expr.free_symbols} | {s for x in mine for s in x.expr.free_symbols}
        )
        read = {s for v in (*values, *host) for s in v.expr.free_symbols} | {
            s for x in stores for s in x.expr.free_symbols
        }
        inputs = [i for i in self.program.inputs if i.symbol in read and not i.kind.on_device]
        handed = {s: self.carries[s] for s, name in reads.items() if isinstance(name, Handed)}
        inputs += [Input(handed.get(symbol, symbol), name, self.kinds[symbol]) for symbol, name in reads.items()]
        program = replace(self.program, inputs=tuple(inputs), host=host, phases=(tuple(values),), stores=tuple(stores))
        needs = tuple(i.name for i in inputs if i.name in self.late)
        program = program.substituted(
            {s: algebra.call("ne", c, sp.Integer(0)) if self.tensor[s].boolean else c for s, c in handed.items()}
        )
        kept = tuple((Handed(str(self.carries[v.symbol])), v.kind) for v in left)
        return Piece(program, place[1] == 1, needs, kept)

    def _host(self, wanted: set[sp.Symbol]) -> tuple[Value, ...]:
        """Return the host values that the given symbols depend on."""
        needed = set(wanted)
        for value in reversed(self.program.host):
            if value.symbol in needed:
                needed |= value.expr.free_symbols
        return tuple(v for v in self.program.host if v.symbol in needed)

    def numbers(self) -> Program:
        """Return a program that computes the new host states."""
        stores = tuple(s for s in self.program.stores if not s.kind.on_device)
        host = self._host({s for x in stores for s in x.expr.free_symbols})
        read = {s for v in host for s in v.expr.free_symbols} | {s for x in stores for s in x.expr.free_symbols}
        inputs = tuple(i for i in self.program.inputs if i.symbol in read)
        return replace(self.program, inputs=inputs, host=host, phases=(), stores=stores)
