"""The over-optimisation curve: what a grid of runs against proxy rewards says, in figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt_fit import Curve, Fit, Form, Reward, band, control_end, frontier_gap, peak, resampled
from espalier.workbench.overopt_points import Point


class Run(NamedTuple):
    """One cell: its proxy, its beta (None of best-of-n), seed, points, and answers of the start (n = 1). left_out:
    answers that could not be graded. folder: of the run."""

    proxy: str
    beta: float | None
    seed: int
    points: tuple[Point, ...]
    start: Point
    left_out: int = 0
    folder: str = ""

    @property
    def form(self) -> Form:
        return "best_of_n" if self.beta is None else "rl"

    @property
    def name(self) -> str:
        return f"{self.proxy}, best of n" if self.beta is None else f"{self.proxy}, beta {self.beta:g}"

    def curve(self, reward: Reward) -> Curve:
        return Curve(self.form, self.points, reward, self.start)


def report(runs: Sequence[Run], equal: Mapping[str, Mapping[str, float]], resampling: Resampling) -> dict[str, Any]:
    """All curves, each pooled over its seeds, with fits, bands and the verdict; `equal` has the shares of equal scores
    and of equal answers of the start, by proxy."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.name, []).append(run)
    pooled = {name: _pooled(same) for name, same in cells.items()}
    entries = []
    for name, same in cells.items():
        entry = _entry(pooled[name], same, resampling)
        entry["equal"] = dict(equal[pooled[name].proxy]) if pooled[name].beta is None else None
        entries.append(entry)
    return {"cells": entries, "frontiers": _frontiers(pooled, resampling)}


def _pooled(same: Sequence[Run]) -> Run:
    """The points of all seeds together."""
    return same[0]._replace(points=tuple(point for run in same for point in run.points))


def _entry(run: Run, same: Sequence[Run], resampling: Resampling) -> dict[str, Any]:
    """What is said of one cell; `run` has the points of all its seeds."""
    gold, proxy = run.curve("gold"), run.curve("proxy")
    fits = {"gold": gold.fitted(), "proxy": proxy.fitted()}
    draws = resampled([gold, proxy], resampling)
    golds, proxies = [pair[0] for pair in draws], [pair[1] for pair in draws]
    sure = peak(golds, min(gold.d()), gold.reach, resampling)
    bands = {
        "gold": band(fits["gold"], golds, gold.reach, resampling),
        "proxy": band(fits["proxy"], proxies, proxy.reach, resampling),
    }
    end = None
    if fits["gold"] and fits["proxy"] and not _constant(gold):
        end = control_end(fits["gold"], fits["proxy"], gold.reach)
    return {
        "name": run.name,
        "proxy": run.proxy,
        "beta": run.beta,
        "seeds": len(same),
        "left_out": sum(each.left_out for each in same),
        "start": {"proxy": run.start.mean("proxy"), "gold": run.start.mean("gold")},
        "points": [_point(each, p) | {"answers": sum(p.counts)} for each in same for p in each.points],
        "fits": {key: fit.as_dict() if fit else None for key, fit in fits.items()},
        "bands": bands,
        "peak": sure,
        "control_ends": end,
        "highest_gold": _highest(same),
        "at_peak": _at_peak(fits["gold"], same),
        "verdict": verdict(gold, fits["gold"], sure["share"], end),
    }


def _point(run: Run, p: Point) -> dict[str, Any]:
    means = {key: p.mean(key) for key in ("kl", "proxy", "gold")}
    return {"seed": run.seed, "run": run.folder, "at": p.at, "d": p.d, **means}


def _highest(same: Sequence[Run]) -> dict[str, Any]:
    """The point with the highest mean gold. As the highest of several it is an optimistic figure."""
    points = [_point(run, p) for run in same for p in run.points]
    return max(points, key=lambda point: point["gold"])


def _at_peak(gold: Fit | None, same: Sequence[Run]) -> list[dict[str, Any]]:
    """For each seed the point whose distance is nearest to the peak of the fit; none without a peak in the range."""
    reach = max(p.d for run in same for p in run.points)
    turn = gold.falls_from(reach) if gold else None
    if not turn:
        return []
    return [_point(run, min(run.points, key=lambda p: abs(p.d - turn))) for run in same]


def verdict(gold: Curve, fitted: Fit | None, share: float | None, control: float | None) -> str:
    """Whether gold passes a peak in the measured range, in what share of resamples it does, and where control ends."""
    if fitted is None:
        return "too few distances for a fit"
    if _constant(gold):
        return "gold is the same at every distance, which says nothing of it"
    first, reach = min(gold.d()), gold.reach
    turn = fitted.falls_from(reach)
    resampled_too = "" if share is None else f"; {share:.0%} of resamples have a peak"
    if turn is None:
        return f"gold passes no peak up to d {reach:.2f}{resampled_too}"
    line = f"gold passes a peak at d {turn:.2f} (measured to {reach:.2f}{resampled_too})"
    if turn <= first:
        line = f"gold does not rise between d {first:.2f} and {reach:.2f}{resampled_too}"
    if control is None:
        return f"{line}; proxy does not gain there either"
    return f"{line}; control ends at d {control:.2f}: from there proxy gains"


def _constant(gold: Curve) -> bool:
    """Whether gold has one value at all points and at the start, as where the policy is never right."""
    return not any(gold.gains())


def _frontiers(pooled: Mapping[str, Run], resampling: Resampling) -> list[dict[str, Any]]:
    """For each proxy, gold over distance with each KL penalty less without one."""
    entries = []
    for run in pooled.values():
        free = pooled.get(f"{run.proxy}, beta 0")
        if not run.beta or free is None:
            continue
        gold, other = run.curve("gold"), free.curve("gold")
        constant = _constant(gold) and _constant(other)
        gap = None if constant else frontier_gap(gold, other, resampling)
        line = "gold is the same everywhere" if constant else "no distances in common with beta 0"
        if gap is not None:
            line = frontier_line(gap["above"], gap["below"])
            line += f" (mean {gap['value']:+.4g} [{gap['low']:.4g} to {gap['high']:.4g}], d {gap['from']:.2f} to "
            line += f"{gap['to']:.2f})"
        entries.append({"name": run.name, "proxy": run.proxy, "beta": run.beta, "gap": gap, "verdict": line})
    return entries


def frontier_line(above: Sequence[float], below: Sequence[float]) -> str:
    """Whether two curves are one, by the distances at which the first lies above the second, and below it."""
    if not above and not below:
        return "one frontier with beta 0 within the interval"
    places = []
    for side, distances in (("above", above), ("below", below)):
        if distances:
            places.append(f"{side} from d {min(distances):.2f} to {max(distances):.2f}")
    if len(places) == 2:
        return f"gold crosses that of beta 0: {' and '.join(places)}"
    return f"gold lies {places[0]}, against beta 0 at the same d"


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the printed table: a row for each cell."""
    rows = []
    for cell in result["cells"]:
        best, gold = cell["highest_gold"], cell["fits"]["gold"]
        row = [cell["name"], f"{cell['start']['gold']:.4g}", f"{best['gold']:.4g}", place_of(cell, best)]
        row.append(f"{best['d']:.2f}")
        row.append("-" if gold is None or gold["peak"] is None else f"{gold['peak']:.3g}")
        row.append("-" if cell["control_ends"] is None else f"{cell['control_ends']:.2f}")
        rows.append(row)
    return ["cell", "gold at start", "highest", "at", "d", "fitted peak d", "control to d"], rows


def place_of(cell: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """A point in words: its n, or its step and seed."""
    return f"n {point['at']}" if cell["beta"] is None else f"step {point['at']} of seed {point['seed']}"
