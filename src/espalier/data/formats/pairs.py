"""Pairs: a prompt with a chosen and a rejected answer, or two whole conversations that share all turns but the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, first_key, missing
from espalier.data.formats.format import Format
from espalier.data.formats.hh import is_transcripts, read_hh
from espalier.data.formats.judged import (
    answer,
    check_answer,
    pair_keys,
    ranking,
    scale_of,
    score,
    split_pair,
)
from espalier.data.formats.lead import (
    context_of,
    is_passages,
    passages,
    tools_of,
    turns_with_context,
    with_history,
    with_system,
)
from espalier.data.formats.messages import conversation, decoded_turns, turns_key
from espalier.data.formats.prompt import QUESTIONS, asked
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Ranking, Response

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
)


REJECTED = ("rejected_response", "rejected_messages", "rejected")
"""Where the rejected answer stands beside a conversation that ends in the chosen one."""


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a chosen and a rejected answer."""
    return pair_keys(row) is not None or _beside_turns(row) is not None


def _beside_turns(row: Fields) -> tuple[str, str] | None:
    """Under which keys a row has a conversation that ends in the chosen answer, and the rejected one."""
    chosen, rejected = turns_key(row), first_key(row, REJECTED)
    return (chosen, rejected) if chosen and rejected else None


def read_pairs(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the chosen answer (rank 0) and the rejected one (rank 1).

    The answers are texts, messages, or turns `{from, value}`, and the prompt stands apart (`prompt.asked`); or each
    is a whole conversation, whose longest common run of turns is the prompt. If a prompt stands beside those, its turns
    must be among the shared ones. Transcripts in one string are read as `hh.read_hh` does. The chosen answer may also
    be the last turn of `messages`, and the rejected one `rejected_response` (`rejected_messages`).

    If both have scores (`score_chosen` and `score_rejected`, or `chosen_score` ...), these take the place of the ranks,
    so that gaps and margins can be taken from them: equal scores are a tie.

    Raises RowError if the prompts differ, the answers are the same or empty, or the scores prefer the rejected one.
    """
    beside, keys = None, pair_keys(row)
    if keys is None:
        keys = beside = _beside_turns(row)
    if keys is None:
        raise missing("chosen", row, "chosen and rejected")
    field = " and ".join(keys)
    sides = [decoded_turns(row[key], key) for key in keys]
    offered = tools_of(row, sides[0], keys[0])
    if is_transcripts(row):
        pair = read_hh({"chosen": sides[0], "rejected": sides[1]}, origin)
        answers = [response.message for response in pair.responses]
        shared = turns_with_context(pair.prompt, context_of(row, None))
        prompt = tuple(with_system(row, with_history(row, shared, turns)))
    elif beside and isinstance(sides[1], str):
        *before, last = read_chat_turns(row, keys[0])
        prompt, answers = tuple(before), [check_answer(last, keys[0]), answer(sides[1], keys[1])]
    elif any(isinstance(side, list) and len(side) > 1 for side in sides):
        prompt, answers = _whole(row, keys, sides, field)
    else:
        question = asked(row)
        prompt, offered = tuple(question.messages), question.tools or offered
        answers = [answer(row[key], key, question) for key in keys]
    scores = _scores(row)
    if scores is None:
        responses = [Response(message, rank=rank) for rank, message in enumerate(answers)]
    else:
        responses = [Response(message, scores=(own,)) for message, own in zip(answers, scores, strict=True)]
    return ranking(prompt, responses, origin, field=field, tools=offered)


def read_chat_turns(row: Fields, key: str) -> tuple[Message, ...]:
    """The turns of a row's conversation, with what stands beside it. Raises RowError."""
    return conversation(row, key, turns, Origin()).messages


def _whole(
    row: Fields, keys: tuple[str, str], values: Sequence[Any], field: str
) -> tuple[tuple[Message, ...], list[Message]]:
    """The prompt and the two answers of whole conversations."""
    sides = []
    for key, value in zip(keys, values, strict=True):
        sides.append(turns([value] if isinstance(value, dict) else value, key))
    chosen, rejected = sides
    prompt = split_pair(chosen, rejected, field)
    prompt_key = first_key(row, QUESTIONS)
    if prompt_key:
        _check_shared(asked(row, QUESTIONS).messages, prompt, prompt_key)
    answers = [check_answer(chosen[-1], keys[0]), check_answer(rejected[-1], keys[1])]
    if is_passages(peek(row, "context")):
        prompt = tuple(turns_with_context(prompt, passages(row["context"], "context")))
    return tuple(with_system(row, with_history(row, [*prompt], turns))), answers


def _check_shared(prompt: Sequence[Message], shared: Sequence[Message], field: str) -> None:
    """Raise RowError unless every turn of the row's own prompt is among those that both conversations share."""
    texts = {message.content for message in shared}
    for message in prompt:
        if message.content not in texts:
            got = f"{message.content[:40]!r}, which is not among the turns that chosen and rejected share"
            raise RowError("prompts differ", field=field, got=got, expected="the prompt of both conversations")


def _scores(row: Fields) -> tuple[float, float] | None:
    """The scores of the chosen and of the rejected answer, None if one of them has none."""
    for names in SCORES:
        if not first_key(row, names):
            continue
        scale = scale_of(row)
        chosen, rejected = (score(row.get(name), name, scale) for name in names)
        if chosen is None or rejected is None:
            return None
        if chosen < rejected:
            got = f"{chosen:g} for the chosen answer, {rejected:g} for the rejected one"
            ignored = f"--ignore-columns {' '.join(names)}"
            fix, field = f"Is a lower score better? Negate the scores, or take {ignored}", " and ".join(names)
            raise RowError("ranks contradict scores", field=field, got=got, expected="one order", fix=fix)
        return chosen, rejected
    return None


FORMAT = Format("pairs", read_pairs, looks)
