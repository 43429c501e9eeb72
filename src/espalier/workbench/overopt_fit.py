"""Fits of the over-optimisation curve; Gao, Schulman & Hilton, arXiv:2210.10760, section 3:

    best-of-n   R(d) - R(0) = d (a - b d)              d = sqrt(KL to the start)
    RL          R(d) - R(0) = d (a - b log d)

Both are linear in a and b, so least squares has a closed form. Intervals come from resampling prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from espalier.workbench.bootstrap import Array, Resampling, interval, resamples
from espalier.workbench.overopt_points import Point, Prompt

Form = Literal["best_of_n", "rl"]
Reward = Literal["proxy", "gold"]
GRID = 25
"""Distances at which bands are given, and fits compared."""
LARGEST_LOG = 700.0


@dataclass(frozen=True, slots=True)
class Fit:
    """form, a and b; r2: the share of the variance of the points that it explains (1 of points that are all equal);
    a_error, b_error: standard errors, as if the points were independent."""

    form: Form
    a: float
    b: float
    r2: float = 1.0
    a_error: float = 0.0
    b_error: float = 0.0

    def at(self, d: Array) -> Array:
        """R(d) - R(0); 0 at d = 0."""
        gains: Array = _columns(self.form, d) @ np.array([self.a, self.b])
        return gains

    def slope(self, d: float) -> float:
        """a - 2 b d of best-of-n, a - b (log d + 1) of RL, for d > 0."""
        if self.form == "rl":
            return self.a - self.b * (math.log(d) + 1)
        return self.a - 2 * self.b * d

    @property
    def peak(self) -> float | None:
        """The d of the highest R: a / (2 b), or exp(a / b - 1); None if the curve rises without end, or falls from the
        start."""
        if self.b <= 0:
            return None
        if self.form == "rl":
            return math.exp(min(LARGEST_LOG, self.a / self.b - 1))
        return self.a / (2 * self.b) if self.a > 0 else None

    def falls_from(self, reach: float) -> float | None:
        """The d from which on the curve does not rise any more, up to `reach`: its peak, or 0 if it never rises. None
        if it rises at `reach`. The slope of both forms is monotone, so that the curve turns at most once.

        >>> Fit("best_of_n", 2.0, 0.5).falls_from(3.0), Fit("best_of_n", 2.0, 0.5).falls_from(1.0)
        (2.0, None)
        """
        if self.slope(reach) > 0:
            return None
        return (self.peak or 0.0) if self.b > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        errors = {"a_error": self.a_error, "b_error": self.b_error}
        return {"form": self.form, "a": self.a, "b": self.b, **errors, "r2": self.r2, "peak": self.peak}


def fit(form: Form, d: Sequence[float] | Array, gains: Sequence[float] | Array) -> Fit | None:
    """Least squares over points (d, R(d) - R(0)); None for fewer than three points at different distances above 0."""
    distances, values = np.asarray(d, float), np.asarray(gains, float)
    distances, values = distances[np.asarray(d) > 0], values[np.asarray(d) > 0]
    if len(set(distances.tolist())) < 3:
        return None
    columns = _columns(form, distances)
    a, b = np.linalg.lstsq(columns, values, rcond=None)[0].tolist()
    spread = float(((values - values.mean()) ** 2).sum())
    rest = float(((columns @ np.array([a, b]) - values) ** 2).sum())
    variances = rest / (len(values) - 2) * np.linalg.pinv(columns.T @ columns).diagonal()
    a_error, b_error = np.sqrt(np.maximum(0.0, variances)).tolist()
    return Fit(form, a, b, 1 - rest / spread if spread else 1.0, a_error, b_error)


def _columns(form: Form, d: Array) -> Array:
    """What a and b are multiplied by at each distance, [N, 2]."""
    safe = np.where(d > 0, d, 1.0)
    bent = d * np.log(safe) if form == "rl" else d**2
    return np.stack([d, -bent], 1)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one reward against distance, and answers of the start, whose reward gains are measured from."""

    form: Form
    points: tuple[Point, ...]
    reward: Reward
    start: Point

    def d(self) -> list[float]:
        return [point.d for point in self.points]

    def gains(self) -> list[float]:
        return [point.mean(self.reward) - self.start.mean(self.reward) for point in self.points]

    @property
    def reach(self) -> float:
        """The largest distance that was measured."""
        return max(self.d())

    def fitted(self) -> Fit | None:
        return fit(self.form, self.d(), self.gains())


def resampled(curves: Sequence[Curve], resampling: Resampling) -> list[list[Fit | None]]:
    """For each resample of prompts, the fit of every curve. Prompts are drawn with replacement from all of them, the
    same ones for all curves, all points and the start; a point that none of them answers is left out."""
    numbers: dict[Prompt, int] = {}
    for curve in curves:
        for point in (curve.start, *curve.points):
            for prompt in point.prompts:
                numbers.setdefault(prompt, len(numbers))
    tables = [_Sums(curve, numbers) for curve in curves]
    entries = max(len(numbers), *(len(curve.points) + 1 for curve in curves))
    draws = []
    for times_RC in resamples(len(numbers), resampling, entries):
        gains = [table.drawn(times_RC) for table in tables]
        for row in range(len(times_RC)):
            draws.append([table.fit(d[row], gain[row]) for table, (d, gain) in zip(tables, gains, strict=True)])
    return draws


class _Sums:
    """Sums over answers of a curve's points P and its start (the last row), by prompt C."""

    def __init__(self, curve: Curve, numbers: dict[Prompt, int]) -> None:
        points = (*curve.points, curve.start)
        shape = (len(points), len(numbers))
        self.form: Form = curve.form
        self.counts_PC, self.kl_PC, self.rewards_PC = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for row, point in enumerate(points):
            columns = [numbers[prompt] for prompt in point.prompts]
            self.counts_PC[row, columns] = point.counts
            self.kl_PC[row, columns] = point.kl
            self.rewards_PC[row, columns] = getattr(point, curve.reward)

    def drawn(self, times_RC: Array) -> tuple[Array, Array]:
        """d and gain [R, P] of each resample; nan if it has no answer of the point, or of the start."""
        counts_RP = times_RC @ self.counts_PC.T
        counts_RP = np.where(counts_RP > 0, counts_RP, np.nan)
        kl_RP = times_RC @ self.kl_PC.T / counts_RP
        means_RP = times_RC @ self.rewards_PC.T / counts_RP
        return np.sqrt(np.maximum(0.0, kl_RP[:, :-1])), means_RP[:, :-1] - means_RP[:, -1:]

    def fit(self, d_P: Array, gain_P: Array) -> Fit | None:
        known = ~np.isnan(d_P) & ~np.isnan(gain_P)
        return fit(self.form, d_P[known], gain_P[known])


def band(best: Fit | None, fits: Sequence[Fit | None], reach: float, resampling: Resampling) -> list[dict[str, float]]:
    """The fit and its interval at distances from 0 to `reach`; empty without a fit. `fits` are those of resamples."""
    known = [each for each in fits if each is not None]
    if best is None or not known:
        return []
    grid = np.linspace(0, reach, GRID)
    rows = np.stack([each.at(grid) for each in known])
    lines = []
    for place, d in enumerate(grid.tolist()):
        low, high = interval(rows[:, place], resampling)
        lines.append({"d": d, "gain": float(best.at(grid)[place]), "low": low, "high": high})
    return lines


def peak(fits: Sequence[Fit | None], first: float, reach: float, resampling: Resampling) -> dict[str, float | None]:
    """How sure a peak is: `share` of the resampled fits that turn down between `first` and `reach`, and the interval of
    the distance at which these do; None without any."""
    known = [each for each in fits if each is not None]
    turns = [each.falls_from(reach) for each in known]
    inside = [d for d in turns if d is not None and d > first]
    share = len(inside) / len(known) if known else None
    low, high = interval(np.array(inside), resampling) if inside else (None, None)
    return {"share": share, "low": low, "high": high}


def control_end(gold: Fit, proxy: Fit, reach: float) -> float | None:
    """The d from which, up to `reach`, the proxy gains while gold does not; None if there is none.

    By hand, best-of-n: gold 2 d - 0.5 d^2 falls from 2 on, a proxy of d gains: 2. A proxy of d - 0.5 d^2 falls from 1
    on, so that neither rises: None.
    """
    turn = gold.falls_from(reach)
    if turn is None or turn >= reach:
        return None
    before, after = proxy.at(np.array([turn, reach])).tolist()
    return turn if after > before else None


def frontier_gap(one: Curve, other: Curve, resampling: Resampling) -> dict[str, Any] | None:
    """How much higher `one` lies than `other`, by their fits, over the distances that both have; None if they have none
    in common.

    value, low, high: the mean over these distances, with an interval over prompts, which are the same for both.
    above, below: the distances at which `one` lies higher or lower in a band that holds the whole gap at the confidence
        level, gap +- c deviations with c the quantile of the largest |resampled - gap| / deviation: curves that cross
        may have a mean of 0, and are apart all the same.
    """
    low, high = max(min(one.d()), min(other.d())), min(one.reach, other.reach)
    first, second = one.fitted(), other.fitted()
    if first is None or second is None or low >= high:
        return None
    grid = np.linspace(low, high, GRID)
    rows = []
    for mine, theirs in resampled([one, other], resampling):
        if mine is not None and theirs is not None:
            rows.append(mine.at(grid) - theirs.at(grid))
    if not rows:
        return None
    gap, gaps = first.at(grid) - second.at(grid), np.stack(rows)
    bottom, top = interval(gaps.mean(1), resampling)
    # Rounding alone is no deviation.
    spread = np.maximum(gaps.std(0), 1e-9 * (1 + np.abs(gap)))
    width = np.quantile(np.abs((gaps - gap) / spread).max(1), resampling.confidence) * spread
    return {
        "value": float(gap.mean()),
        "low": bottom,
        "high": top,
        "from": low,
        "to": high,
        "above": grid[gap > width].tolist(),
        "below": grid[gap < -width].tolist(),
    }
