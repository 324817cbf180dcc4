"""Syntax highlighting of the rule language, for terminals and for the documentation."""

from __future__ import annotations

from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from optlang.functions.table import BUILTINS, FACT_NAMES, TENSOR_NAMES, TIME_NAMES

DECLARATIONS = (
    *(
        "optimizer",
        "hyper",
        "state",
        "group",
        "shared",
        "require",
        "def",
        "return",
        "transform",
        "use",
        "inner",
    ),
    *("route", "store", "compute", "input"),
)
CONTROL = ("if", "elif", "else", "when", "otherwise", "repeat", "for", "every", "on", "as", "in")
WORDS = ("and", "or", "not")


class RuleLexer(RegexLexer):  # type: ignore[misc]  # Pygments has no types
    """A Pygments lexer for ``.opt`` files."""

    name = "optlang"
    aliases = ("opt", "optlang")
    filenames = ("*.opt",)

    tokens = {  # noqa: RUF012  # the form that Pygments asks for
        "root": [
            (r'"""(.|\n)*?"""', String.Doc),
            (r"#.*", Comment.Single),
            (r'"[^"\n]*"|\'[^\'\n]*\'', String),
            (words(DECLARATIONS, prefix=r"\b", suffix=r"\b"), Keyword.Declaration),
            (words(CONTROL, prefix=r"\b", suffix=r"\b"), Keyword),
            (words(WORDS, prefix=r"\b", suffix=r"\b"), Operator.Word),
            (words(("true", "false", "none", "inf", "pi", "π"), prefix=r"\b", suffix=r"\b"), Keyword.Constant),
            (r"(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?", Number),
            (words(tuple(BUILTINS), prefix=r"\b", suffix=r"(?=\s*\()"), Name.Function),
            (words((*TENSOR_NAMES, *TIME_NAMES, *FACT_NAMES), prefix=r"\b", suffix=r"\b"), Name.Builtin),
            (r"[^\W\d]\w*", Name),
            (r"\*\*|\?\?|\|>|[-+*/%@^=<>!]=?", Operator),
            (r"[()\[\]{},:;.]", Punctuation),
            (r"\s+", Text),
            (r".", Text),
        ]
    }
