"""A whole conversation in one text: `text`, `content` or `chat` with the turns of a transcript."""

from __future__ import annotations

from dataclasses import replace

from espalier.data.columns.watched import peek
from espalier.data.formats import transcripts
from espalier.data.formats.common import Fields, check_turns, shown, string
from espalier.data.formats.format import Format
from espalier.data.formats.lead import tools_of, with_history, with_system
from espalier.data.formats.sharegpt import turns
from espalier.data.formats.text import looks as looks_like_text
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Origin

KEYS = ("text", "content")
CHAT = "chat"
"""A column that is a transcript whatever stands beside it."""


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row is a text alone, and that is a transcript that ends in an answer."""
    if isinstance(peek(row, CHAT), str):
        return transcripts.whole(peek(row, CHAT)) is not None
    texts = [peek(row, key) for key in KEYS if isinstance(peek(row, key), str)]
    if len(texts) != 1 or transcripts.whole(texts[0]) is None:
        return False
    return looks_like_text(row, consumes)


def read_transcript(row: Fields, origin: Origin) -> Chat:
    """A Chat of the turns of a text, with what stands beside it. Raises RowError."""
    text = string(row, (CHAT, *KEYS))
    messages = transcripts.whole(text)
    if messages is None:
        fix = "Read it as plain text with PATH:text"
        expected = "turns that begin with Human: or User:, and end on Assistant:"
        raise RowError("no transcript", field="text", got=shown(text), expected=expected, fix=fix)
    messages = with_system(row, with_history(row, messages, turns))
    if messages[0].role == "system":
        messages[0] = replace(messages[0], content=messages[0].content.removeprefix("SYSTEM:").strip())
    return Chat(check_turns(messages, "text"), tools_of(row), origin)


FORMAT = Format("transcript", read_transcript, looks)
