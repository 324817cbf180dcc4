"""Texts that try to get out of wherever they are written, and rules that have them everywhere a text may stand."""

from collections.abc import Sequence

#: What a text must never get to do. Tests look for the call in what was parsed and run the code besides.
CALL = "hostile_text()"

TEXTS = (
    *(f'""" + {CALL} + """', f"''' + {CALL} + '''", f'""";{CALL};"""', f'x"""; {CALL}; """y', f"x'''; {CALL}; '''y"),
    *(f'" + {CALL} + "', f"' + {CALL} + '", f'"); {CALL}; ("', f"'); {CALL}; ('", f"] + [{CALL}", f"}} | {{{CALL}"),
    *("ends in \\", 'ends in \\"', "ends in \\'", 'ends in "', 'ends in ""', 'ends in """', "ends in '''"),
    *('"""', "'''", '""""', '"""""', '"', "'", "\\", "\\\\", "\\\\\\", '\\"""', '\\""""'),
    *("\\N{BULLET}", "\\N{", "\\x", "\\u12", "\\U0011ffff", "\\777", "\\n"),
    *("\0", "\x01\x02\x1b[31mred\x1b[0m", "\x0b", "\x0c", "\x1c", "\x7f", "\r", f"\r{CALL}", f"\r    {CALL}"),
    *("\x85", f"\x85{CALL}", "\u2028", f"\u2028{CALL}\u2028", f"\u2029{CALL}"),
    *("\ud800", "\udcff\udc00", "\u202e}} gnp", f"\u2066{CALL}\u2069", "\u200b\ufeff\xad", "\U000e0041"),
    *("\U0001f600 e\u0301", "{}", "{0}{x!r:>{y}}", "%s %(x)d %", "${x} `x` $(x)", "<script>&amp;", "| a | b |"),
    *("@DOC@ @INIT@ @NAME@ @CLASS@ @TENSORS@ @FIXED@", '""@DEFAULTS@', "#", f"# {CALL}", f"  # {CALL}"),
    *("#[staged", "#]", "x == x, y == y", "a ** 2, -b ** 2", "inf, math.inf", "a, b, c, " * 40, "(" * 30, "]})"),
    *("x" * 5000, "lambda: 0", "*/ x /*", "//", "??/", "\\end{verbatim}", "$$ \\input{x} $$", "~~~~", "```"),
    *("", " ", "\t\tx\t", f"if x: {CALL}", f"def f(x={CALL}): pass", f"defaults = {{{CALL}}}"),
)


def quoted(text: str) -> str:
    """Return a text as a rule quotes it; one with both kinds of quotes keeps those of one kind."""
    if '"' not in text:
        return f'"{text}"'
    return "'" + text.replace("'", "`") + "'"


def documented(text: str) -> str:
    """Return a text as the docstring of a rule."""
    text = text.replace('"""', "'''")
    return f'"""{text} """' if text.endswith('"') or not text.strip() else f'"""{text}"""'


def rule(doc: str, texts: Sequence[str]) -> str:
    """Return a rule with a docstring, and with some texts in every other place that takes any."""
    values = list(dict.fromkeys(map(quoted, texts)))
    lines = [documented(doc), f"optimizer Hostile  # reference: {texts[0]}", "hyper lr = 0.1 >= 0"]
    lines += [f"hyper h{i} = {i}.5 >= 0 {text}" for i, text in enumerate(values)]
    choices = ", ".join(dict.fromkeys([*values, '"other"']))
    lines += [f"hyper mode = {values[0]} in {{{choices}}} {values[-1]}"]
    lines += [f"require h{i} < 10^6 {text}" for i, text in enumerate(values)]
    lines += [f"require ndim < {9 + i} {text}" for i, text in enumerate(values)]
    lines += ["state m as momentum_buffer"]
    lines += [f"m = 0.9*m + h{i}*g  # {text}" for i, text in enumerate(texts[: len(values)])]
    lines += [f"if mode == {values[0]}: p -= lr*m", "else: p -= 2*lr*m"]
    return "\n".join(lines) + "\n"
