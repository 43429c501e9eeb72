"""The over-optimisation curve as one offline HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from espalier.workbench import charts
from espalier.workbench.charts import BLUE, GREEN, GREY, Series
from espalier.workbench.overopt import place_of
from espalier.workbench.page import document

Figure = tuple[str, str, str]


def page(result: Mapping[str, Any]) -> str:
    """A chart for each cell, gains over d, and every figure. `result` is what `overopt.report` returns."""
    drawn = [(cell["name"], chart(cell)) for cell in result["cells"]]
    figures = [figure for cell in result["cells"] for figure in _figures(cell)]
    for entry in result["frontiers"]:
        figures.append(("gold over d: with a KL penalty less without", entry["name"], entry["verdict"]))
    intro = (
        "Reward less the start's over d = sqrt(KL to the start). Dots are measured, lines are fits, dashed lines the "
        "ends of their 95 % bands (prompts resampled)."
    )
    return document("Over-optimisation", intro, drawn, figures)


def _figures(cell: Mapping[str, Any]) -> Iterator[Figure]:
    name, sure = cell["name"], cell["peak"]
    yield name, "verdict", cell["verdict"]
    yield name, "proxy and gold at the start", f"{cell['start']['proxy']:.4g}, {cell['start']['gold']:.4g}"
    yield name, "highest gold measured", _place(cell, cell["highest_gold"])
    for point in cell["at_peak"]:
        yield name, "nearest to the peak of the fit", _place(cell, point)
    if sure["low"] is not None:
        yield name, "peaks of resamples, d", f"{sure['low']:.3g} to {sure['high']:.3g}"
    for reward, fit in cell["fits"].items():
        if fit:
            a, b = f"a {fit['a']:.4g} +- {fit['a_error']:.2g}", f"b {fit['b']:.4g} +- {fit['b_error']:.2g}"
            yield name, f"fit of {reward}", f"{a}, {b}, R2 {fit['r2']:.2f}"
    if cell["equal"]:
        shares = f"{cell['equal']['scores']:.1%} scores, {cell['equal']['answers']:.1%} answers"
        yield name, "equal pairs among answers to a prompt", shares
    if cell["left_out"]:
        yield name, "answers left out, not graded", f"{cell['left_out']:,}"


def _place(cell: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    text = f"{point['gold']:.4g} at {place_of(cell, point)}, d {point['d']:.2f}"
    return f"{text}, checkpoint {point['checkpoint']}" if point.get("checkpoint") else text


def chart(cell: Mapping[str, Any]) -> str:
    """Proxy and gold of one cell over d, each less the start's."""
    series, heights, widest = [], [0.0], 0.0
    for reward, color in (("proxy", BLUE), ("gold", GREEN)):
        dots = [(point["d"], point[reward] - cell["start"][reward]) for point in cell["points"]]
        series.append(Series(f"{reward}, measured", dots, color, dots=True, sizes=[3.0] * len(dots)))
        lines = cell["bands"][reward]
        heights += [y for _, y in dots]
        widest = max([widest, *(x for x, _ in dots)])
        if not lines:
            continue
        series.append(Series(f"{reward}, fit", [(p["d"], p["gain"]) for p in lines], color))
        for end in ("low", "high"):
            series.append(Series("", [(p["d"], p[end]) for p in lines], GREY, dashed=True))
            heights += [p[end] for p in lines]
    return charts.chart(
        series, (0.0, widest), (min(heights), max(heights)), ("d = sqrt(KL)", "reward less the start's")
    )
