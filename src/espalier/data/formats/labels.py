"""One answer with a label of its own, good or bad (KTO, arXiv:2402.01306)."""

from __future__ import annotations

from espalier.data.formats.chats import is_chat, read_chat
from espalier.data.formats.common import Fields, first_key, missing
from espalier.data.formats.format import Format
from espalier.data.formats.judged import flag, is_word, ranking
from espalier.types import Chat, Consumes, Origin, Ranking, Response

LABELS = ("label", "kto_tag", "is_safe", "is_correct", "correct")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row is a conversation with a label that is true or false; for rankings also good or bad in words, or 1
    or 0, which beside a conversation to learn from could be any column."""
    key = first_key(row, LABELS)
    if key is None:
        return False
    value = row[key]
    is_label = isinstance(value, bool) or (consumes == "ranking" and (is_word(value) or value in (0, 1)))
    return is_label and is_chat(row)


def read_labels(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of one response with a label: the last turn of a conversation in any format, and `label` (`kto_tag`).

    Raises RowError, also if the label is neither true (1, good) nor false (0, bad).
    """
    key = first_key(row, LABELS)
    if key is None:
        raise missing("label", row, " or ".join(LABELS))
    return last_turn(read_chat(row, origin), good=flag(row[key], key))


def last_turn(
    chat: Chat, *, good: bool | None = None, scores: tuple[float | None, ...] = (), dimensions: tuple[str, ...] = ()
) -> Ranking:
    """A Ranking of the last turn of a conversation, as the one response to all before it. Raises RowError."""
    *prompt, last = chat.messages
    response = Response(last, scores=scores, good=good)
    return ranking(prompt, [response], chat.origin, field="response", dimensions=dimensions, tools=chat.tools)


FORMAT = Format("labels", read_labels, looks)
