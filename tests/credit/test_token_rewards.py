"""Rewards of tokens by hand: where the score and the KL stand, and what a token that is not trained has."""

import doctest

import pytest

from espalier.credit import returns, token_rewards
from espalier.outcomes import Outcome
from espalier.types import Sample
from samples import sample


def with_tools() -> Sample:
    """Two trained tokens, one of a tool, one trained; old less reference 1, 2 and 4 nats, junk elsewhere."""
    s = Sample(reward=1.0)
    s.append([5, 6], trained=False)
    s.append([7, 8], trained=True)
    s.append([9], trained=False)
    s.append([10], trained=True)
    s.streams["old_logprobs"] = [1e6, 1e6, -1.0, -1.0, -1e6, -1.0]
    s.streams["ref_logprobs"] = [-1e6, 1e6, -2.0, -3.0, 1e6, -5.0]
    return s


def test_the_examples_are_right() -> None:
    assert doctest.testmod(token_rewards).failed == 0


def test_the_kl_stands_at_every_token_and_the_clipped_score_at_the_last() -> None:
    """Beta 0.5: -0.5, -1, -2 + 5."""
    assert token_rewards.with_kl(9.0, [1.0, 2.0, 4.0], 0.5, score_clip=5.0) == [-0.5, -1, 3]
    assert token_rewards.with_kl(-9.0, [1.0], 0.5, score_clip=5.0) == [-5.5]
    assert token_rewards.with_kl(9.0, [1.0, 2.0, 4.0], 0.5) == [-0.5, -1, 7]
    with pytest.raises(ValueError, match="got no trained token, expected at least one"):
        token_rewards.with_kl(1.0, [], 0.5)


def test_rewards_of_tokens_sum_to_the_score_less_the_kl_of_the_answer() -> None:
    ratios = [0.5, -1.0, 2.5]
    summed = token_rewards.sequence_kl(2.0, ratios, 0.25)
    assert sum(token_rewards.with_kl(2.0, ratios, 0.25)) == pytest.approx(summed, abs=1e-15)
    assert summed == 1.5
    assert token_rewards.sequence_kl(2.0, ratios, 0.25, average=True) == pytest.approx(2 - 0.25 * 2 / 3)
    assert token_rewards.sequence_kl(2.0, [], 0.25, average=True) == 2


def test_a_score_that_is_spread_is_lost_token_by_token() -> None:
    """Of 3 over 3 tokens, 3, 2 and 1 are to come."""
    assert returns.to_go(token_rewards.spread_score(3.0, 3)) == [3, 2, 1]
    with pytest.raises(ValueError, match="got 0 trained tokens"):
        token_rewards.spread_score(1.0, 0)


def test_answers_that_do_not_stop_have_the_penalty_for_a_score() -> None:
    assert [token_rewards.unless_stopped(3.0, stop, -2.0) for stop in ("stop", "length", "error")] == [3, -2, -2]


def test_tool_tokens_earn_nothing_and_are_no_step_of_the_discount() -> None:
    """Beta 0.5: -0.5, -1, -2 + 1. At gamma 0.5 the last -1 counts 0.5 one trained token earlier, not 0.25."""
    s = with_tools()
    rewards = token_rewards.of_sample(s, 1.0, beta=0.5)
    assert rewards == [-0.5, -1, -1]
    assert token_rewards.stream(s, returns.to_go(rewards, 0.5)) == [0, 0, -1.25, -1.5, 0, -1]


def test_without_a_kl_no_reference_is_read() -> None:
    s = with_tools()
    s.streams.clear()
    assert token_rewards.of_sample(s, 1.0) == [0, 0, 1]
    with pytest.raises(ValueError, match="has no old_logprobs and no ref_logprobs"):
        token_rewards.of_sample(s, 1.0, beta=0.5)


@pytest.mark.parametrize(
    ("place", "rewards"), [(0, [8, 0, 1]), (1, [0, 8, 1]), (2, [0, 8, 1]), (3, [0, 0, 9]), (9, [0, 0, 9])]
)
def test_steps_are_earned_where_they_end(place: int, rewards: list[float]) -> None:
    """Place 2 is the tool's: the token before it earned what ends there."""
    s = with_tools()
    s.outcome = Outcome(1.0, steps=((place, 8.0),))
    assert token_rewards.of_sample(s, 1.0) == rewards


def test_the_first_token_of_all_is_no_action() -> None:
    """Nothing precedes it, so it has no log-probability."""
    s = sample([], [5, 6])
    assert token_rewards.actions(s) == [1]
    assert token_rewards.of_sample(s, 1.0) == [1]
    nothing = sample([5, 6], [])
    assert token_rewards.of_sample(nothing, 1.0) == []
