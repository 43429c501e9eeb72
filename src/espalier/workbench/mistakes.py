"""What a process reward model says of single steps: the first mistake, and each step by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.workbench.bootstrap import Array, Resampling, estimate, mean, ratio
from espalier.workbench.reliability import BINS, bin_places, bins, calibration_error
from espalier.workbench.solutions import HALF, Solved, probabilities, problem_numbers

# -------------------------------------------------------------------------------------------------------- first mistake


def first_error(known: Sequence[Solved], threshold: float, resampling: Resampling) -> dict[str, Any]:
    """Whether the first step with p < threshold is the first bad one; without a bad step none may be called bad.

    accuracy    over all solutions
    erroneous   over those with a mistake: the very step must be named
    correct     over those without: no step may be called bad
    f1          2 erroneous correct / (erroneous + correct), the harmonic mean that ProcessBench calls F1 (Zheng et al.,
                arXiv:2412.06559); None if one kind is missing. It is no F1 of precision and recall: that stands in
                `steps`.

    By hand: of two with a mistake one is found, of one without none is called: accuracy 2/3, erroneous 1/2, correct 1,
    f1 2/3.
    """
    right, erroneous = np.zeros(len(known)), np.zeros(len(known))
    for place, solution in enumerate(known):
        right[place] = float(_first_called(solution, threshold) == solution.mistake)
        erroneous[place] = float(solution.mistake != len(solution.labels))
    correct = 1 - erroneous
    problems = problem_numbers(known)

    def share(kind: Array) -> dict[str, Any]:
        return ratio((right * kind).tolist(), kind.tolist(), problems, resampling, share=True).as_dict()

    columns = (right * erroneous, erroneous, right * correct, correct)
    sums = np.stack([np.bincount(problems, column) for column in columns], axis=1)
    return {
        "accuracy": share(np.ones(len(known))),
        "erroneous": share(erroneous),
        "correct": share(correct),
        "f1": estimate(sums, _harmonic_mean, resampling, len(known)),
    }


def _harmonic_mean(sums: Array) -> Array:
    """2 a b / (a + b) of a = x_0 / x_1 and b = x_2 / x_3; nan if one of them is not defined, 0 if both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        return np.where(a + b == 0, 0.0, 2 * a * b / (a + b))


def choose_threshold(known: Sequence[Solved]) -> float:
    """The threshold with the highest ProcessBench F1, midway between two probabilities that occur; of equally good ones
    the one nearest to 1/2.

    A solution with its mistake at k is right for p_k < t <= min(p_0 ... p_k-1), one without for t <= min p.
    """
    occurring = [np.array([0.0, 1.0])]
    lows, highs, least, erroneous = [], [], [], 0
    for solution in known:
        p, mistake = probabilities(solution), _mistake(solution)
        occurring.append(np.array(p))
        if mistake == len(p):
            least.append(min(p))
            continue
        erroneous += 1
        low, high = p[mistake], min(p[:mistake], default=math.inf)
        if low < high:
            lows.append(low)
            highs.append(high)
    edges = np.unique(np.concatenate(occurring))
    thresholds = np.append((edges[1:] + edges[:-1]) / 2, HALF)
    # A threshold finds the mistakes whose span has begun (low < t) and has not ended (t <= high).
    correct_calls = _below(lows, thresholds) - _below(highs, thresholds)
    found_share = correct_calls / max(erroneous, 1)
    clean_share = (len(least) - _below(least, thresholds)) / max(len(least), 1)
    if erroneous and least:
        score = 2 * found_share * clean_share / np.maximum(found_share + clean_share, 1e-12)
    else:
        # Only one kind of solution: F1 is not defined, and its accuracy is what can be raised.
        score = found_share + clean_share
    best = thresholds[score >= score.max() - 1e-12]
    return float(best[np.abs(best - HALF).argmin()])


def _below(values: Sequence[float], thresholds: Array) -> Array:
    """How many of the values are below each threshold."""
    counts: Array = np.searchsorted(np.sort(values), thresholds)
    return counts


def _first_called(solution: Solved, threshold: float) -> int:
    """The first step that is called bad, the number of steps if none is."""
    for place, p in enumerate(probabilities(solution)):
        if p < threshold:
            return place
    return len(solution.labels)


def _mistake(solution: Solved) -> int:
    mistake = solution.mistake
    assert mistake is not None
    return mistake


# --------------------------------------------------------------------------------------------------------- single steps


def steps(solutions: Sequence[Solved], resampling: Resampling) -> dict[str, Any] | None:
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
    predicted, labels, problems = [], [], []
    for solution, number in zip(solutions, problem_numbers(solutions), strict=True):
        for probability, label in zip(probabilities(solution), solution.labels, strict=True):
            # Neutral steps (1/2) are on neither side.
            if label in (0, 1):
                predicted.append(probability)
                labels.append(label)
                problems.append(number)
    if not predicted:
        return None
    p, y = np.array(predicted), np.array(labels, dtype=np.float64)
    called, bad = (p < HALF).astype(np.float64), 1 - y

    def share(above: Array, below: Array) -> dict[str, Any]:
        return ratio(above.tolist(), below.tolist(), problems, resampling, share=True).as_dict()

    filled = bins(bin_places(p), p, y)
    rows = []
    for place, each in enumerate(filled):
        edges = {"low": place / BINS, "high": (place + 1) / BINS}
        rows.append({**edges, "n": each.count, "probability": each.predicted, "good": each.observed})
    return {
        "accuracy": share(called * bad + (1 - called) * y, np.ones(len(p))),
        "precision": share(called * bad, called),
        "recall": share(called * bad, bad),
        "f1": share(2 * called * bad, called + bad),
        "brier": mean(((p - y) ** 2).tolist(), problems, resampling),
        "ece": calibration_error(filled, len(p)),
        "bins": rows,
    }
