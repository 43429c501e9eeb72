"""Formats of judged answers, each by an example that can be checked by eye, and what they refuse."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest

from espalier.data.formats import convert, sniff
from espalier.errors import RowError
from espalier.types import Origin, Ranking

HERE = Origin("file", 7)
ASK = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
Said = list[tuple[str, int | None, tuple[float | None, ...], bool | None]]


def one(name: str, row: dict[str, Any]) -> Ranking:
    (example,) = convert(name, row, HERE)
    assert isinstance(example, Ranking) and example.origin == HERE
    return example


def prompt(example: Ranking) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in example.prompt]


def said(example: Ranking) -> Said:
    assert all(r.message.role == "assistant" for r in example.responses)
    return [(r.message.content, r.rank, r.scores, r.good) for r in example.responses]


PAIR: Said = [("yes", 0, (), None), ("no", 1, (), None)]


@pytest.mark.parametrize("name", ["hh", "judged", ""])
def test_worked_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"espalier.data.formats.{name}".rstrip(".")))
    assert failed == 0 and tried >= 1


# -------------------------------------------------------------------------------------------------------------- pairs


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


def test_transcripts_share_their_longest_common_run_of_turns() -> None:
    start = "\n\nHuman: A\n\nAssistant: B\nHuman: still B\n\nHuman: C\n\nAssistant:"
    row = {"chosen": f"{start} yes \n", "rejected": f"{start} no"}
    assert sniff(row) == sniff(row, "ranking") == "hh"
    turns = [("user", "A"), ("assistant", "B\nHuman: still B"), ("user", "C")]
    assert prompt(one("hh", row)) == turns and said(one("hh", row)) == PAIR
    assert one("pairs", row) == one("hh", row)
    assert sniff(row | {"prompt": "Q"}) == "pairs"


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


# -------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (
            {"responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
            [("a", 1, (), None), ("b", 0, (), None), ("c", 1, (), None)],
        ),
        ({"answers": ["a", "b"], "scores": [0.5, None]}, [("a", None, (0.5,), None), ("b", None, (None,), None)]),
        ({"completions": ["a", "b"], "good": [True, 0]}, [("a", None, (), True), ("b", None, (), False)]),
        (
            {"response": ["a", "b"], "score": [True, False], "pred_score": [[1.5], [-2]]},
            [("a", None, (1.5,), True), ("b", None, (-2.0,), False)],
        ),
        (
            {"responses": [{"text": "a", "rank": 0, "score": 9}, {"text": "b", "rank": None}]},
            [("a", 0, (9.0,), None), ("b", None, (None,), None)],
        ),
        (
            {"responses": [{"text": "a", "correct": True}, {"response": "b", "label": False}]},
            [("a", None, (), True), ("b", None, (), False)],
        ),
    ],
)
def test_lists_with_judgements_inside_or_beside(judged: dict[str, Any], expected: Said) -> None:
    row = {"prompt": "Q", **judged}
    assert sniff(row) == sniff(row, "ranking") == "ranked"
    assert prompt(one("ranked", row)) == [("user", "Q")] and said(one("ranked", row)) == expected


def test_scores_of_several_dimensions_have_names() -> None:
    own = {"prompt": "Q", "responses": [{"text": "a", "scores": {"x": 1, "y": 2}}, {"text": "b", "scores": {"x": 3}}]}
    beside = {"prompt": "Q", "responses": ["a", "b"], "scores": [{"x": 1, "y": 2}, {"x": 3}]}
    for row in (own, beside):
        assert one("ranked", row).dimensions == ("x", "y")
        assert [r.scores for r in one("ranked", row).responses] == [(1.0, 2.0), (3.0, None)]


def test_ranks_and_scores_may_agree_and_a_tie_may_have_other_scores() -> None:
    row = {"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [1, 1, 2], "scores": [2, 3, 1]}
    assert said(one("ranked", row)) == [("a", 0, (2.0,), None), ("b", 0, (3.0,), None), ("c", 1, (1.0,), None)]
    flags = {"prompt": "Q", "response": ["a", "b"], "score": [True, False]}
    assert said(one("ranked", flags)) == [("a", None, (), True), ("b", None, (), False)]


def test_authors_are_kept() -> None:
    row = {
        "prompt": "Q",
        "responses": [{"text": "a", "rank": 1, "model": "m"}, {"text": "b", "rank": 2, "author": "n"}],
    }
    assert [r.author for r in one("ranked", row).responses] == ["m", "n"]
    beside = {"prompt": "Q", "responses": ["a", "b"], "ranks": [1, 2], "models": ["m", None]}
    assert [r.author for r in one("ranked", beside).responses] == ["m", ""]


def test_judged_solutions_are_lists_or_steps_as_the_run_asks() -> None:
    row = {"question": "Q", "answer": "4", "query": "Q", "response": ["a", "b"], "score": [True, False]}
    assert (sniff(row), sniff(row, "ranking"), sniff(row, "steps")) == ("ranked", "ranked", "steps")
    steps = {"input": "Q", "steps": ["a", "b"], "mistake_index": 1}
    assert sniff(steps) == sniff(steps, "ranking") == "steps"
    assert sniff({"prompt": "Q", "responses": ["a", "b"]}) is None  # nobody judged


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
        ("pairs", BASE | {"prompt": [ASK, {"role": "system", "content": "S"}, ASK]}, "system turn not first"),
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
