"""From held-out groups and what a model scored to the records that the workbench judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from espalier.types import Sample, settled
from espalier.workbench.records import Judged, JudgedResponse

Groups = list[tuple[str, list[Sample]]]


def chosen(group: Sequence[Sample], weights: Sequence[float] | None = None) -> set[int]:
    """The places of a group's best answers: those that beat a sibling and that none beats, or, with the dimensions'
    `weights`, those of the highest total grade where another one is lower. Of an answer alone nobody can say it.

    Grades 7, 3, 7 and unknown: places 0 and 2.
    """
    if weights is None:
        beaten = {place for s in group for place in s.beats}
        return {place for place, s in enumerate(group) if s.beats and place not in beaten}
    totals = {
        place: t
        for place, s in enumerate(group)
        if (t := total_grade(s.grades[0] if s.grades else (), weights)) is not None
    }
    top = max(totals.values(), default=0.0)
    return {place for place, t in totals.items() if t == top > min(totals.values())}


def total_grade(grades: Sequence[float], weights: Sequence[float]) -> float | None:
    """People's grades weighed as scores are; None where one that weighs anything is not known."""
    total = sum(w * x for w, x in zip(weights, grades, strict=True) if w) if grades else math.nan
    return None if math.isnan(total) else total


def by_grades(group: Sequence[Sample], weights: Sequence[float]) -> bool:
    """Whether the labels of a group, which its pairs come from, are the means of its grades, by these weights."""
    whole = sum(map(abs, weights))
    for s in group:
        total = total_grade(s.grades[0], weights) if s.grades else None
        if total is None or s.label is None or not math.isclose(s.label * whole, total, abs_tol=1e-9):
            return False
    return True


def correctness(groups: Groups) -> set[str]:
    """Sources whose labels say what is correct: they are all 0 or 1, and some are 1 (of ranks none is)."""
    labels: dict[str, set[float | None]] = {}
    for source, group in groups:
        labels.setdefault(source, set()).update(s.label for s in group)
    return {source for source, found in labels.items() if 1.0 in found and found <= {0.0, 1.0}}


def compared(record: Judged, weights: Sequence[float]) -> Judged:
    """The record of a group that was read for its grades alone, with the comparisons that these make: its labels are
    the grades' totals, weighed as scores are."""
    found = settled([total_grade(r.grades, weights) for r in record.responses])
    known = [(i, total) for i, total in enumerate(found) if total is not None]
    return replace(
        record,
        responses=[replace(r, label=total) for r, total in zip(record.responses, found, strict=True)],
        by_grades=True,
        pairs=[(i, j) for i, a in known for j, b in known if a > b],
        ties=[(i, j) for i, a in known for j, b in known if a == b and i < j],
    )


def record_of(
    decode: Callable[[list[int]], str],
    source: str,
    group: Sequence[Sample],
    scores: Sequence[tuple[float, ...]],
    weights: Sequence[float],
    asked: Sequence[float],
    *,
    known: bool,
) -> Judged:
    """One held-out group. `decode` gives the text of its responses, `known` takes labels for correctness, `asked` are
    weights of grades (see `by_grades`)."""
    start = next((i for i, m in enumerate(group[0].mask) if m), len(group[0]))
    responses = [
        JudgedResponse(
            score=sum(w * x for w, x in zip(weights, said, strict=True)),
            scores=said if len(said) > 1 else (),
            length=sum(s.mask),
            text=decode([t for t, m in zip(s.tokens, s.mask, strict=True) if m]),
            label=s.label,
            grades=s.grades[0] if s.grades else (),
            good=bool(s.label) if known and s.label is not None else None,
        )
        for s, said in zip(group, scores, strict=True)
    ]
    pairs = [(i, j) for i, s in enumerate(group) for j in s.beats]
    ties = [(i, j) for i, s in enumerate(group) for j in s.ties]
    prompt = " ".join(map(str, group[0].tokens[:start]))
    return Judged(source, start, responses, pairs, ties, prompt=prompt, by_grades=by_grades(group, asked))
