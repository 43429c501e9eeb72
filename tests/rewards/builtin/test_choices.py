"""The reward of multiple choice."""

import gzip
import json
from pathlib import Path

import pytest

from espalier.rewards.builtin.choices import CHOICE, LETTERS, chosen, gold_choice, right_letter
from espalier.types import Task
from graded import grade

CITIES = ["Rome", "Paris", "A Coruña"]


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("B", 1.0),
        ("b", "invalid"),
        ("(b)", 1.0),
        ("B.", 1.0),
        ("B: Paris", 1.0),
        ("**B**", 1.0),
        ("Option B", 1.0),
        ("选B", 1.0),
        ("答案是B。", 1.0),
        ("The correct answer is option (B) Paris.", 1.0),
        ("The answer is Paris.", 1.0),
        ("The answer is: B because A is Italian", 1.0),
        (r"$\boxed{B}$", 1.0),
        (r"\boxed{\textbf{(B)}}", 1.0),
        ("A is in Italy.\nC is in Spain.\nB", 1.0),
        ("#### B", 1.0),
        ("B\nThe answer is C.", 0.0),
        ("C", 0.0),
        ("a coruña", 0.0),
        ("Because of Paris", "invalid"),
        ("I think so", "invalid"),
        ("A dog is no city.", "invalid"),
        ("D", "invalid"),
        ("", "invalid"),
    ],
)
def test_choice(response: str, score: float | str) -> None:
    assert grade(CHOICE, response, "B", {"choices": CITIES}) == score


def test_the_answer_of_a_task_is_a_letter_or_a_text() -> None:
    assert [right_letter(text, CITIES) for text in ("b", "(B)", "B.", "Paris", "paris.")] == ["B"] * 5
    assert gold_choice(Task((), answer="A Coruña", facts={"choices": CITIES})) == "The answer is (C)."
    for text in ("D", "Bern", ""):
        with pytest.raises(ValueError, match="no letter and none of its 3 choices"):
            right_letter(text, CITIES)


def test_choices_may_begin_with_their_letters() -> None:
    facts = {"choices": ["A)5 miles", "B)6 miles"]}
    assert grade(CHOICE, "6 miles", "B", facts) == 1.0
    assert grade(CHOICE, "B)6 miles", "B", facts) == 1.0


def test_without_choices_every_letter_is_one() -> None:
    assert chosen("J", []) == "J" and grade(CHOICE, "(Z)", "Z") == 1.0


@pytest.mark.real_data
def test_golds_of_aqua_are_right_and_other_letters_are_not(shared: Path) -> None:
    with gzip.open(shared / "data/verifiable/aqua_test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        facts = {"choices": row["options"]}
        given = gold_choice(Task((), answer=row["correct"], facts=facts))
        scores = [grade(CHOICE, given, letter, facts) for letter in LETTERS[: len(row["options"])]]
        assert scores.index(1.0) == LETTERS.index(row["correct"]) and sum(scores) == 1.0
