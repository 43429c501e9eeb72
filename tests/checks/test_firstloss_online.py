"""Advantages of tokens by arithmetic, against numbers by hand."""

import math
from typing import Any

import pytest

from espalier.algorithms.grpo import GRPO
from espalier.algorithms.ppo import PPO
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.checks.firstloss import Rolled, expected_advantages, expected_returns, expected_scores

GROUPS = [[Rolled(1.0, [0.5, 0.5]), Rolled(0.0, [1.0])]]
"""Rewards and log-ratios of two answers; at beta 0.1 G is 0.9, 0.95 and -0.1."""
HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("algorithm", "advantages"),
    [
        (Reinforce(beta=0.1), [[1.0, 1.05], [-1.0]]),
        (Reinforce(beta=0.1, baseline="moving"), [[1.0, 1.05], [-1.0]]),
        (Reinforce(beta=0.1, baseline="none"), [[0.9, 0.95], [-0.1]]),
        (Reinforce(beta=0.1, kl_per="answer"), [[1.0, 1.0], [-1.0]]),
        (Reinforce(beta=0.1, kl_in="loss"), [[1.0, 1.0], [-1.0]]),
        # 1, 1, 0 have the mean 2/3 and the variance 2/9; 1/2, 1/2, -1/2 the same but for a shift.
        (ReinforcePP(), [[HALF, HALF], [-2 * HALF]]),
        (ReinforcePP(beta=0.1, baseline="group"), [[HALF, HALF], [-2 * HALF]]),
    ],
)
def test_advantages_by_hand(algorithm: Any, advantages: list[list[float]]) -> None:
    expected = expected_advantages(algorithm, GROUPS)
    assert expected == [pytest.approx(of_answer) for of_answer in advantages]


def test_the_kl_to_go_is_whitened() -> None:
    """0.9, 0.95, -0.1: mean 7/12, squares 0.9 ** 2 + 0.95 ** 2 + 0.1 ** 2 = 1.7225."""
    spread = math.sqrt(1.7225 / 3 - (7 / 12) ** 2)
    expected = expected_advantages(ReinforcePP(beta=0.1), GROUPS)
    assert expected is not None
    assert expected[0] == pytest.approx([(0.9 - 7 / 12) / spread, (0.95 - 7 / 12) / spread])
    assert expected[1] == pytest.approx([(-0.1 - 7 / 12) / spread])


def test_a_group_s_own_mean_is_taken_from_it() -> None:
    """Groups 1, 0 and 5: 0.5, -0.5 and 0, which have the mean 0."""
    groups = [[Rolled(1.0, [0.0]), Rolled(0.0, [0.0])], [Rolled(5.0, [0.0])]]
    spread = math.sqrt(0.5 / 3)
    expected = expected_advantages(ReinforcePP(baseline="group"), groups)
    assert expected == [pytest.approx([x / spread]) for x in (0.5, -0.5, 0.0)]


def test_other_algorithms_are_not_given_token_by_token() -> None:
    assert expected_advantages(GRPO(), GROUPS) is None


def test_scores_have_a_kl_if_the_rewards_have() -> None:
    assert expected_scores(Reinforce(beta=0.1), [1.0], 0.5) == [0.95]
    assert expected_scores(ReinforcePP(beta=0.1), [1.0], 0.5) == [0.95]
    assert expected_scores(ReinforcePP(beta=0.1, baseline="group"), [1.0], 0.5) is None


PLAIN: dict[str, Any] = {"beta": 0.1, "whiten_advantages": False}


@pytest.mark.parametrize(
    ("settings", "advantages", "returns"),
    [
        # Rewards -0.05, 0.95 and -0.1; values 0.25, 0.5 and 0.5: d is 0.2, 0.45 and -0.6.
        ({"lam": 1.0}, [0.65, 0.45, -0.6], [0.9, 0.95, -0.1]),
        ({"lam": 0.0}, [0.2, 0.45, -0.6], [0.45, 0.95, -0.1]),
        ({"lam": 0.5}, [0.425, 0.45, -0.6], [0.675, 0.95, -0.1]),
        ({"lam": 0.0, "gamma": 0.5}, [-0.05, 0.45, -0.6], [0.2, 0.95, -0.1]),
        ({"lam": 0.0, "returns": "monte_carlo"}, [0.2, 0.45, -0.6], [0.9, 0.95, -0.1]),
        # The scores are 1 - 0.1 and 0 - 0.1, or 1 - 0.05 and 0 - 0.1.
        ({"lam": 1.0, "kl_per": "answer"}, [0.65, 0.4, -0.6], [0.9, 0.9, -0.1]),
        ({"lam": 1.0, "kl_per": "mean"}, [0.7, 0.45, -0.6], [0.95, 0.95, -0.1]),
        ({"lam": 1.0, "score_at": "spread"}, [0.65, -0.05, -0.6], [0.9, 0.45, -0.1]),
        ({"lam": 1.0, "score_clip": 0.5}, [0.15, -0.05, -0.6], [0.4, 0.45, -0.1]),
    ],
)
def test_a_critic_s_advantages_and_returns_by_hand(
    settings: dict[str, Any], advantages: list[float], returns: list[float]
) -> None:
    groups = [[Rolled(1.0, [0.5, 0.5], [0.25, 0.5]), Rolled(0.0, [1.0], [0.5])]]
    algorithm = PPO(**PLAIN, **settings)
    for got, right in ((expected_advantages, advantages), (expected_returns, returns)):
        numbers = got(algorithm, groups)
        assert numbers is not None
        assert [x for answer in numbers for x in answer] == pytest.approx(right)


def test_others_have_no_returns() -> None:
    assert expected_returns(GRPO(), GROUPS) is None
