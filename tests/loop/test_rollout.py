"""Draws of the online source: fates, waves, numbers, ranks, records."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from espalier.algorithms.online import Online
from espalier.engines.protocols import Request
from espalier.errors import EspalierError
from espalier.loop.given import GivenSteps
from espalier.loop.journal import Journal
from espalier.loop.rollout import RolloutSource
from espalier.loop.signals import Interrupted, Stopper
from espalier.outcomes import Graded, Key, Outcome
from espalier.types import Draw, Sample, StopReason
from rollouts import FakeAlgorithm, FakeGraders, FakeRank, FakeSampler, FakeTasks, exact, on_ranks, source

REFILLS = FakeAlgorithm(Online(refills=True), equal="drop")
TIMES = ("seconds_sample", "seconds_grade", "sampled_per_second")


def respond(request: Request, k: int) -> tuple[list[int], StopReason]:
    """Answer k of task row is k + 1 tokens: row, ..., row."""
    return [request.row] * (k + 1), "stop"


def by_k(key: Key, sample: Sample) -> Outcome:
    """Answer 0 scores 0, answer 1 scores 1, ..."""
    return exact(float(key[2]))


def odd_rows_live(key: Key, sample: Sample) -> Outcome:
    """Scores differ in groups of odd rows only."""
    return exact(float(key[2]) if key[0] % 2 else 0.0)


def told(draw: Draw) -> tuple[Any, ...]:
    """All of a draw but its times."""
    return draw.groups, draw.silent, {k: v for k, v in draw.numbers.items() if k not in TIMES}, draw.notes


def rows(groups: list[list[Sample]]) -> list[int]:
    return [g[0].tokens[0] - 100 for g in groups]


# --------------------------------------------------------------------------------------------------- numbers by hand


def test_numbers_of_a_draw_by_hand() -> None:
    """Two tasks, answers of 1 and 2 tokens; scores 0, 1 and 0.5, 0.5, the last answer cut and invalid."""
    outcomes = {
        (0, 0, 0): exact(0.0, right=0.0, short=0.0),
        (0, 0, 1): exact(1.0, right=1.0, short=0.5),
        (1, 0, 0): exact(0.5, right=0.5),
        (1, 0, 1): Outcome(0.5, {"right": Graded(0.0)}, invalid="no answer tag"),
    }
    sampler = FakeSampler(lambda request, k: ([5] * (k + 1), "length" if (request.row, k) == (1, 1) else "stop"))
    draw = source(FakeTasks(2), sampler, FakeGraders(lambda key, s: outcomes[key])).draw(0)
    times = [draw.numbers.pop(name) for name in TIMES]
    assert draw.numbers == {
        "reward": 0.5,
        "reward_right": 1.5 / 4,
        "reward_short": 0.25,
        # Deviations are 1 / sqrt(2) and 0.
        "reward_std": pytest.approx(0.5**0.5 / 2),
        "invalid": 0.25,
        "errors": 0,
        "dead": 0.5,
        "silent": 0,
        "dropped": 0,
        "refilled": 0,
        "waves": 0,
        "length": 1.5,
        "length_max": 2,
        "cut": 0.25,
        "sampled_tokens": 6,
    }
    assert times[2] == pytest.approx(6 / times[0])
    assert draw.notes == []
    assert [[s.reward for s in group] for group in draw.groups] == [[0.0, 1.0], [0.5, 0.5]]


def test_groups_are_numbered_in_request_order_and_keys_are_lines() -> None:
    draw = source(FakeTasks(3), FakeSampler(respond), FakeGraders(by_k, delay=2)).draw(1)
    assert rows(draw.groups) == [3, 4, 5]
    assert [[(s.group, s.key, s.tokens) for s in group] for group in draw.groups] == [
        [(0, 0, [103, 3]), (0, 1, [103, 3, 3])],
        [(1, 2, [104, 4]), (1, 3, [104, 4, 4])],
        [(2, 4, [105, 5]), (2, 5, [105, 5, 5])],
    ]


def test_silent_groups_are_counted_apart_and_share_the_numbering() -> None:
    silent = FakeAlgorithm(equal="silent")
    draw = source(FakeTasks(4), FakeSampler(respond), FakeGraders(odd_rows_live), silent).draw(0)
    assert (rows(draw.groups), rows(draw.silent)) == ([1, 3], [0, 2])
    assert [g[0].group for g in draw.groups] == [1, 3]
    assert [g[0].group for g in draw.silent] == [0, 2]
    assert (draw.numbers["silent"], draw.numbers["dead"]) == (2, 0.5)


def test_given_groups_are_trained_beside_the_answers_and_counted_nowhere() -> None:
    def given(step: int) -> list[list[Sample]]:
        return [[Sample(tokens=[1, 2], part="sft", key=9)], [Sample(tokens=[1, 3], part="sft", key=9)]]

    silent = FakeAlgorithm(equal="silent")
    built = source(FakeTasks(2), FakeSampler(respond), FakeGraders(odd_rows_live), silent, given=GivenSteps(given))
    draw = built.draw(0)
    assert [[(s.part, s.group, s.key) for s in group] for group in draw.groups] == [
        [("main", 1, 2), ("main", 1, 3)],
        [("sft", 2, 4)],
        [("sft", 3, 5)],
    ]
    assert (draw.numbers["sampled_tokens"], len(built.records(0))) == (6, 4)


# ------------------------------------------------------------------------------------------------------ refill waves


def test_waves_refill_what_is_missing_until_nothing_is() -> None:
    """Rows 0 to 3: 0 and 2 are dead. Wave 1 draws 4, 5: 4 is dead. Wave 2 draws 6: dead. Wave 3 draws 7."""
    sampler = FakeSampler(respond)
    built = source(FakeTasks(4), sampler, FakeGraders(odd_rows_live, delay=1), REFILLS)
    draw = built.draw(0)
    assert rows(draw.groups) == [1, 3, 5, 7]
    assert [request.row for request in sampler.requests] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [request.epoch for request in sampler.requests] == [0, 0, 0, 0, -1, -1, -1, -1]
    assert (draw.numbers["refilled"], draw.numbers["dropped"], draw.numbers["waves"]) == (4, 0, 3)
    assert draw.notes == []
    assert [line["fate"] for line in built.records(0)[::2]] == ["refilled", "keep"] * 4


def test_after_the_last_wave_the_step_trains_on_what_it_has_and_says_so() -> None:
    built = source(FakeTasks(4), FakeSampler(respond), FakeGraders(odd_rows_live), REFILLS, max_waves=1)
    draw = built.draw(0)
    assert rows(draw.groups) == [1, 3, 5]
    assert draw.notes == ["after 1 waves of refills 1 groups are missing, and the step trains on 3"]
    assert (draw.numbers["refilled"], draw.numbers["dropped"]) == (2, 1)


def test_data_that_ends_before_the_waves_do_is_said() -> None:
    built = source(FakeTasks(4, rows=5), FakeSampler(respond), FakeGraders(odd_rows_live), REFILLS)
    draw = built.draw(0)
    assert rows(draw.groups) == [1, 3]
    assert (
        draw.notes[-1] == "the data has no further tasks to refill with: 2 groups are missing, and the step trains on 2"
    )


# ------------------------------------------------------------------------------------------------------------ errors


def test_answers_with_errors_leave_their_group_and_small_groups_go_whole() -> None:
    """Of three answers a task, task 0 loses one and task 1 two; the algorithm needs two."""

    def outcome(key: Key, sample: Sample) -> Outcome:
        failed = key[:1] + key[2:] in ((0, 1), (1, 0), (1, 2))
        return Outcome(0.0, error="math: stopped after 10 s") if failed else exact(float(key[2]))

    built = source(
        FakeTasks(2), FakeSampler(respond), FakeGraders(outcome), FakeAlgorithm(Online(least_group=2)), group_size=3
    )
    draw = built.draw(0)
    assert [[s.tokens for s in group] for group in draw.groups] == [[[100, 0], [100, 0, 0, 0]]]
    # (0 + 2 + 1) / 3; an error is in no mean.
    assert (draw.numbers["reward"], draw.numbers["errors"], draw.numbers["dropped"]) == (1.0, 3, 1)
    assert draw.notes == [
        "3 of 6 answers could not be graded and left their groups: math: stopped after 10 s (3); 1 groups had fewer "
        "than 2 left, and were dropped"
    ]
    records = built.records(0)
    assert [line["score"] for line in records] == [0.0, None, 2.0, None, 1.0, None]
    assert [line["fate"] for line in records] == ["keep"] * 3 + ["drop"] * 3
    assert draw.groups[0][0].reward == 0.0
    assert built._rolled[0].answers[1].reward is None


# ------------------------------------------------------------------------------------------------- journal and resume


def test_a_killed_step_takes_from_the_journal_what_was_graded(tmp_path: Path) -> None:
    """Graders that answer otherwise each time: the second attempt repeats the outcomes of the groups that had ended."""
    attempt = 0

    def outcome(key: Key, sample: Sample) -> Outcome:
        return exact(float(10 * attempt + key[2]))

    class Killed(FakeGraders):
        def finished(self, *, wait: bool) -> list[tuple[Key, Outcome]]:
            if len(self.keys) == 5:
                raise KeyboardInterrupt
            return super().finished(wait=wait)

    with Journal(tmp_path / "journal.jsonl") as journal, pytest.raises(KeyboardInterrupt):
        source(FakeTasks(3), FakeSampler(respond), Killed(outcome), journal=journal).draw(0)
    attempt = 1
    graders = FakeGraders(outcome)
    with Journal(tmp_path / "journal.jsonl") as journal:
        draw = source(FakeTasks(3), FakeSampler(respond), graders, journal=journal).draw(0)
    # The fake sampler ends the last request first: tasks 2 and 1 were graded whole.
    assert [[s.reward for s in group] for group in draw.groups] == [[10.0, 11.0], [0.0, 1.0], [0.0, 1.0]]
    assert graders.keys == [(0, 0, 1), (0, 0, 0)]
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 6


def test_a_stop_signal_ends_the_draw_and_forgets_what_is_in_flight() -> None:
    sampler = FakeSampler(respond)
    built = source(FakeTasks(3), sampler, FakeGraders(by_k))
    built.heed(lambda: len(sampler.queue) == 2)
    with pytest.raises(Interrupted):
        built.draw(0)
    assert (sampler.queue, built.state()["rollouts"]) == ([], 0)


class Signalled(FakeGraders):
    """A SIGTERM comes while answer number `at` is graded."""

    at = 3

    def submit(self, key: Key, prompt: Any, sample: Sample) -> None:
        super().submit(key, prompt, sample)
        if len(self.keys) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("held_out", "at", "what"),
    [(False, 3, "step 1"), (True, 3, "this evaluation"), (False, 6, "step 1")],
    ids=["a draw", "an evaluation", "the last answer of a draw"],
)
def test_a_signal_says_what_becomes_of_the_answers_in_flight(
    capfd: pytest.CaptureFixture[str], held_out: bool, at: int, what: str
) -> None:
    graders = Signalled(by_k)
    graders.at = at
    built = source(FakeTasks(3, held=6), FakeSampler(respond), graders)
    with Stopper() as stopper:
        built.heed(lambda: stopper.requested)
        with pytest.raises(Interrupted) if at == 3 else nullcontext():
            built.evaluate(None, FakeAlgorithm(), {}) if held_out else built.draw(0)
    said = f"SIGTERM: {what} is left out if answers are missing; saving the last finished step, then stopping"
    err = capfd.readouterr().err
    assert said in err and "after this step" not in err


# ------------------------------------------------------------------------------------------------------------- ranks


def built_on(world: Any) -> RolloutSource:
    return source(FakeTasks(5, held=3), FakeSampler(respond), FakeGraders(odd_rows_live), REFILLS, world=world)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_work_and_all_see_the_draw_of_one(size: int) -> None:
    def part(world: FakeRank) -> tuple[Any, ...]:
        built = built_on(world)
        draw = told(built.draw(0))
        return draw, built.records(0), built.evaluate(None, REFILLS, {}), built.state()

    alone = built_on(None)
    expected = (told(alone.draw(0)), alone.records(0), alone.evaluate(None, REFILLS, {}), alone.state())
    assert on_ranks(size, part) == [expected] * size


def test_a_rank_draws_every_second_task() -> None:
    def part(world: FakeRank) -> list[int]:
        sampler = FakeSampler(respond)
        source(FakeTasks(5), sampler, FakeGraders(by_k), world=world).draw(0)
        return [request.row for request in sampler.requests]

    assert on_ranks(2, part) == [[0, 2, 4], [1, 3]]


def test_one_rank_that_fails_or_is_stopped_ends_all() -> None:
    def failing(key: Key, sample: Sample) -> Outcome:
        if key[0] == 1:
            raise EspalierError("no worker starts")
        return exact(0.0)

    def fail(world: FakeRank) -> Draw:
        return source(FakeTasks(2), FakeSampler(respond), FakeGraders(failing), world=world).draw(0)

    def stop(world: FakeRank) -> Draw:
        graders = FakeGraders(by_k)
        return source(
            FakeTasks(2), FakeSampler(respond), graders, world=world, interrupted=lambda: world.rank == 1
        ).draw(0)

    assert [str(error) for error in on_ranks(2, fail)] == [
        "answers were not drawn: rank 1 failed and says why",
        "no worker starts",
    ]
    assert [type(error) for error in on_ranks(2, stop)] == [Interrupted, Interrupted]


# ------------------------------------------------------------------------------------------------ evaluation, records


def test_evaluation_grades_one_greedy_answer_a_task() -> None:
    sampler = FakeSampler(lambda request, k: ([5] * (request.row + 1), "length" if request.row else "stop"))
    outcomes = [exact(1.0), Outcome(-1.0, {"fake": Graded(0.0)}, invalid="empty"), Outcome(0.0, error="x: y")]
    built = source(FakeTasks(2, held=3), sampler, FakeGraders(lambda key, s: outcomes[key[0]]))
    assert built.evaluate(None, FakeAlgorithm(), {}) == {
        "eval_score": 0.0,
        "eval_reward_fake": 0.5,
        "eval_invalid": 0.5,
        "eval_errors": 1,
        "eval_length": 2.0,
        "eval_cut": pytest.approx(2 / 3),
    }
    assert [(request.params.temperature, request.ks) for request in sampler.requests] == [(0.0, (0,))] * 3


def test_sampled_evaluation_has_random_numbers_of_its_own() -> None:
    sampler = FakeSampler(respond)
    built = source(FakeTasks(1, held=1), sampler, FakeGraders(by_k), eval_samples=3)
    assert built.evaluate(None, FakeAlgorithm(), {})["eval_score"] == 1.0
    built.draw(0)
    built.evaluate(None, FakeAlgorithm(), {})
    evaluation, training, again = sampler.requests
    assert (evaluation.ks, evaluation.params.temperature) == ((0, 1, 2), 1.0)
    assert evaluation.params.seed == again.params.seed != training.params.seed == 7


def test_evaluation_without_held_out_tasks_or_without_outcomes() -> None:
    graders = FakeGraders(lambda key, s: Outcome(0.0, error="math: no such module"))
    assert source(FakeTasks(1), FakeSampler(respond), graders).evaluate(None, FakeAlgorithm(), {}) == {}
    with pytest.raises(EspalierError, match=r"none of 2 answers .* could be graded: math: no such module \(2\)"):
        source(FakeTasks(1, held=2), FakeSampler(respond), graders).evaluate(None, FakeAlgorithm(), {})


def test_weights_that_moved_reach_the_sampler() -> None:
    built = source(FakeTasks(1), FakeSampler(respond), FakeGraders(by_k))
    built.moved(5)
    assert [s.version for s in built.draw(0).groups[0]] == [5, 5]


def test_who_waits_is_told_how_many_answers_are_graded() -> None:
    told: list[tuple[str, int, int]] = []
    built = source(FakeTasks(1, held=1), FakeSampler(respond), FakeGraders(by_k))
    built.answers.report = lambda *numbers: told.append(numbers)
    built.draw(0)
    built.evaluate(None, FakeAlgorithm(), {})
    assert (told[0][0], told[-1]) == ("step 1", ("held-out tasks", 1, 1))
    of_step = [graded for what, graded, total in told if what == "step 1"]
    assert of_step == sorted(of_step) and of_step[-1] == told[0][2]
