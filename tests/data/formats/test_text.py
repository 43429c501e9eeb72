"""Rows of plain text."""

from conversations import HERE, one
from espalier.types import Text


def test_text_keys() -> None:
    assert one("text", {"text": " a\n"}) == Text(" a\n", HERE)
    assert one("text", {"content": "b"}) == Text("b", HERE)
    assert one("text", {"title": "t", "paragraphs": ["c", "d"]}) == Text("c\nd", HERE)
