"""What is assumed of rows is counted and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.formats.remarks import ALTERNATING, RENDERED
from espalier.data.read import Source, read
from espalier.types import Chat


def notes(row: object, folder: Path) -> dict[str, int]:
    path, ledger = folder / "rows.jsonl", Ledger()
    path.write_text(json.dumps(row), encoding="utf-8")
    list(read(Source(str(path)), ledger))
    return ledger.notes


@pytest.mark.parametrize(
    "text",
    [
        "<s>[INST] Name a red fruit. [/INST] A cherry. </s>",
        "<|im_start|>user\nName a red fruit.<|im_end|>",
        "<start_of_turn>user\nName a red fruit.<end_of_turn>",
        "### Instruction:\nName a red fruit.\n\n### Response:\nA cherry.",
    ],
)
def test_marks_of_a_chat_template_in_a_text_are_said(text: str, tmp_path: Path) -> None:
    assert notes({"text": text}, tmp_path) == {RENDERED: 1}
    assert notes({"prompt": text, "response": "A cherry."}, tmp_path) == {RENDERED: 1}


def test_an_ordinary_text_has_no_remark(tmp_path: Path) -> None:
    assert notes({"text": "In a list [1] of instructions, <b>bold</b> ### Responses"}, tmp_path) == {}


def test_plain_texts_are_turns_and_that_is_said(tmp_path: Path) -> None:
    path, ledger = tmp_path / "rows.jsonl", Ledger()
    path.write_text(json.dumps({"conversations": ["Hi", "Hello!", "Bye"], "source": "web"}), encoding="utf-8")
    (chat,) = read(Source(str(path)), ledger)
    assert isinstance(chat, Chat)
    assert [message.role for message in chat.messages] == ["user", "assistant", "user"]
    assert ledger.notes == {ALTERNATING: 1}


def test_texts_that_wait_for_an_answer_end_on_the_user(tmp_path: Path) -> None:
    row = {"prompt": ["Hi", "Hello!", "Bye"], "response": "Bye!"}
    assert notes(row, tmp_path) == {ALTERNATING: 1}
    assert notes(row | {"prompt": ["Hi", "Bye"]}, tmp_path) == {}
