"""Print how far each rule of the library is from its reference after 30 steps.

    python tests/library/report_library.py

The distances are the largest over the options that the tests vary, relative to the size of the parameters. With
``--backend inductor`` the compiled kernels are compared (a few seconds of compiling for each rule and type).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("support", "oracle")]

import torch  # noqa: E402
from references import make_reference  # noqa: E402
from trajectories import (  # noqa: E402
    STEPS,
    cases,
    difference,
    gradients,
    library_class,
    library_rule,
    run,
    run_reference,
    shapes,
    start,
    tensors,
)

import optlang.rules  # noqa: E402


def distance(name: str, backend: str, dtype: torch.dtype) -> float:
    """Return the largest distance of a rule from its reference, over its options."""
    those, cls = shapes(name, like_reference=True), library_class(name, backend, exact=dtype == torch.float64)
    begin, history = start(those), gradients(those)
    worst = 0.0
    for hypers in cases(name):
        expected = run_reference(name, begin, history, dtype, **hypers)
        worst = max(worst, difference(run(cls, begin, history, dtype, **hypers), expected))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="eager", choices=["eager", "inductor"])
    parser.add_argument("names", nargs="*", default=optlang.rules.names(), help="rules; all if none is named")
    arguments = parser.parse_args()
    print(f"relative difference after {STEPS} steps, largest over the options, {arguments.backend} backend")
    print(f"{'rule':14} {'reference':28} {'options':>7} {'float64':>9} {'float32':>9}")
    for name in arguments.names:
        reference = library_rule(name).reference
        label = reference or "(written in the tests)"
        begin = tensors(start(shapes(name)), torch.float32)
        if make_reference(name, reference, begin, **cases(name)[0]) is None:
            print(f"{name:14} {'none':28}")
            continue
        double, single = (distance(name, arguments.backend, d) for d in (torch.float64, torch.float32))
        print(f"{name:14} {label:28} {len(cases(name)):7} {double:9.1e} {single:9.1e}", flush=True)


if __name__ == "__main__":
    main()
