"""What Triton kernels do with tensors that are kept in codes: numbers when they are read, codes when they are stored.

A row of the table (see :mod:`optlang.codegen.triton_source`) holds for these, behind the addresses of the tensors,
those of what belongs to the codes, and then, if a format has blocks, how long a row of the tensor is and how many
elements there are with all rows filled up to whole blocks. If a format draws, the place of its first element in the
whole tensor follows, of which it may be a part, and a key for each such format; ``draw`` holds what differs from step
to step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from optlang.codegen.memory import INDENT
from optlang.codegen.triton_writer import call_lines
from optlang.inputs import ValueName
from optlang.storage.blocks import Blocks, largest_block
from optlang.storage.coded import Coded


class Codes:
    """The tensors of a kernel that are kept in codes.

    Args:
        formats: How they are kept.
        stored: The names of the pointers to the codes.
        names: Names that kernels give to what is no value of the rule.
        fixed: How many addresses of tensors stand in a row.

    Attributes:
        unit: The largest block; 0 if there are none.
        width: How much longer a row is.
        drawing: Those whose format draws.
        paired: The pointers to second numbers of which there is one for each element.
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
        """Yield the functions of the formats, each once."""
        yield from dict.fromkeys(text for each in self.formats.values() for text in each.triton.strip().split("\n\n"))

    # A block of elements ------------------------------------------------------------------------------------

    def arguments(self, read: Sequence[ValueName], written: Sequence[ValueName]) -> list[str]:
        """Return what a block's function takes besides, where these are read and written."""
        n, mine = self.names, [name for name in self.formats if name in read or name in written]
        found = [self.seconds[name] for name in mine if name in self.seconds]
        drawn = [self.keys[name] for name in self.drawing if name in written]
        found += [n["offset"], *drawn] if drawn else []
        sizes = self._blocks(mine)
        return found + ([n["start"], n["columns"], n["size"]] if sizes else [])

    def places(self, read: Sequence[ValueName], written: Sequence[ValueName]) -> Iterator[str]:
        """Yield the lines that find the scales."""
        n = self.names
        for each in self._blocks([*read, *written]):
            arguments = f"{n['start']}, {n['columns']}, {n['size']}, {n['inside']}, {self.unit}, {each}, block"
            yield f"{INDENT}{self._scales(each)} = triton_scales({arguments})"

    def read(self, name: ValueName) -> str:
        """Return the numbers of a tensor."""
        format, pointer, n = self.formats[name], self.stored[name], self.names
        if isinstance(format, Blocks):
            where = f"{n['at']}, {n['inside']}, {self._scales(format.block)}, {format.block}, block"
            return f"triton_read({format.name}_decoded, {pointer}, {self.seconds[name]}, {where})"
        loaded = [f"tl.load({x} + {n['at']}, {n['inside']})" for x in (pointer, *self._second(name))]
        return f"{format.name}_decoded({', '.join(loaded if len(loaded) > 1 else [*loaded, 'None'])})"

    def write(self, name: ValueName, text: str) -> Iterator[str]:
        """Yield the lines that store a number for each element."""
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
        """Return the sizes of the blocks of some tensors."""
        formats = (self.formats[name] for name in names)
        return sorted({each.block for each in formats if isinstance(each, Blocks)})

    def _scales(self, each: int) -> str:
        """Return the names of the places of scales, and of which are there."""
        return f"{self.names[f'scales_{each}']}, {self.names[f'within_{each}']}"

    # A tensor -----------------------------------------------------------------------------------------------

    def types(self) -> list[str]:
        """Return the names that the types of what belongs to codes are passed by."""
        return [f"more_{i}" for i, name in enumerate(self.formats) if name in self.seconds]

    def sizes(self) -> Iterator[str]:
        """Yield the lines that say how long rows are, and how many elements there are with all of them filled up."""
        if self.unit:
            for i, name in enumerate(("columns", "extent"), self._behind + len(self.formats)):
                yield f"{INDENT}{self.names[name]} = tl.load({self.names['row']} + {i})"

    @property
    def extent(self) -> str:
        """Name of how many elements there are with all rows filled up."""
        return self.names["extent" if self.unit else "size"]

    def pointers(self, wanted: Collection[str]) -> Iterator[str]:
        """Yield the lines that find what belongs to codes, and what random numbers are drawn by."""
        n = self.names
        for i, name in enumerate(self.formats):
            second = self.seconds.get(name)
            if second is not None and second in wanted:
                address = f"tl.load({n['row']} + {self._behind + i})"
                yield f"{INDENT}{second} = {address}.to(tl.pointer_type(more_{i}))"
        for i, key in enumerate(self.keys.values(), self.fixed + 1 + self.width - len(self.drawing) + 1):
            if key in wanted:
                yield f"{INDENT}{key} = tl.load({n['row']} + {i}) ^ tl.load({n['draw']})"
        if self.drawing and n["offset"] in wanted:
            yield f"{INDENT}{n['offset']} = tl.load({n['row']} + {self.fixed + 1 + self.width - len(self.drawing)})"

    @property
    def _behind(self) -> int:
        """Where in a row the addresses of tensors end."""
        return self.fixed + 2
