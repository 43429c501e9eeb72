"""Checks of graders before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from espalier.checks import rewards
from espalier.checks.table import settle
from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import CheckError
from espalier.rewards.build import plan
from espalier.rewards.builtin.numeric import GSM8K
from espalier.rewards.graders import WorkerGraders
from espalier.rewards.reward import Known
from espalier.types import Message, Origin, Task

SUMS = [
    Task((Message("user", f"What is {n} + {n}?"),), answer=str(2 * n), origin=Origin("sums", n)) for n in range(1, 101)
]


@contextmanager
def started(*names: str, **settings: tuple[str, ...]) -> Iterator[WorkerGraders]:
    graders = plan(RewardsConfig(reward=names, reward_workers=1, **settings)).start(lambda ids: "")
    try:
        yield graders
    finally:
        graders.close()


def written(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(f"def mine(prompt, response, **task):\n    {body}\n", encoding="utf-8")
    return f"{folder / 'mine.py'}:mine"


def test_known_answers_of_the_runs_rewards_are_graded_in_a_worker(tmp_path: Path) -> None:
    chosen = plan(RewardsConfig(reward=("gsm8k", "tags", written(tmp_path, "return 1.0"))))
    outcome = rewards.check_known_answers(chosen)
    assert outcome.verdict == "pass"
    assert outcome.value == "19 of 19: gsm8k, tags; unchecked: mine"


def test_a_known_answer_that_is_graded_otherwise_stops_the_run() -> None:
    chosen = plan(RewardsConfig(reward=("gsm8k",)))
    (entry,) = chosen.entries
    assert entry.reward is not None
    known = (Known("#### 7", 1.0, answer="7"), Known("#### 8", 1.0, answer="7"))
    wrong = replace(chosen, entries=(replace(entry, reward=replace(entry.reward, known=known)),))
    outcome = rewards.check_known_answers(wrong)
    assert outcome.verdict == "fail"
    assert outcome.value == "gsm8k gives 0.0 to its known answer '#### 8', declared 1.0"


def test_users_rewards_alone_have_no_known_answers(tmp_path: Path) -> None:
    outcome = rewards.check_known_answers(plan(RewardsConfig(reward=(written(tmp_path, "return 1.0"),))))
    assert (outcome.verdict, outcome.value) == ("skipped", "no known answers: mine")


def test_the_datas_own_answers_get_full_marks_and_what_is_not_checked_is_named() -> None:
    with started("numeric", "tags", "length", gate=("tags",), reward_args=("length.high=9",)) as graders:
        outcome = rewards.check_golds(graders, SUMS)
    assert (outcome.verdict, outcome.limit) == ("pass", "the best score")
    assert outcome.value == "numeric 64 of 64; unchecked: tags (gate), length"


def test_the_first_answer_without_full_marks_stops_the_run() -> None:
    words = [Task((Message("user", "How many?"),), answer="seven of nine", origin=Origin("sums", 101))]
    with started("numeric", "exact", "gsm8k") as graders:
        outcome = rewards.check_golds(graders, [*SUMS[:3], *words])
    assert outcome.verdict == "fail"
    assert outcome.value == (
        "numeric has no form for the answer 'seven of nine' of sums:101 ('How many?') (the task's answer "
        "'seven of nine' holds 0 numbers; expected one, or one marked); 1 of 4 tasks fail"
    )
    assert outcome.limit == "the best score, 1, for each"
    assert "Correct these rows" in outcome.way_out and "name another verifier" in outcome.way_out
    with pytest.raises(CheckError, match=r"^golds: numeric .*, expected the best score.*\(--skip-checks golds goes on"):
        settle({"golds": outcome}, None)


def test_a_gold_that_gets_less_stops_the_run() -> None:
    tasks = [Task((Message("user", "A?"),), answer="Rome\nParis", origin=Origin("towns", 4))]
    with started("exact", reward_args=("exact.part=last_line",)) as graders:
        outcome = rewards.check_golds(graders, tasks)
    assert outcome.verdict == "fail"
    assert outcome.value == "exact gives 0 to 'Rome Paris', the answer of towns:4 ('A?'); 1 of 1 tasks fail"


def test_a_gold_that_gets_less_is_shown_in_the_form_that_was_graded() -> None:
    tasks = [Task((Message("user", f"{i}?"),), answer=str(i), origin=Origin("sums", i + 1)) for i in range(8)]
    broken = replace(GSM8K, gold=lambda task: f"#### {min(int(task.answer), 5)}")
    with started("gsm8k") as graders:
        (entry,) = graders.grading.entries
        graders.grading = replace(graders.grading, entries=(replace(entry, reward=broken),))
        outcome = rewards.check_golds(graders, tasks)
    assert outcome.value == "gsm8k gives 0 to '#### 5', its form of the answer '6' of sums:7 ('6?'); 2 of 8 tasks fail"


def test_only_tasks_that_a_reward_grades_are_asked() -> None:
    tasks = [Task((Message("user", "A?"),), answer="B", verifier="choice"), *SUMS[:2]]
    with started("numeric", "choice", "gsm8k") as graders:
        outcome = rewards.check_golds(graders, [tasks[0]])
        assert outcome.value == "choice 1 of 1; unchecked: numeric (grades no task), gsm8k (grades no task)"
    with started("length", reward_args=("length.high=9",)) as graders:
        assert rewards.check_golds(graders, tasks[1:]).verdict == "skipped"


def test_answers_without_content_do_not_get_full_marks() -> None:
    with started("numeric", "gsm8k") as graders:
        outcome = rewards.check_empty_answers(graders, SUMS[:9])
    assert (outcome.verdict, outcome.value) == ("pass", "numeric, gsm8k, all together")


@pytest.mark.parametrize(
    ("tasks", "settings", "line"),
    [
        # The prompt contains its answer, and so does an answer that repeats it.
        (
            [Task((Message("user", f"Say {n}"),), answer=str(n)) for n in range(7, 10)],
            ("exact.part=contains",),
            "exact gives full marks to the prompt itself (3 of 3)",
        ),
        (
            [Task((Message("user", "Which?"),), answer=answer) for answer in ("", "{}", "{}")],
            (),
            "exact gives full marks to a form without content (2 of 12)",
        ),
    ],
)
def test_a_reward_that_likes_answers_without_content_is_named(
    tasks: list[Task], settings: tuple[str, ...], line: str
) -> None:
    with started("exact", reward_args=settings) as graders:
        outcome = rewards.check_empty_answers(graders, tasks)
    assert outcome.verdict == "warn" and line in outcome.value.split("; ")
    assert "Add a reward that reads the answer" in outcome.way_out


def test_form_alone_is_named_if_all_rewards_together_are_content_with_it() -> None:
    settings = {"reward_args": ("length.high=40", "length.unit=characters")}
    with started("length", **settings) as graders:
        outcome = rewards.check_empty_answers(graders, SUMS[:9])
        assert outcome.value.split("; ")[0] == "all rewards together give full marks to an empty answer (8 of 8)"
    with started("length", "numeric", **settings) as graders:
        assert rewards.check_empty_answers(graders, SUMS[:9]).verdict == "pass"


def test_tokens_are_counted_if_texts_can_be_encoded() -> None:
    with started("length", reward_args=("length.low=4",)) as graders:
        with_ids = rewards.check_empty_answers(graders, SUMS[:9], lambda text: [5] * len(text.split()) + [2])
        without = rewards.check_empty_answers(graders, SUMS[:9])
    assert without.verdict == "pass"
    assert with_ids.value == "all rewards together give full marks to the prompt itself (8 of 8)"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return float(task['answer'] in response)", ""),
        ("return 1.0", "mine gives an empty answer as much as the data's answer (8 of 8)"),
        ("return float(len(response) < 99)", "mine gives the prompt itself as much as the data's answer (8 of 8)"),
    ],
)
def test_a_users_function_is_held_to_the_datas_answer(tmp_path: Path, body: str, value: str) -> None:
    with started(written(tmp_path, body)) as graders:
        outcome = rewards.check_empty_answers(graders, SUMS[:9])
    assert value in outcome.value and outcome.verdict == ("warn" if value else "pass")


def test_a_users_function_that_grades_nothing_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    with started(written(tmp_path, "return 1 / 0")) as graders:
        outcome = rewards.check_empty_answers(graders, SUMS[:9])
    assert outcome.verdict == "warn" and outcome.way_out.startswith("Correct the reward")
    assert outcome.value.startswith("mine graded none of the data's own answers: mine: ZeroDivisionError")


def test_all_checks_by_name() -> None:
    with started("gsm8k") as graders:
        outcomes = rewards.check_rewards(plan(RewardsConfig(reward=("gsm8k",))), graders, SUMS)
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {
        "known_answers": "pass",
        "golds": "pass",
        "empty_answers": "pass",
    }


def test_beside_reward_models_each_rule_is_held_to_its_own_and_the_sum_is_not_asked() -> None:
    with started("length", reward_args=("length.low=0", "length.high=40", "length.unit=characters")) as graders:
        assert rewards.check_empty_answers(graders, SUMS[:9]).verdict == "warn"
    settings = {"reward_args": ("length.high=40", "length.unit=characters"), "reward_model": ("m",)}
    with started("exact", "length", **settings) as graders:
        outcome = rewards.check_empty_answers(graders, SUMS[:9])
        assert (outcome.verdict, outcome.value) == ("pass", "exact")
        assert rewards.check_golds(graders, SUMS[:9]).value.startswith("exact 9 of 9")
