"""Generates the module of a variant with a schedule, which connects its stages, and the modules of matrix stages."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from optlang.artifact import AnySlot, Storage
from optlang.codegen import python_source
from optlang.codegen.matrix_source import MatrixWriter, start_lines
from optlang.codegen.matrix_stage import MatrixStage
from optlang.codegen.memory import INDENT
from optlang.codegen.naming import python_name, spelled
from optlang.codegen.python_source import Width
from optlang.codegen.spelling import HostWriter, NumberWriter
from optlang.inputs import Random, ValueName
from optlang.ir.lower import Lowered, Path
from optlang.ir.program import Input, Program
from optlang.kinds import HOST, Level


def emit(
    lowered: Lowered, numbers: Sequence[Program], slots: Sequence[AnySlot], ndim: int, title: str, width: Width
) -> str:
    """Return the module of a schedule.

    Args:
        lowered: The programs of the variant; start, group and shared are optimised.
        numbers: The programs of the new host states, by path.
        slots: The states that exist.
        ndim: The number of dimensions of the parameter.
        title: The first line of the module's docstring.
        width: The width of the tensors.
    """
    module = python_source.PythonModule(lowered, slots, (), width)
    matrices = any(v.matrices for v in lowered.start.tensor)
    functions = [start(module, lowered, ndim) if matrices else module.start(lowered.start)]
    if lowered.group is not None:
        functions.append(module.group(lowered.group))
    functions += [shared(module, lowered.shared, s.target) for s in (lowered.shared.stores if lowered.shared else ())]
    if len(lowered.paths) > 1:
        functions.append(path(module, lowered.paths))
    if sized_draws(lowered.paths):
        functions.append(_sizes(module, lowered.paths))
    functions += [numbers_of_path(module, program, i) for i, program in enumerate(numbers)]
    return module.assembled(title, functions)


def matrix_stage(
    program: Program, slots: Sequence[AnySlot], tensors: Sequence[ValueName], ndim: int, title: str
) -> str:
    """Return the module of a matrix stage, whose tensors are passed in the compute dtype."""
    module = python_source.PythonModule(None, slots, tensors)
    written = MatrixStage(program, tensors, ndim)
    functions = written.functions()
    module.helpers |= written.writer.helpers
    return module.assembled(title, [module.host(program), *functions])


def path_inputs(paths: Sequence[Path]) -> tuple[Input, ...]:
    """Return the inputs that the questions of a step read."""
    found: dict[sp.Symbol, Input] = {}
    for path in paths:
        asked = {s for question in path.questions for s in question.free_symbols}
        found |= {i.symbol: i for i in path.program.inputs if i.symbol in asked}
    return tuple(found.values())


def sized_draws(paths: Sequence[Path]) -> dict[Random, tuple[sp.Expr, ...]]:
    """Return the sizes of random numbers that are not shaped like p, by name, as formulas over inputs."""
    inputs = (i for path in paths for i in path.program.inputs)
    return {
        i.name: tuple(map(sp.sympify, i.kind.shape))
        for i in inputs
        if isinstance(i.name, Random) and i.kind.level is Level.MATRIX
    }


def size_inputs(paths: Sequence[Path]) -> tuple[Input, ...]:
    """Return the inputs of those sizes."""
    wanted = {s for sizes in sized_draws(paths).values() for size in sizes for s in size.free_symbols}
    found = {i.symbol: i for path in paths for i in path.program.inputs if i.symbol in wanted}
    return tuple(found.values())


def shared_program(program: Program, name: ValueName) -> Program:
    """Return the program of a single shared state."""
    (store,) = (s for s in program.stores if s.target == name)
    needed = set(store.expr.free_symbols)
    for value in reversed(program.host):
        if value.symbol in needed:
            needed |= value.expr.free_symbols
    inputs = tuple(i for i in program.inputs if i.symbol in needed)
    host = tuple(v for v in program.host if v.symbol in needed)
    return Program(program.name, inputs, host, (), (store,), program.notes)


def shared(module: python_source.PythonModule, program: Program | None, name: ValueName) -> list[str]:
    """Return ``shared_NAME``: the new value of a shared state."""
    assert program is not None
    written, arguments = spelled(shared_program(program, name))
    writer = module.host_writer()
    numbers = {n: arguments[n] for n in python_source.host_names(written)}
    body = module.begun(f"shared_{name}", "New value of a state of the whole optimizer, in float64.", (), numbers)
    body += module.assignments(written.host, writer)
    (store,) = written.stores
    result = writer.text(store.expr)
    module.helpers |= writer.helpers
    return [*body, *module.returned([result if isinstance(writer, NumberWriter) else f"float({result})"])]


def numbers_of_path(module: python_source.PythonModule, program: Program, index: int) -> list[str]:
    """Return ``numbers_I``: the new host states on a path."""
    wanted = python_source.host_arguments(program, module.slots)
    written, arguments = spelled(program, wanted)
    writer = module.host_writer()
    taken = {n: arguments[n] for n in wanted}
    body = module.begun(f"numbers_{index}", "What states kept on the host become.", (), taken)
    body += module.assignments(written.host, writer)
    states = {s.target: writer.text(s.expr) for s in written.stores}
    kept = [f"float({states.get(s.name) or arguments[s.name]})" for s in module.slots if s.storage is Storage.HOST]
    module.helpers |= writer.helpers
    return [*body, *module.returned(kept)]


def _sizes(module: python_source.PythonModule, paths: Sequence[Path]) -> list[str]:
    """Return ``sizes``: the sizes of random numbers that are not shaped like p, by name."""
    program = Program("", size_inputs(paths), (), (), ())
    written, arguments = spelled(program)
    names = {old.symbol: new.symbol for old, new in zip(program.inputs, written.inputs, strict=True)}
    writer = HostWriter()
    body = [f'{INDENT}"""Sizes of random numbers."""', f"{INDENT}return {{"]
    for name, sizes in sized_draws(paths).items():
        texts = ", ".join(f"int({writer.text(size.xreplace(names))})" for size in sizes)
        body.append(f'{INDENT * 2}"{name}": ({texts},),')
    module.helpers |= writer.helpers
    names_of = ", ".join(arguments[i.name] for i in program.inputs)
    return [f"def sizes({names_of}):", *body, f"{INDENT}}}"]


def path(module: python_source.PythonModule, paths: Sequence[Path]) -> list[str]:
    """Return ``path``: which path a step takes."""
    program = Program("", path_inputs(paths), (), (), ())
    written, arguments = spelled(program)
    names = {old.symbol: new.symbol for old, new in zip(program.inputs, written.inputs, strict=True)}
    writer = module.host_writer()

    def ask(left: list[int], place: int, depth: int) -> list[str]:
        if len(left) == 1 or all(len(paths[i].answers) <= place for i in left):
            return [INDENT * depth + module.chosen(left[0])]
        question = paths[left[0]].questions[place].xreplace(names)
        yes = [i for i in left if paths[i].answers[place]]
        no = [i for i in left if not paths[i].answers[place]]
        if not yes or not no:
            return ask(left, place + 1, depth)
        return [
            f"{INDENT * depth}if {writer.text(question)}:",
            *ask(yes, place + 1, depth + 1),
            *ask(no, place + 1, depth),
        ]

    numbers = {i.name: arguments[i.name] for i in program.inputs}
    body = [*module.begun("path", "Which way this step goes.", (), numbers), *ask(list(range(len(paths))), 0, 1)]
    module.helpers |= writer.helpers
    return body


def start(
    module: python_source.PythonModule, lowered: Lowered, ndim: int, writes: type[MatrixWriter] = MatrixWriter
) -> list[str]:
    """Return ``start`` of a matrix rule."""
    program = lowered.start
    wide = "torch.promote_types(p.dtype, torch.float32)" if module.any_width else "torch.float32"
    lines, arguments, writer, program = start_lines(program, ndim, wide if module.narrow else None, writes)
    host = module.host_writer()
    body = [*module.assignments(program.host, host), *lines]
    like = f"{arguments['p']}[0]"
    numbers = {n: arguments[n] for n in python_source.host_names(program)}
    names = [arguments["p"], arguments["g"], *numbers.values()]
    wide = f"{arguments['p']}.dtype"  # inside, where p has been converted
    kept = python_name("kept", {*names, *(str(v.symbol) for v in program.values)}) if module.narrow else wide
    types = python_source.StoredTypes(module.narrow, wide, kept)
    slots: dict[ValueName, AnySlot] = {s.name: s for s in module.slots}
    entries: dict[ValueName, str] = {}
    for store in program.stores:
        if store.target not in slots:
            continue
        kind = program.kinds().get(store.expr, HOST)
        typed = types.of(slots[store.target])
        if slots[store.target].storage is Storage.HOST:
            text = f"float({host.text(store.expr)})"
        elif kind.level <= Level.HOST:
            text = module.filled(host.text(store.expr), store.kind, like, f", dtype={typed}" if typed else "")
        elif slots[store.target].storage is Storage.ELEMENT:
            text = f"{writer.text(store.expr)}[0].reshape({like}.shape).clone(memory_format=torch.preserve_format)"
        else:
            text = f"{writer.text(store.expr)}[0].contiguous().clone()"
        if slots[store.target].storage is not Storage.HOST and (typed or writer.types.get(store.expr)):
            text += f".to({typed or types.kept})"
        entries[store.target] = text
    module.helpers |= writer.helpers | host.helpers
    if module.narrow:
        body[:0] = types.lines(arguments["p"], [*entries.values()])
    said = "Initial values of the states of one tensor; inside, tensors have one more dimension."
    begun = module.begun("start", said, names[:2], numbers)
    return [*begun, *body, *module.returned_states(entries)]
