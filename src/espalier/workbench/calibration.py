"""How far sigma(score difference) is the probability of being preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.workbench.reliability import BINS, bin_places, bins, calibration_error, sigmoid

CLOSE = math.log(3)  # sigma of it is 3/4: a pair between 1/4 and 3/4 counts as called a tie by the model


def calibration(gaps: Sequence[float]) -> dict[str, Any] | None:
    """Reliability, expected calibration error, Brier score and log loss of p = sigma(d), d the score of the preferred
    response minus that of the other, over all strict pairs; None without pairs.

    Orientation. With the preferred response always first the outcome is always 1, and the diagram says nothing. So
    every pair stands in both orders with half the weight: (p, outcome 1) and (1 - p, outcome 0). That set is symmetric
    about (1/2, 1/2), so it is computed on its upper half: confidence c = max(p, 1 - p), outcome 1 if the model prefers
    what people prefer, 0 if not, 1/2 if d = 0. The orientation is not chosen by the outcome.

    Bins of c: [0.50, 0.55), [0.55, 0.60) ... [0.95, 1.00]; mirrored they are 20 from 0 to 1. With n_b pairs in bin b,

        ECE   = sum_b n_b / n * |mean outcome_b - mean c_b|
        Brier = mean (1 - p)^2        (equal in both orders; 0.25 for a model that always says 1/2)
        log loss = mean log(1 + exp(-d))                       (ln 2 for that model)

    `ece_floor` is what a perfectly calibrated model would show with as many pairs, by the normal approximation
    sum_b sqrt(2 / pi * sum_{i in b} c_i (1 - c_i)) / n: an ECE near it cannot be distinguished from 0.

    By hand: d = ln 4, ln 4, ln 4, -ln 4 gives c = 0.8 four times, 3 of 4 right: ECE 0.05, Brier (3 * 0.04 + 0.64) / 4
    = 0.19.

    Guo et al., arXiv:1706.04599 (ECE); Brier, Monthly Weather Review 78 (1950).
    """
    if not gaps:
        return None
    d = np.asarray(gaps, dtype=np.float64)
    confidence = sigmoid(np.abs(d))
    outcome = np.where(d > 0, 1.0, np.where(d < 0, 0.0, 0.5))
    places = bin_places((confidence - 0.5) * 2)
    filled = bins(places, confidence, outcome)
    rows = []
    for place, each in enumerate(filled):
        low = 0.5 + place * 0.5 / BINS
        edges = {"low": low, "high": low + 0.5 / BINS}
        rows.append({**edges, "n": each.count, "confidence": each.predicted, "accuracy": each.observed})
    return {
        "n": len(d),
        "ece": calibration_error(filled, len(d)),
        "ece_floor": _error_by_chance(places, confidence),
        "brier": float(((1 - sigmoid(d)) ** 2).mean()),
        "log_loss": float(np.logaddexp(0, -d).mean()),
        "bins": rows,
    }


def _error_by_chance(places: np.ndarray, confidence: np.ndarray) -> float:
    """The expected ECE of a perfectly calibrated model, `ece_floor` of `calibration`."""
    floor = 0.0
    for place in range(BINS):
        inside = confidence[places == place]
        variance = float((inside * (1 - inside)).sum())
        # sqrt(2 / pi) sigma is the mean absolute value of a normal variable with mean 0.
        floor += math.sqrt(2 / math.pi * variance) / len(confidence)
    return floor


def at_ties(tied: Sequence[float], strict: Sequence[float]) -> dict[str, Any] | None:
    """Score differences of pairs that people find equal, beside those of strict pairs; None without ties.

    accuracy: share of ties with a small difference, |d| < ln 3, which is sigma(d) between 1/4 and 3/4. gap: mean |d| of
    ties, gap_strict of strict pairs. told_apart: the chance that a tie's |d| is smaller than a strict pair's (equal
    ones count half; 1/2 if the size of the difference does not distinguish ties; None without strict pairs).

    By hand: ties 0.1 and 2, strict pairs 1 and -3: accuracy 1/2; of the four comparisons 0.1 < 1, 0.1 < 3, 2 < 3 hold
    and 2 < 1 does not: told_apart 3/4.
    """
    if not tied:
        return None
    tie_sizes = np.abs(np.asarray(tied, dtype=np.float64))
    strict_sizes = np.sort(np.abs(np.asarray(strict, dtype=np.float64)))
    return {
        "n": len(tie_sizes),
        "accuracy": float((tie_sizes < CLOSE).mean()),
        "gap": float(tie_sizes.mean()),
        "gap_strict": float(strict_sizes.mean()) if len(strict_sizes) else None,
        "told_apart": _chance_smaller(tie_sizes, strict_sizes),
    }


def _chance_smaller(sizes: np.ndarray, others: np.ndarray) -> float | None:
    """The chance that one of `sizes` is smaller than one of `others` (sorted); None without others."""
    if not len(others):
        return None
    not_above = np.searchsorted(others, sizes, side="right")
    larger = len(others) - not_above
    equal = not_above - np.searchsorted(others, sizes, side="left")
    return float((larger + equal / 2).mean() / len(others))
