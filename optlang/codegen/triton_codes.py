"""Quantised tensors in Triton kernels: decodes them on reads, encodes them on stores.

A row of the table (see :mod:`optlang.codegen.triton_source`) has further columns for them after the addresses of the
tensors: the addresses of scales and the like; if a format has blocks, the length of a row of the tensor and the number
of elements with all rows padded to whole blocks; if a format draws random numbers, the offset of its first element in
the whole tensor (it may be a shard), and a key per such format. ``draw`` holds what differs from step to step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from optlang.codegen.memory import INDENT
from optlang.codegen.triton_writer import call_lines
from optlang.inputs import ValueName
from optlang.storage.blocks import Blocks, largest_block
from optlang.storage.coded import Coded


class Codes:
    """The quantised tensors of a kernel.

    Args:
        formats: Their formats.
        stored: The names of the pointers to the codes.
        names: The names of everything in the kernels that is not a value of the rule.
        fixed: The number of tensor addresses in a row.

    Attributes:
        unit: The largest block; 0 if there are none.
        width: The number of columns added to a row.
        drawing: The tensors whose formats draw random numbers.
        paired: The pointers to second tensors with one number per element.
    """

    def __init__(
        self, formats: Mapping[ValueName, Coded], stored: Mapping[ValueName, str], names: Mapping[str, str], fixed: int
    ) -> None:
        self.formats, self.stored, self.names, self.fixed = formats, stored, names, fixed
        self.unit = largest_block(formats.values())
        self.drawing = [name for name, format in formats.items() if format.draws]
        self.width = len(formats) + (2 if self.unit else 0) + (1 + len(self.drawing) if self.drawing else 0)
        self.seconds = {
            name: names[f"{stored[name]}_{'scales' if isinstance(each, Blocks) else 'rest'}"]
            for name, each in formats.items()
            if not each.alone
        }
        self.paired = {self.seconds[name] for name, each in formats.items() if each.pairs and not each.alone}
        self.keys = {name: names[f"{stored[name]}_key"] for name in self.drawing}

    def functions(self) -> Iterator[str]:
        """Yield the functions of the formats, without repeats."""
        yield from dict.fromkeys(text for each in self.formats.values() for text in each.triton.strip().split("\n\n"))

    # A block of elements ------------------------------------------------------------------------------------

    def arguments(self, read: Sequence[ValueName], written: Sequence[ValueName]) -> list[str]:
        """Return the additional arguments of a block's function that reads and writes the given tensors."""
        n, mine = self.names, [name for name in self.formats if name in read or name in written]
        found = [self.seconds[name] for name in mine if name in self.seconds]
        drawn = [self.keys[name] for name in self.drawing if name in written]
        found += [n["offset"], *drawn] if drawn else []
        sizes = self._blocks(mine)
        return found + ([n["start"], n["columns"], n["size"]] if sizes else [])

    def places(self, read: Sequence[ValueName], written: Sequence[ValueName]) -> Iterator[str]:
        """Yield the lines that locate the scales."""
        n = self.names
        for each in self._blocks([*read, *written]):
            arguments = f"{n['start']}, {n['columns']}, {n['size']}, {n['inside']}, {self.unit}, {each}, block"
            yield f"{INDENT}{self._scales(each)} = triton_scales({arguments})"

    def read(self, name: ValueName) -> str:
        """Return the decoded values of a tensor."""
        format, pointer, n = self.formats[name], self.stored[name], self.names
        if isinstance(format, Blocks):
            where = f"{n['at']}, {n['inside']}, {self._scales(format.block)}, {format.block}, block"
            return f"triton_read({format.name}_decoded, {pointer}, {self.seconds[name]}, {where})"
        loaded = [f"tl.load({x} + {n['at']}, {n['inside']})" for x in (pointer, *self._second(name))]
        return f"{format.name}_decoded({', '.join(loaded if len(loaded) > 1 else [*loaded, 'None'])})"

    def write(self, name: ValueName, text: str) -> Iterator[str]:
        """Yield the lines that encode and store a value for each element."""
        format, pointer, n = self.formats[name], self.stored[name], self.names
        random = f"triton_random({n['offset']} + {n['at']}, {self.keys[name]})" if format.draws else "None"
        if isinstance(format, Blocks):
            arguments = [f"{format.name}_scale", f"{format.name}_encoded", text, pointer, self.seconds[name]]
            arguments += [n["at"], n["inside"], self._scales(format.block), random, str(format.block), "block"]
            yield from call_lines("triton_write", arguments, INDENT)
            return
        codes, rest = n["codes"], n["more"]
        yield f"{INDENT}{codes}, {rest} = {format.name}_encoded(tl.broadcast_to({text}, (block,)), {random})"
        for x, value in zip((pointer, *self._second(name)), (codes, rest), strict=False):
            yield f"{INDENT}tl.store({x} + {n['at']}, {value}, {n['inside']})"

    def _second(self, name: ValueName) -> list[str]:
        return [self.seconds[name]] if name in self.seconds else []

    def _blocks(self, names: Iterable[ValueName]) -> list[int]:
        """Return the block sizes of the given tensors."""
        formats = (self.formats[name] for name in names)
        return sorted({each.block for each in formats if isinstance(each, Blocks)})

    def _scales(self, each: int) -> str:
        """Return the names of the scale positions, and of their mask."""
        return f"{self.names[f'scales_{each}']}, {self.names[f'within_{each}']}"

    # A tensor -----------------------------------------------------------------------------------------------

    def types(self) -> list[str]:
        """Return the parameter names of the types of scales and the like."""
        return [f"more_{i}" for i, name in enumerate(self.formats) if name in self.seconds]

    def sizes(self) -> Iterator[str]:
        """Yield the lines that load the row length and the padded number of elements."""
        if self.unit:
            for i, name in enumerate(("columns", "extent"), self._first_column + len(self.formats)):
                yield f"{INDENT}{self.names[name]} = tl.load({self.names['row']} + {i})"

    @property
    def extent(self) -> str:
        """The name of the padded number of elements."""
        return self.names["extent" if self.unit else "size"]

    def pointers(self, wanted: Collection[str]) -> Iterator[str]:
        """Yield the lines that define the pointers to scales and the like, and the random keys."""
        n = self.names
        for i, name in enumerate(self.formats):
            second = self.seconds.get(name)
            if second is not None and second in wanted:
                address = f"tl.load({n['row']} + {self._first_column + i})"
                yield f"{INDENT}{second} = {address}.to(tl.pointer_type(more_{i}))"
        for i, key in enumerate(self.keys.values(), self.fixed + 1 + self.width - len(self.drawing) + 1):
            if key in wanted:
                yield f"{INDENT}{key} = tl.load({n['row']} + {i}) ^ tl.load({n['draw']})"
        if self.drawing and n["offset"] in wanted:
            yield f"{INDENT}{n['offset']} = tl.load({n['row']} + {self.fixed + 1 + self.width - len(self.drawing)})"

    @property
    def _first_column(self) -> int:
        """The column after the addresses of tensors."""
        return self.fixed + 2
