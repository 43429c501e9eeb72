"""The rewards that compare numbers, also with real data and with the toy world's own score."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from espalier.rewards.builtin.numeric import GSM8K, NUMERIC, gold_gsm8k, gold_numeric, right_number
from espalier.toy.instructions import NOISE, answer
from espalier.toy.problems import problems
from espalier.toy.score import exact_match
from espalier.types import Task
from graded import grade


@pytest.mark.parametrize(
    ("response", "right", "score"),
    [
        ("#### 72", "48+24 = <<48+24=72>>72 clips.\n#### 72", 1.0),
        ("####72", "72", 1.0),
        ("#### 72 clips", "72", 1.0),
        ("#### **72**", "72", 1.0),
        (r"#### \$72.00", "72", 1.0),
        ("#### 1,234", "1234", 1.0),
        ("#### 1234", "#### 1,234", 1.0),
        ("#### 48+24=72", "72", 1.0),
        ("#### 71\n#### 72", "72", 1.0),
        ("#### 72 73", "72", 1.0),
        ("#### 73 72", "72", 0.0),
        ("#### -72", "72", 0.0),
        ("#### 7.2", "72", 0.0),
        ("#### 72\n#### ", "72", "invalid"),
        ("#### seventy-two", "72", "invalid"),
        ("72", "72", "invalid"),
        (r"\boxed{72}", "72", "invalid"),
    ],
)
def test_gsm8k(response: str, right: str, score: float | str) -> None:
    assert grade(GSM8K, response, right) == score


@pytest.mark.parametrize(
    ("response", "right", "score"),
    [
        ("#### 72", "72", 1.0),
        (r"\boxed{72}", "72", 1.0),
        ("72", "72.0", 1.0),
        ("0.5", "1/2", 1.0),
        ("50%", "50%", 1.0),
        ("50%", "0.5", 0.0),
        ("It is 5 to 7.", "7", 1.0),
        ("It is 5 to 7.", "5", 0.0),
        ("7 apples", "x = 7", 1.0),
        ("答案是9。", "9", 1.0),
        ("", "9", "invalid"),
    ],
)
def test_numeric(response: str, right: str, score: float | str) -> None:
    assert grade(NUMERIC, response, right) == score


@pytest.mark.parametrize("right", ["", "none", "3 or 4", "1, 2"])
def test_a_task_whose_number_is_not_one_is_an_error_and_no_zero(right: str) -> None:
    with pytest.raises(ValueError, match="expected one, or one marked"):
        grade(NUMERIC, "3", right)


def test_tolerance_is_relative_above_one_and_absolute_below() -> None:
    assert [grade(NUMERIC, text, "1000", tolerance=0.01) for text in ("1010", "990", "1011")] == [1.0, 1.0, 0.0]
    assert [grade(NUMERIC, text, "0.1", tolerance=0.01) for text in ("0.11", "0.12")] == [1.0, 0.0]


def test_golds_have_the_form_that_is_read() -> None:
    assert gold_gsm8k(Task((), answer="a\n#### 7")) == "a\n#### 7"
    assert gold_gsm8k(Task((), answer="1,200")) == "#### 1200"
    assert gold_numeric(Task((), answer="0.5")) == "The answer is 1/2."


def test_sums_of_the_toy_world_are_graded_as_its_own_score_grades_them() -> None:
    """2,000 answers of seven kinds, of which a little more than half are right."""
    rng, right = Random(0), 0
    items = problems(2001, seed=5)
    for item, other in pairwise(items):
        kind = rng.choice(("clean", *NOISE, "other", "again"))
        text = answer(item, kind, rng) if kind in ("clean", *NOISE) else other.solution
        if kind == "again":
            text = f"{other.solution}\n{item.solution}."
        expected = exact_match(text, item)
        right += expected
        for task in (item.answer, item.solution):
            assert (grade(GSM8K, text, task) == 1.0) == expected, (kind, text, task)
        if "####" in text:
            assert (grade(NUMERIC, text, item.answer) == 1.0) == expected, (kind, text)
    assert 1000 < right < 1400


@pytest.mark.real_data
def test_every_gold_of_gsm8k_is_right_and_the_next_rows_is_not(shared: Path) -> None:
    """75 of 7,472 neighbours have the same number by chance."""
    with gzip.open(shared / "data/verifiable/gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = [json.loads(line)["answer"] for line in file]
    assert sum(grade(GSM8K, gold_gsm8k(Task((), answer=gold)), gold) == 1.0 for gold in golds) == len(golds) == 7473
    neighbours = list(pairwise(golds))
    equal = sum(right_number(one) == right_number(two) for one, two in neighbours)
    assert sum(grade(GSM8K, one, two) == 1.0 for one, two in neighbours) == equal == 75
    assert sum(grade(NUMERIC, gold_numeric(Task((), answer=gold)), gold) == 1.0 for gold in golds) == 7473


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "column", "rows"), [("svamp", "Answer", 1000), ("cmath_zh", "answer", 600)])
def test_every_gold_of_other_sums_is_right(shared: Path, name: str, column: str, rows: int) -> None:
    with gzip.open(shared / f"data/verifiable/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = [str(json.loads(line)[column]) for line in file]
    assert sum(grade(NUMERIC, gold_numeric(Task((), answer=gold)), gold) == 1.0 for gold in golds) == rows
