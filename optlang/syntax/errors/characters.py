"""Characters that are not part of the language, and what was probably meant."""

from __future__ import annotations

import re
import unicodedata

from optlang.source import Span
from optlang.syntax.errors.refused import Refused

#: A LaTeX command.
TEX = re.compile(r"\\[A-Za-z]+")

#: Operators of other languages, longest first, with what to write instead.
FOREIGN = {
    "&&": "write `and`",
    "||": "write `or`; the norm of x is `norm(x)`",
    "&": "write `and`",
    "|": "write `or`; the absolute value is `abs(x)`",
    "!": "write `not`",
    "~": "write `not`",
    "\\": "to continue a line, put the expression in `( )`",
    "$": "a rule has no `$`; write formulas without TeX marks",
    "`": "write the name without quotes",
    "?": "a choice is written `a if condition else b`",
}

#: Symbols from papers and word processors, with what to write instead.
TYPESET = {
    **dict.fromkeys("−–—‐‑", "-"),
    **dict.fromkeys("×·⋅∗⊙∘•", "*"),
    **dict.fromkeys("÷∕⊘", "/"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’‚´", "'"),
    **dict.fromkeys("←≔", "="),
    **dict.fromkeys("≤⩽", "<="),
    **dict.fromkeys("≥⩾", ">="),
    **dict.fromkeys("⟨⟩", "( )"),
    "≠": "!=",
    "≡": "==",
    "√": "sqrt(x)",
    "∞": "inf",
    "∈": "in",
    "∧": "and",
    "∨": "or",
    "¬": "not",
    "∇": "g",
    "∑": "sum(x)",
    "‖": "norm(x)",
    "∥": "norm(x)",
    "…": "every term",
    "（": "(",
    "）": ")",
    "，": ",",
    "：": ":",
    "；": ";",
    "＝": "=",
    "＋": "+",
    "！": "not",
}


def refuse_character(text: str, at: int) -> Refused:
    """Return the error for the character at offset ``at``, which begins no token."""
    if text[at] in "\"'":
        return _unclosed(text, at)
    tex = TEX.match(text, at)
    if tex is not None:
        return Refused(
            "E106",
            f"`{tex[0]}` is LaTeX",
            Span(tex.start(), tex.end()),
            help="write formulas as in code: `m/sqrt(v)` for a fraction and a root, `beta1` for a letter with an index",
        )
    for spelling, advice in FOREIGN.items():
        if text.startswith(spelling, at):
            span = Span(at, at + len(spelling))
            return Refused("E106", f"there is no `{spelling}` in this language", span, help=advice)
    character = text[at]
    if character in TYPESET:
        return Refused(
            "E106",
            f"the typographic character `{character}` is not supported",
            Span(at, at + 1),
            help=f"write `{TYPESET[character]}`",
        )
    if character.isspace() or unicodedata.category(character) in ("Zs", "Cf"):
        return Refused(
            "E106",
            f"an unusual space character ({_describe(character)})",
            Span(at, at + 1),
            help="replace it with a space; it often comes with text copied from a web page or a PDF",
        )
    return Refused(
        "E106",
        f"this character has no meaning in a rule ({_describe(character)})",
        Span(at, at + 1),
        help="remove it; names are made of letters, digits and `_`",
    )


def _describe(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip()


def _unclosed(text: str, at: int) -> Refused:
    """Return the error for an opening quote that is never closed."""
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    if text.startswith('"""', at):
        return Refused(
            "E105",
            "this docstring is never closed",
            Span(at, at + 3),
            label='needs a closing `"""`',
            help='close it with `"""` before the first declaration or statement',
        )
    return Refused(
        "E105",
        "this string is never closed",
        Span(at, max(at + 1, len(text[:end].rstrip()))),
        label=f"needs a closing `{text[at]}` on the same line",
        help="a string stays on one line, between matching quotes",
    )
