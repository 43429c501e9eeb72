"""Word problems: their numbers, their steps, their splits."""

import re
from collections import Counter

import pytest

from arithmetic import STEP, works_out
from espalier.errors import ConfigError
from espalier.toy import (
    problem,
    problems,
    split_of,
)
from espalier.toy.problems import LARGEST, SMALLEST

PINNED_QUESTION = (
    "Iris starts with 76 apples. Iris has 6 apples more than Sam. Cleo takes 19 apples from Sam. "
    "What is the number of apples that Sam has?"
)


PINNED_SOLUTION = "Sam has 76-6=70 apples.\nNow Sam has 70-19=51 apples.\n#### 51"


def test_a_problem_is_pinned_by_its_seed() -> None:
    item = problem(0)
    assert item.question == PINNED_QUESTION
    assert item.solution == PINNED_SOLUTION
    assert item.text == f"Problem:\n{PINNED_QUESTION}\nSolution:\n{PINNED_SOLUTION}"
    assert item.text == item.prompt + item.solution


def test_every_step_is_right_and_the_answer_is_the_last_one() -> None:
    for item in problems(1000, seed=5):
        steps = STEP.findall(item.solution)
        assert len(steps) == len(item.steps) == item.solution.count("\n")
        assert all(works_out(*step) for step in steps), item.solution
        assert all(SMALLEST <= int(step[3]) <= LARGEST for step in steps)
        assert item.solution.endswith(f"\n#### {steps[-1][3]}")
        assert item.answer == steps[-1][3]
        # What a step starts from is told or was computed, so that a problem can be solved.
        known = set(re.findall(r"\d+", item.question))
        for a, op, b, value in steps:
            unsaid = {"2"} if op in "*/" else set()  # twice, half
            assert {a, b} <= known | unsaid, item.question
            known.add(value)


def test_problems_have_one_to_three_steps_of_all_four_operations() -> None:
    drawn = problems(1000, seed=6)
    lengths = Counter(len(item.steps) for item in drawn)
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 150
    operations = Counter(op for item in drawn for _, op, _, _ in STEP.findall(item.solution))
    assert set(operations) == set("+-*/") and min(operations.values()) > 100


def test_a_longer_list_starts_with_the_shorter_and_repeats_no_question() -> None:
    long = problems(300, seed=1)
    assert long[:100] == problems(100, seed=1)
    assert long[:100] != problems(100, seed=2)
    assert len({item.question for item in long}) == 300


def test_splits_are_disjoint_in_operations_not_only_in_words() -> None:
    train, test = problems(3000, seed=0), problems(600, seed=0, split="test")
    assert not {item.key for item in train} & {item.key for item in test}
    assert {split_of(item.key) for item in train} == {"train"}
    assert {split_of(item.key) for item in test} == {"test"}
    share = sum(split_of(f"{i}+{j}={i + j}") == "test" for i in range(60) for j in range(60)) / 3600
    assert 0.08 < share < 0.12


def test_easier_problems_keep_below_their_largest_number() -> None:
    easy = problems(300, seed=3, split="test", largest=20)
    numbers = [int(n) for p in easy for step in p.steps for n in re.findall(r"\d+", step.expression + f"={step.value}")]
    assert max(numbers) == 20 == max(p.largest for p in easy) and {len(p.steps) for p in easy} == {1, 2, 3}
    assert problems(50, seed=3, largest=LARGEST) == problems(50, seed=3)
    with pytest.raises(ConfigError, match="largest got 8; expected at least 9"):
        problems(1, largest=8)
