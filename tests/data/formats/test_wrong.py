"""Answers that their rows call wrong are skipped by a run on conversations, counted, and trained if asked for."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.formats import wrong
from espalier.data.read import Source, read
from espalier.types import Chat, Ranking

ASK = {"question": "1 + 1?", "response": "3"}


def test_worked_examples() -> None:
    assert doctest.testmod(wrong).failed == 0


def chats(path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[list[Any], dict[str, int]]:
    path.write_text("\n".join(map(json.dumps, rows)))
    ledger = Ledger()
    return list(read(Source(str(path), **options), ledger)), ledger.notes


@pytest.mark.parametrize(
    "bad",
    [
        {"correct": False},
        {"is_correct": 0},
        {"label": 0},
        {"label": False},
        {"solution_is_valid": "No"},
        {"correctness": [False]},
        {"is_safe": False},
        {"judged_correct": False},
        {"math_verify": [False]},
        {"verdict": "Incorrect"},
    ],
)
def test_wrong_answers_are_skipped_and_counted(bad: dict[str, Any], tmp_path: Path) -> None:
    rows = [ASK | {"response": "2"} | dict.fromkeys(bad, True), ASK | bad]
    found, notes = chats(tmp_path / "a.jsonl", rows)
    assert [chat.messages[1].content for chat in found] == ["2"] and notes == {wrong.SKIPPED: 1}
    found, notes = chats(tmp_path / "a.jsonl", rows, keep_wrong=True)
    assert [chat.messages[1].content for chat in found] == ["2", "3"] and not notes


def test_solutions_that_are_not_right_are_skipped_too(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "q", "steps": ["a", "b"], "labels": [True, False]},
        {"question": "q", "responses": ["a", "b"], "correct": [False, False]},
    ]
    found, notes = chats(tmp_path / "a.jsonl", rows[:1])
    assert not found and notes == {wrong.SKIPPED: 1}
    for row in rows:
        (chat,), _ = chats(tmp_path / "a.jsonl", [row], keep_wrong=True)
        assert isinstance(chat, Chat)


def test_a_class_is_no_verdict(tmp_path: Path) -> None:
    found, notes = chats(tmp_path / "a.jsonl", [ASK | {"label": label} for label in (0, 1, 2)])
    assert len(found) == 3 and not notes


def test_numbers_are_labels_where_judgements_are_learned_from(tmp_path: Path) -> None:
    found, _ = chats(tmp_path / "a.jsonl", [ASK | {"label": 1}, ASK | {"label": 0}], consumes="ranking")
    assert [made.responses[0].good for made in found if isinstance(made, Ranking)] == [True, False]


def test_all_rows_decide_what_zeros_mean(tmp_path: Path) -> None:
    rows = [ASK | {"label": i % 2} for i in range(30)]
    _, notes = chats(tmp_path / "a.jsonl", rows)
    assert notes == {wrong.SKIPPED: 15}
    found, notes = chats(tmp_path / "a.jsonl", [*rows, ASK | {"label": 3}])
    assert len(found) == 31 and not notes


def test_a_number_under_a_further_name_is_no_verdict(tmp_path: Path) -> None:
    found, notes = chats(tmp_path / "a.jsonl", [ASK | {"num_correct": 0}, ASK | {"grade": 0}])
    assert len(found) == 2 and not notes


@pytest.mark.parametrize(
    "name",
    [
        *("email_verified", "prompt_safe", "license_accepted", "question_is_valid", "user_verified", "author-verified"),
        *("model_terms_accepted", "answer_source_verified", "prompt_judge_verdict", "phone_verified", "problem_valid"),
    ],
)
def test_a_verdict_on_another_thing_than_the_answer_is_left_unread(name: str, tmp_path: Path) -> None:
    path, ledger = tmp_path / "a.jsonl", Ledger()
    for row in (ASK, {"instruction": "1 + 1?", "output": "2"}):
        path.write_text(json.dumps(row | {name: False}))
        ledger = Ledger()
        assert len(list(read(Source(str(path)), ledger))) == 1
        assert not ledger.notes and name in ledger.unread


@pytest.mark.parametrize(
    "name",
    [
        *("judge_correct", "gpt4_judge_verdict", "answer_is_correct", "all_tests_passed", "Response Safe"),
        *("correctness_math_verify", "llm-as-judge-verdict", "code_passed", "is_right", "success", "answer_1_valid"),
    ],
)
def test_a_verdict_on_the_answer_or_of_a_judge_counts(name: str, tmp_path: Path) -> None:
    found, notes = chats(tmp_path / "a.jsonl", [ASK | {name: False}])
    assert not found and notes == {wrong.SKIPPED: 1}
