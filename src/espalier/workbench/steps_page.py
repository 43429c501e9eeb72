"""The workbench of a process reward model as one offline HTML page: three charts and every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.workbench.charts import Series, chart
from espalier.workbench.page import BLUE, GREEN, GREY, document
from espalier.workbench.process import findings

COLORS = {"outcome": GREY, "product": BLUE, "min": "#b3541e", "last": "#7a4fa3", "mean": "#a8862b"}


def page(report: Mapping[str, Any], title: str = "Process reward model") -> str:
    """The whole page: no script, nothing loaded. `report` is what `process.process` returns, with what
    `process.against_outcome` returns under `against_outcome` where an outcome model is known."""
    counts, how, against = report["counts"], report["intervals"], report.get("against_outcome")
    said = (
        f"{counts['problems']:,} held-out problems, {counts['solutions']:,} solutions, {counts['steps']:,} steps "
        f"({counts['good']:,} good, {counts['bad']:,} bad), {counts['first_mistakes']:,} with a known first mistake or "
        f"none, {counts['outcomes']:,} known to be right or wrong. Intervals: {how['confidence']:.0%}, "
        f"{how['resamples']:,} resamples of problems, seed {how['seed']}."
    )
    charts = [
        ("Reliability of steps", reliability(report)), ("First mistake", mistakes(report)),
        ("Best of n", curve(against) if against else ""),
    ]  # fmt: skip
    return document(title, said, charts, findings(report, against))


def reliability(report: Mapping[str, Any]) -> str:
    """The share of good steps by what the model says, over bins of its probability; a dot's area follows its steps."""
    found = report["steps"]
    if found is None:
        return ""
    full = [b for b in found["bins"] if b["n"]]
    most = max(b["n"] for b in full)
    points = [(b["probability"], b["good"]) for b in full]
    return chart(
        [
            Series("calibrated", [(0, 0), (1, 1)], GREY, dashed=True),
            Series("model", points, BLUE, sizes=[2 + 6 * (b["n"] / most) ** 0.5 for b in full]),
        ],
        (0, 1), (0, 1), ("probability that the step is good", "share good"),
    )  # fmt: skip


def mistakes(report: Mapping[str, Any]) -> str:
    """How often the first mistake is found: over all solutions, those with a mistake, those without, with intervals."""
    series = []
    for key, name, color, shift in (
        ("first_error", "threshold 1/2", BLUE, -0.1), ("tuned", "threshold tuned", GREEN, 0.1),
    ):  # fmt: skip
        if (found := report[key]) is None:
            continue
        known = [
            (place + shift, found[what])
            for place, what in enumerate(("erroneous", "accuracy", "correct"), -1)
            if found[what]["value"] is not None
        ]
        bars = [(x, e["low"], e["high"]) for x, e in known if e["low"] is not None]
        dots = [(x, e["value"]) for x, e in known]
        series.append(Series(name, dots, color, dots=True, sizes=[6.0] * len(dots), bars=bars))
    if not series:
        return ""
    return chart(series, (-1.5, 1.5), (0, 1), ("with a mistake (-1), all (0), without one (1)", "accuracy"))


def curve(against: Mapping[str, Any]) -> str:
    """Share of right solutions by n, of the choice of every aggregation, of the outcome model and of an oracle."""
    oracle = [(float(n), value) for n, value in enumerate(against["oracle"], 1)]
    lines = {
        name: [(float(p["n"]), p["value"]) for p in judge["best_of_n"]] for name, judge in against["judges"].items()
    }
    values = [y for points in (oracle, *lines.values()) for _, y in points]
    series = [Series("oracle", oracle, GREEN, dashed=True)]
    series += [Series(name, points, COLORS[name], sizes=[4.0] * len(points)) for name, points in lines.items()]
    return chart(series, (1, len(oracle)), (min(values), max(values)), ("n", "right"))
