"""How far sigma(score difference) is the probability of being preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10  # of width 0.05 from 0.5 to 1; mirrored they are 20 from 0 to 1
TIE = math.log(3)  # a gap at which sigma is 3/4: the model calls a tie what lies between 1/4 and 3/4


def calibration(gaps: Sequence[float]) -> dict[str, Any] | None:
    """Reliability, expected calibration error, Brier score and log loss of p = sigma(d), d the score of the preferred
    response minus that of the other, over all strict pairs; None without pairs.

    Orientation. With the preferred response always first the outcome is always 1, and the diagram says nothing. So
    every pair stands in both orders with half the weight: (p, outcome 1) and (1 - p, outcome 0). That set is symmetric
    about (1/2, 1/2), so it is computed on its upper half: confidence c = max(p, 1 - p), outcome 1 where the model
    prefers what people prefer, 0 where not, 1/2 where d = 0. Nobody chooses the orientation by the outcome.

    Bins of c: [0.50, 0.55), [0.55, 0.60) ... [0.95, 1.00]. With n_b pairs in bin b,

        ECE   = sum_b n_b / n * |mean outcome_b - mean c_b|
        Brier = mean (1 - p)^2        (equal in both orders; 0.25 for a model that always says 1/2)
        log loss = mean log(1 + exp(-d))                       (ln 2 for that model)

    `ece_floor` is what a perfectly calibrated model would show with as many pairs, by the normal approximation
    sum_b sqrt(2 / pi * sum_{i in b} c_i (1 - c_i)) / n: an ECE near it is not told apart from 0.

    By hand: d = ln 4, ln 4, ln 4, -ln 4 gives c = 0.8 four times, 3 of 4 right: ECE 0.05, Brier (3 * 0.04 + 0.64) / 4
    = 0.19.

    Guo et al., arXiv:1706.04599 (ECE); Brier, Monthly Weather Review 78 (1950).
    """
    if not gaps:
        return None
    d = np.asarray(gaps, dtype=np.float64)
    confidence = _sigma(np.abs(d))
    outcome = np.where(d > 0, 1.0, np.where(d < 0, 0.0, 0.5))
    place = np.minimum(((confidence - 0.5) * 2 * BINS + 1e-9).astype(np.int64), BINS - 1)
    bins, ece, floor = [], 0.0, 0.0
    for b in range(BINS):
        here = place == b
        n = int(here.sum())
        said = float(confidence[here].mean()) if n else None
        seen = float(outcome[here].mean()) if n else None
        low = 0.5 + b * 0.5 / BINS
        bins.append({"low": low, "high": low + 0.5 / BINS, "n": n, "confidence": said, "accuracy": seen})
        if said is not None and seen is not None:
            ece += n / len(d) * abs(seen - said)
            spread = float((confidence[here] * (1 - confidence[here])).sum())
            floor += math.sqrt(2 / math.pi * spread) / len(d)
    return {
        "n": len(d),
        "ece": ece,
        "ece_floor": floor,
        "brier": float(((1 - _sigma(d)) ** 2).mean()),
        "log_loss": float(np.logaddexp(0, -d).mean()),
        "bins": bins,
    }


def at_ties(tied: Sequence[float], strict: Sequence[float]) -> dict[str, Any] | None:
    """What the model makes of pairs that people find equal, from score gaps; None without ties.

    accuracy: share of ties that it calls close, |d| < ln 3, which is sigma(d) between 1/4 and 3/4. gap: mean |d| at
    ties, gap_strict at strict pairs. told_apart: the chance that a tie's |d| is smaller than a strict pair's (equal
    ones count half; 1/2 where the size of the gap says nothing about ties; None without strict pairs).

    By hand: ties 0.1 and 2, strict pairs 1 and -3: accuracy 1/2; of the four comparisons 0.1 < 1, 0.1 < 3, 2 < 3 hold
    and 2 < 1 does not: told_apart 3/4.
    """
    if not tied:
        return None
    t, s = np.abs(np.asarray(tied, dtype=np.float64)), np.sort(np.abs(np.asarray(strict, dtype=np.float64)))
    apart = None
    if len(s):
        above = len(s) - np.searchsorted(s, t, side="right")
        equal = np.searchsorted(s, t, side="right") - np.searchsorted(s, t, side="left")
        apart = float((above + equal / 2).mean() / len(s))
    return {
        "n": len(t),
        "accuracy": float((t < TIE).mean()),
        "gap": float(t.mean()),
        "gap_strict": float(s.mean()) if len(s) else None,
        "told_apart": apart,
    }


def _sigma(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return out
