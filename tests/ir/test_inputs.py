"""Names of what programs read and write: no two share a text, and pickling preserves them."""

import dataclasses
import pickle

import pytest
from trajectories import library_compiled

from optlang import inputs
from optlang.compiler import example_variant
from optlang.functions.table import SEARCHES
from optlang.identity import Count, DimensionSize, GroupKey, NamedPoint, Site

SITE, POINT = Site((1, 0)), NamedPoint("y")
SEARCH = [inputs.LineSearch(method, SITE) for method in SEARCHES]
NAMES = [
    *("total 1.0", "v", "group.v", inputs.New("v"), inputs.Handed("1")),
    *(GroupKey("v"), GroupKey("t2"), *Count, *map(DimensionSize, range(3))),
    *(kind(SITE) for kind in (inputs.Total, inputs.Random, inputs.EvaluationPoint, inputs.Loss, inputs.Gradient)),
    *(kind(POINT) for kind in (inputs.EvaluationPoint, inputs.Loss, inputs.Gradient)),
    *(inputs.Direction(SITE), inputs.HessianProduct(SITE), *inputs.Progress, *inputs.IterationControl),
    *(name for s in SEARCH for name in (inputs.SearchDirection(s), inputs.SearchLength(s), *s.options)),
]


def test_names_of_different_kinds_differ_and_have_different_texts() -> None:
    records = [name for name in NAMES if not isinstance(name, str)]
    assert len(set(NAMES)) == len(NAMES)
    assert len({inputs.text(name) for name in records}) == len(records)
    assert all(str(name) == f"{name}" == inputs.text(name) for name in NAMES)


@pytest.mark.parametrize("name", ["LAMB", "SAM", "LBFGS", "ScheduleFreeAdamW"])
def test_variants_go_through_pickle_as_they_are(name: str) -> None:
    variant = example_variant(library_compiled(name), ndim=1)
    expected = variant.text(), variant.cpp_text()
    again = pickle.loads(pickle.dumps(variant))
    assert (again.text(), again.cpp_text()) == expected
    for field in dataclasses.fields(variant):
        if field.name != "schedule":
            assert getattr(again, field.name) == getattr(variant, field.name)
    for name in ("path_arguments", "numbers_arguments", "shared", "size_arguments", "direct"):
        assert getattr(again.schedule, name) == getattr(variant.schedule, name)
    for ours, theirs in zip(again.schedule.stages, variant.schedule.stages, strict=True):
        assert dataclasses.replace(ours, kernel=theirs.kernel) == theirs
        assert ours.kernel.digest == theirs.kernel.digest
        assert (ours.kernel.slots, ours.kernel.tensors) == (theirs.kernel.slots, theirs.kernel.tensors)


def test_what_is_waited_for_is_what_every_tensor_contributes_to() -> None:
    for name in NAMES:
        if isinstance(name, inputs.Late):
            assert all(isinstance(part, inputs.Contribution) for part in inputs.waits_for(name))
            assert bool(inputs.waits_for(name)) is not isinstance(name, inputs.Progress)
