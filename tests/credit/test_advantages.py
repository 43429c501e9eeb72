"""Advantages against sums done by hand."""

import math

import pytest

from espalier.credit import advantages
from espalier.outcomes import Graded


def test_deviation_divides_by_one_less_than_the_number() -> None:
    """Scores 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, over 2."""
    assert advantages.deviation([1, 2, 6]) == pytest.approx(math.sqrt(7), abs=1e-15)


def test_group_advantages_by_hand() -> None:
    """Scores 1, 2, 6: mean 3, std sqrt 7."""
    scores = [1.0, 2.0, 6.0]
    assert advantages.centred(scores) == [-2, -1, 3]
    spread = math.sqrt(7) + 1e-4
    assert advantages.normalised(scores) == pytest.approx([-2 / spread, -1 / spread, 3 / spread], abs=1e-15)
    assert advantages.leave_one_out(scores) == [1 - 4, 2 - 3.5, 6 - 1.5]
    assert advantages.signs(scores) == [-1, -1, 1]
    assert advantages.winners(scores) == [-1, -1, 1]


@pytest.mark.parametrize(
    "relative",
    [advantages.centred, advantages.normalised, advantages.leave_one_out, advantages.signs, advantages.winners],
)
def test_equal_scores_have_advantages_of_exactly_zero(relative: object) -> None:
    """0.1 * 3 / 3 is not 0.1."""
    assert callable(relative)
    assert relative([0.1] * 3) == [0, 0, 0]
    assert relative([0.7]) == [0]


def test_a_score_at_the_mean_has_no_sign() -> None:
    """The mean of 0.1, 0.2 and 0.3 is 0.2 up to rounding."""
    assert advantages.signs([0.1, 0.2, 0.3]) == [-1, 0, 1]


def test_winners_share_first_place() -> None:
    assert advantages.winners([0.5, 2.0, 2.0, 1.0]) == [-1, 1, 1, -1]


def test_the_spread_of_the_step_divides_every_group() -> None:
    """All scores 1, 0, 1, 1: mean 3/4, squares 3/16 + 9/16 = 3/4, over 3."""
    spread = 0.5 + 1e-4
    assert advantages.over_batch([[1.0, 0.0], [1.0, 1.0]]) == [[0.5 / spread, -0.5 / spread], [0, 0]]


def test_each_reward_is_normalised_before_the_sum() -> None:
    """Rewards 1, 0 (weight 1) and 0, 10 (weight 3) count by their weights alone: A is -2 and 2 before scaling by
    c = sqrt(1/2) / (sqrt(1/2) + 1e-4), nearly. The group of equals stays at 0 and narrows the spread of the step."""
    half = math.sqrt(0.5)
    small, large = half / (half * 1 + 1e-4) * half, half * 10 / (10 * half + 1e-4) * half
    first = small - 3 * large
    rewards = {"a": (1.0, [1.0, 0.0]), "b": (3.0, [0.0, 10.0])}
    flat = {"a": (1.0, [0.3, 0.3]), "b": (3.0, [0.1, 0.1])}
    spread = math.sqrt(2 * first**2 / 3) + 1e-4
    got = advantages.each_reward([rewards, flat], [2, 2])
    assert got[0] == pytest.approx([first / spread, -first / spread], abs=1e-12)
    assert got[1] == [0, 0]


def test_an_answer_without_a_reward_of_its_siblings_has_its_score_there() -> None:
    parts = [{"a": Graded(1.0, 2.0), "b": Graded(0.5)}, {}]
    assert advantages.part_scores(parts, [2.5, -1.0]) == {"a": (2.0, [1.0, -1.0]), "b": (1.0, [0.5, -1.0])}


def test_process_rewards_sum_over_later_steps() -> None:
    """Scores 1, 0 | 2: mean 1, std 1. Of 0, -1 at places 1 and 3; of 1 at place 0."""
    got = advantages.of_steps([[(1, 1.0), (3, 0.0)], [(0, 2.0)]], [5, 2])
    unit = 1 / (1 + 1e-4)
    assert got == [[-unit, -unit, -unit, -unit, 0], [unit, 0]]


def test_steps_beyond_the_end_fall_on_the_last_token() -> None:
    assert advantages.of_steps([[(9, 1.0)], [(0, 0.0)]], [2, 2], scale=False) == [[0.5, 0.5], [-0.5, 0]]


def test_two_steps_that_end_at_one_token_add_up() -> None:
    assert advantages.of_steps([[(0, 3.0), (0, 1.0)], [(1, 2.0)]], [2, 2], scale=False) == [[0, 0], [0, 0]]


def test_rewards_that_weigh_nothing_are_left_out() -> None:
    parts = [{"a": Graded(1.0), "shown": Graded(0.3, 0.0)}, {"a": Graded(0.0), "shown": Graded(0.9, 0.0)}]
    assert list(advantages.part_scores(parts, [1.0, 0.0])) == ["a"]
