"""Fits of the over-optimisation curve: known curves come back, by normal equations that share no code."""

import math

import numpy as np
import pytest

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt_fit import GRID, Curve, Fit, Form, band, control_end, fit, frontier_gap, peak, resampled
from espalier.workbench.overopt_points import Point, Prompt

RESAMPLING = Resampling(resamples=200)
PROMPTS: tuple[Prompt, ...] = tuple(("s", line) for line in range(40))


def start(gold: float) -> Point:
    return Point(1, PROMPTS, (gold,) * 40, (gold,) * 40, (0.0,) * 40, (1.0,) * 40)


def curve(form: Form, a: float, b: float, noise: float = 0.0, seed: int = 0) -> Curve:
    """Ten points of 40 prompts whose golds scatter around the curve."""
    rng, points = np.random.default_rng(seed), []
    for number in range(1, 11):
        d = 0.3 * number
        gain = d * (a - b * (d if form == "best_of_n" else math.log(d)))
        gold = tuple((2.0 + gain + noise * rng.normal(size=40)).tolist())
        points.append(Point(number, PROMPTS, gold, gold, (d * d,) * 40, (1.0,) * 40))
    return Curve(form, tuple(points), "gold", start(2.0))


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
    deviation = math.sqrt(float(rest @ rest) / (12 - 2))
    errors = deviation * np.sqrt(np.linalg.inv(matrix).diagonal())
    assert (fitted.a_error, fitted.b_error) == pytest.approx(tuple(errors))
    # A point at distance 0 says nothing: both forms are 0 there.
    assert fit(form, [*d, 0.0], [*gains, 5.0]) == fitted


def test_curves_without_a_peak_have_none() -> None:
    assert Fit("rl", 1.0, -0.5).peak is None
    assert Fit("rl", 1.0, 0.0).peak is None
    assert Fit("best_of_n", -1.0, 0.5).peak is None
    assert fit("rl", [1.0, 2.0, 2.0], [1.0, 2.0, 3.0]) is None


def test_where_a_curve_stops_rising() -> None:
    # d (1.5 - log d) is highest at exp(0.5) = 1.65, d (2 - 0.5 d) at 2.
    assert Fit("rl", 1.5, 1.0).falls_from(4.0) == pytest.approx(math.exp(0.5))
    assert Fit("best_of_n", 2.0, 0.5).falls_from(4.0) == 2.0
    assert Fit("rl", 1.5, 1.0).falls_from(1.6) is None and Fit("best_of_n", 2.0, 0.5).falls_from(1.9) is None
    # These never rise up to the reach; the third one turns up at 2.
    assert Fit("best_of_n", -1.0, 0.5).falls_from(1.0) == 0.0
    assert Fit("best_of_n", -2.0, -0.5).falls_from(1.0) == 0.0
    assert Fit("best_of_n", -2.0, -0.5).falls_from(3.0) is None
    assert Fit("best_of_n", 0.0, 0.0).falls_from(1.0) == 0.0


def test_control_ends_if_the_proxy_gains_behind_the_turn_of_gold() -> None:
    gold = Fit("best_of_n", 2.0, 0.5)
    assert control_end(gold, Fit("best_of_n", 1.0, 0.0), 4.0) == 2.0
    assert control_end(gold, Fit("best_of_n", 1.0, 0.5), 4.0) is None
    assert control_end(gold, Fit("best_of_n", 1.0, 0.0), 1.5) is None
    assert control_end(Fit("best_of_n", -1.0, 0.0), Fit("best_of_n", 1.0, 0.0), 4.0) == 0.0


def band_of(curve: Curve) -> list[dict[str, float]]:
    return band(curve.fitted(), [fits[0] for fits in resampled([curve], RESAMPLING)], curve.reach, RESAMPLING)


def test_a_band_holds_the_curve_and_narrows_with_less_noise() -> None:
    wide, narrow = (band_of(curve("rl", 1.0, 0.5, noise)) for noise in (1.0, 0.1))
    assert wide[0] == {"d": 0.0, "gain": 0.0, "low": 0.0, "high": 0.0}
    truth = [p["d"] * (1.0 - 0.5 * math.log(p["d"])) for p in wide[1:]]
    inside = [p["low"] <= x <= p["high"] for p, x in zip(wide[1:], truth, strict=True)]
    assert sum(inside) >= 20
    assert all(w["high"] - w["low"] > 5 * (n["high"] - n["low"]) for w, n in zip(wide[1:], narrow[1:], strict=True))


def test_how_sure_a_peak_is() -> None:
    """d (3 - d) turns at 1.5 in the range up to 3; d (3 - 0.1 d) at 15, far outside."""
    fits = [drawn[0] for drawn in resampled([curve("best_of_n", 3.0, 1.0, 0.2)], RESAMPLING)]
    sure = peak(fits, 0.3, 3.0, RESAMPLING)
    assert sure["share"] == 1.0 and sure["low"] is not None and sure["high"] is not None
    assert sure["low"] < 1.5 < sure["high"] < sure["low"] + 0.2
    rising = [drawn[0] for drawn in resampled([curve("best_of_n", 3.0, 0.1, 0.2)], RESAMPLING)]
    assert peak(rising, 0.3, 3.0, RESAMPLING) == {"share": 0.0, "low": None, "high": None}
    assert peak([None], 0.3, 3.0, RESAMPLING)["share"] is None


def test_resamples_take_the_same_prompts_at_every_distance_and_of_the_start() -> None:
    """Prompts that differ in difficulty alone, by 100 from one to the next: each gains 3 d - d^2, so that gains do not
    depend on which prompts are drawn."""
    points = []
    for number in range(6):
        d = 0.5 * number
        gold = tuple(100.0 * prompt + 3 * d - d * d for prompt in range(40))
        points.append(Point(number, PROMPTS, gold, gold, (d * d,) * 40, (1.0,) * 40))
    same = Curve("best_of_n", tuple(points), "gold", points[0])
    for (fitted,) in resampled([same], Resampling(resamples=20)):
        assert fitted is not None and (fitted.a, fitted.b) == pytest.approx((3.0, 1.0))


def test_points_of_prompts_that_were_not_drawn_are_left_out() -> None:
    """Three of the four points have a prompt of their own; a resample without one of them has too few distances."""
    points = [Point(n, (("s", n),), (1.0,), (1.0,), (float(n),), (1.0,)) for n in range(1, 4)]
    alone = Curve("rl", tuple(points), "gold", Point(1, (("s", 1),), (0.0,), (0.0,), (0.0,), (1.0,)))
    fits = [drawn[0] for drawn in resampled([alone], Resampling(resamples=50))]
    assert 0 < sum(fitted is not None for fitted in fits) < 50


def test_frontiers_that_are_one_and_that_are_not() -> None:
    free, held = curve("rl", 1.0, 0.5, 0.3, seed=1), curve("rl", 1.0, 0.5, 0.3, seed=2)
    gap = frontier_gap(held, free, RESAMPLING)
    assert gap is not None and gap["low"] < 0 < gap["high"] and not gap["above"] and not gap["below"]
    higher = frontier_gap(curve("rl", 2.0, 0.5, 0.3, seed=2), free, RESAMPLING)
    # The mean of d over the common range is 1.65.
    assert higher is not None and higher["low"] > 0 and higher["value"] == pytest.approx(1.65, abs=0.25)
    assert (higher["from"], higher["to"]) == pytest.approx((0.3, 3.0))
    assert len(higher["above"]) == GRID and not higher["below"]


def test_the_band_of_a_gap_holds_all_of_it() -> None:
    """The same curve twice, other noise: in the band of the whole gap few pairs are apart anywhere."""
    apart = 0
    for seed in range(40):
        pair = [curve("rl", 1.0, 0.5, 0.5, seed=2 * seed + k) for k in range(2)]
        gap = frontier_gap(pair[0], pair[1], Resampling(resamples=100))
        assert gap is not None
        apart += bool(gap["above"] or gap["below"])
    assert apart <= 7
