"""Transforms as Python objects, and ``chain``, which builds a rule that applies them one after another.

A chain is an ordinary rule: its text can be printed (``optlang.emit``), and its class depends on the text alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optlang.classes import class_of
from optlang.declarations.hypers import RESERVED_KEYS, python_name
from optlang.declarations.scope import FIXED, FREE_FUNCTIONS
from optlang.expand.parameters import allows, default_of, type_of
from optlang.functions.table import BUILTINS
from optlang.rule import HyperType, Value
from optlang.source import Source
from optlang.syntax import tree
from optlang.syntax.suggest import nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer

#: The Python types of arguments, and their names in messages.
TYPES: dict[HyperType, tuple[tuple[type, ...], str]] = {
    HyperType.NUMBER: ((float,), "a number"),
    HyperType.OPTIONAL: ((float, type(None)), "a number or None"),
    HyperType.FLAG: ((bool,), "True or False"),
    HyperType.TEXT: ((str,), "a string"),
    HyperType.OPTIONAL_TEXT: ((str, type(None)), "a string or None"),
}


@dataclass(frozen=True)
class Transform:
    """A transform; calling it with arguments returns a link of a chain.

    Attributes:
        name: Its name.
        parameters: Its parameters, without the value that it transforms.
        doc: Its docstring.
        text: Its text, if it is not from the library.
    """

    name: str
    parameters: tuple[tree.Parameter, ...] = field(repr=False)
    doc: str = field(repr=False)
    text: str | None = field(repr=False, default=None)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """Its docstring, followed by its parameters."""
        return f"{self.doc.strip()}\n\nSignature: {self.name}{self.__signature__}\n"

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().splitlines()[0]

    @property
    def __signature__(self) -> inspect.Signature:
        """The parameters as a Python signature."""
        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return inspect.Signature(
            [
                inspect.Parameter(python_name(p.name.name), kind, default=empty if p.default is None else default_of(p))
                for p in self.parameters
            ]
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Link:
        """Return the transform with its arguments.

        Args:
            *args: Positional arguments.
            **kwargs: Keyword arguments.

        Raises:
            TypeError: If an argument is unknown, missing, given twice or of the wrong type.
            ValueError: If an argument is outside its range.
        """
        known = {python_name(p.name.name): p for p in self.parameters}
        for key in kwargs:
            if key not in known:
                near = nearest(key, known)
                hint = f"did you mean {near!r}? " if near else ""
                takes = ", ".join(known) or "no arguments"
                raise TypeError(f"{self.name}() got an unexpected keyword argument {key!r}; {hint}it takes {takes}")
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        bound.apply_defaults()
        values = {key: self._checked(known[key], value) for key, value in bound.arguments.items()}
        return Link(self, tuple((known[key].name.name, value) for key, value in values.items()))

    def _checked(self, parameter: tree.Parameter, given: Any) -> Value:
        """Return a validated argument, with numbers converted to float."""
        name = f"{self.name}: {parameter.name.name}"
        value: Value = float(given) if isinstance(given, int) and not isinstance(given, bool) else given
        types, wanted = TYPES[type_of(parameter)]
        if not issubclass(type(value), types):
            raise TypeError(f"{name} must be {wanted}, got {given!r}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} must not be NaN")
        if not allows(parameter, value):
            assert parameter.domain is not None
            raise ValueError(f"{name} must be {parameter.domain.text}, got {given!r}")
        if (isinstance(value, str) and not value.isprintable()) or '"' in str(value):
            raise ValueError(f"{name} cannot hold {value!r}")
        return value


@dataclass(frozen=True)
class Link:
    """A transform with its arguments, as passed to ``chain``.

    Attributes:
        transform: The transform.
        arguments: The value of every parameter.
    """

    transform: Transform
    arguments: tuple[tuple[str, Value], ...]

    def __repr__(self) -> str:
        shown = (f"{python_name(name)}={_python(value)}" for name, value in self.arguments)
        return f"{self.transform.name}({', '.join(shown)})"


def chain(
    *links: Link,
    name: str | None = None,
    lr: float = 1e-3,
    backend: str = "auto",
) -> type[Optimizer]:
    """Return an optimizer class that applies transforms to the gradient and subtracts lr times the result.

    The arguments of the transforms become hyperparameters of the class under their names. If a name is taken, by
    an earlier transform or by the language, the name of the transform is prefixed: ``momentum_2_beta``.

    Args:
        *links: Transforms with their arguments, in the order in which they are applied.
        name: Class name, ``Chain`` by default.
        lr: Default of the learning rate.
        backend: As for :func:`optlang.compile`.

    Returns:
        The class. The same arguments return the same class.

    Raises:
        TypeError: If an argument is not a transform with its arguments.
        ValueError: If there are no transforms, or the name or the backend does not exist.
        OptlangError: If the resulting rule has errors.

    Example:
        >>> from optlang.transforms import clip_by_global_norm, momentum, add_decayed_weights
        >>> Clipped = optlang.chain(clip_by_global_norm(1.0), momentum(0.9), add_decayed_weights(1e-4))
        >>> optimizer = Clipped(model.parameters(), lr=0.1)
    """
    for link in links:
        if isinstance(link, Transform):
            raise TypeError(f"chain() takes transforms with their arguments: {link.name}(), not {link.name}")
        if not isinstance(link, Link):
            raise TypeError(f"chain() takes transforms such as optlang.transforms.momentum(), not {link!r}")
    if not links:
        raise ValueError("chain() needs at least one transform")
    if name is not None and not name.isidentifier():
        raise ValueError(f"{name!r} cannot be the name of a class")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 <= lr < math.inf:
        raise ValueError(f"lr must be a number >= 0, got {lr!r}")
    return class_of(Source(chain_text(links, name or "Chain", float(lr)), "chain"), None, backend)


def chain_text(links: Sequence[Link], name: str, lr: float) -> str:
    """Return the text of a chain's rule."""
    own: dict[str, str] = {}
    for link in links:
        of = link.transform
        if own.setdefault(of.name, of.text or "") != (of.text or ""):
            raise ValueError(f"chain(): two transforms are called {of.name!r}")
    taken = {"lr", *FIXED, *RESERVED_KEYS, *(set(BUILTINS) - FREE_FUNCTIONS)}
    lines = [f'"""{", then ".join(link.transform.name for link in links)}."""', f"optimizer {name}"]
    lines += [f'hyper lr = {_written(lr)} >= 0  "step size"']
    stages, counts = [], dict.fromkeys(own, 0)
    for link in links:
        counts[link.transform.name] += 1
        count = counts[link.transform.name]
        key = link.transform.name + (f"_{count}" if count > 1 else "")
        names = list(_free_names(link, key, taken))
        for (own_name, value), hyper, parameter in zip(link.arguments, names, link.transform.parameters, strict=True):
            domain = "" if parameter.domain is None else f" {parameter.domain.text}"
            lines.append(f'hyper {hyper} = {_written(value)}{domain}  "{own_name} of {key}"')
        given = ", ".join(f"{n}={hyper}" for (n, _), hyper in zip(link.arguments, names, strict=True))
        stages.append(f"{link.transform.name}({given})" if given else link.transform.name)
    lines += [text.strip() for text in own.values() if text]
    lines.append(f"p -= lr * (g |> {' |> '.join(stages)})")
    return "\n".join(lines) + "\n"


def _free_names(link: Link, key: str, taken: set[str]) -> Iterator[str]:
    """Yield unused names for the hyperparameters of a link, and mark them as taken."""
    for name, _ in link.arguments:
        free = name if name not in taken else f"{key}_{name}"
        while free in taken:
            free += "_"
        taken.add(free)
        yield free


def _written(value: Value) -> str:
    """Return a value in the language's notation."""
    match value:
        case bool() | None:
            return str(value).lower()
        case str():
            return f'"{value}"'
    return _python(value)


def _python(value: Value) -> str:
    """Return a value in Python's notation, an integer without ``.0``."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else repr(value)  # type: ignore[arg-type]
