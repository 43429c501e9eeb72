"""The workbench as one offline HTML page: three charts and every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from espalier.workbench.charts import BLUE, GREEN, GREY, Series, chart, estimates, reliability_points, whole_ticks
from espalier.workbench.tables import by_section, findings

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1f2328}
.charts{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;flex:1 1 280px}figcaption{font-weight:600}
svg{width:100%;height:auto}svg text{font-size:11px;fill:#57606a}.grid{stroke:#e4e7eb}
.legend{margin:.2rem 0}.legend span{margin-right:1rem}table{border-collapse:collapse;width:100%;margin-bottom:1rem}
td{border-bottom:1px solid #e4e7eb;padding:.25rem .5rem;vertical-align:top}td+td{text-align:right}
h2{margin-bottom:.3rem}h2::first-letter{text-transform:uppercase}
"""


def page(report: Mapping[str, Any], title: str = "Reward model") -> str:
    """The whole page: no script, nothing loaded. `report` is what `reward.judge` returns."""
    charts = [
        ("Reliability", reliability(report)),
        ("Accuracy by length", lengths(report)),
        ("Best of n", curve(report)),
    ]
    counts = report["counts"]
    data = (
        f"{counts['groups']:,} held-out groups, {counts['responses']:,} responses, {counts['pairs']:,} strict pairs, "
        f"{counts['ties']:,} ties."
    )
    intro = f"{data} {how_to_read(report['intervals'], 'prompts')}"
    return document(title, intro, charts, findings(report))


def how_to_read(intervals: Mapping[str, Any], resampled: str) -> str:
    """The meaning of '75.0% [60.0% to 85.0%] of 40'."""
    return (
        f"In brackets: {intervals['confidence']:.0%} confidence intervals, from {intervals['resamples']:,} resamples "
        f"of {resampled} (seed {intervals['seed']}). 'of 40' means that the figure is about 40 cases."
    )


def document(title: str, intro: str, charts: Sequence[tuple[str, str]], figures: Sequence[tuple[str, str, str]]) -> str:
    """A page with `intro` on top, then `charts` as (name, SVG), left out if empty, then `figures` as
    (section, what, value), in a table for each section."""
    drawings = ""
    for name, svg in charts:
        if svg:
            drawings += f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>"
    tables = ""
    for section, rows in by_section(figures).items():
        cells = "".join(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>" for what, value in rows)
        tables += f"<h2>{escape(section)}</h2><table>{cells}</table>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<h1>{escape(title)}</h1><p>{escape(intro)}</p><div class="charts">{drawings}</div>{tables}</html>\n'
    )


def reliability(report: Mapping[str, Any]) -> str:
    """How often people agree with the model, by its probability, both orders of every pair: the upper half is measured,
    the lower one is its mirror image. A dot's area grows with its number of pairs."""
    if report["calibration"] is None:
        return ""
    upper, sizes = reliability_points(report["calibration"]["bins"], "confidence", "accuracy")
    lower = [(1 - confidence, 1 - accuracy) for confidence, accuracy in reversed(upper)]
    series = [
        Series("perfect calibration", [(0, 0), (1, 1)], GREY, dashed=True),
        Series("model", [*lower, *upper], BLUE, sizes=[*reversed(sizes), *sizes]),
    ]
    labels = ("probability of being preferred: sigma(score difference)", "share preferred")
    return chart(series, (0, 1), (0, 1), labels)


def lengths(report: Mapping[str, Any]) -> str:
    """Accuracy if the preferred response is the shorter one, as long, and the longer one, with intervals."""
    length = report["length"]
    places = [(-1.0, length["longer_loses"]), (0.0, length["equal_length"]), (1.0, length["longer_wins"])]
    model = estimates("model", places, BLUE, radius=6.0, dots=True)
    if not model.points:
        return ""
    chance = Series("chance", [(-1.5, 0.5), (1.5, 0.5)], GREY, dashed=True)
    ticks = [(-1.0, "shorter"), (0.0, "equal length"), (1.0, "longer")]
    labels = ("the preferred response is", "accuracy")
    return chart([chance, model], (-1.5, 1.5), (0, 1), labels, ticks)


def curve(report: Mapping[str, Any]) -> str:
    """Share of correct answers by n, of the model's choice, a random one and an oracle."""
    if report["best_of_n"] is None:
        return ""
    by_model, by_chance, best, heights = [], [], [], []
    for point in report["best_of_n"]["points"]:
        by_model.append((point["n"], point["model"]))
        by_chance.append((point["n"], point["random"]))
        best.append((point["n"], point["oracle"]))
        heights += [point["random"], point["oracle"], point["model"]["value"]]
    model = estimates("model", by_model, BLUE, radius=4.0)
    for _, low, high in model.bars:
        heights += [low, high]
    series = [
        Series("random choice", by_chance, GREY, dashed=True),
        Series("oracle (best possible)", best, GREEN),
        model,
    ]
    last = len(by_model)
    labels = ("n answers drawn, the one with the highest score kept", "share correct")
    return chart(series, (1, last), (min(heights), max(heights)), labels, whole_ticks(last))
