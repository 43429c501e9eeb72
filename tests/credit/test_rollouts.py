"""From outcomes to `advantages` streams, by hand."""

import pytest

from espalier.credit import rollouts
from espalier.outcomes import Graded, Outcome
from espalier.types import Sample
from samples import sample


def graded(score: float, **parts: float) -> Sample:
    made = sample([5], [6, 7], reward=score)
    made.outcome = Outcome(score, {name: Graded(x) for name, x in parts.items()})
    return made


def test_given_data_is_left_out() -> None:
    group = [sample([5], [6]), sample([5], [6], part="sft")]
    assert rollouts.drawn([group, [group[1]]]) == [[group[0]]]


def test_equal_sums_of_unequal_rewards_are_flat_after_the_sum_only() -> None:
    group = [graded(1.0, a=1.0, b=0.0), graded(1.0, a=0.0, b=1.0)]
    assert rollouts.flat(group)
    assert not rollouts.flat(group, each=True)


def test_scores_of_steps_tell_answers_apart() -> None:
    group = [graded(0.0), graded(0.0)]
    assert rollouts.flat(group)
    group[0].outcome = Outcome(0.0, steps=((0, 1.0), (1, 0.0)))
    assert not rollouts.flat(group)


def test_values_are_written_at_trained_tokens() -> None:
    group = [graded(1.0), graded(0.0)]
    rollouts.fill([group], [[0.5, -0.5]])
    assert [s.streams["advantages"] for s in group] == [[0, 0.5, 0.5], [0, -0.5, -0.5]]


def test_process_rewards_are_added_where_they_stand() -> None:
    """Scores 2, 0 | 1 have the mean 1: 1 ends at the first token, -1 at the second; the sibling's is 0."""
    group = [graded(1.0), graded(0.0)]
    group[0].outcome = Outcome(1.0, steps=((0, 2.0), (1, 0.0)))
    group[1].outcome = Outcome(0.0, steps=((1, 1.0),))
    rollouts.fill([group], [[0.5, -0.5]], scale_steps=False)
    assert [s.streams["advantages"] for s in group] == [[0, 0.5, -0.5], [0, -0.5, -0.5]]


def test_a_sample_that_is_not_graded_is_refused() -> None:
    with pytest.raises(ValueError, match="group 4: a sample has no reward"):
        rollouts.score(sample([5], [6], group=4))
    with pytest.raises(ValueError, match="state has no max_tokens"):
        rollouts.longest({})
