"""The page on coverage is current, and its table is complete."""

import importlib
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import optlang

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """Return the generator, under a name that no installed package has."""
    spec = importlib.util.spec_from_file_location("optlang_docs_coverage", DOCS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_generator_prints(coverage: ModuleType) -> None:
    current = coverage.PAGE.read_text(encoding="utf-8") if coverage.PAGE.exists() else ""
    if current != coverage.page():
        pytest.fail("docs/coverage.md is not current: run `python docs/coverage.py` and look at the difference")


@pytest.mark.parametrize("package", ["torch.optim", "pytorch_optimizer"])
def test_every_optimizer_of_a_package_has_a_row(coverage: ModuleType, package: str) -> None:
    from torch.optim import Optimizer

    module = pytest.importorskip(package, reason=f"{package} cannot be imported")
    exported = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
        # pytorch_optimizer exports the optimizers of torch too.
        if value.__module__.startswith(package)
    }
    assert exported, f"{package} exports no optimizer"
    listed = {row.name for row in coverage.read() if row.package == package}
    assert exported - listed == set(), f"docs/coverage.csv has no row for these optimizers of {package}"


def test_every_row_is_complete_and_there_once(coverage: ModuleType) -> None:
    rows = coverage.read()
    assert {row.package for row in rows} == set(coverage.PACKAGES)
    assert [key for key, count in Counter((row.package, row.name) for row in rows).items() if count > 1] == []
    header = coverage.CSV.read_text(encoding="utf-8").splitlines()[0]
    assert tuple(header.split(",")) == coverage.COLUMNS
    assert [row.name for row in rows if row.rule and row.same] == [], "`same` is for optimizers without a rule"


def test_every_rule_of_the_table_is_in_the_library(coverage: ModuleType) -> None:
    named = {name for row in coverage.read() for name in (row.rule, row.same) if name}
    assert named - set(optlang.rules.names()) == set()


def test_every_construct_is_in_the_vocabulary(coverage: ModuleType) -> None:
    used = {need for row in coverage.read() for need in row.needs}
    assert used - set(coverage.SUPPORTED) == set()
    assert set(coverage.MEANING) == set(coverage.SUPPORTED)


def test_rules_that_name_an_optimizer_of_the_table_are_found(coverage: ModuleType) -> None:
    rows = {f"{row.package}.{row.name}": row for row in coverage.read()}
    for reference, names in coverage.references().items():
        if reference in rows:
            assert rows[reference].rule in names
    assert rows["torch.optim.AdamW"].rule == "AdamW"
    assert rows["pytorch_optimizer.AdEMAMix"].rule == "AdEMAMix", "CautiousAdamW has the same reference"
