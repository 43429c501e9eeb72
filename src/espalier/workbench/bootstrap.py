"""Intervals of ratios by resampling prompts.

Answers to one prompt share its difficulty, and the pairs among K answers share the answers, so pairs are not
independent; prompts are. Every figure of the workbench is a ratio of sums over prompts,

    theta = sum_c a_c / sum_c b_c,

(accuracy: right pairs over pairs; slope: sum of products over sum of squares), so that one function resamples them all.
Percentile bootstrap: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, CONFIDENCE = 2000, 0.95
_CHUNK = 2_000_000  # entries of the matrix of counts at a time


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made. The same seed gives the same interval."""

    seed: int = 0
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio with its interval; None where nothing is divided. `count` is what stands below, `prompts` how many
    prompts have any of it."""

    value: float | None
    low: float | None
    high: float | None
    count: float
    prompts: int

    def as_dict(self) -> dict[str, float | int | None]:
        n = int(self.count) if self.count == int(self.count) else self.count
        return {"value": self.value, "low": self.low, "high": self.high, "n": n, "prompts": self.prompts}


def ratio(
    above: Sequence[float],
    below: Sequence[float],
    cluster: Sequence[int],
    how: Resampling,
    *,
    share: bool = False,
    count: float | None = None,
) -> Estimate:
    """`sum(above) / sum(below)` and its interval, `cluster` numbering the prompt of each entry.

    Prompts without any of `below` are left out first. Resamples whose sum below is 0 cannot occur then. One prompt
    alone has no interval (None).

    share: the ratio is a share. Where it is exactly 0 or 1 every resample repeats it, and an interval without width
    would claim certainty; the exact bound over prompts takes its place: with n prompts all right, (alpha / 2)^(1 / n),
    which is 0.025^(1/10) = 0.6915 for 10 prompts at 95 % (Clopper & Pearson, Biometrika 26, 1934).
    count: what the estimate reports as `count`, where that is not the sum below.

    >>> ratio([1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 2], Resampling(seed=1)).value
    0.75
    """
    numbers, places = np.unique(np.asarray(cluster, dtype=np.int64), return_inverse=True)
    a = np.bincount(places, weights=np.asarray(above, dtype=np.float64), minlength=len(numbers))
    b = np.bincount(places, weights=np.asarray(below, dtype=np.float64), minlength=len(numbers))
    a, b = a[b > 0], b[b > 0]
    said = float(b.sum()) if count is None else count
    if not len(b):
        return Estimate(None, None, None, said, 0)
    value = float(a.sum() / b.sum())
    if len(b) == 1:
        return Estimate(value, None, None, said, 1)
    tail = (1 - how.confidence) / 2
    if share and value in (0.0, 1.0):
        bound = float(tail ** (1 / len(b)))
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
        return Estimate(value, low, high, said, len(b))
    low, high = (float(x) for x in np.quantile(_resampled(a, b, how), (tail, 1 - tail)))
    return Estimate(value, low, high, said, len(b))


def _resampled(a: np.ndarray, b: np.ndarray, how: Resampling) -> np.ndarray:
    """The ratio in every resample: prompts drawn with replacement, as often as there are prompts."""
    random = np.random.default_rng(how.seed)
    n, done, out = len(a), 0, np.empty(how.resamples)
    while done < how.resamples:
        size = min(how.resamples - done, max(1, _CHUNK // n))
        drawn = random.multinomial(n, np.full(n, 1 / n), size=size)
        out[done : done + size] = (drawn @ a) / (drawn @ b)
        done += size
    return out
