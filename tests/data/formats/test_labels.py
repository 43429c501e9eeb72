"""Labels beside a conversation of any format."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.data.formats import sniff
from rankings import ASK, BAD, GOOD, one, prompt, said


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "a", "label": False},
        {"messages": [ASK, {"role": "assistant", "content": "a"}], "kto_tag": False},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a"}], "label": False},
        {"instruction": "Q", "input": "", "output": "a", "kto_tag": False},
    ],
)
def test_labels_beside_a_conversation_of_any_format(row: dict[str, Any]) -> None:
    assert sniff(row) == sniff(row, "ranking") == "labels"
    assert prompt(one("labels", row)) == [("user", "Q")] and said(one("labels", row)) == [("a", None, (), False)]


def test_the_last_turn_is_judged_and_all_before_it_is_the_prompt() -> None:
    row = {"messages": [{"role": "system", "content": "S"}, ASK, BAD, ASK, GOOD], "label": True}
    assert [m.role for m in one("labels", row).prompt] == ["system", "user", "assistant", "user"]
    assert said(one("labels", row)) == [("yes", None, (), True)]


def test_labels_may_be_numbers_where_the_format_is_named() -> None:
    row = {"prompt": "Q", "completion": "a", "label": 1}
    assert sniff(row) == "prompt" and said(one("labels", row))[0][3] is True
