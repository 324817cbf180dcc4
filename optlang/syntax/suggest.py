"""Suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

#: Names from other notations for things the language calls differently.
SYNONYMS: dict[str, str] = {
    **dict.fromkeys(("grad", "gradient", "grads", "dp", "dw"), "g"),
    **dict.fromkeys(("param", "parameter", "theta", "w", "weight", "weights", "params"), "p"),
    **dict.fromkeys(("step", "iteration", "iter", "k", "steps", "timestep"), "t"),
    **dict.fromkeys(("learning_rate", "eta", "stepsize"), "lr"),
    **dict.fromkeys(("epsilon",), "eps"),
    **dict.fromkeys(("ln", "logarithm"), "log"),
    **dict.fromkeys(("maximum", "fmax"), "max"),
    **dict.fromkeys(("minimum", "fmin"), "min"),
    **dict.fromkeys(("clip", "clamp_"), "clamp"),
    **dict.fromkeys(("ema", "mix", "interpolate"), "lerp"),
    **dict.fromkeys(("average", "avg"), "mean"),
    **dict.fromkeys(("l2norm", "l2_norm"), "norm"),
    **dict.fromkeys(("root", "squareroot", "square_root"), "sqrt"),
    **dict.fromkeys(("dim", "dims"), "ndim"),
    **dict.fromkeys(("select", "cond"), "where"),
    **dict.fromkeys(("shrink", "softshrink", "prox_l1"), "soft_threshold"),
    **dict.fromkeys(("hardshrink", "hard_threshold"), "prox_l0"),
    **dict.fromkeys(("ravel", "vector", "vec"), "flatten"),
    **dict.fromkeys(("true_", "True"), "true"),
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that ``name`` was most likely meant to be, or None.

    Case is ignored. One-letter names are too short for any other resemblance to be meaningful.
    """
    candidates = list(dict.fromkeys(known))
    for candidate in candidates:
        if candidate.lower() == name.lower() or candidate.replace("_", "") == name.replace("_", ""):
            return candidate
    if SYNONYMS.get(name.lower()) in candidates:
        return SYNONYMS[name.lower()]
    best, best_score = None, 0.0
    for candidate in candidates:
        if min(len(name), len(candidate)) < 2:
            continue
        score = SequenceMatcher(None, name.lower(), candidate.lower(), autojunk=False).ratio()
        if score > best_score:
            best, best_score = candidate, score
    threshold = 0.79 if len(name) <= 2 else 0.66
    return best if best_score >= threshold else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the help line for a misspelt name, or None if no known name is similar."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else None


def listing(words: Iterable[str], last: str = "and") -> str:
    """Return ``a, b and c``, each word in backquotes."""
    quoted = [f"`{word}`" for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
