"""Reward models in the online source: called once for every wave and evaluation, before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.algorithms.online import Online
from espalier.engines.protocols import Group, Request
from espalier.errors import EspalierError
from espalier.outcomes import Graded, Key, Outcome
from espalier.types import Sample, StopReason
from rollouts import FakeAlgorithm, FakeGraders, FakeRank, FakeSampler, FakeTasks, on_ranks, source


class FakeScorers:
    """Adds 10 x the answer's number in its group to every score of odd rows; answers of row `broken` are errors."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.calls: list[list[int]] = []

    def add(self, groups: Sequence[Group]) -> int:
        self.calls.append([group[0].tokens[0] - 100 for group in groups])
        for group in groups:
            for k, s in enumerate(group):
                assert s.outcome is not None
                row = s.tokens[0] - 100
                score = 10.0 * k * (row % 2)
                s.outcome = Outcome(s.outcome.score + score, {**s.outcome.parts, "model": Graded(score)})
                if row == self.broken:
                    s.outcome = Outcome(0.0, error="model: nan")
                s.reward = None if s.outcome.error else s.outcome.score
        return sum(s.stop != "stop" for group in groups for s in group)


def respond(request: Request, k: int) -> tuple[list[int], StopReason]:
    return [request.row] * (k + 1), "stop" if k else "length"


def one(key: Key, sample: Sample) -> Outcome:
    return Outcome(1.0, {"rule": Graded(1.0)})


def test_groups_are_judged_by_rules_and_models_together() -> None:
    """The rule gives all answers 1, so that groups differ by the model alone."""
    scorers = FakeScorers()
    silent = FakeAlgorithm(equal="silent")
    graders = FakeGraders(one, best=None)
    built = source(FakeTasks(2), FakeSampler(respond), graders, silent, scorers=scorers)
    draw = built.draw(0)
    assert scorers.calls == [[0, 1]]
    assert [[s.reward for s in group] for group in (*draw.silent, *draw.groups)] == [[1.0, 1.0], [1.0, 11.0]]
    numbers = draw.numbers
    assert (numbers["reward"], numbers["reward_rule"], numbers["reward_model"]) == (3.5, 1.0, 2.5)
    assert (numbers["reward_cut"], numbers["silent"]) == (2, 1) and numbers["seconds_reward_model"] > 0
    assert [record["parts"] for record in built.records(0)][3] == {"rule": 1.0, "model": 10.0}
    assert [record["score"] for record in built.records(0)] == [1.0, 1.0, 1.0, 11.0]


def test_each_wave_is_scored_and_its_numbers_are_added() -> None:
    scorers = FakeScorers()
    refills = FakeAlgorithm(Online(refills=True), equal="drop")
    draw = source(FakeTasks(2), FakeSampler(respond), FakeGraders(one, best=None), refills, scorers=scorers).draw(0)
    # Row 0 is dead; so is row 2, its first refill.
    assert scorers.calls == [[0, 1], [2], [3]] and draw.numbers["reward_cut"] == 4


def test_errors_of_a_model_leave_their_groups_and_count_towards_the_limit() -> None:
    scorers = FakeScorers(broken=1)
    built = source(FakeTasks(2), FakeSampler(respond), FakeGraders(one), scorers=scorers, max_error_share=0.02)
    draw = built.draw(0)
    assert draw.numbers["errors"] == 2
    assert "2 of 4 answers could not be graded and left their groups: model: nan (2)" in draw.notes[0]
    built = source(FakeTasks(2), FakeSampler(respond), FakeGraders(one), scorers=scorers, max_error_share=0.005)
    try:
        built.draw(0)
    except EspalierError as error:
        assert "model: nan (2)" in str(error)
    else:
        raise AssertionError("the share of errors was not counted")


def test_held_out_answers_are_scored_too() -> None:
    scorers = FakeScorers()
    built = source(FakeTasks(2, held=2), FakeSampler(respond), FakeGraders(one), scorers=scorers, eval_samples=2)
    numbers = built.evaluate(None, FakeAlgorithm(), {})
    assert scorers.calls == [[0, 1]]
    assert (numbers["eval_score"], numbers["eval_reward_model"], numbers["eval_reward_rule"]) == (3.5, 2.5, 1.0)


def test_every_rank_scores_all_groups() -> None:
    def part(world: FakeRank) -> tuple[list[list[int]], list[list[float | None]]]:
        scorers = FakeScorers()
        graders = FakeGraders(one, best=None)
        draw = source(FakeTasks(3), FakeSampler(respond), graders, world=world, scorers=scorers).draw(0)
        return scorers.calls, [[s.reward for s in group] for group in draw.groups]

    first, second = on_ranks(2, part)
    assert first == second == ([[0, 1, 2]], [[1.0, 1.0], [1.0, 11.0], [1.0, 1.0]])
