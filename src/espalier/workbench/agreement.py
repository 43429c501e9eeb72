"""Rank correlations of the model's scores with people's judgements, and of these judgements among themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from espalier.workbench.bootstrap import Resampling, mean
from espalier.workbench.records import HeldOutGroup, JudgedResponse, Pair, strict_pairs

Scored = tuple[list[float], list[float]]
"""The scores of the judged responses of a group, and their judgements."""


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks.

    >>> average_ranks([10.0, 30.0, 10.0]).tolist()
    [1.5, 3.0, 1.5]
    """
    numbers = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = ((last - counts + 1 + last) / 2)[place]
    return ranks


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson correlation of average ranks; None if one side is constant.

    Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)). By hand: 1, 2, 3 against 1, 3, 2: d = 0, 1, 1: 1 - 12 / 24 = 0.5.
    """
    ranks_x, ranks_y = average_ranks(x), average_ranks(y)
    ranks_x, ranks_y = ranks_x - ranks_x.mean(), ranks_y - ranks_y.mean()
    size = float(np.sqrt((ranks_x @ ranks_x) * (ranks_y @ ranks_y)))
    return float(ranks_x @ ranks_y) / size if size else None


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b, (C - D) / sqrt((n0 - n1)(n0 - n2)): concordant minus discordant pairs, n0 = n (n - 1) / 2, n1,
    n2 the pairs tied in x and in y; None if one side is constant.

    By hand: 1, 2, 3 against 1, 3, 2: C = 2, D = 1: 1/3. 1, 2, 3 against 1, 1, 2: C = 2, D = 0, n2 = 1: 2 / sqrt(6).
    """
    values_x, values_y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    first, second = np.triu_indices(len(values_x), 1)
    order_x = np.sign(values_x[first] - values_x[second])
    order_y = np.sign(values_y[first] - values_y[second])
    size = math.sqrt(float(np.abs(order_x).sum()) * float(np.abs(order_y).sum()))
    return float((order_x * order_y).sum()) / size if size else None


def agreement(
    groups: Sequence[HeldOutGroup],
    prompts: Sequence[int],
    resampling: Resampling,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Rank correlations of the model's scores with people's judgements.

    labels: of the total score with the labels, within prompts: the mean over the groups in which both vary, resampled
    by prompt. grades: for each dimension the same with people's grade in it, and `across` all responses (Spearman),
    which a pairwise objective is not trained for. A dimension's score is the model's own in that dimension if it has
    one for each, else its total; `name` is the dimension's.

    pairs_and_grades: whether people's pairwise and pointwise judgements agree with each other, over pairs whose
    responses are graded in every dimension: how often the preferred one has the higher, the same and the lower total
    grade. Their disagreement bounds the accuracy that a model can reach on one when trained on the other. Pairs that
    were computed from the grades can only agree: they are counted separately, as `by_grades`.

    weights: names of the grades' dimensions and the weight of each in the total; without them all weigh the same.
    """
    weights = weights or {}
    labelled = [_labelled(group.responses) for group in groups]
    grades = []
    names = _dimension_names(groups, list(weights))
    for dimension, name in enumerate(names):
        graded = [_graded(group.responses, dimension, len(names)) for group in groups]
        within = _within_prompts(graded, prompts, resampling)
        all_scores, all_grades = [], []
        for scores, judgements in graded:
            all_scores += scores
            all_grades += judgements
        across = spearman(all_scores, all_grades) if all_grades else None
        grades.append({"name": name, **within, "across": across, "n": len(all_grades)})
    return {
        "labels": _within_prompts(labelled, prompts, resampling),
        "grades": grades,
        "pairs_and_grades": _pairs_and_grades(groups, list(weights.values())),
    }


def _dimension_names(groups: Sequence[HeldOutGroup], names: Sequence[str]) -> list[str]:
    """One name per dimension of the grades, empty if unknown."""
    count = 0
    for group in groups:
        for response in group.responses:
            count = max(count, len(response.grades))
    return [*names[:count], *[""] * (count - len(names))]


def _labelled(responses: Sequence[JudgedResponse]) -> Scored:
    """Total score and label of the responses that have a label."""
    scores, labels = [], []
    for response in responses:
        if response.label is not None:
            scores.append(response.score)
            labels.append(response.label)
    return scores, labels


def _graded(responses: Sequence[JudgedResponse], dimension: int, count: int) -> Scored:
    """Score and grade in one of `count` dimensions, of the responses that are graded in it."""
    scores, grades = [], []
    for response in responses:
        score = response.scores[dimension] if len(response.scores) == count else response.score
        if dimension < len(response.grades) and math.isfinite(response.grades[dimension]):
            scores.append(score)
            grades.append(response.grades[dimension])
    return scores, grades


def _within_prompts(judged: Sequence[Scored], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    return {
        "spearman": _mean_within(spearman, judged, prompts, resampling),
        "kendall": _mean_within(kendall, judged, prompts, resampling),
    }


def _mean_within(
    correlate: Callable[[Sequence[float], Sequence[float]], float | None],
    judged: Sequence[Scored],
    prompts: Sequence[int],
    resampling: Resampling,
) -> dict[str, Any]:
    """The mean correlation over the groups in which it is defined."""
    correlations, of_prompts = [], []
    for (scores, judgements), prompt in zip(judged, prompts, strict=True):
        correlation = correlate(scores, judgements) if len(scores) > 1 else None
        if correlation is not None:
            correlations.append(correlation)
            of_prompts.append(prompt)
    return mean(correlations, of_prompts, resampling)


def _pairs_and_grades(groups: Sequence[HeldOutGroup], weights: Sequence[float]) -> dict[str, int]:
    """How often people's pairs and their grades agree; see `agreement`."""
    counts = {"agree": 0, "same": 0, "against": 0, "by_grades": 0}
    for pair in strict_pairs(groups):
        if not (_fully_graded(pair.first) and _fully_graded(pair.second)):
            continue
        if groups[pair.group].by_grades:
            counts["by_grades"] += 1
            continue
        gap = _grade_gap(pair, weights)
        if gap > 0:
            counts["agree"] += 1
        elif gap < 0:
            counts["against"] += 1
        else:
            counts["same"] += 1
    return counts


def _fully_graded(response: JudgedResponse) -> bool:
    return bool(response.grades) and all(map(math.isfinite, response.grades))


def _grade_gap(pair: Pair, weights: Sequence[float]) -> float:
    """Total grade of the first minus that of the second."""
    first, second = pair.first.grades, pair.second.grades
    weights = weights or [1.0] * len(first)
    gaps = []
    for weight, grade, other in zip(weights, first, second, strict=True):
        gaps.append(weight * (grade - other))
    # fsum, not the difference of two totals: the order of the dimensions must not make equal ones differ.
    return math.fsum(gaps)
