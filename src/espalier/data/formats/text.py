"""Plain text: `text` or `content`, a string, or `paragraphs`, a list of strings."""

from __future__ import annotations

from espalier.data.columns.contents import has_substance, is_turn
from espalier.data.formats.common import Fields, blank, first_key, string, wrong_type
from espalier.data.formats.format import Format
from espalier.types import Consumes, Origin, Text

KEYS = ("text", "content", "paragraphs")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a text and nothing else to learn from; what it says about its text is none."""
    return first_key(row, KEYS) is not None and not is_turn(row) and not has_substance(row, KEYS)


def text_key(row: Fields) -> str | None:
    """Under which key a row has a text; None if it has none."""
    return first_key(row, KEYS)


def read_text(row: Fields, origin: Origin) -> Text:
    """A Text; paragraphs are joined by line ends. Raises RowError."""
    paragraphs = row.get("paragraphs")
    if paragraphs is not None and row.get("text") is None and row.get("content") is None:
        if not isinstance(paragraphs, list) or not all(isinstance(text, str) for text in paragraphs):
            raise wrong_type("paragraphs", paragraphs, "a list of strings")
        text = "\n".join(paragraphs)
    else:
        text = string(row, KEYS)
    if not text.strip():
        raise blank("empty text", "text", text, "a text to learn")
    return Text(text, origin)


FORMAT = Format("text", read_text, looks)
