"""The workbench as one offline HTML page: three charts and every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from espalier.workbench.charts import Series, chart
from espalier.workbench.tables import NOTHING, findings

BLUE, GREY, GREEN = "#2563a8", "#8a8f98", "#3a8a4d"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1f2328}
.charts{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;flex:1 1 280px}figcaption{font-weight:600}
svg{width:100%;height:auto}svg text{font-size:11px;fill:#57606a}.grid{stroke:#e4e7eb}
.legend{margin:.2rem 0}.legend span{margin-right:1rem}table{border-collapse:collapse;width:100%;margin-bottom:1rem}
td{border-bottom:1px solid #e4e7eb;padding:.25rem .5rem;vertical-align:top}td+td{text-align:right}
h2{margin-bottom:.3rem}
"""


def page(report: Mapping[str, Any], title: str = "Reward model") -> str:
    """The whole page: no script, nothing loaded. `report` is what `reward.judge` returns."""
    charts = [
        ("Reliability", reliability(report)), ("Accuracy and length", lengths(report)), ("Best of n", curve(report)),
    ]  # fmt: skip
    counts, how = report["counts"], report["intervals"]
    said = (
        f"{counts['groups']:,} held-out groups, {counts['responses']:,} responses, {counts['pairs']:,} strict pairs, "
        f"{counts['ties']:,} ties. Intervals: {how['confidence']:.0%}, {how['resamples']:,} resamples of prompts, seed "
        f"{how['seed']}."
    )
    return document(title, said, charts, findings(report))


def document(title: str, said: str, charts: Sequence[tuple[str, str]], found: Sequence[tuple[str, str, str]]) -> str:
    """A page of what was `said`, of `charts` as (name, SVG), left out where empty, and of the figures `found` as
    (section, what, value), in a table for each section."""
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in charts if svg)
    sections: dict[str, list[str]] = {}
    for section, what, value in found:
        if value != NOTHING:
            sections.setdefault(section, []).append(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>")
    body = "".join(f"<h2>{escape(name)}</h2><table>{''.join(rows)}</table>" for name, rows in sections.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<h1>{escape(title)}</h1><p>{said}</p><div class="charts">{figures}</div>{body}</html>\n'
    )


def reliability(report: Mapping[str, Any]) -> str:
    """How often people agree, by what the model says, both orders of every pair: the upper half is measured, the lower
    one is its mirror image. A dot's area follows its number of pairs."""
    found = report["calibration"]
    if found is None:
        return ""
    full = [b for b in found["bins"] if b["n"]]
    upper = [(b["confidence"], b["accuracy"]) for b in full]
    most = max(b["n"] for b in full)
    sizes = [2 + 6 * (b["n"] / most) ** 0.5 for b in full]
    both = [*[(1 - x, 1 - y) for x, y in reversed(upper)], *upper]
    return chart(
        [
            Series("calibrated", [(0, 0), (1, 1)], GREY, dashed=True),
            Series("model", both, BLUE, sizes=[*reversed(sizes), *sizes]),
        ],
        (0, 1), (0, 1), ("sigma(score difference)", "share preferred"),
    )  # fmt: skip


def lengths(report: Mapping[str, Any]) -> str:
    """Accuracy where the preferred response is the shorter one, as long, the longer one, with intervals."""
    keys = ("longer_loses", "equal_length", "longer_wins")
    found = [(float(place), report["length"][key]) for place, key in enumerate(keys, -1)]
    known = [(place, x) for place, x in found if x["value"] is not None]
    if not known:
        return ""
    bars = [(place, x["low"], x["high"]) for place, x in known if x["low"] is not None]
    dots = [(place, x["value"]) for place, x in known]
    return chart(
        [
            Series("guessing", [(-1.5, 0.5), (1.5, 0.5)], GREY, dashed=True),
            Series("model", dots, BLUE, dots=True, sizes=[6.0] * len(dots), bars=bars),
        ],
        (-1.5, 1.5), (0, 1), ("preferred is shorter (-1), as long (0), longer (1)", "accuracy"),
    )  # fmt: skip


def curve(report: Mapping[str, Any]) -> str:
    """Share of correct answers by n, of the model's choice, a random one and an oracle."""
    found = report["best_of_n"]
    if found is None:
        return ""
    points = found["points"]
    bars = [(p["n"], p["model"]["low"], p["model"]["high"]) for p in points if p["model"]["low"] is not None]
    model = [(p["n"], p["model"]["value"]) for p in points]
    values = [v for p in points for v in (p["random"], p["oracle"], p["model"]["value"])] + [
        v for b in bars for v in b[1:]
    ]
    low, high = min(values), max(values)
    return chart(
        [
            Series("random", [(p["n"], p["random"]) for p in points], GREY, dashed=True),
            Series("oracle", [(p["n"], p["oracle"]) for p in points], GREEN),
            Series("model", model, BLUE, sizes=[4.0] * len(model), bars=bars),
        ],
        (1, points[-1]["n"]), (low, high), ("n", "correct"),
    )  # fmt: skip
