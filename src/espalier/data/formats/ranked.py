"""K answers to one prompt, with ranks, scores or labels of each: beside it, or in lists of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from espalier.data.formats.common import Fields, first_key, missing, tools, wrong_type
from espalier.data.formats.judged import Scale, answer, flag, listed, prompt_of, ranking, ranks, scale_of, score
from espalier.errors import RowError
from espalier.types import Origin, Ranking, Response

KEYS = ("responses", "answers", "completions", "candidates", "response", "answer", "completion")
RANKS = ("ranks", "rank")
SCORES = ("scores", "rewards", "pred_score", "score")
GOOD = ("good", "correct", "labels", "score")
AUTHORS = ("model", "author", "source")
BESIDE_AUTHORS = ("models", "authors")
OWN_RANKS = ("rank",)
OWN_SCORES = ("score", "scores", "rating", "reward", "overall_score")
OWN_GOOD = ("good", "correct", "label")
Scores = tuple[float | None, ...]


def is_ranked(row: Fields) -> bool:
    """Whether a row has a list of responses and judgements of them, by its keys and the first response."""
    key = next((key for key in KEYS if isinstance(row.get(key), list)), None)
    if key is None or not row[key]:
        return False
    first = row[key][0]
    if isinstance(first, dict) and "role" not in first and "from" not in first:
        return bool(first_key(first, (*OWN_RANKS, *OWN_SCORES, *OWN_GOOD)))
    return any(isinstance(row.get(name), list) for name in (*RANKS, *SCORES, *GOOD))


def read_ranked(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the responses in a list (`responses`, `answers`, `completions` ...), as texts, messages or objects.

    Objects have a text and their own `rank`, `score` (`rating`, `reward`, `overall_score`; or `scores` by dimension),
    `good` (`correct`, `label`) and `model` (`author`). Texts have them in lists beside: `ranks`; `scores` (`rewards`,
    `pred_score`, `score`), each a number, a list of one, or an object of dimensions; `good` (`correct`, `labels`, or a
    `score` of true and false); `models` (`authors`).

    Ranks count from 0 or 1 (the best), equal ones are ties. Null is not judged. `scale`, where the row has it, is the
    least and the highest score. Raises RowError, among others for ranks with gaps, scores that are not finite or
    outside the scale, and ranks that contradict the scores.
    """
    key = next((key for key in KEYS if isinstance(row.get(key), list)), None)
    if key is None:
        raise missing("responses", row, f"a list under {' or '.join(KEYS[:4])}")
    given, scale = row[key], scale_of(row)
    if not given:
        raise RowError("no responses", field=key, got="an empty list", expected="at least one response")
    objects = [isinstance(one, dict) and "role" not in one and "from" not in one for one in given]
    if any(objects) and not all(objects):
        got = f"{sum(objects)} objects among {len(given)} responses"
        raise RowError("mixed responses", field=key, got=got, expected="all texts, or all objects")
    messages = [answer(one, f"{key}[{i}]") for i, one in enumerate(given)]
    if all(objects):
        known = _Judgements(
            *((_own(given, names), f"{key}[].{names[0]}") for names in (OWN_RANKS, OWN_SCORES, OWN_GOOD, AUTHORS))
        )
    else:
        flags = [name for name in GOOD if name not in SCORES or _flags(row.get(name))]
        numbers = [name for name in SCORES if not _flags(row.get(name))]
        known = _Judgements(*(_beside(row, names, len(given)) for names in (RANKS, numbers, flags, BESIDE_AUTHORS)))
    dimensions, scores = _scores(*known.scores, scale)
    good = [flag(value, f"{known.good[1]}, response {i}") for i, value in enumerate(known.good[0])]
    responses = [
        Response(message, rank, judged, label, author if isinstance(author, str) else "")
        for message, rank, judged, label, author in zip(
            messages, ranks(*known.ranks), scores, good, known.authors[0], strict=True
        )
    ]
    return ranking(prompt_of(row), responses, origin, field=key, dimensions=dimensions, tools=tools(row))


class _Judgements(NamedTuple):
    """What is said of the responses: a value for each, and the name of the field that says it."""

    ranks: tuple[list[Any], str]
    scores: tuple[list[Any], str]
    good: tuple[list[Any], str]
    authors: tuple[list[Any], str]


def _own(given: Sequence[Fields], names: Sequence[str]) -> list[Any]:
    """What each response, an object, says of itself under the first of `names`."""
    return [one[name] if (name := first_key(one, names)) else None for one in given]


def _beside(row: Fields, names: Sequence[str], count: int) -> tuple[list[Any], str]:
    """The list beside the responses under the first of `names`."""
    key = next((name for name in names if isinstance(row.get(name), list)), None)
    return (listed(row, key, count), key) if key else ([None] * count, "")


def _flags(value: Any) -> bool:
    """Whether a value is a list of true and false."""
    return isinstance(value, list) and any(isinstance(v, bool) for v in value)


def _scores(values: Sequence[Any], field: str, scale: Scale | None) -> tuple[tuple[str, ...], list[Scores]]:
    """The names of the dimensions and the scores of each response; a single dimension may be nameless."""
    if any(isinstance(value, dict) for value in values):
        names = tuple(dict.fromkeys(name for value in values if isinstance(value, dict) for name in value))
        found: list[Scores] = []
        for i, value in enumerate(values):
            if value is not None and not isinstance(value, dict):
                raise wrong_type(f"{field}[{i}]", value, "an object of dimensions and scores, as the others are")
            given = value or {}
            found.append(tuple(score(given.get(name), f"{field}[{i}].{name}", scale) for name in names))
        return names, found
    if all(value is None for value in values):
        return (), [()] * len(values)
    bare = []
    for i, value in enumerate(values):
        if isinstance(value, list) and len(value) != 1:
            fix = 'Write an object that names them, such as {"helpful": 4, "brief": 2}'
            raise RowError("dimensions without names", field=f"{field}[{i}]", got=f"{len(value)} scores", fix=fix)
        bare.append((score(value[0] if isinstance(value, list) else value, f"{field}[{i}]", scale),))
    return (), list(bare)
