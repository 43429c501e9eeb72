"""Whether the pairwise and the pointwise view of the same answers say the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from espalier.workbench.bootstrap import Resampling, ratio
from espalier.workbench.records import Judged, pairs


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks.

    >>> average_ranks([10.0, 30.0, 10.0]).tolist()
    [1.5, 3.0, 1.5]
    """
    x = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = ((last - counts + 1 + last) / 2)[place]
    return ranks


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson correlation of average ranks; None where one side is constant.

    Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)). By hand: 1, 2, 3 against 1, 3, 2: d = 0, 1, 1: 1 - 12 / 24 = 0.5.
    """
    a, b = average_ranks(x), average_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else None


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b, (C - D) / sqrt((n0 - n1)(n0 - n2)): concordant minus discordant pairs, n0 = n (n - 1) / 2, n1,
    n2 the pairs tied in x and in y; None where one side is constant.

    By hand: 1, 2, 3 against 1, 3, 2: C = 2, D = 1: 1/3. 1, 2, 3 against 1, 1, 2: C = 2, D = 0, n2 = 1: 2 / sqrt(6).
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    i, j = np.triu_indices(len(a), 1)
    left, right = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    size = math.sqrt(float(np.abs(left).sum()) * float(np.abs(right).sum()))
    return float((left * right).sum()) / size if size else None


def agreement(
    records: Sequence[Judged], cluster: Sequence[int], how: Resampling, weights: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Rank correlations of the model's scores with people's judgements.

    labels: of the total score with the labels, within prompts: the mean over the groups in which both vary, resampled
    by prompt. grades: for each dimension the same with people's grade in it, and `across` all responses (Spearman),
    which a pairwise objective is not trained for. A dimension's score is the model's own in that dimension where it has
    one for each, else its total; `name` is the dimension's.

    pairs_and_grades: whether people's pairwise and pointwise judgements agree with each other, over pairs whose
    responses are graded in every dimension: how often the preferred one has the higher, the same and the lower total
    grade. What they disagree about bounds the accuracy a model can reach on one when trained on the other. Pairs that
    were made of the grades can only agree: they are counted apart, as `by_grades`.

    weights: names of the grades' dimensions and what each weighs in their total; without them all weigh alike.
    """
    names, shares = list(weights or {}), list((weights or {}).values())
    dimensions = max((len(r.grades) for g in records for r in g.responses), default=0)
    graded = []
    for k in range(dimensions):
        scores = [[_own(r.scores, k, dimensions, r.score) for r in g.responses] for g in records]
        grades = [[_known(r.grades[k]) if k < len(r.grades) else None for r in g.responses] for g in records]
        flat = [(s, y) for a, b in zip(scores, grades, strict=True) for s, y in zip(a, b, strict=True) if y is not None]
        across = spearman([s for s, _ in flat], [y for _, y in flat]) if flat else None
        graded.append(
            {
                "name": names[k] if k < len(names) else "",
                **_both(scores, grades, cluster, how),
                "across": across,
                "n": len(flat),
            }
        )
    totals = [[r.score for r in g.responses] for g in records]
    labels = [[r.label for r in g.responses] for g in records]
    return {
        "labels": _both(totals, labels, cluster, how),
        "grades": graded,
        "pairs_and_grades": _people(records, shares),
    }


def _both(
    scores: Sequence[Sequence[float]], judged: Sequence[Sequence[float | None]], cluster: Sequence[int], how: Resampling
) -> dict[str, Any]:
    return {
        name: _mean_within(correlate, scores, judged, cluster, how)
        for name, correlate in (("spearman", spearman), ("kendall", kendall))
    }


def _mean_within(
    correlate: Callable[[Sequence[float], Sequence[float]], float | None],
    scores: Sequence[Sequence[float]],
    judged: Sequence[Sequence[float | None]],
    cluster: Sequence[int],
    how: Resampling,
) -> dict[str, Any]:
    found, where = [], []
    for number, (some, other) in enumerate(zip(scores, judged, strict=True)):
        known = [(s, y) for s, y in zip(some, other, strict=True) if y is not None]
        value = correlate([s for s, _ in known], [y for _, y in known]) if len(known) > 1 else None
        if value is not None:
            found.append(value)
            where.append(cluster[number])
    return ratio(found, [1.0] * len(found), where, how).as_dict()


def _own(scores: Sequence[float], dimension: int, dimensions: int, total: float) -> float:
    return scores[dimension] if len(scores) == dimensions else total


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _people(records: Sequence[Judged], weights: Sequence[float]) -> dict[str, int]:
    out = {"agree": 0, "same": 0, "against": 0, "by_grades": 0}
    for p in pairs(records):
        sides = (p.first.grades, p.second.grades)
        if not all(side and all(math.isfinite(x) for x in side) for side in sides):
            continue
        if records[p.group].by_grades:
            out["by_grades"] += 1
        else:
            gap = math.fsum(w * (a - b) for w, a, b in zip(weights or [1.0] * len(sides[0]), *sides, strict=True))
            out["agree" if gap > 0 else "against" if gap < 0 else "same"] += 1
    return out
