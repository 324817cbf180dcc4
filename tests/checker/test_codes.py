"""The pages of diagnostics: complete, and every example gets exactly the code it explains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import optlang
from optlang import codes
from optlang.checker.check import check_text
from optlang.codes import Entry, entries
from optlang.diagnostics import OptlangError, render_all
from optlang.source import Source

OPTLANG = Path(optlang.__file__).parent
CHECKED = [OPTLANG / folder for folder in ("syntax", "core", "declarations", "expand", "checker")]
TARGETS = Path(optlang.__file__).parent / "targets"
BAD = Path(__file__).parent / "bad"
#: Of rules that are fine, which some target cannot carry.
RAISED_BY_TARGETS = {"E801", "E802"}
CODE = re.compile(r"\b[EW][1-9]\d\d\b")


def codes_in(folder: Path, pattern: str) -> set[str]:
    """Return the codes that the files of a folder mention."""
    return {code for path in folder.rglob(pattern) for code in CODE.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.code)
def test_example_gets_its_code(entry: Entry) -> None:
    _, found = check_text(Source(entry.example))
    if entry.code in RAISED_BY_TARGETS:
        assert found == [], render_all(found)
        with pytest.raises(OptlangError) as raised:
            optlang.export(entry.example, "plain")
        found = raised.value.diagnostics
    assert {d.code for d in found} == {entry.code}, render_all(found)


@pytest.mark.parametrize("entry", [e for e in entries().values() if e.instead], ids=lambda entry: entry.code)
def test_better_version_is_fine(entry: Entry) -> None:
    rule, found = check_text(Source(entry.instead or ""))
    assert rule is not None
    assert found == [], render_all(found)


def test_every_code_has_a_page() -> None:
    assert {code for folder in CHECKED for code in codes_in(folder, "*.py")} - set(entries()) == set()


def test_every_page_has_its_code_somewhere() -> None:
    assert set(entries()) - {code for folder in CHECKED for code in codes_in(folder, "*.py")} == RAISED_BY_TARGETS
    assert codes_in(TARGETS, "*.py") | codes_in(TARGETS.parent, "compiler.py") >= RAISED_BY_TARGETS


def test_every_code_has_a_bad_rule() -> None:
    assert set(entries()) - codes_in(BAD, "*.expected") == RAISED_BY_TARGETS


def test_explanations_are_sentences() -> None:
    for entry in entries().values():
        assert entry.explanation.endswith("."), entry.code
        assert entry.explanation[0].isupper() or entry.explanation[0] == "`", entry.code
        assert not entry.title.endswith("."), entry.code


def test_every_page_has_a_group() -> None:
    assert all(re.fullmatch(r"E[1-589]\d\d|W6\d\d", code) for code in entries())


def test_a_page_that_is_not_like_the_others_is_refused(tmp_path: Path) -> None:
    for text in ("# no rule\n\nNothing.\n", "# a\n\nB.\n\n```opt\np -= g\n```\n\nMore.\n"):
        page = tmp_path / "E999.md"
        page.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"E999\.md"):
            codes._read(page)
