"""Formats of judged answers, each by an example that can be checked by eye, and what they refuse."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest

from espalier.data.formats import convert, sniff
from espalier.errors import RowError
from rankings import ASK, BAD, GOOD, HERE, PAIR, one, prompt, said


@pytest.mark.parametrize("name", ["hh", "judged", ""])
def test_worked_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"espalier.data.formats.{name}".rstrip(".")))
    assert failed == 0 and tried >= 1


# -------------------------------------------------------------------------------------------------------------- pairs


JUDGED = (
    "###Task:\nJudge.\n\n###The instruction to evaluate:\nQ\n\n###Response to evaluate:\n{}\n\n###Score Rubrics:\n[ok?]"
)


def test_what_a_judge_is_asked_holds_the_pair_or_the_response() -> None:
    pair = {"source": "x", "chosen_instruction": JUDGED.format("yes"), "rejected_instruction": JUDGED.format("no")}
    assert sniff(pair) == "judge" and prompt(one("judge", pair)) == [("user", "Q")] and said(one("judge", pair)) == PAIR
    single = {"instruction": JUDGED.format("yes"), "gpt4_score": [5, 4, 4], "response_source": "m"}
    assert sniff(single) == "judge" and said(one("judge", single)) == [("yes", None, (13 / 3,), None)]
    assert one("judge", single).responses[0].author == "m"
    trained = single | {"output": "Feedback: fine [RESULT] 4"}
    assert sniff(trained) == "alpaca" and sniff(trained, "ranking") == "judge"
    assert sniff({"instruction": JUDGED.format("yes"), "output": "fine"}, "ranking") == "alpaca"


# --------------------------------------------------------------------------------------------------- scores and labels


def test_a_scored_answer_is_a_conversation_for_chats() -> None:
    row = {"prompt": "Q", "response": "a", "score": 7}
    assert (sniff(row), sniff(row, "ranking")) == ("prompt", "scores")
    assert said(one("scores", row)) == [("a", None, (7.0,), None)]
    steer = {"prompt": "Q", "response": "a", "helpfulness": 4, "verbosity": None, "correctness": 0}
    assert sniff(steer, "ranking") == "scores"
    assert one("scores", steer).dimensions == ("helpfulness", "correctness", "verbosity")
    assert said(one("scores", steer)) == [("a", None, (4.0, 0.0, None), None)]
    named = {"messages": [ASK, GOOD], "scores": {"kind": 0.5}}
    assert one("scores", named).dimensions == ("kind",) and prompt(one("scores", named)) == [("user", "Q")]


# ------------------------------------------------------------------------------------------------------------ refusals


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": f"\n\nHuman: Q\n\nAssistant: {chosen}", "rejected": f"\n\nHuman: Q\n\nAssistant: {rejected}"}


BASE = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
LIST = {"prompt": "Q", "responses": ["a", "b", "c"]}
ANSWER = {"prompt": "Q", "response": "a"}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("pairs", BASE | {"rejected": "yes"}, "identical responses; .*got 2 responses of the same text"),
        ("pairs", BASE | {"chosen": " "}, "empty assistant turn; field chosen"),
        ("pairs", BASE | {"prompt": "\n"}, "empty prompt"),
        ("pairs", BASE | {"prompt": []}, "empty prompt"),
        ("pairs", BASE | {"prompt": [ASK, GOOD]}, "prompt without a question; .*the role assistant at the end"),
        ("pairs", BASE | {"chosen": ASK}, "answer of another role; field chosen; got role user"),
        ("pairs", BASE | {"rejected": []}, "no answer; field rejected"),
        ("pairs", BASE | {"rejected": 3}, "wrong type; field rejected"),
        ("pairs", {"chosen": "yes", "rejected": "no"}, "missing key; field prompt"),
        ("pairs", {"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "R"}, BAD]}, "prompts differ; .*0 turns in"),
        ("pairs", {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "identical responses"),
        ("pairs", {"chosen": [ASK, GOOD], "rejected": [ASK, BAD, ASK, BAD]}, "prompts differ; .*1 in chosen and 3 in"),
        (
            "pairs",
            {"prompt": "R", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            "prompts differ; field prompt; got 'R'",
        ),
        ("pairs", BASE | {"score_chosen": 1, "score_rejected": 2}, "ranks contradict scores; .*got 1 for the chosen"),
        (
            "pairs",
            BASE | {"score_chosen": 11, "score_rejected": 2, "scale": [1, 10]},
            "score out of range; .*from 1 to 10",
        ),
        ("pairs", BASE | {"score_chosen": float("inf"), "score_rejected": 2}, "score not finite"),
        ("hh", hh("yes", "yes"), "identical responses"),
        ("hh", hh("", "no"), "empty assistant turn; field chosen, turn 2"),
        ("hh", hh("yes\n\nHuman: R", "no"), "prompts differ; .*got 1 turns in common, then 2 in chosen and 1"),
        ("hh", hh("x\n\nAssistant: yes", "x\n\nAssistant: no"), "roles do not alternate; field chosen, turn 3"),
        ("hh", hh("x\n\nHuman: yes", "x\n\nHuman: no"), "conversation ends on the user"),
        ("hh", {"chosen": "Assistant", "rejected": "no"}, "no transcript"),
        ("judge", {"chosen_instruction": JUDGED, "rejected_instruction": JUDGED.replace("Q", "R")}, "prompts differ"),
        (
            "judge",
            {"instruction": JUDGED.format("a"), "gpt4_score": [5, 6]},
            r"score out of range; field gpt4_score\[1\]",
        ),
        ("judge", {"instruction": "Q", "gpt4_score": 5}, "no judge text"),
        ("judge", {"instruction": JUDGED.format("a")}, "no judgement"),
        ("ranked", LIST | {"ranks": [0, 2, 2]}, "ranks with gaps; field ranks; got 0, 2, 2"),
        ("ranked", LIST | {"ranks": [2, 3, 4]}, "ranks with gaps"),
        ("ranked", LIST | {"ranks": [0, 1.5, 2]}, r"wrong type; field ranks\[1\]"),
        ("ranked", LIST | {"ranks": [0, -1, 2]}, "wrong type"),
        ("ranked", LIST | {"ranks": [0, 1]}, "another number of judgements; .*2 for 3 responses"),
        ("ranked", LIST | {"ranks": [0, 1, 2], "scores": [1, 3, 2]}, "ranks contradict scores"),
        ("ranked", LIST | {"scores": [1, float("nan"), 2]}, r"score not finite; field scores\[1\]"),
        ("ranked", LIST | {"scores": [1, 0.0, 2], "scale": [1, 10]}, r"score out of range; field scores\[1\]; got 0;"),
        ("ranked", LIST | {"scores": [1, "2", 3]}, "wrong type"),
        ("ranked", LIST | {"scores": [[1, 2], [2, 3], [3, 4]]}, "dimensions without names"),
        ("ranked", LIST | {"scores": [None, None, None]}, "no judgement"),
        ("ranked", LIST | {"scores": [1, 2, 3], "scale": [10, 1]}, "wrong type; field scale"),
        ("ranked", {"prompt": "Q", "responses": ["a", "a"], "ranks": [0, 1]}, "identical responses"),
        (
            "ranked",
            {"prompt": "Q", "responses": ["a", ""], "ranks": [0, 1]},
            r"empty assistant turn; field responses\[1\]",
        ),
        ("ranked", {"prompt": "Q", "responses": []}, "no responses"),
        ("scores", ANSWER, "missing key"),
        ("scores", ANSWER | {"score": True}, "wrong type"),
        ("scores", ANSWER | {"score": None}, "missing key"),
        ("scores", ANSWER | {"helpfulness": 9, "scale": [0, 4]}, "score out of range; field helpfulness"),
        ("labels", ANSWER | {"label": "fine"}, "wrong type; field label"),
        ("labels", {"text": "a", "label": True}, "missing key"),
        ("labels", {"instruction": "Q", "instances": [{"output": "a"}] * 2, "label": True}, "several answers"),
    ],
)
def test_rows_that_cannot_be_trained_on(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        convert(name, row, HERE)
