"""Rules with mistakes in them: texts of the library, its transforms and the documentation, changed at random."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import optlang
from optlang import rules, transforms

#: What is put in: what the language is made of, and what it is not.
PIECES = (
    *(
        "state",
        "hyper",
        "transform f(u):",
        "inner b = SGD",
        "use AdamW",
        "return",
        "if",
        "else:",
        "every 3:",
        "repeat 2:",
    ),
    *(
        "for i in s:",
        "on eval:",
        "route",
        "push",
        "history h: size 3",
        "flat",
        "group state",
        "as",
        "when",
        "in [0, 1)",
    ),
    *(
        'in {"a", 1}',
        'in ["x", 1)',
        "none",
        "inf",
        "true",
        "1e400",
        "9" * 300,
        "x" * 150,
        '"',
        "'",
        '"""',
        "#",
        "\n",
        "\n    ",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        ";",
        ",",
        ".",
        "|>",
        "??",
        "@",
        "^",
        "**",
        "-",
        "*",
        "=",
        "==",
        "<-",
        "\\",
        "\0",
    ),
    *(
        "p",
        "g",
        "t",
        "shape",
        "first",
        "loss",
        "group.x",
        "total(g)",
        "grad(p)",
        "rand(1)",
        "mean(g, dim=1)",
        "g.T",
        "g[0]",
    ),
    *(
        "\u2028",
        "\ufeff",
        "β",
        "²",
        "½",
        "\x85",
        "\t",
        "?",
        "$",
        "0",
        "-1",
        "0.5",
        "10^9",
        "1/0",
        "sqrt(-1)",
        "f(g)",
        "b(p, g)",
    ),
)


def originals() -> list[str]:
    """Return the texts that are changed."""
    root = Path(optlang.__file__).parents[1]
    found = [rules.path(name).read_text(encoding="utf-8") for name in rules.names()]
    found += [transforms.path(name).read_text(encoding="utf-8") for name in transforms.names()]
    for page in sorted((root / "docs").glob("*.md")):
        found += re.findall(r"```opt\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return found


def mutated(seed: int, count: int) -> Iterator[str]:
    """Yield changed texts, the same for the same seed."""
    chance, texts = random.Random(seed), originals()
    words = [re.findall(r"\w+|\s+|[^\w\s]", text) for text in texts]
    for _ in range(count):
        pieces = list(chance.choice(words))
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            at, other = chance.randrange(len(pieces) + 1), chance.choice(words)
            match chance.randrange(5):
                case 0:
                    pieces.insert(at, chance.choice(PIECES))
                case 1:
                    del pieces[at : at + chance.choice((1, 1, 3, 10))]
                case 2:
                    start = chance.randrange(len(other))
                    pieces[at:at] = other[start : start + chance.choice((1, 3, 20))]
                case 3:
                    pieces[at : at + 1] = [chance.choice(PIECES)]
                case _:
                    pieces[at:at] = pieces[at : at + 4] * chance.choice((1, 2, 30))
        yield "".join(pieces)
