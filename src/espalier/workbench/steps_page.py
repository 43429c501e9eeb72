"""The workbench of a process reward model as one offline HTML page: three charts and every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.workbench.charts import BLUE, GREEN, GREY, Series, chart, estimates, reliability_points, whole_ticks
from espalier.workbench.page import document, how_to_read
from espalier.workbench.process import findings

COLORS = {"outcome": GREY, "product": BLUE, "min": "#b3541e", "last": "#7a4fa3", "mean": "#a8862b"}


def page(report: Mapping[str, Any], title: str = "Process reward model") -> str:
    """The whole page: no script, nothing loaded. `report` is what `process.process` returns; if there is an outcome
    model, with what `process.against_outcome` returns under `against_outcome`."""
    counts, against = report["counts"], report.get("against_outcome")
    data = (
        f"{counts['problems']:,} held-out problems, {counts['solutions']:,} solutions, {counts['steps']:,} steps "
        f"({counts['good']:,} good, {counts['bad']:,} bad). The first mistake, or that there is none, is known in "
        f"{counts['first_mistakes']:,} solutions; {counts['outcomes']:,} are known to be right or wrong."
    )
    charts = [
        ("Reliability of steps", reliability(report)),
        ("First mistake", mistakes(report)),
        ("Best of n", curve(against) if against else ""),
    ]
    intro = f"{data} {how_to_read(report['intervals'], 'problems')}"
    return document(title, intro, charts, findings(report, against))


def reliability(report: Mapping[str, Any]) -> str:
    """The share of good steps over bins of the model's probability; a dot's area grows with its number of steps."""
    if report["steps"] is None:
        return ""
    points, sizes = reliability_points(report["steps"]["bins"], "probability", "good")
    series = [
        Series("perfect calibration", [(0, 0), (1, 1)], GREY, dashed=True),
        Series("model", points, BLUE, sizes=sizes),
    ]
    labels = ("predicted probability that a step is good", "share of good steps")
    return chart(series, (0, 1), (0, 1), labels)


def mistakes(report: Mapping[str, Any]) -> str:
    """How often the first mistake is found: of solutions with a mistake, of all, and of those without one."""
    series = []
    if report["first_error"] is not None:
        series.append(_first_mistakes("threshold 1/2", report["first_error"], BLUE, -0.1))
    if report["tuned"] is not None:
        series.append(_first_mistakes("threshold tuned", report["tuned"], GREEN, 0.1))
    if not series:
        return ""
    ticks = [(-1.0, "with a mistake"), (0.0, "all"), (1.0, "without a mistake")]
    return chart(series, (-1.5, 1.5), (0, 1), ("solutions", "accuracy"), ticks)


def _first_mistakes(name: str, shares: Mapping[str, Any], color: str, shift: float) -> Series:
    """The dots of one threshold, shifted so that those of two do not cover each other."""
    dots = [
        (-1 + shift, shares["erroneous"]),
        (shift, shares["accuracy"]),
        (1 + shift, shares["correct"]),
    ]
    return estimates(name, dots, color, radius=6.0, dots=True)


def curve(against: Mapping[str, Any]) -> str:
    """Share of right solutions by n, of the choice of every aggregation, of the outcome model and of an oracle."""
    oracle = [(float(n), value) for n, value in enumerate(against["oracle"], 1)]
    series = [Series("oracle (best possible)", oracle, GREEN, dashed=True)]
    heights = list(against["oracle"])
    for name, judge in against["judges"].items():
        points = []
        # `n` of an estimate is the number of problems; the n of best-of-n is its place in the list.
        for n, estimate in enumerate(judge["best_of_n"], 1):
            points.append((float(n), estimate["value"]))
            heights.append(estimate["value"])
        series.append(Series(name, points, COLORS[name], sizes=[4.0] * len(points)))
    last = len(oracle)
    labels = ("n solutions drawn, the one with the highest score kept", "share right")
    return chart(series, (1, last), (min(heights), max(heights)), labels, whole_ticks(last))
