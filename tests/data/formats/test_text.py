"""Rows of plain text."""

from conversations import HERE, one
from espalier.data.formats import sniff
from espalier.types import Text


def test_text_keys() -> None:
    assert one("text", {"text": " a\n"}) == Text(" a\n", HERE)
    assert one("text", {"content": "b"}) == Text("b", HERE)
    assert one("text", {"title": "t", "paragraphs": ["c", "d"]}) == Text("c\nd", HERE)


def test_a_turn_of_a_conversation_is_no_text() -> None:
    assert sniff({"role": "user", "content": "Name a red fruit."}) is None
    assert sniff({"content": "Cherries are red."}) == "text"
