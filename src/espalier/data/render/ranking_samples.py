"""Rankings as samples: one per response, the prompt's tokens shared, judgements beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier.data.render.answers import Answer, answers_of, draw_key, read_at
from espalier.data.render.drafts import RenderedGroup
from espalier.data.render.rankings import (
    TOO_CLOSE,
    UNJUDGED,
    comparisons,
    decides,
    flipped_labels,
    has_scores,
    level_of,
)
from espalier.data.render.refusals import CUT, IDENTICAL, refusal
from espalier.errors import RowError
from espalier.ties import closer
from espalier.types import NAMELESS, Ranking

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats
    from espalier.data.render.form import Form

UNCOMPARED = "in no comparison"


def ranking_samples(chats: Chats, example: Ranking, key: int) -> RenderedGroup:
    """One sample per response, with that response trained and nothing else; the prompt's ids are the same in all.

    Left out and counted: responses that are empty, whose every token is behind max_length, that are not judged as
    `form.wants` asks, whose tokens equal an earlier response's (all of them, if they are judged differently), and that
    have no comparison left. Raises RowError if what is left does not offer what the form wants.
    """
    form = chats.form
    group = RenderedGroup("ranking")
    group.judged_by = _deciding(example, form)
    answers = answers_of(chats, example, key, group)
    if form.reads or form.wants == "grades":
        _grade(example, answers, group)
    if form.wants == "grades":
        # Equal answers stay: two opinions on one answer are two grades to learn from, and
        # contradict nothing.
        answers = _graded(answers, group)
    elif form.wants == "labels":
        answers = _distinct(_labelled(answers, group, form), group)
        _flip(answers, form)
    else:
        answers = _distinct(answers, group)
    for answer in answers:
        answer.rendered.sample.label = answer.level
    if form.wants in ("pairs", "comparisons"):
        answers = _compared(chats, answers, group)
    if not answers:
        raise refusal(group, form, limit=chats.max_length)
    for answer in answers:
        sample = answer.rendered.sample
        if form.reads or form.wants == "grades":
            sample.reads = [read_at(sample.tokens[: answer.written], form.unread)]
        group.append(answer.rendered)
    return group


def _deciding(example: Ranking, form: Form) -> str:
    """Which judgement decides, in the words of `RenderedGroup.judged_by`; a run that wants labels takes those first."""
    by = form.preference.judged_by
    labelled = any(response.good is not None for response in example.responses)
    if form.wants == "labels" and by == "auto" and labelled:
        return "labels"
    deciding = decides(example, by)
    return "dimensions" if deciding == "scores" and example.dimensions else deciding


# --------------------------------------------------------------------------------------------------------- judgements


def _grade(example: Ranking, answers: Sequence[Answer], group: RenderedGroup) -> None:
    """Fill `grades` if the row has scores, nan for a score that a response lacks; else leave them empty."""
    if not has_scores(example):
        return
    width = max(len(response.scores) for response in example.responses)
    group.dimensions = example.dimensions or (NAMELESS,) * width
    for answer in answers:
        scores = answer.response.scores or (None,) * width
        if len(scores) != len(group.dimensions):
            raise RowError(
                "scores in other dimensions",
                got=f"{len(scores)} scores",
                expected=f"{len(group.dimensions)}, for {', '.join(group.dimensions)}",
            )
        grade = tuple(math.nan if score is None else float(score) for score in scores)
        answer.rendered.sample.grades = [grade]


def _graded(answers: Sequence[Answer], group: RenderedGroup) -> list[Answer]:
    """The answers with a grade in at least one dimension."""
    group.learned = True
    graded = []
    for answer in answers:
        grades = [x for grade in answer.rendered.sample.grades for x in grade]
        if not all(map(math.isnan, grades)):
            graded.append(answer)
    group.drop(UNJUDGED, len(answers) - len(graded))
    return graded


def _labelled(answers: list[Answer], group: RenderedGroup, form: Form) -> list[Answer]:
    """The answers with labels as levels, 1 good and 0 bad: the responses' own if these decide, else whether they are on
    the better of exactly two levels. If such two are less than `min_gap` apart, no answer with a level is left."""
    group.labelled = True
    if group.judged_by == "labels":
        for answer in answers:
            answer.level = level_of(answer.response, "labels")
        return answers
    two = sorted({answer.level for answer in answers if answer.level is not None})
    if len(two) == 2 and closer(two[0], two[1], form.preference.min_gap):
        unjudged = [answer for answer in answers if answer.level is None]
        group.drop(TOO_CLOSE, len(answers) - len(unjudged))
        return unjudged
    for answer in answers:
        if len(two) != 2:
            answer.level = None
        elif answer.level is not None:
            answer.level = float(answer.level == two[1])
    return answers


def _flip(answers: Sequence[Answer], form: Form) -> None:
    """Flip the share `flip` of the answers' labels."""
    labels: list[bool | None] = [answer.level == 1.0 for answer in answers]
    flipped = flipped_labels(labels, form.preference, draw_key(answers), form.seed)
    for answer, good in zip(answers, flipped, strict=True):
        answer.level = float(bool(good))


def _distinct(answers: Sequence[Answer], group: RenderedGroup) -> list[Answer]:
    """The answers that are judged. Those of equal tokens are one answer, or none if they are judged differently: no
    model can tell them apart."""
    same: dict[tuple[int, ...], list[Answer]] = {}
    unjudged = 0
    for answer in answers:
        if answer.level is None:
            unjudged += 1
        else:
            same.setdefault(tuple(answer.rendered.sample.tokens), []).append(answer)
    group.drop(UNJUDGED, unjudged)
    kept = []
    for equal in same.values():
        agree = len({answer.level for answer in equal}) == 1
        rest = equal[1:] if agree else equal
        if agree:
            kept.append(equal[0])
        for answer in rest:
            # Equal as they were written, or only as far as the cut to max_length left them.
            twin = any(answer.whole == other.whole for other in equal if other is not answer)
            group.drop(IDENTICAL if twin else CUT)
    return kept


def _compared(chats: Chats, answers: Sequence[Answer], group: RenderedGroup) -> list[Answer]:
    """The answers that are compared with another, `beats` and `ties` filled. Raises RowError if none is."""
    form = chats.form
    values = [answer.level for answer in answers]
    compared = comparisons(values, form.preference, draw_key(answers), form.seed)
    for reason, count in compared.dropped.items():
        group.drop(reason, count)
    used: set[int] = set()
    for others_of in (compared.beats, compared.ties):
        for place, others in enumerate(others_of):
            if others:
                used.update((place, *others))
    if not used or (form.wants == "pairs" and not any(compared.beats)):
        raise refusal(group, form, limit=chats.max_length, left=[answer.response for answer in answers])
    # Places count the samples that are kept: those without a comparison are left out below.
    kept = sorted(used)
    place_of = {place: number for number, place in enumerate(kept)}
    for place in kept:
        sample = answers[place].rendered.sample
        sample.beats = [place_of[other] for other in compared.beats[place]]
        sample.ties = [place_of[other] for other in compared.ties[place]]
    group.drop(UNCOMPARED, len(answers) - len(kept))
    return [answers[place] for place in kept]
