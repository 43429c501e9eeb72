"""Intervals by resampling prompts.

Answers to one prompt share its difficulty, and the pairs among K answers share the answers, so pairs are not
independent; prompts are. Nearly every figure of the workbench is a ratio of sums over prompts,

    theta = sum_c a_c / sum_c b_c,

(accuracy: right pairs over pairs; slope: sum of products over sum of squares), so that `ratio` resamples them all;
`estimate` takes any other statistic of sums over prompts.
Percentile bootstrap: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
RESAMPLES, CONFIDENCE = 2000, 0.95
CHUNK = 2_000_000  # entries of a matrix of resamples that are held at a time


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are computed. The same seed gives the same interval."""

    seed: int = 0
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; None if it is not defined. `count` is its denominator, `prompts` the number of
    prompts that contribute to it."""

    value: float | None
    low: float | None
    high: float | None
    count: float
    prompts: int

    def as_dict(self) -> dict[str, float | int | None]:
        n = int(self.count) if self.count == int(self.count) else self.count
        return {"value": self.value, "low": self.low, "high": self.high, "n": n, "prompts": self.prompts}


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """A number for each key, from 0 in order of first appearance; equal keys have the same number.

    >>> numbered(["b", "a", "b"])
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def ratio(
    above: Sequence[float],
    below: Sequence[float],
    prompts: Sequence[int],
    resampling: Resampling,
    *,
    share: bool = False,
    count: float | None = None,
) -> Estimate:
    """`sum(above) / sum(below)` and its interval; `prompts` has the number of each entry's prompt.

    Prompts without any of `below` are left out first. One prompt alone has no interval (None).

    share: the ratio is a share. If it is exactly 0 or 1, every resample repeats it, and an interval of width 0 would
    claim certainty; it is replaced by the exact bound over prompts: with n prompts all right, (alpha / 2)^(1 / n),
    which is 0.025^(1/10) = 0.6915 for 10 prompts at 95 % (Clopper & Pearson, Biometrika 26, 1934).
    count: what the estimate reports as `count`, if that is not the sum of `below`.

    >>> ratio([1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 2], Resampling(seed=1)).value
    0.75
    """
    present, places = np.unique(np.asarray(prompts, dtype=np.int64), return_inverse=True)
    above_C = np.bincount(places, weights=np.asarray(above, dtype=np.float64), minlength=len(present))
    below_C = np.bincount(places, weights=np.asarray(below, dtype=np.float64), minlength=len(present))
    # Without such prompts no resample can divide by 0.
    above_C, below_C = above_C[below_C > 0], below_C[below_C > 0]
    size = len(below_C)
    if count is None:
        count = float(below_C.sum())
    if not size:
        return Estimate(None, None, None, count, 0)
    value = float(above_C.sum() / below_C.sum())
    if size == 1:
        return Estimate(value, None, None, count, 1)
    if share and value in (0.0, 1.0):
        low, high = _exact_interval(value, size, resampling)
        return Estimate(value, low, high, count, size)
    ratios = []
    for times in resamples(size, resampling, size):
        ratios.append((times @ above_C) / (times @ below_C))
    low, high = interval(np.concatenate(ratios), resampling)
    return Estimate(value, low, high, count, size)


def mean(
    values: Sequence[float], prompts: Sequence[int], resampling: Resampling, *, share: bool = False
) -> dict[str, Any]:
    """The mean of values as the dict of an estimate, resampled by prompt; see `ratio`."""
    return ratio(values, [1.0] * len(values), prompts, resampling, share=share).as_dict()


def estimate(
    sums: Array, statistic: Callable[[Array], Array], resampling: Resampling, count: int, width: int = 1
) -> dict[str, Any]:
    """A statistic of sums over prompts [C, m] as the dict of an estimate; None if it is not defined (nan).

    Resamples in which it is not defined are left out. width: entries that the statistic needs for one resample.
    """
    value, size = float(statistic(sums.sum(0))), len(sums)
    if math.isnan(value):
        return Estimate(None, None, None, count, size).as_dict()
    if size == 1:
        return Estimate(value, None, None, count, size).as_dict()
    drawn = [statistic(times @ sums) for times in resamples(size, resampling, max(width, size))]
    values = np.concatenate(drawn)
    low, high = interval(values[~np.isnan(values)], resampling)
    return Estimate(value, low, high, count, size).as_dict()


def resamples(prompts: int, resampling: Resampling, entries: int) -> Iterator[Array]:
    """How often each prompt is drawn, [resamples, prompts] in chunks: with replacement, as many as there are prompts.

    entries: numbers that one resample needs; a chunk has as many resamples as fit into `CHUNK` of them.
    """
    random = np.random.default_rng(resampling.seed)
    size = max(1, CHUNK // entries)
    for begin in range(0, resampling.resamples, size):
        rows = min(size, resampling.resamples - begin)
        yield random.multinomial(prompts, np.full(prompts, 1 / prompts), size=rows)


def interval(values: Array, resampling: Resampling) -> tuple[float, float]:
    """The percentile interval of a statistic's values over the resamples."""
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _exact_interval(value: float, prompts: int, resampling: Resampling) -> tuple[float, float]:
    """The interval of a share of exactly 0 or 1; see `ratio`."""
    tail = (1 - resampling.confidence) / 2
    bound = float(tail ** (1 / prompts))
    return (bound, 1.0) if value else (0.0, 1 - bound)
