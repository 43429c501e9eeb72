"""Pairs, each by an example that can be checked by eye."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.data.formats import sniff
from rankings import ASK, BAD, GOOD, PAIR, one, prompt, said


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "yes", "rejected": "no"},
        {"question": "Q", "chosen": GOOD, "rejected": BAD},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Q"}], "loss_weight": 0.0},
                GOOD,
            ],
            "rejected_messages": [ASK, {"role": "assistant", "content": [{"type": "text", "value": "no"}]}],
        },
        {"instruction": "Q", "input": "", "chosen": "yes", "rejected": "no"},
    ],
)
def test_pairs_however_they_are_written(row: dict[str, Any]) -> None:
    for form in ("chat", "ranking"):
        assert sniff(row, form) == "pairs"
    assert (prompt(one("pairs", row)), said(one("pairs", row))) == ([("user", "Q")], PAIR)


def test_a_pair_keeps_what_comes_before_the_answer() -> None:
    row = {"system": "S", "instruction": "Q", "input": "I", "history": [["a", "b"]], "chosen": "yes", "rejected": "no"}
    roles = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Q\nI")]
    assert prompt(one("pairs", row)) == roles
    tool = {"type": "function", "function": {"name": "f"}}
    assert one("pairs", {"prompt": "Q", "chosen": "yes", "rejected": "no", "tools": [tool]}).tools == (tool,)


def test_scores_of_both_answers_take_the_place_of_ranks() -> None:
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", "score_chosen": 9, "score_rejected": 6.5}
    assert said(one("pairs", row)) == [("yes", None, (9.0,), None), ("no", None, (6.5,), None)]
    assert said(one("pairs", row | {"score_rejected": None})) == PAIR
    assert said(one("pairs", row | {"score_rejected": 9}))[1] == ("no", None, (9.0,), None)  # a tie
