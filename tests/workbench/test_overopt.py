"""What a grid says: sentences, the checkpoint to take, the page."""

import math

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt import Run, page, report, verdict
from espalier.workbench.overopt_points import Point

RESAMPLING = Resampling(resamples=50)


def run(beta: float | None, a: float, b: float, seed: int = 0, proxy: str = "proxy-500", reach: int = 10) -> Run:
    """Gold follows d (a - b log d), or d (a - b d); the proxy rises by d."""
    points = []
    for number in range(1, reach + 1):
        d = 0.4 * number
        gold = d * (a - b * (d if beta is None else math.log(d)))
        points.append(Point(10 * number, (0, 1), (d, d), (gold, gold), (d * d,) * 2, (1.0, 1.0)))
    return Run(proxy, beta, seed, tuple(points), 0.0, 0.0)


def test_sentences() -> None:
    # exp(a / b - 1) = 1.65 and a / (2 b) = 2.
    assert verdict(run(0.0, 1.5, 1.0)) == (
        "gold passes a peak at d 1.65 (measured to 4.00); control ends there: proxy goes on rising"
    )
    assert verdict(run(None, 2.0, 0.5)).startswith("gold passes a peak at d 2.00")
    assert verdict(run(0.0, 3.0, 1.0)) == "gold passes no peak up to d 4.00"
    assert verdict(run(None, -1.0, 0.5)) == "gold falls from the start, to d 4.00"
    assert verdict(run(0.0, 1.0, 1.0, reach=2)) == "too few distances for a fit"


def test_a_report_pools_seeds_and_names_the_checkpoint() -> None:
    result = report(
        [run(0.0, 1.5, 1.0), run(0.0, 1.6, 1.0, seed=1), run(0.05, 1.5, 1.0), run(None, 2.0, 0.5)],
        {"proxy-500": 0.25},
        RESAMPLING,
    )
    free, held, best = result["cells"]
    assert (free["name"], free["seeds"], len(free["points"])) == ("proxy-500, beta 0", 2, 20)
    # 2 (1.6 - log 2) is the highest of the distances 0.4, 0.8, ..., of the seed with the larger a.
    assert (free["highest_gold"]["seed"], free["highest_gold"]["at"]) == (1, 50)
    assert free["equal_scores"] is None and best["equal_scores"] == 0.25
    assert held["fits"]["gold"]["a"] - 1.5 < 1e-9
    (frontier,) = result["frontiers"]
    assert (frontier["beta"], frontier["proxy"]) == (0.05, "proxy-500")
    assert frontier["gap"]["value"] < 0
    text = page(result)
    assert text.count("<svg") == 3 and "step 50 of seed 1" in text and "25.0% of pairs of answers" in text
    assert "http" not in text
