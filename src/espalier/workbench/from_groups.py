"""From samples of held-out groups and a model's scores to the groups that the workbench measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from espalier.ties import settled
from espalier.types import Sample
from espalier.workbench.records import HeldOutGroup, JudgedResponse

Groups = list[tuple[str, list[Sample]]]
"""Source and samples of each group."""


def chosen(group: Sequence[Sample], weights: Sequence[float] | None = None) -> set[int]:
    """The places of a group's best answers. Empty if nothing shows that one is better than another.

    Without `weights` they are the answers that beat a sibling and are beaten by none. With the dimensions' `weights`
    they are those with the highest total grade, if another answer has a lower one.

    Grades 7, 3, 7 and unknown: places 0 and 2.
    """
    if weights is None:
        beaten = {place for s in group for place in s.beats}
        return {place for place, s in enumerate(group) if s.beats and place not in beaten}
    totals: dict[int, float] = {}
    for place, s in enumerate(group):
        total = total_grade(_grades(s), weights)
        if total is not None:
            totals[place] = total
    if not totals or max(totals.values()) == min(totals.values()):
        return set()
    top = max(totals.values())
    return {place for place, total in totals.items() if total == top}


def total_grade(grades: Sequence[float], weights: Sequence[float]) -> float | None:
    """The weighted total of people's grades, sum_k w_k g_k, with the weights of the model's scores; None without
    grades, or if a grade with a weight other than 0 is unknown (nan)."""
    if not grades:
        return None
    total = weighted_total(grades, weights)
    return None if math.isnan(total) else total


def weighted_total(values: Sequence[float], weights: Sequence[float]) -> float:
    """sum_k w_k x_k over the dimensions with a weight other than 0."""
    # A dimension without weight is skipped: its value may be unknown, and 0 * nan is nan.
    return sum(weight * value for weight, value in zip(weights, values, strict=True) if weight)


def by_grades(group: Sequence[Sample], weights: Sequence[float]) -> bool:
    """Whether the labels of a group, which its pairs come from, are the weighted means of its grades."""
    whole = sum(map(abs, weights))
    for s in group:
        total = total_grade(_grades(s), weights)
        if total is None or s.label is None or not math.isclose(s.label * whole, total, abs_tol=1e-9):
            return False
    return True


def correctness(groups: Groups) -> set[str]:
    """Sources whose labels say what is correct: all of them are 0 or 1, and some are 1 (ranks are 0 and below)."""
    labels: dict[str, set[float | None]] = {}
    for source, group in groups:
        labels.setdefault(source, set()).update(s.label for s in group)
    return {source for source, values in labels.items() if 1.0 in values and values <= {0.0, 1.0}}


def compared_by_grades(group: HeldOutGroup, weights: Sequence[float]) -> HeldOutGroup:
    """A group that has grades and no comparisons, with the comparisons that follow from the grades: its labels are the
    weighted totals, the higher one is preferred, and equal ones are ties."""
    # settled: totals that differ by rounding alone are ties.
    totals = settled([total_grade(response.grades, weights) for response in group.responses])
    responses, pairs, ties = [], [], []
    for i, (response, total) in enumerate(zip(group.responses, totals, strict=True)):
        responses.append(replace(response, label=total))
        for j, other in enumerate(totals):
            if total is None or other is None:
                continue
            if total > other:
                pairs.append((i, j))
            elif total == other and i < j:
                ties.append((i, j))
    return replace(group, responses=responses, by_grades=True, pairs=pairs, ties=ties)


def held_out_group(
    decode: Callable[[list[int]], str],
    source: str,
    group: Sequence[Sample],
    scores: Sequence[tuple[float, ...]],
    weights: Sequence[float],
    grade_weights: Sequence[float],
    *,
    labels_are_correctness: bool,
) -> HeldOutGroup:
    """One held-out group.

    decode: gives the text of token ids. scores: the model's scores of each sample, one per dimension; `weights` are
    those of the dimensions in the total. grade_weights: the weights of people's grades (see `by_grades`).
    labels_are_correctness: whether labels say what is correct (see `correctness`).
    """
    responses, pairs, ties = [], [], []
    for place, (s, dimensions) in enumerate(zip(group, scores, strict=True)):
        pairs += [(place, other) for other in s.beats]
        ties += [(place, other) for other in s.ties]
        good = bool(s.label) if labels_are_correctness and s.label is not None else None
        responses.append(
            JudgedResponse(
                score=weighted_total(dimensions, weights),
                scores=dimensions if len(dimensions) > 1 else (),
                length=sum(s.mask),
                text=decode([token for token, trained in zip(s.tokens, s.mask, strict=True) if trained]),
                label=s.label,
                grades=_grades(s),
                good=good,
            )
        )
    prompt = prompt_of(group[0])
    return HeldOutGroup(
        source,
        len(prompt),
        responses,
        pairs,
        ties,
        prompt=" ".join(map(str, prompt)),
        by_grades=by_grades(group, grade_weights),
    )


def prompt_of(s: Sample) -> list[int]:
    """The tokens of a sample before the first trained one."""
    return s.tokens[: s.mask.index(True)] if True in s.mask else s.tokens


def _grades(s: Sample) -> tuple[float, ...]:
    """People's grades of a whole response; empty if it has none."""
    return s.grades[0] if s.grades else ()
