"""The parts of a file that are the same for all rules: text with lines that only some rules need.

``#[word`` begins lines that are there for a rule with this feature, ``#[not word`` for one without; ``#]`` ends them.
``@WORD@`` is replaced; a line that is nothing but a word whose meaning is empty goes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

WORD = re.compile(r"@([A-Z_]+)@")


def filled(name: str, features: Collection[str], words: Mapping[str, str]) -> str:
    """Return a template for a rule.

    Args:
        name: Name of the template.
        features: What the rule needs.
        words: What stands for the words between ``@``.
    """
    kept: list[str] = []
    chosen: list[bool] = []
    for line in Path(__file__).with_name(f"_{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#["):
            word = line[2:]
            chosen.append((word.removeprefix("not ") in features) is not word.startswith("not "))
        elif line == "#]":
            chosen.pop()
        elif all(chosen):
            alone = WORD.fullmatch(line)
            if alone is None or words[alone[1]]:
                kept.append(line)
    assert not chosen, f"{name}: a part of the template does not end"
    # In one go: what a word stands for may have at-signs of its own.
    text = WORD.sub(lambda found: words[found[1]], "\n".join(kept))
    return text.strip("\n") + "\n"
