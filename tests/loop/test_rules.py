"""Rules that stop a run, and that they survive a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from espalier.errors import CheckError, EspalierError
from espalier.loop.rolled import Rolled
from espalier.loop.rules import Rules
from espalier.outcomes import Fate, Outcome
from espalier.types import StopReason
from rollouts import answer, exact, prompt

Stops = Sequence[StopReason]


def rolled(*scores: float, fate: Fate = "keep", stops: Stops = (), failed: int = 0) -> Rolled:
    """A group with these scores, and `failed` answers without one."""
    group = [answer([1, 2], stop) for stop in (stops or ["stop"] * (len(scores) + failed))]
    for i, s in enumerate(group):
        s.outcome = exact(scores[i]) if i < len(scores) else Outcome(0.0, error="math: died")
    return Rolled(prompt(0), 0, group, fate)


def rules(refills: bool = False, **more: Any) -> Rules:
    return Rules(refills=refills, **more)


def rounds(judge: Rules, group: Rolled, most: int = 100, *, best: float | None = 1.0, resumed: bool = False) -> int:
    """How many steps of this group a run survives; with `resumed`, each in a process of its own."""
    for count in range(most):
        try:
            judge.judge([group], best)
        except EspalierError:
            return count
        if resumed:
            counts = judge.counts()
            judge = Rules(refills=judge.refills, skip=judge.skip, max_error_share=judge.max_error_share)
            judge.restore(counts)
    return most


@pytest.mark.parametrize("resumed", [False, True])
def test_twenty_rollouts_of_equal_scores_stop_the_run_unless_they_are_the_best(resumed: bool) -> None:
    assert rounds(rules(), rolled(0.0, 0.0), resumed=resumed) == 19
    assert rounds(rules(), rolled(1.0, 1.0), resumed=resumed) == 100
    assert rounds(rules(), rolled(1.0, 1.0), best=None, resumed=resumed) == 19
    assert rounds(rules(), rolled(0.0, 1.0), resumed=resumed) == 100


def test_where_prompts_are_compared_scores_are_equal_over_all_of_them() -> None:
    """reinforce: answers to a prompt agree, and differ from those to another; or there is one answer a prompt."""
    for groups, survived in (
        ([rolled(0.0, 0.0), rolled(0.5, 0.5)], 25),
        ([rolled(0.0), rolled(0.5)], 25),
        ([rolled(0.0, 0.0), rolled(0.0)], 19),
        ([rolled(1.0), rolled(1.0)], 25),
    ):
        judge = rules(across=True)
        for step in range(25):
            if step == survived:
                with pytest.raises(EspalierError, match="20 rollouts in a row had equal scores, so"):
                    judge.judge(groups, 1.0)
                break
            judge.judge(groups, 1.0)


def test_one_rollout_with_a_difference_starts_the_count_anew() -> None:
    judge = rules()
    assert rounds(judge, rolled(0.0, 0.0), 19) == 19
    judge.judge([rolled(0.0, 0.0), rolled(0.0, 1.0)], 1.0)
    assert rounds(judge, rolled(0.0, 0.0)) == 19


def test_steps_that_differ_are_something_to_learn_from() -> None:
    group = rolled(0.0, 0.0)
    for i, s in enumerate(group.answers):
        s.outcome = Outcome(0.0, steps=((0, float(i)),))
    assert rounds(rules(), group) == 100


def test_groups_of_one_answer_are_not_compared() -> None:
    assert rounds(rules(), rolled(0.0)) == 100
    assert rounds(rules(), rolled(0.0, failed=1)) == 100


def test_the_error_names_the_scores_and_what_to_look_at() -> None:
    judge = rules()
    rounds(judge, rolled(0.25, 0.25), 19)
    with pytest.raises(EspalierError, match=r"20 rollouts in a row .*scores: 0\.25.*samples\.jsonl.*--temperature"):
        judge.judge([rolled(0.25, 0.25)], 1.0)


@pytest.mark.parametrize("resumed", [False, True])
def test_three_steps_without_a_live_group_stop_a_run_that_refills(resumed: bool) -> None:
    assert rounds(rules(refills=True), rolled(0.0, 0.0, fate="drop"), resumed=resumed) == 2
    assert rounds(rules(), rolled(0.0, 0.0, fate="drop"), resumed=resumed) == 19
    judge = rules(refills=True)
    for fate in ("drop", "drop", "keep", "drop", "drop"):
        judge.judge([rolled(0.0, 1.0, fate=fate)], 1.0)
    with pytest.raises(EspalierError, match="3 steps in a row, with all their refills"):
        judge.judge([rolled(0.0, 0.0, fate="drop")], 1.0)


def test_a_first_rollout_that_is_mostly_cut_is_refused_by_name() -> None:
    mostly, half = rolled(0, 1, 1, stops=["length", "length", "stop"]), rolled(0, 1, stops=["length", "stop"])
    with pytest.raises(CheckError, match=r"67% of the first answers.*--max-tokens.*--skip-checks length"):
        rules().judge([mostly], 1.0)
    assert rules().judge([half], 1.0) == []
    (note,) = rules(skip=("length",)).judge([mostly], 1.0)
    assert note.startswith("67% of the first answers were cut at max_tokens")
    judge = rules()
    judge.judge([half], 1.0)
    assert judge.judge([mostly], 1.0) == []


@pytest.mark.parametrize("resumed", [False, True])
def test_three_first_rollouts_without_a_stop_token_are_refused_by_name(resumed: bool) -> None:
    cut = rolled(0.0, 1.0, stops=["length", "length"])
    assert rounds(rules(skip=("length",)), cut, resumed=resumed) == 2
    assert rounds(rules(skip=("length", "stop")), cut, resumed=resumed) == 100
    judge = rules(skip=("length",))
    judge.judge([rolled(0.0, 1.0)], 1.0)
    assert rounds(judge, cut) == 100


@pytest.mark.parametrize("resumed", [False, True])
def test_errors_above_their_share_of_the_last_200_stop_the_run(resumed: bool) -> None:
    """5 % of 200 are 10: with one error in 4 answers, the eleventh comes in step 11; with one in 40, never."""
    often, seldom = rolled(0.0, 1.0, 0.0, failed=1), rolled(*([0.0, 1.0] * 19), 0.0, failed=1)
    assert rounds(rules(max_error_share=0.05), often, resumed=resumed) == 10
    assert rounds(rules(max_error_share=0.05), seldom, resumed=resumed) == 100
    assert rounds(rules(), often, resumed=resumed) == 100
    with pytest.raises(EspalierError, match=r"1 of the last 1 answers .*math: died \(1\).*--reward-timeout"):
        rules(max_error_share=0.0).judge([rolled(failed=1)], 1.0)
