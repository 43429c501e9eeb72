"""Fits of the over-optimisation curve: known curves come back, by normal equations that share no code."""

import math

import numpy as np
import pytest

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt_fit import Curve, Fit, Form, band, fit, frontier_gap
from espalier.workbench.overopt_points import Point

RESAMPLING = Resampling(resamples=200)


def curve(form: Form, a: float, b: float, noise: float = 0.0, seed: int = 0, start: float = 2.0) -> Curve:
    """Ten points of 40 prompts whose golds scatter around the curve."""
    rng, points = np.random.default_rng(seed), []
    for number in range(1, 11):
        d = 0.3 * number
        gain = d * (a - b * (d if form == "best_of_n" else math.log(d)))
        gold = tuple((start + gain + noise * rng.normal(size=40)).tolist())
        points.append(Point(number, tuple(range(40)), gold, gold, (d * d,) * 40, (1.0,) * 40))
    return Curve(form, tuple(points), "gold", start)


@pytest.mark.parametrize(("form", "peak"), [("best_of_n", 1.5), ("rl", math.exp(2))])
def test_a_known_curve_comes_back(form: Form, peak: float) -> None:
    fitted = curve(form, 3.0, 1.0).fitted()
    assert fitted is not None
    assert (fitted.a, fitted.b, fitted.r2) == pytest.approx((3.0, 1.0, 1.0))
    assert fitted.peak == pytest.approx(peak)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_least_squares_by_the_normal_equations(form: Form) -> None:
    rng = np.random.default_rng(1)
    d, gains = rng.uniform(0.1, 3, 12), rng.normal(size=12)
    bent = d * d if form == "best_of_n" else d * np.log(d)
    matrix = np.array([[d @ d, -(d @ bent)], [-(d @ bent), bent @ bent]])
    a, b = np.linalg.solve(matrix, np.array([d @ gains, -(bent @ gains)]))
    fitted = fit(form, d, gains)
    assert fitted is not None
    assert (fitted.a, fitted.b) == pytest.approx((a, b))
    rest = gains - d * a + bent * b
    assert fitted.r2 == pytest.approx(1 - float(rest @ rest) / float(((gains - gains.mean()) ** 2).sum()))
    # A point at distance 0 says nothing: both forms are 0 there.
    assert fit(form, [*d, 0.0], [*gains, 5.0]) == fitted


def test_curves_without_a_peak_have_none() -> None:
    assert Fit("rl", 1.0, -0.5, 1.0).peak is None
    assert Fit("rl", 1.0, 0.0, 1.0).peak is None
    assert Fit("best_of_n", -1.0, 0.5, 1.0).peak is None
    assert fit("rl", [1.0, 2.0, 2.0], [1.0, 2.0, 3.0]) is None


def test_a_band_holds_the_curve_and_narrows_with_less_noise() -> None:
    wide, narrow = (band(curve("rl", 1.0, 0.5, noise), RESAMPLING) for noise in (1.0, 0.1))
    assert wide[0] == {"d": 0.0, "gain": 0.0, "low": 0.0, "high": 0.0}
    truth = [p["d"] * (1.0 - 0.5 * math.log(p["d"])) for p in wide[1:]]
    inside = [p["low"] <= x <= p["high"] for p, x in zip(wide[1:], truth, strict=True)]
    assert sum(inside) >= 20
    assert all(w["high"] - w["low"] > 5 * (n["high"] - n["low"]) for w, n in zip(wide[1:], narrow[1:], strict=True))


def test_resamples_take_the_same_prompts_at_every_distance() -> None:
    """Gold that differs by prompt alone moves all points together: 40 prompts of gold 0 or 1, the same at each d."""
    points = []
    for number in range(1, 6):
        gold = tuple(float(prompt % 2) for prompt in range(40))
        points.append(Point(number, tuple(range(40)), gold, gold, (float(number),) * 40, (1.0,) * 40))
    same = Curve("best_of_n", tuple(points), "gold", 0.0)
    draw = np.random.default_rng(0)
    fits = [same.resampled(draw) for _ in range(20)]
    full = same.fitted()
    assert full is not None
    ratios = [each.b / each.a for each in fits if each is not None]
    assert ratios == [pytest.approx(full.b / full.a)] * 20


def test_frontiers_that_are_one_and_that_are_not() -> None:
    free, held = curve("rl", 1.0, 0.5, 0.3, seed=1), curve("rl", 1.0, 0.5, 0.3, seed=2)
    gap = frontier_gap(held, free, RESAMPLING)
    assert gap is not None and gap["low"] < 0 < gap["high"]
    higher = frontier_gap(curve("rl", 2.0, 0.5, 0.3, seed=2), free, RESAMPLING)
    # The mean of d over the common range is 1.65.
    assert higher is not None and higher["low"] > 0 and higher["value"] == pytest.approx(1.65, abs=0.25)
    assert (higher["from"], higher["to"]) == pytest.approx((0.3, 3.0))
