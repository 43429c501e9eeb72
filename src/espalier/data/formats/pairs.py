"""Pairs: a prompt with a chosen and a rejected answer, or two whole conversations that share all turns but the last."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.data.formats import hh
from espalier.data.formats.common import Fields, first_key, missing, tools
from espalier.data.formats.judged import answer, check_answer, prompt_of, ranking, scale_of, score, split_pair, turns
from espalier.data.formats.prompt import PROMPTS
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Response

KEYS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
)
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


def keys_of(row: Fields) -> tuple[str, str] | None:
    """Under which keys a row has its two answers; None where it has no pair."""
    return next(((chosen, rejected) for chosen, rejected in KEYS if {chosen, rejected} <= row.keys()), None)


def is_transcripts(row: Fields) -> bool:
    """Whether a row has a pair of whole transcripts in strings, and no prompt apart from them."""
    values = [row[key] for key in keys_of(row) or ()]
    apart = first_key(row, PROMPTS) is not None
    return bool(values) and not apart and all(isinstance(value, str) and hh.is_transcript(value) for value in values)


def read_pairs(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the chosen answer (rank 0) and the rejected one (rank 1).

    The answers are texts, messages, or turns `{from, value}`, and the prompt stands apart (`judged.prompt_of`); or each
    is a whole conversation, whose longest common run of turns is the prompt. A prompt that is given, too, must be said
    in it. Transcripts in one string are read as `hh.read_hh` does.

    Where both have scores (`score_chosen` and `score_rejected`, or `chosen_score` ...), these take the place of the
    ranks, so that gaps and margins can be taken from them: equal scores are a tie.

    Raises RowError where the prompts differ, the answers are the same or empty, or the scores prefer the rejected one.
    """
    keys = keys_of(row)
    if keys is None:
        raise missing("chosen", row, "chosen and rejected")
    field = " and ".join(keys)
    values, prompts = [row[key] for key in keys], first_key(row, PROMPTS)
    if is_transcripts(row):
        return hh.read_hh(dict(zip(("chosen", "rejected"), values, strict=True)), origin)
    whole = [isinstance(value, list) and len(value) > 1 for value in values]
    if any(whole):
        chosen, rejected = (turns([v] if isinstance(v, dict) else v, k) for k, v in zip(keys, values, strict=True))
        prompt = split_pair(chosen, rejected, field)
        if prompts:
            _is_said(prompt_of(row), prompt, prompts)
        answers = [check_answer(side[-1], key) for key, side in zip(keys, (chosen, rejected), strict=True)]
    else:
        prompt = tuple(prompt_of(row))
        answers = [answer(value, key) for key, value in zip(keys, values, strict=True)]
    scores = _scores(row)
    if scores is None:
        judged = [Response(message, rank=place) for place, message in enumerate(answers)]
    else:
        judged = [Response(message, scores=(given,)) for message, given in zip(answers, scores, strict=True)]
    return ranking(prompt, judged, origin, field=field, tools=tools(row))


def _is_said(prompt: Sequence[Message], shared: Sequence[Message], field: str) -> None:
    """Raise RowError unless all that the row's own prompt says is among the turns that both conversations share."""
    texts = {message.content for message in shared}
    for message in prompt:
        if message.content not in texts:
            got = f"{message.content[:40]!r}, which is not among the turns that chosen and rejected share"
            raise RowError("prompts differ", field=field, got=got, expected="the prompt of both conversations")


def _scores(row: Fields) -> tuple[float, float] | None:
    """The scores of the chosen and of the rejected answer, None where one of them has none."""
    for names in SCORES:
        if first_key(row, names):
            scale = scale_of(row)
            chosen, rejected = (score(row.get(name), name, scale) for name in names)
            if chosen is None or rejected is None:
                return None
            if chosen < rejected:
                got = f"{chosen:g} for the chosen answer, {rejected:g} for the rejected one"
                fix = "Is a lower score better? Negate the scores, or leave them out"
                raise RowError(
                    "ranks contradict scores", field=" and ".join(names), got=got, expected="one order", fix=fix
                )
            return chosen, rejected
    return None
