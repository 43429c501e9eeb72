"""The over-optimisation curve: what a grid of runs against proxy rewards says, in figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.charts import BLUE, GREEN, GREY, Point, Series, chart
from espalier.workbench.overopt_fit import Curve, Form, band, frontier_gap
from espalier.workbench.overopt_points import Point as Answers
from espalier.workbench.page import document


class Run(NamedTuple):
    """One cell: its proxy, its beta (None of best-of-n), seed, points, and the start's rewards."""

    proxy: str
    beta: float | None
    seed: int
    points: tuple[Answers, ...]
    start_proxy: float
    start_gold: float

    @property
    def form(self) -> Form:
        return "best_of_n" if self.beta is None else "rl"

    @property
    def name(self) -> str:
        return f"{self.proxy}, best of n" if self.beta is None else f"{self.proxy}, beta {self.beta:g}"

    def curve(self, reward: str) -> Curve:
        start = self.start_gold if reward == "gold" else self.start_proxy
        return Curve(self.form, self.points, "gold" if reward == "gold" else "proxy", start)


def report(runs: Sequence[Run], equal_scores: Mapping[str, float], resampling: Resampling) -> dict[str, Any]:
    """All curves, each pooled over its seeds, with fits, bands and the verdict; `equal_scores` is the share of equal
    scores by proxy, for best-of-n."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.name, []).append(run)
    entries, curves = [], {}
    for name, same in cells.items():
        pooled = _pooled(same)
        gold, proxy = pooled.curve("gold"), pooled.curve("proxy")
        curves[name] = (pooled, gold)
        fits = {"gold": gold.fitted(), "proxy": proxy.fitted()}
        entries.append(
            {
                "name": name,
                "proxy": pooled.proxy,
                "beta": pooled.beta,
                "seeds": len(same),
                "start": {"proxy": pooled.start_proxy, "gold": pooled.start_gold},
                "points": [
                    {"at": p.at, "seed": run.seed, "kl": p.mean("kl"), "d": p.d, "proxy": p.mean("proxy"),
                     "gold": p.mean("gold"), "answers": sum(p.counts)}
                    for run in same for p in run.points
                ],
                "fits": {key: fit.as_dict() if fit else None for key, fit in fits.items()},
                "bands": {"gold": band(gold, resampling), "proxy": band(proxy, resampling)},
                "highest_gold": _highest(same),
                "equal_scores": equal_scores.get(pooled.proxy) if pooled.beta is None else None,
                "verdict": verdict(pooled),
            }
        )  # fmt: skip
    return {"cells": entries, "frontiers": _frontiers(curves, resampling)}


def _pooled(same: Sequence[Run]) -> Run:
    """The points of all seeds together."""
    return same[0]._replace(points=tuple(point for run in same for point in run.points))


def _highest(same: Sequence[Run]) -> dict[str, Any]:
    """The point with the highest mean gold: the checkpoint to take."""
    run, point = max(((run, p) for run in same for p in run.points), key=lambda pair: pair[1].mean("gold"))
    return {"seed": run.seed, "at": point.at, "d": point.d, "gold": point.mean("gold"), "proxy": point.mean("proxy")}


def verdict(run: Run) -> str:
    """Whether gold passes a peak in the measured range, and where control ends: the distance from which proxy rises and
    gold does not."""
    gold, proxy = run.curve("gold").fitted(), run.curve("proxy").fitted()
    if gold is None or proxy is None:
        return "too few distances for a fit"
    furthest, peak = max(run.curve("gold").d()), gold.peak
    if gold.b > 0 and (peak is None or peak <= 0):
        return f"gold falls from the start, to d {furthest:.2f}"
    if peak is None or peak >= furthest:
        return f"gold passes no peak up to d {furthest:.2f}"
    rises = proxy.peak is None or proxy.peak > peak
    line = f"gold passes a peak at d {peak:.2f} (measured to {furthest:.2f})"
    return f"{line}; control ends there: proxy goes on rising" if rises else f"{line}, and proxy with it"


def _frontiers(curves: Mapping[str, tuple[Run, Curve]], resampling: Resampling) -> list[dict[str, Any]]:
    """For each proxy, gold over distance without a KL penalty against that with each."""
    entries = []
    for run, gold in curves.values():
        free = curves.get(f"{run.proxy}, beta 0")
        if not run.beta or free is None:
            continue
        gap = frontier_gap(gold, free[1], resampling)
        line = "no distance in common"
        if gap is not None:
            one = gap["low"] <= 0 <= gap["high"]
            side = "above" if gap["value"] > 0 else "below"
            line = "one frontier within the interval" if one else f"beta {run.beta:g} lies {side} beta 0"
        entries.append({"proxy": run.proxy, "beta": run.beta, "gap": gap, "verdict": line})
    return entries


def page(result: Mapping[str, Any]) -> str:
    """One offline page: a chart for each cell, gains over d, and every figure."""
    charts = [(cell["name"], _chart(cell)) for cell in result["cells"]]
    figures = []
    for cell in result["cells"]:
        best, gold = cell["highest_gold"], cell["fits"]["gold"]
        figures.append((cell["name"], "verdict", cell["verdict"]))
        figures.append((cell["name"], "gold at the start", f"{cell['start']['gold']:.4g}"))
        where = f"n {best['at']}" if cell["beta"] is None else f"step {best['at']} of seed {best['seed']}"
        figures.append((cell["name"], "highest gold", f"{best['gold']:.4g} at {where}, d {best['d']:.2f}"))
        if gold:
            figures.append((cell["name"], "fit of gold", f"a {gold['a']:.4g}, b {gold['b']:.4g}, R2 {gold['r2']:.2f}"))
        if cell["equal_scores"] is not None:
            figures.append((cell["name"], "equal scores", f"{cell['equal_scores']:.1%} of pairs of answers"))
    for entry in result["frontiers"]:
        gap = entry["gap"]
        text = entry["verdict"]
        if gap:
            low, high = gap["low"], gap["high"]
            text += f" ({gap['value']:+.4g} [{low:.4g} to {high:.4g}] for d {gap['from']:.2f} to {gap['to']:.2f})"
        name = f"{entry['proxy']}, beta {entry['beta']:g}"
        figures.append(("gold over d: with a KL penalty less without", name, text))
    intro = (
        "Reward less the start's over d = sqrt(KL to the start). Dots are measured, lines are fits, dashed lines the "
        "ends of their 95 % bands (prompts resampled)."
    )
    return document("Over-optimisation", intro, charts, figures)


def _chart(cell: Mapping[str, Any]) -> str:
    series, heights, widest = [], [0.0], 0.0
    for reward, color in (("proxy", BLUE), ("gold", GREEN)):
        dots: list[Point] = [(p["d"], p[reward] - cell["start"][reward]) for p in cell["points"]]
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
    return chart(series, (0.0, widest), (min(heights), max(heights)), ("d = sqrt(KL)", "reward less the start's"))
