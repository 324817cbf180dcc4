"""Sphinx configuration; the pages of reference/ are generated before each build."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

from optlang.cli.highlight import RuleLexer

project = "optlang"
author = "the optlang authors"
copyright = f"2026, {author}"
version = release = version_of("optlang-torch")

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"optlang {release}"
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app):
    """Generate the reference pages and teach Sphinx the rule language."""
    generate.write_all(Path(__file__).parent / "reference")
    app.add_lexer("opt", RuleLexer)
