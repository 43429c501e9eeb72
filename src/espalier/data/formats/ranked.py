"""K answers to one prompt, with ranks, scores or labels of each: beside it, or in lists of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from espalier.data.formats.common import Fields, first_key, first_list, missing, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import Scale, answer, flag, listed, ranking, ranks, scale_of, score
from espalier.data.formats.prompt import asked
from espalier.errors import RowError
from espalier.types import Consumes, Origin, Ranking, Response

KEYS = ("responses", "answers", "completions", "candidates", "generations", "response", "answer", "completion")
RANKS = ("ranks", "rank")
# `score` is in both: its numbers are scores, its true and false are labels.
SCORES = ("scores", "rewards", "pred_score", "ratings", "rating", "score")
GOOD = ("good", "correct", "labels", "score")
AUTHORS = ("model", "author", "source")
BESIDE_AUTHORS = ("models", "authors")
OWN_RANKS = ("rank",)
OWN_SCORES = ("score", "scores", "rating", "reward", "overall_score")
OWN_GOOD = ("good", "correct", "label")
Scores = tuple[float | None, ...]


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a list of responses and judgements of them."""
    return is_ranked(row)


def is_ranked(row: Fields) -> bool:
    """As `looks`, whatever a run learns from. Of the responses, only the first is looked at."""
    key = first_list(row, KEYS)
    if key is None or not row[key]:
        return False
    first = row[key][0]
    if _is_object(first):
        return first_key(first, (*OWN_RANKS, *OWN_SCORES, *OWN_GOOD)) is not None
    return first_list(row, (*RANKS, *SCORES, *GOOD)) is not None


def _is_object(response: Any) -> bool:
    """Whether a response is an object with a text and judgements, which a message is not."""
    return isinstance(response, dict) and first_key(response, ("role", "from")) is None


def read_ranked(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the responses in a list (`responses`, `answers`, `completions` ...), as texts, messages or objects.

    Objects have a text and their own `rank`, `score` (`rating`, `reward`, `overall_score`; or `scores` by dimension),
    `good` (`correct`, `label`) and `model` (`author`). Texts have them in lists beside: `ranks`; `scores` (`rewards`,
    `pred_score`, `score`), each a number, a list of one, or an object of dimensions; `good` (`correct`, `labels`, or a
    `score` of true and false); `models` (`authors`).

    Ranks count from 0 or 1 (the best), equal ones are ties. Null is not judged. `scale`, if the row has it, is the
    least and the highest score. Raises RowError, among others for ranks with gaps, scores that are not finite or
    outside the scale, and ranks that contradict the scores.
    """
    key = first_list(row, KEYS)
    if key is None:
        raise missing("responses", row, f"a list under {' or '.join(KEYS[:4])}")
    entries, scale = row[key], scale_of(row)
    if not entries:
        raise RowError("no responses", field=key, got="an empty list", expected="at least one response")
    objects = [entry for entry in entries if _is_object(entry)]
    if objects and len(objects) < len(entries):
        got = f"{len(objects)} objects among {len(entries)} responses"
        raise RowError("mixed responses", field=key, got=got, expected="all texts, or all objects")
    question = asked(row)
    messages = [answer(entry, f"{key}[{i}]", question) for i, entry in enumerate(entries)]
    judged = _own_judgements(objects, key) if objects else _judgements_beside(row, len(entries))
    dimensions, scores = _scores(judged.scores, scale)
    labels = [flag(value, f"{judged.good.field}, response {i}") for i, value in enumerate(judged.good.values)]
    responses = []
    for message, rank, own_scores, good, author in zip(
        messages, ranks(judged.ranks.values, judged.ranks.field), scores, labels, judged.authors.values, strict=True
    ):
        responses.append(Response(message, rank, own_scores, good, author if isinstance(author, str) else ""))
    prompt, offered = question.messages, question.tools
    return ranking(prompt, responses, origin, field=key, dimensions=dimensions, tools=offered)


class _Column(NamedTuple):
    """One value for each response, and the name of the field that has them."""

    values: list[Any]
    field: str


class _Judgements(NamedTuple):
    """What a row says of its responses."""

    ranks: _Column
    scores: _Column
    good: _Column
    authors: _Column


def _own_judgements(objects: list[Any], key: str) -> _Judgements:
    """What each response, an object, says of itself."""
    return _Judgements(
        _own(objects, OWN_RANKS, key),
        _own(objects, OWN_SCORES, key),
        _own(objects, OWN_GOOD, key),
        _own(objects, AUTHORS, key),
    )


def _own(objects: Sequence[Fields], names: Sequence[str], key: str) -> _Column:
    """What each response says of itself under the first of `names` that it has."""
    values = []
    for response in objects:
        name = first_key(response, names)
        values.append(None if name is None else response[name])
    return _Column(values, f"{key}[].{names[0]}")


def _judgements_beside(row: Fields, count: int) -> _Judgements:
    """What lists beside the responses say of them. A `score` of true and false is a label."""
    good = [name for name in GOOD if name not in SCORES or _has_flags(row.get(name))]
    numbers = [name for name in SCORES if not _has_flags(row.get(name))]
    return _Judgements(
        _beside(row, RANKS, count),
        _beside(row, numbers, count),
        _beside(row, good, count),
        _beside(row, BESIDE_AUTHORS, count),
    )


def _beside(row: Fields, names: Sequence[str], count: int) -> _Column:
    """The list beside the responses under the first of `names`."""
    key = first_list(row, names)
    if key is None:
        return _Column([None] * count, "")
    return _Column(listed(row, key, count), key)


def _has_flags(value: Any) -> bool:
    """Whether a value is a list of true and false."""
    return isinstance(value, list) and any(isinstance(entry, bool) for entry in value)


def _scores(column: _Column, scale: Scale | None) -> tuple[tuple[str, ...], list[Scores]]:
    """The names of the dimensions and the scores of each response; a single dimension may be nameless."""
    values, field = column
    if any(isinstance(value, dict) for value in values):
        return _named_scores(column, scale)
    if all(value is None for value in values):
        return (), [()] * len(values)
    scores: list[Scores] = []
    for i, value in enumerate(values):
        if isinstance(value, list):
            if len(value) != 1:
                fix = 'Write an object that names them, such as {"helpful": 4, "brief": 2}'
                raise RowError("dimensions without names", field=f"{field}[{i}]", got=f"{len(value)} scores", fix=fix)
            value = value[0]
        scores.append((score(value, f"{field}[{i}]", scale),))
    return (), scores


def _named_scores(column: _Column, scale: Scale | None) -> tuple[tuple[str, ...], list[Scores]]:
    """As `_scores`, of objects of dimensions. A dimension that a response lacks is not judged there."""
    values, field = column
    names: dict[str, None] = {}
    for value in values:
        if isinstance(value, dict):
            names |= dict.fromkeys(value)
    scores: list[Scores] = []
    for i, value in enumerate(values):
        if value is not None and not isinstance(value, dict):
            raise wrong_type(f"{field}[{i}]", value, "an object of dimensions and scores, as the others are")
        own = value or {}
        scores.append(tuple(score(own.get(name), f"{field}[{i}].{name}", scale) for name in names))
    return tuple(names), scores


FORMAT = Format("ranked", read_ranked, looks)
