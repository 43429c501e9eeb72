"""What a process reward model makes of single steps: the first mistake, and each step for itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.workbench.bootstrap import Resampling, ratio
from espalier.workbench.solutions import HALF, Array, Solved, estimate, probabilities, problem_numbers

BINS = 10


def first_error(known: Sequence[Solved], threshold: float, how: Resampling) -> dict[str, Any]:
    """Whether the first step with p < threshold is the first bad one; "none" must be answered with "none".

    accuracy    over all solutions
    erroneous   over those with a mistake: the very step must be named
    correct     over those without: no step may be
    f1          2 erroneous correct / (erroneous + correct), the harmonic mean that ProcessBench calls F1 (Zheng et al.,
                arXiv:2412.06559); None where one kind is missing. It is no F1 of precision and recall: that stands in
                `steps`.

    By hand: of two with a mistake one is found, of one without none is called: accuracy 2/3, erroneous 1/2, correct 1,
    f1 2/3.
    """
    right = np.array([float(_predicted(s, threshold) == s.mistake) for s in known])
    wrong = np.array([float(s.mistake != len(s.labels)) for s in known])
    where = problem_numbers(known)
    below = {"accuracy": np.ones(len(known)), "erroneous": wrong, "correct": 1 - wrong}
    kinds = [x for name in ("erroneous", "correct") for x in (right * below[name], below[name])]
    sums = np.stack([np.bincount(where, x) for x in kinds], axis=1)
    shares = {
        name: ratio((right * x).tolist(), x.tolist(), where, how, share=True).as_dict() for name, x in below.items()
    }
    return {**shares, "f1": estimate(sums, _harmonic, how, len(known))}


def _harmonic(sums: Array) -> Array:
    """2 a b / (a + b) of a = x_0 / x_1 and b = x_2 / x_3; nan where one of them is not defined, 0 where both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        return np.where(a + b == 0, 0.0, 2 * a * b / (a + b))


def choose_threshold(known: Sequence[Solved]) -> float:
    """The threshold with the highest ProcessBench F1, midway between two probabilities that occur; of equals the one
    nearest to 1/2.

    A solution with its mistake at k is right for p_k < t <= min(p_0 ... p_k-1), one without for t <= min p.
    """
    p = [probabilities(s) for s in known]
    wrong = [(x[k], min(x[:k], default=math.inf)) for s, x in zip(known, p, strict=True) if (k := _at(s)) < len(x)]
    spans = [(low, high) for low, high in wrong if low < high]
    lows, highs = (np.sort([span[i] for span in spans]) for i in (0, 1))
    least = np.sort([min(x) for s, x in zip(known, p, strict=True) if _at(s) == len(x)])
    seen = np.unique(np.concatenate([[0.0, 1.0], *p]))
    t = np.append((seen[1:] + seen[:-1]) / 2, HALF)
    found = (np.searchsorted(lows, t) - np.searchsorted(highs, t)) / max(len(wrong), 1)
    clean = (len(least) - np.searchsorted(least, t)) / max(len(least), 1)
    both = len(wrong) and len(least)  # of one kind alone its accuracy is what can be raised
    score = 2 * found * clean / np.maximum(found + clean, 1e-12) if both else found + clean
    best = t[score >= score.max() - 1e-12]
    return float(best[np.abs(best - HALF).argmin()])


def _predicted(s: Solved, threshold: float) -> int:
    return next((i for i, p in enumerate(probabilities(s)) if p < threshold), len(s.labels))


def _at(s: Solved) -> int:
    mistake = s.mistake
    assert mistake is not None
    return mistake


def steps(solutions: Sequence[Solved], how: Resampling) -> dict[str, Any] | None:
    """Single steps that are labelled good or bad, whatever stands before them; None without one.

    precision, recall, f1   of bad steps, a step being called bad at p < 1/2: of those called bad the share that is, of
                            the bad the share that is called so, and 2 TP / (2 TP + FP + FN)
    accuracy                share of steps on the right side
    brier                   mean (p - y)^2; 0.25 for a model that always says 1/2
    ece                     sum_b n_b / n |mean y - mean p| over ten bins of p of width 0.1 (`bins`)

    By hand: p = 0.9, 0.2, 0.6, 0.4 with labels 1, 0, 0, 1: one bad step of two is found, one of two calls is right:
    precision, recall and f1 1/2; Brier (0.01 + 0.04 + 0.36 + 0.36) / 4 = 0.1925; ECE (0.1 + 0.2 + 0.6 + 0.6) / 4 =
    0.375.
    """
    numbers = problem_numbers(solutions)
    rows = [
        (p, label, number)
        for s, number in zip(solutions, numbers, strict=True)
        for p, label in zip(probabilities(s), s.labels, strict=True)
        if label in (0, 1)
    ]
    if not rows:
        return None
    p, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.float64)
    where = [row[2] for row in rows]
    called, bad = (p < HALF).astype(np.float64), 1 - y
    place = np.minimum((p * BINS + 1e-9).astype(np.int64), BINS - 1)
    bins, ece = [], 0.0
    for b in range(BINS):
        here = place == b
        n = int(here.sum())
        said, seen = (float(x[here].mean()) if n else None for x in (p, y))
        bins.append({"low": b / BINS, "high": (b + 1) / BINS, "n": n, "probability": said, "good": seen})
        ece += n / len(p) * abs(seen - said) if seen is not None and said is not None else 0.0
    parts = {  # share above, share below
        "accuracy": (called * bad + (1 - called) * y, np.ones(len(p))),
        "precision": (called * bad, called),
        "recall": (called * bad, bad),
        "f1": (2 * called * bad, called + bad),
    }
    shares = {
        name: ratio(above.tolist(), below.tolist(), where, how, share=True).as_dict()
        for name, (above, below) in parts.items()
    }
    brier = ratio(((p - y) ** 2).tolist(), [1.0] * len(p), where, how).as_dict()
    return {**shares, "brier": brier, "ece": ece, "bins": bins}
