"""Fits of the over-optimisation curve; Gao, Schulman & Hilton, arXiv:2210.10760, section 3:

    best-of-n   R(d) - R(0) = d (a - b d)              d = sqrt(KL to the start)
    RL          R(d) - R(0) = d (a - b log d)

Both are linear in a and b, so least squares has a closed form. Bands come from resampling prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from espalier.workbench.bootstrap import Array, Resampling
from espalier.workbench.overopt_points import Point

Form = Literal["best_of_n", "rl"]
GRID = 25
"""Distances at which bands are given, and fits compared."""


@dataclass(frozen=True, slots=True)
class Fit:
    """form, a and b; r2: the share of the variance of the points that it explains (1 of points that are all equal)."""

    form: Form
    a: float
    b: float
    r2: float

    def at(self, d: Array) -> Array:
        """R(d) - R(0); 0 at d = 0."""
        gains: Array = _columns(self.form, d) @ np.array([self.a, self.b])
        return gains

    @property
    def peak(self) -> float | None:
        """The d of the highest R: a / (2 b), or exp(a / b - 1); None if the curve rises without end, or falls from the
        start."""
        if self.b <= 0:
            return None
        if self.form == "rl":
            return math.exp(min(700.0, self.a / self.b - 1))
        return self.a / (2 * self.b) if self.a > 0 else None

    def as_dict(self) -> dict[str, Any]:
        return {"form": self.form, "a": self.a, "b": self.b, "r2": self.r2, "peak": self.peak}


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
    return Fit(form, a, b, 1 - rest / spread if spread else 1.0)


def _columns(form: Form, d: Array) -> Array:
    """What a and b are multiplied by at each distance, [N, 2]."""
    safe = np.where(d > 0, d, 1.0)
    bent = d * np.log(safe) if form == "rl" else d**2
    return np.stack([d, -bent], 1)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one reward against distance, and the start's reward, which gains are measured from."""

    form: Form
    points: tuple[Point, ...]
    reward: Literal["proxy", "gold"]
    start: float

    def d(self) -> list[float]:
        return [point.d for point in self.points]

    def gains(self) -> list[float]:
        return [point.mean(self.reward) - self.start for point in self.points]

    def fitted(self) -> Fit | None:
        return fit(self.form, self.d(), self.gains())

    def resampled(self, draw: np.random.Generator) -> Fit | None:
        """The fit to points of other prompts, drawn with replacement: the same ones for every point that has them."""
        numbers = {prompt: i for i, prompt in enumerate(sorted({p for point in self.points for p in point.prompts}))}
        weights = draw.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)))
        distances, values = [], []
        for point in self.points:
            w = weights[[numbers[prompt] for prompt in point.prompts]]
            count = float(w @ np.array(point.counts))
            if count:
                distances.append(math.sqrt(max(0.0, float(w @ np.array(point.kl)) / count)))
                values.append(float(w @ np.array(getattr(point, self.reward))) / count - self.start)
        return fit(self.form, distances, values)


def band(curve: Curve, resampling: Resampling) -> list[dict[str, float]]:
    """The fit and its interval at distances over the measured range; empty without a fit."""
    best = curve.fitted()
    if best is None:
        return []
    grid = np.linspace(0, max(curve.d()), GRID)
    fits = _resamples(curve.resampled, resampling)
    if not fits:
        return []
    rows = np.stack([each.at(grid) for each in fits])
    low, high = _interval(rows, resampling)
    lines = zip(grid.tolist(), best.at(grid).tolist(), low.tolist(), high.tolist(), strict=True)
    return [{"d": d, "gain": gain, "low": lo, "high": hi} for d, gain, lo, hi in lines]


def frontier_gap(one: Curve, other: Curve, resampling: Resampling) -> dict[str, float] | None:
    """How much higher `one` lies than `other`, the mean over the distances that both have, with an interval; None if
    they have no distance in common."""
    low, high = max(min(one.d()), min(other.d())), min(max(one.d()), max(other.d()))
    first, second = one.fitted(), other.fitted()
    if first is None or second is None or low >= high:
        return None
    grid = np.linspace(low, high, GRID)

    def gap(draw: np.random.Generator) -> float | None:
        mine, theirs = one.resampled(draw), other.resampled(draw)
        return None if mine is None or theirs is None else float((mine.at(grid) - theirs.at(grid)).mean())

    gaps = np.array(_resamples(gap, resampling))
    if not len(gaps):
        return None
    value = float((first.at(grid) - second.at(grid)).mean())
    bottom, top = (float(x) for x in _interval(gaps, resampling))
    return {"value": value, "low": bottom, "high": top, "from": low, "to": high}


def _resamples(draw_one: Callable[[np.random.Generator], Any], resampling: Resampling) -> list[Any]:
    draw = np.random.default_rng(resampling.seed)
    results = (draw_one(draw) for _ in range(resampling.resamples))
    return [result for result in results if result is not None]


def _interval(rows: Array, resampling: Resampling) -> tuple[Array, Array]:
    tail = (1 - resampling.confidence) / 2
    return np.quantile(rows, tail, axis=0), np.quantile(rows, 1 - tail, axis=0)
