"""Generated Python -> TorchScript: the same functions, in the part of the language that TorchScript knows.

The module of a variant (:mod:`optlang.codegen.python_source`) is what runs everywhere. TorchScript wants types, and
has neither dicts of tensors nor functions with any number of arguments; nor does it mix whole numbers with others.
Values of the host arrive as one list, in which each name has its place.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence

from optlang.codegen.helpers import HELPERS, texts
from optlang.inputs import ValueName

#: Helper functions of generated code that TorchScript needs in other words.
SCRIPTED = texts("torchscript")


def ascii_name(name: str) -> str:
    """Return a name that a parser without Unicode takes."""
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in name)


def helper_texts(names: set[str]) -> list[str]:
    """Return the helper functions of some names, as TorchScript."""
    found = [SCRIPTED[name] for name in SCRIPTED if name in names]
    found += [text for name, text in HELPERS.items() if name in names and name not in SCRIPTED and name != "regular"]
    return found


class Module:
    """A generated module, function by function.

    Args:
        source: Its text.

    Attributes:
        functions: Its functions by name.
        helpers: Names of the helpers that what was translated calls.
    """

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.helpers: set[str] = set()

    def host(self, name: str, arguments: Sequence[ValueName], places: Mapping[ValueName, int]) -> list[str]:
        """Return the body of a function on numbers; what it takes is read from the list ``_known``.

        Its results are left as they are returned: a tuple of numbers as a list, one of two tuples as two lists.
        """
        node = self.functions[name]
        translator = _Translator(host=True)
        lines = self._read(node, arguments, places, skip=0)
        return [*lines, *self._statements(node, translator, _returned)]

    def path(self, arguments: Sequence[ValueName], places: Mapping[ValueName, int]) -> list[str]:
        """Return the body of ``path``, which returns a whole number."""
        node = self.functions["path"]
        lines = self._read(node, arguments, places, skip=0)
        return [*lines, *self._statements(node, _Translator(host=True), _counted)]

    def start(
        self, arguments: Sequence[ValueName], places: Mapping[ValueName, int], hosted: Sequence[str]
    ) -> list[str]:
        """Return the body of ``start``: tensors by order of declaration, and the numbers kept on the host."""
        node = self.functions["start"]
        lines = self._read(node, arguments, places, skip=2)
        tensors = [ascii_name(a.arg) for a in node.args.args[:2]]
        lines += [f"{new} = {old}" for new, old in zip(tensors, ("_p", "_g"), strict=True) if new != old]
        translator = _Translator(host=False)

        def returned(value: ast.expr) -> list[str]:
            assert isinstance(value, ast.Dict)
            pairs = [(ast.literal_eval(k), v) for k, v in zip(value.keys, value.values, strict=True) if k is not None]
            numbers = _Translator(host=True)
            made = [ast.unparse(translator.visit(v)) for k, v in pairs if k not in hosted]
            kept = [ast.unparse(numbers.visit(v)) for k, v in pairs if k in hosted]
            self.helpers |= numbers.called
            return [
                f"_tensors: List[Tensor] = [{', '.join(made)}]",
                f"_numbers: List[float] = [{', '.join(kept)}]",
                "return _tensors, _numbers",
            ]

        return [*lines, *self._statements(node, translator, returned)]

    def update(self, numbers: int = 0) -> tuple[list[str], list[str]]:
        """Return the arguments and the body of ``update``; the last ``numbers`` of its arguments are numbers."""
        node = self.functions["update"]
        names = [ascii_name(a.arg) for a in node.args.args]
        count = len(names) - numbers
        arguments = [*names[:count], *(f"{name}: float" for name in names[count:])]
        return arguments, self._statements(node, _Translator(host=False), _stacked)

    def _read(
        self, node: ast.FunctionDef, arguments: Sequence[ValueName], places: Mapping[ValueName, int], skip: int
    ) -> list[str]:
        """Return the lines that read the arguments of a function from ``_known``."""
        lines = []
        for parameter, name in zip(node.args.args[skip:], arguments, strict=True):
            read = f"_known[{places[name]}]"
            lines.append(f"{ascii_name(parameter.arg)} = {read}{' != 0.0' if name == 'first' else ''}")
        return lines

    def _statements(self, node: ast.FunctionDef, translator: _Translator, returned: object) -> list[str]:
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = [line for statement in body for line in self._lines(statement, translator, returned)]
        self.helpers |= translator.called
        return lines

    def _lines(self, statement: ast.stmt, translator: _Translator, returned: object) -> list[str]:
        assert callable(returned)
        match statement:
            case ast.Delete():  # the interpreter lets go of values by itself
                return []
            case ast.If(test=test, body=body):
                inner = [line for each in body for line in self._lines(each, translator, returned)]
                return [f"if {ast.unparse(translator.visit(test))}:", *(f"    {line}" for line in inner)]
            case ast.Return(value=value) if value is not None:
                return list(returned(value if isinstance(value, ast.Dict) else translator.visit(value)))
            case ast.Assign(targets=[ast.Tuple(elts=[only])], value=value):  # `c1, = c.unbind()`
                return [f"{ast.unparse(translator.visit(only))} = {ast.unparse(translator.visit(value))}[0]"]
            case _:
                return [ast.unparse(translator.visit(statement))]


def _elements(value: ast.expr) -> list[str]:
    return [ast.unparse(e) for e in value.elts] if isinstance(value, ast.Tuple | ast.List) else [ast.unparse(value)]


def _returned(value: ast.expr) -> list[str]:
    """Return the lines that return one or two tuples of numbers as lists."""
    parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
    if any(isinstance(part, ast.Tuple | ast.List) for part in parts):
        first, second = (", ".join(_elements(part)) for part in parts)
        return [
            f"_coefficients: List[float] = [{first}]",
            f"_kept: List[float] = [{second}]",
            "return _coefficients, _kept",
        ]
    return [f"_results: List[float] = [{', '.join(_elements(value))}]", "return _results"]


def _counted(value: ast.expr) -> list[str]:
    (number,) = _elements(value)
    return [f"return {int(float(number))}"]


def _stacked(value: ast.expr) -> list[str]:
    return [f"return [{', '.join(_elements(value))}]"]


class _Translator(ast.NodeTransformer):
    """Rewrites what TorchScript does not know.

    Args:
        host: Whether expressions are of numbers, which are then all floats.
    """

    def __init__(self, host: bool) -> None:
        self.host_side = host
        self.called: set[str] = set()

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if self.host_side and type(node.value) is int:
            return ast.Constant(float(node.value))
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(ascii_name(node.id), node.ctx)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if self.host_side and isinstance(node.op, ast.Pow):
            return self._power(node.left, node.right)
        return node

    def _power(self, base: ast.expr, exponent: ast.expr) -> ast.expr:
        """Return a power of numbers; TorchScript raises where Python's ``math`` under IEEE rules does not."""
        self.called.add("_power")
        return ast.Call(ast.Name("_power", ast.Load()), [base, exponent], [])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        starred = [a for a in node.args if isinstance(a, ast.Starred)]
        if starred and isinstance(starred[0].value, ast.Call):  # `regular(*torch.linalg.inv_ex(x))`
            inner = starred[0].value
            assert isinstance(inner.func, ast.Attribute) and isinstance(node.func, ast.Name)
            node = ast.Call(ast.Name(f"{node.func.id}_{inner.func.attr}", ast.Load()), inner.args, [])
        elif starred:  # `x.reshape(n, *sizes)`
            plain: list[ast.expr] = [a for a in node.args if not isinstance(a, ast.Starred)]
            sizes = ast.BinOp(ast.List(plain, ast.Load()), ast.Add(), starred[0].value)
            node = ast.Call(node.func, [sizes], node.keywords)
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name == "math.pow":
            return self._power(*node.args)
        if isinstance(node.func, ast.Name):
            self.called.add(name)
        if name in ("host_max", "host_min"):
            result = node.args[-1]
            for argument in node.args[-2::-1]:
                result = ast.Call(node.func, [argument, result], [])
            return result
        if name == "round" and self.host_side:
            return node
        listed = (ast.List(a.elts, ast.Load()) if isinstance(a, ast.Tuple) else a for a in node.args)
        node.args = list(listed)
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Tuple):
                keyword.value = ast.List(keyword.value.elts, ast.Load())
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return node


def number(value: float) -> str:
    """Return a number as text that TorchScript reads as the same float."""
    if math.isnan(value):
        return "math.nan"
    if math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(float(value))
