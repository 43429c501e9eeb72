"""Solutions in steps: what each kind of row means, which rows are refused, and what labels count as."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import StepLabelsConfig
from espalier.data.formats import convert, sniff
from espalier.data.formats.steps import split
from espalier.data.read import Source, read
from espalier.data.render.steplabels import relabel
from espalier.errors import ConfigError, RowError
from espalier.types import Message, Origin, Steps

HERE = Origin("file", 7)
ABC = ["a", "b", "c"]
ASKED = (Message("user", "q"),)


def solutions(**row: Any) -> list[Steps]:
    return list(convert("steps", {"question": "q", **row}, HERE))  # type: ignore[arg-type]


def one(**row: Any) -> Steps:
    (example,) = solutions(**row)
    assert example.origin == HERE
    return example


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("row", "labels", "solved"),
    [
        ({"steps": ABC, "mistake_index": 1}, (1, 0, None), None),
        ({"steps": ABC, "mistake_index": 0}, (0, None, None), None),
        ({"steps": ABC, "mistake_index": 2}, (1, 1, 0), None),
        ({"steps": ABC, "mistake_index": None}, (1, 1, 1), None),
        ({"steps": ABC, "mistake_index": 2, "answer": "4", "target": "5"}, (1, 1, 0), False),
        ({"steps": ABC, "mistake_index": 2, "answer": " 5", "target": "5"}, (1, 1, 0), True),
        ({"steps": ABC, "mistake_index": 2, "answer": None, "target": "5"}, (1, 1, 0), False),
        ({"steps": ABC, "label": 1, "final_answer_correct": False}, (1, 0, None), False),
        ({"steps": ABC, "label": -1, "final_answer_correct": True}, (1, 1, 1), True),
        ({"steps": ABC, "labels": [True, False, None]}, (1, 0, None), None),
        ({"steps": ABC, "labels": ["good", "Bad", "neutral"]}, (1, 0, 0.5), None),
        ({"completions": ABC, "labels": [True, True, False]}, (1, 1, 0), None),
        ({"completions": ABC, "labels": ["+", "+", "-"]}, (1, 1, 0), None),
        ({"steps": ABC, "ratings": [1, 0, -1]}, (1, 0.5, 0), None),
        ({"steps": [{"text": "a", "rating": 1}, {"text": "b", "rating": 0}]}, (1, 0.5), None),
        ({"steps": [{"text": "a", "label": -1}, {"text": "b", "label": "good"}]}, (0, 1), None),
        ({"steps": [{"text": "a", "label": True}, {"text": "b", "rating": None}]}, (1, None), None),
        ({"steps": ABC, "solved": True}, (None, None, None), True),
        ({"steps": ABC, "correct": 0}, (None, None, None), False),
    ],
)
def test_labels_and_outcome(row: dict[str, Any], labels: tuple[float | None, ...], solved: bool | None) -> None:
    made = one(**row)
    assert (made.labels, made.solved) == (labels, solved)
    assert made.steps == tuple("abc"[: len(labels)]) and made.prompt == ASKED and made.separator == "\n"


def test_a_solution_in_one_text_is_cut_into_steps() -> None:
    made = one(solution="a\nb\n", is_correct=True)
    assert (made.steps, made.labels, made.solved, made.separator) == (("a", "b"), (None, None), True, "\n")
    made = one(response="a\nb\n\nc", solved=False, separator=" ")
    assert (made.steps, made.separator) == (("a\nb", "c"), "\n\n")  # what joins them is what was cut
    made = one(answer="5", target="5", solved=False)
    assert made.solved is False  # the answer is the solution here, not its last line


@pytest.mark.parametrize("text", ["a\nb", "a\n\nb\n\n\n\nc", "a\n \nb", "a\n\n\nb", "a\r\n\r\nb", "a"])
def test_split_keeps_every_character_and_has_no_blank_step(text: str) -> None:
    steps, separator = split(f"\n{text} \n")
    assert separator.join(steps) == text and all(step.strip() for step in steps)


def test_several_solutions_of_a_problem_are_several_examples() -> None:
    made = solutions(response=["a\nb", "c"], score=[True, False], solution="the model answer")
    assert [(s.steps, s.solved) for s in made] == [(("a", "b"), True), (("c",), False)]
    made = solutions(solutions=[["a", "b"], ["c"]], solved=[False, True])
    assert [(s.steps, s.labels, s.solved) for s in made] == [(("a", "b"), (None,) * 2, False), (("c",), (None,), True)]
    made = solutions(solutions=[{"steps": ["a", "b"], "mistake_index": 0}, {"completion": "c", "solved": True}])
    assert [(s.steps, s.labels, s.solved) for s in made] == [(("a", "b"), (0, None), None), (("c",), (None,), True)]
    assert {s.prompt for s in made} == {ASKED}


def test_prompts() -> None:
    asked = one(system="be brief", steps=ABC, solved=True).prompt
    assert asked == (Message("system", "be brief"), *ASKED)
    turns = [{"role": "user", "content": "q"}]
    row = {"prompt": turns, "completions": ABC, "labels": [True, True, True]}
    (made,) = convert("steps", row, HERE)
    assert isinstance(made, Steps) and made.prompt == ASKED
    (made,) = convert("steps", {"input": "q", "steps": ABC, "mistake_index": None}, HERE)
    assert isinstance(made, Steps) and made.prompt == ASKED


def test_rows_are_recognised_by_their_keys() -> None:
    several = {"question": "q", "solutions": ["a", "b"], "correct": [True, False]}
    assert [sniff(several, consumes) for consumes in ("chat", "ranking", "steps")] == ["steps"] * 3  # type: ignore[arg-type]
    assert sniff({"problem": "q", "solution": "a", "is_correct": True}, "steps") == "steps"
    assert sniff({"input": "q", "steps": ABC, "target": "5", "answer": "4", "mistake_index": 1}) == "steps"
    assert sniff({"prompt": "q", "completions": ABC, "labels": [True, True, False]}) == "steps"
    assert sniff({"question": "q", "answer": "5", "steps": 3}) == "prompt"


# ------------------------------------------------------------------------------------------------------- refused rows


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"steps": ABC, "labels": [True, False]}, "another number of labels", "labels"),
        ({"steps": ABC, "mistake_index": 3}, "mistake outside the steps", "mistake_index"),
        ({"steps": ABC, "mistake_index": -1}, "mistake outside the steps", "mistake_index"),
        ({"steps": ABC, "mistake_index": True}, "wrong type", "mistake_index"),
        ({"steps": ABC, "mistake_index": "1"}, "wrong type", "mistake_index"),
        ({"steps": ABC, "label": -2}, "mistake outside the steps", "label"),
        ({"steps": ["a", " "], "solved": True}, "empty step", "steps[1]"),
        ({"steps": ["a", 5], "solved": True}, "wrong type", "steps[1]"),
        ({"steps": [], "solved": True}, "no steps", "steps"),
        ({"steps": "a\nb", "solved": True}, "wrong type", "steps"),
        ({"solution": " \n", "solved": True}, "no steps", "solution"),
        ({"steps": ABC}, "no label", "steps"),
        ({"steps": ABC, "labels": [None, None, None]}, "no label", "steps"),
        ({"steps": [{"text": "a"}, {"text": "b"}]}, "no label", "steps"),
        ({"steps": ["a", {"text": "b", "rating": 1}]}, "mixed steps", "steps"),
        ({"steps": [{"text": "a", "rating": 2}]}, "unknown label", "steps[0].rating"),
        ({"steps": ABC, "labels": ["good", "god", "bad"]}, "unknown label", "labels[1]"),
        ({"steps": ABC, "labels": [1, 0, 2]}, "unknown label", "labels[2]"),
        ({"steps": ABC, "ratings": [1, -1, 0.7]}, "unknown label", "ratings[2]"),
        ({"steps": ABC, "labels": "good"}, "wrong type", "labels"),
        ({"steps": ABC, "solved": "yes"}, "wrong type", "solved"),
        ({"solved": True}, "missing key", "steps"),
        ({"response": ["a", "b"], "score": [True]}, "another number of outcomes", "score"),
        ({"response": ["a", "b"], "score": [True, 0.4]}, "wrong type", "response[1].solved"),
        ({"solutions": []}, "no solutions", "solutions"),
        ({"question": " ", "steps": ABC, "solved": True}, "empty prompt", "question"),
        ({"question": None, "steps": ABC, "solved": True}, "missing key", "prompt"),
        ({"question": [{"role": "assistant", "content": "a"}], "steps": ABC, "solved": True},
         "prompt without a question", "question"),
    ],
)  # fmt: skip
def test_bad_rows_say_why(row: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(RowError) as caught:
        solutions(**row)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.got or caught.value.expected


# --------------------------------------------------------------------------------------------- what labels count as


@pytest.mark.parametrize(
    ("how", "labels"),
    [
        ({}, (1, 1, 0, None, None)),
        ({"neutral": "half", "after_mistake": "bad"}, (1, 0.5, 0, 0, 0)),
        ({"neutral": "ignore", "after_mistake": "keep"}, (1, None, 0, 1, None)),
        ({"neutral": "bad"}, (1, 0, None, None, None)),
        ({"neutral": "bad", "after_mistake": "keep"}, (1, 0, 0, 1, None)),
        ({"supervision": "outcome"}, (0, 0, 0, 0, 0)),
        ({"supervision": "outcome", "outcome": "last"}, (None, None, None, None, 0)),
        ({"outcome": "last"}, (1, 1, 0, None, None)),  # steps are labelled, so the outcome has no say
    ],
)
def test_what_labels_count_as(how: dict[str, Any], labels: tuple[float | None, ...]) -> None:
    example = Steps(ASKED, tuple("abcde"), (1, 0.5, 0, 1, None), solved=False)
    made = relabel(example, StepLabelsConfig(**how))
    assert made.labels == labels and made.solved is False and made.steps == example.steps


@pytest.mark.parametrize("after", ["ignore", "bad", "keep"])
@pytest.mark.parametrize("solved", [True, False])
def test_an_outcome_alone_is_spread_whatever_follows_a_mistake(after: Any, solved: bool) -> None:
    example = Steps(ASKED, ("a", "b"), (None, None), solved)
    assert relabel(example, StepLabelsConfig(after_mistake=after)).labels == (float(solved),) * 2
    assert relabel(example, StepLabelsConfig(outcome="last")).labels == (None, float(solved))


@pytest.mark.parametrize(
    ("example", "how", "reason"),
    [
        (Steps(ASKED, ("a",), (0.5,)), {"neutral": "ignore"}, "no label left"),
        (Steps(ASKED, ("a",), (None,), True), {"outcome": "ignore"}, "no label"),
        (Steps(ASKED, ("a",), (1.0,)), {"supervision": "outcome"}, "no outcome"),
    ],
)
def test_steps_without_a_label_to_train_on_are_refused(example: Steps, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        relabel(example, StepLabelsConfig(**how))
    assert caught.value.reason == reason


def test_outcome_supervision_that_ignores_the_outcome_is_no_config() -> None:
    with pytest.raises(ConfigError, match="trains nothing"):
        StepLabelsConfig(supervision="outcome", outcome="ignore")


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "good", "bad", "unknown", "solved"),
    [
        ("logical_deduction", 667, 294, 1536, 45),
        ("multistep_arithmetic", 855, 238, 413, 45),
        ("word_sorting", 1317, 266, 1925, 45),
    ],
)
def test_mistake_files(shared: Path, name: str, good: int, bad: int, unknown: int, solved: int) -> None:
    path = shared / "data/process" / f"bbm_{name}.jsonl.gz"
    made = [e for e in read(Source(str(path), consumes="steps")) if isinstance(e, Steps)]
    assert Counter(label for e in made for label in e.labels) == {1.0: good, 0.0: bad, None: unknown}
    assert len(made) == 300 and sum(e.solved is True for e in made) == solved
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row, example in zip(map(json.loads, lines), made, strict=True):
            first = next((i for i, label in enumerate(example.labels) if label == 0), None)
            assert first == row["mistake_index"] and list(example.steps) == row["steps"]


@pytest.mark.real_data
def test_eight_solutions_of_a_hundred_problems(shared: Path) -> None:
    path = shared / "data/process/qwen_math_cot_100x8_rm.jsonl.gz"
    made = [e for e in read(Source(str(path), "steps", consumes="steps")) if isinstance(e, Steps)]
    assert len(made) == 800 and sum(e.solved is True for e in made) == 728
    assert [e.solved for e in made[::8]].count(True) == 90  # the first sample of each
