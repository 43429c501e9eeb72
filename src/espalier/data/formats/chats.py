"""The formats whose rows hold one conversation, and how their rows are told apart by keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from espalier.data.formats import alpaca, messages, prompt, sharegpt, text
from espalier.data.formats.common import Fields, first_key, missing
from espalier.errors import RowError
from espalier.types import Chat, Completion, Origin, Text

CHATS: dict[str, Callable[[Fields, Origin], Chat | Completion | Text | Sequence[Chat]]] = {
    "alpaca": alpaca.read_alpaca,
    "sharegpt": sharegpt.read_sharegpt,
    "messages": messages.read_messages,
    "prompt": prompt.read_prompt,
    "completion": prompt.read_completion,
    "text": text.read_text,
}
"""Formats by name. `completion` is never guessed: its rows look like those of `prompt`."""
EXPECTED = (
    "instruction and output; conversations or messages; prompt (question, query) and completion (response, answer, "
    "output)"
)


def sniff_chat(row: Fields) -> str | None:
    """The format that a row's keys look like, or None. Of its values, only listed turns are looked at."""
    if key := first_key(row, messages.KEYS):
        turns = row[key]
        turn = next((t for t in turns if isinstance(t, dict)), {}) if isinstance(turns, list) else {}
        if "from" in turn or "role" in turn:
            return "messages" if "role" in turn else "sharegpt"
        return "sharegpt" if key == "conversations" else "messages"
    if "instruction" in row and first_key(row, (*alpaca.OUTPUTS, "instances")):
        return "alpaca"
    if first_key(row, prompt.PROMPTS) and first_key(row, prompt.ANSWERS):
        return "prompt"
    return "text" if first_key(row, text.KEYS) else None


def read_chat(row: Fields, origin: Origin) -> Chat:
    """The one conversation of a row, in whichever of the formats it is. Raises RowError."""
    name = sniff_chat(row)
    if name in (None, "text"):
        raise missing("", row, EXPECTED)
    assert name is not None
    made: Any = CHATS[name](row, origin)
    if isinstance(made, Chat):
        return made
    if len(made) != 1:
        expected = "one answer in a row that judges it"
        raise RowError("several answers", field="instances", got=f"{len(made)} answers", expected=expected)
    chat: Chat = made[0]
    return chat
