"""The responses of a ranking as tokens, each with how good it is among its siblings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from espalier.data.render.drafts import EMPTIED, Rendered, RenderedGroup
from espalier.data.render.rankings import levels
from espalier.data.render.refusals import EMPTY
from espalier.errors import RowError
from espalier.types import Chat, Message, Ranking, Response

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats, Tail


@dataclass(slots=True)
class Answer:
    """A response as tokens. whole: its tokens before the cut to max_length. written: how many of them the template
    writes, which may leave out the stop token. level: how good it is, or None."""

    rendered: Rendered
    response: Response
    whole: tuple[int, ...]
    written: int
    level: float | None


def answers_of(chats: Chats, example: Ranking, key: int, group: RenderedGroup) -> list[Answer]:
    """The responses as tokens; those without text, or without a token in front of the cut, are dropped."""
    prompt = tuple(replace(message, weight=0.0) for message in example.prompt)
    preference = chats.form.preference
    answers: list[Answer] = []
    prompt_ids: list[int] | None = None
    emptied: RowError | None = None
    values = levels(example, preference.weights, preference.judged_by)
    for place, (response, level) in enumerate(zip(example.responses, values, strict=True)):
        message = response.message
        if not _has_text(message):
            group.drop(EMPTY)
            continue
        chat = Chat((*prompt, replace(message, weight=1.0)), example.tools, template_args=example.template_args)
        drafts = chats.drafts(chat)
        (draft,) = drafts
        if prompt_ids is None:  # what became of the prompt's turns is the same for all responses
            group.take(drafts)
        before = draft.sample.tokens[: draft.turn_at]
        # Siblings share their prompt's computation, and a likelihood is compared given the same
        # text: a template that writes the prompt by the response (reasoning switched on or off)
        # makes responses that cannot be compared.
        if prompt_ids is not None and before != prompt_ids:
            raise RowError(
                "responses have different prompts",
                field=f"responses[{place}]",
                got="a prompt that differs from that of the responses before it",
                expected="one prompt for all responses",
                fix="Give all responses of a row reasoning, or none, or choose another --template",
            )
        prompt_ids = before
        whole = tuple(draft.sample.tokens)
        try:
            rendered = draft.finish(chats.max_length, key, response)
        except RowError as error:
            if error.reason != EMPTIED:
                raise
            emptied = error
            group.drop(EMPTIED)
        else:
            answers.append(Answer(rendered, response, whole, len(whole) - draft.left_open, level))
    if emptied and not answers:
        raise emptied
    return answers


def read_at(tokens: Sequence[int], unread: int | None = None) -> int:
    """Where transformers reads a sequence-classification model: at the rightmost token that is not its pad token
    `unread` (None: it has none).

    >>> read_at([5, 7, 2, 2]), read_at([5, 7, 2, 2], unread=2)
    (3, 1)
    """
    for place in range(len(tokens) - 1, 0, -1):
        if tokens[place] != unread:
            return place
    return 0


class Read(NamedTuple):
    """The ids that a reward model is given, and the place after which it is read."""

    tokens: list[int]
    place: int


def read_drawn(
    tokens: Sequence[int], tail: Tail, stop_ids: Collection[int], *, stopped: bool, unread: int | None = None
) -> Read:
    """A prompt and a drawn answer as a reward model of the same template reads them: the ids as they are and, if the
    answer is `stopped`, what the template writes behind it, as `answers_of` has it of a conversation. An answer that
    ended without a stop token (at a stop string) gets the template's; one that was cut gets nothing.
    """
    ids = list(tokens)
    if not stopped:
        return Read(ids, read_at(ids, unread))
    if ids[-1] not in stop_ids and tail.stop is not None:
        ids.append(tail.stop)
    ids += tail.ids
    # As far as the template writes: it may leave out the stop token at the end of a text.
    written = len(ids) - (tail.left_open and ids[-1] in stop_ids)
    return Read(ids, read_at(ids[:written], unread))


def _has_text(message: Message) -> bool:
    return bool(message.content.strip() or message.reasoning or message.tool_calls)


def draw_key(answers: Sequence[Answer]) -> int:
    """The key of a row's draws. It follows from the row's tokens, so that a draw is the same in every command and stays
    when rows are added in front."""
    state = hashlib.blake2b(digest_size=7)
    for answer in answers:
        state.update(np.array([len(answer.whole), *answer.whole], "<i8").tobytes())
    return int.from_bytes(state.digest(), "little")
