"""What a grid says: sentences, the checkpoint to take, the table."""

import math
from typing import Any

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt import Run, report, table
from espalier.workbench.overopt_points import Point, Prompt

RESAMPLING = Resampling(resamples=50)
PROMPTS: tuple[Prompt, ...] = (("s", 0), ("s", 1))
EQUAL = {"proxy-500": {"scores": 0.25, "answers": 0.125}}


def point(at: int, d: float, proxy: float, gold: float) -> Point:
    return Point(at, PROMPTS, (proxy,) * 2, (gold,) * 2, (d * d,) * 2, (1.0, 1.0))


def run(beta: float | None, a: float, b: float, seed: int = 0, reach: int = 10, bend: float = 0.0) -> Run:
    """Gold follows d (a - b log d), or d (a - b d); the proxy d - bend d^2. All prompts are the same."""
    points = []
    for number in range(1, reach + 1):
        d = 0.4 * number
        gold = d * (a - b * (d if beta is None else math.log(d)))
        points.append(point(10 * number, d, d - bend * d * d, gold))
    return Run("proxy-500", beta, seed, tuple(points), point(1, 0.0, 0.0, 0.0), folder=f"o/{seed}")


def cell(*runs: Run) -> dict[str, Any]:
    entry: dict[str, Any] = report(runs, EQUAL, RESAMPLING)["cells"][0]
    return entry


def test_sentences() -> None:
    # exp(a / b - 1) = 1.65 and a / (2 b) = 2.
    peaked = cell(run(0.0, 1.5, 1.0))
    assert peaked["verdict"] == (
        "gold passes a peak at d 1.65 (measured to 4.00; 100% of resamples have a peak); control ends at d 1.65: from "
        "there proxy gains"
    )
    assert peaked["control_ends"] == peaked["fits"]["gold"]["peak"] and peaked["peak"]["share"] == 1.0
    assert cell(run(None, 2.0, 0.5))["verdict"].startswith("gold passes a peak at d 2.00")
    with_proxy = cell(run(None, 2.0, 0.5, bend=0.5))
    assert with_proxy["verdict"].endswith("; proxy does not gain there either")
    assert with_proxy["control_ends"] is None
    rising = cell(run(0.0, 3.0, 1.0))
    assert rising["verdict"] == "gold passes no peak up to d 4.00; 0% of resamples have a peak"
    assert rising["at_peak"] == [] and rising["control_ends"] is None
    falling = cell(run(None, -1.0, 0.5))
    assert falling["verdict"].startswith("gold does not rise between d 0.40 and 4.00")
    assert falling["control_ends"] == 0.0
    assert cell(run(0.0, 1.0, 1.0, reach=2))["verdict"] == "too few distances for a fit"


def test_a_report_pools_seeds_and_names_the_checkpoint() -> None:
    runs = [run(0.0, 1.5, 1.0), run(0.0, 1.6, 1.0, seed=1), run(0.05, 1.4, 1.0), run(None, 2.0, 0.5)]
    result = report(runs, EQUAL, RESAMPLING)
    free, held, best = result["cells"]
    assert (free["name"], free["seeds"], len(free["points"])) == ("proxy-500, beta 0", 2, 20)
    # 2 (1.6 - log 2) is the highest of the distances 0.4, 0.8, ..., of the seed with the larger a.
    highest = free["highest_gold"]
    assert (highest["seed"], highest["at"], highest["run"]) == (1, 50, "o/1")
    # The pooled fit has a 1.55 and its peak at exp(0.55) = 1.73: steps 40 (d 1.6) of both seeds are nearest.
    assert [(place["seed"], place["at"]) for place in free["at_peak"]] == [(0, 40), (1, 40)]
    assert free["equal"] is None and best["equal"] == EQUAL["proxy-500"]
    assert held["fits"]["gold"]["a"] - 1.4 < 1e-9
    (frontier,) = result["frontiers"]
    assert frontier["name"] == "proxy-500, beta 0.05" and frontier["beta"] == 0.05
    # 1.4 less 1.55 by the mean distance 2.2, in every resample.
    assert math.isclose(frontier["gap"]["value"], -0.33, abs_tol=1e-9)
    assert (
        frontier["verdict"] == "gold lies below from d 0.40 to 4.00, against beta 0 at the same d "
        "(mean -0.33 [-0.33 to -0.33], d 0.40 to 4.00)"
    )


def test_one_frontier_within_the_interval() -> None:
    """Two prompts whose golds lie 1 above and 1 below the common curve, the other way round with a penalty: the gap is
    2, 0 or -2 times d by the prompts drawn, and 0 over both."""
    free, held = run(0.0, 1.5, 1.0), run(0.05, 1.5, 1.0)

    def tilted(r: Run, by: float) -> Run:
        points = []
        for p in r.points:
            gold = (p.gold[0] + by * p.d, p.gold[1] - by * p.d)
            points.append(Point(p.at, p.prompts, p.proxy, gold, p.kl, p.counts))
        return r._replace(points=tuple(points))

    (frontier,) = report([tilted(free, 1.0), tilted(held, -1.0)], EQUAL, RESAMPLING)["frontiers"]
    assert frontier["verdict"].startswith("one frontier with beta 0 within the interval")
    assert frontier["gap"]["low"] < -1 and frontier["gap"]["high"] > 1


def test_curves_that_cross_are_no_frontier() -> None:
    """d (3 - 1.5 log d) and d (1.5 - 0.2 log d) meet at log d = 1.5 / 1.3, d = 3.17; without noise they are apart."""
    (frontier,) = report([run(0.0, 1.5, 0.2), run(0.05, 3.0, 1.5)], EQUAL, RESAMPLING)["frontiers"]
    assert frontier["verdict"].startswith(
        "gold crosses that of beta 0: above from d 0.40 to 3.10 and below from d 3.25"
    )
    assert max(frontier["gap"]["above"]) < 3.17 < min(frontier["gap"]["below"])


def test_no_distances_in_common() -> None:
    far = run(0.05, 1.5, 1.0)
    points = tuple(point(p.at, p.d + 9, p.mean("proxy"), p.mean("gold")) for p in far.points)
    (frontier,) = report([run(0.0, 1.5, 1.0), far._replace(points=points)], EQUAL, RESAMPLING)["frontiers"]
    assert frontier["gap"] is None and frontier["verdict"] == "no distances in common with beta 0"


def test_gold_that_never_changes_is_no_verdict() -> None:
    """A gold of 0 everywhere has a fit of 0 and a band of width 0, which would read as certainty."""
    result = report([run(0.0, 0.0, 0.0), run(0.05, 0.0, 0.0)], EQUAL, RESAMPLING)
    for entry in result["cells"]:
        assert entry["verdict"] == "gold is the same at every distance, which says nothing of it"
        assert entry["control_ends"] is None and entry["at_peak"] == []
    assert [entry["verdict"] for entry in result["frontiers"]] == ["gold is the same everywhere"]


def test_the_table_has_a_row_for_each_cell() -> None:
    columns, rows = table(report([run(None, 2.0, 0.5), run(0.0, 1.0, 1.0, reach=2)], EQUAL, RESAMPLING))
    assert len(columns) == len(rows[0]) == 7
    # d 2 is step 50, gold 2 there.
    assert rows[0] == ["proxy-500, best of n", "0", "2", "n 50", "2.00", "2", "2.00"]
    assert rows[1][3:] == ["step 20 of seed 0", "0.80", "-", "-"]
