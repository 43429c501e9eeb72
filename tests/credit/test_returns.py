"""Returns and advantages of tokens against sums by hand and closed forms."""

import doctest
import math
import random

import pytest

from espalier.credit import returns


def test_the_examples_are_right() -> None:
    assert doctest.testmod(returns).failed == 0


def test_returns_sum_what_comes_after_discounted_by_the_distance() -> None:
    """Rewards 1, -2, 8 at gamma 0.5: 8; -2 + 4; 1 - 1 + 2."""
    assert returns.to_go([1.0, -2.0, 8.0], 0.5) == [2, 2, 8]
    assert returns.to_go([1.0, -2.0, 8.0]) == [7, 6, 8]
    assert returns.to_go([1.0, -2.0, 8.0], 0.0) == [1, -2, 8]
    assert returns.to_go([]) == []


def test_gae_by_hand() -> None:
    """gamma 0.5, lam 0.5, values 2, 4, 6, rewards 1, 0, 3. d = 1 + 2 - 2, 0 + 3 - 4, 3 + 0 - 6; each takes a quarter of
    the next one's sum: -3, -1 - 0.75, 1 - 0.4375."""
    advantages = returns.gae([1.0, 0.0, 3.0], [2.0, 4.0, 6.0], 0.5, 0.5)
    assert advantages == [0.5625, -1.75, -3.0]
    assert returns.lambda_returns(advantages, [2.0, 4.0, 6.0]) == [2.5625, 2.25, 3.0]


def numbers(seed: int) -> tuple[list[float], list[float], float]:
    rng = random.Random(seed)
    count = rng.randint(1, 12)
    return [rng.gauss(0, 1) for _ in range(count)], [rng.gauss(0, 1) for _ in range(count)], rng.random()


@pytest.mark.parametrize("seed", range(5))
def test_lam_one_is_the_return_less_the_value(seed: int) -> None:
    rewards, values, gamma = numbers(seed)
    after = [math.fsum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    advantages = returns.gae(rewards, values, gamma, 1.0)
    assert advantages == pytest.approx([G - v for G, v in zip(after, values, strict=True)], abs=1e-12)
    assert returns.lambda_returns(advantages, values) == pytest.approx(after, abs=1e-12)
    assert returns.to_go(rewards, gamma) == pytest.approx(after, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_lam_zero_is_the_difference_of_one_step(seed: int) -> None:
    rewards, values, gamma = numbers(seed)
    after = [*values[1:], 0.0]
    target = [r + gamma * v for r, v in zip(rewards, after, strict=True)]
    advantages = returns.gae(rewards, values, gamma, 0.0)
    assert advantages == pytest.approx([x - v for x, v in zip(target, values, strict=True)], abs=1e-15)
    assert returns.lambda_returns(advantages, values) == pytest.approx(target, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_weighted_mean_of_advantages_over_n_steps(seed: int) -> None:
    """(1 - lam) sum_n lam^(n - 1) A^(n), where A^(n) takes n rewards and then the value; behind the end all are equal
    to the last (arXiv:1506.02438, eq. 16)."""
    rewards, values, gamma = numbers(seed)
    lam, count = 0.7, len(rewards)

    def over(t: int, n: int) -> float:
        total = math.fsum(gamma**k * rewards[t + k] for k in range(min(n, count - t)))
        return total + (gamma**n * values[t + n] if t + n < count else 0.0) - values[t]

    for t, got in enumerate(returns.gae(rewards, values, gamma, lam)):
        left = count - t
        mean = math.fsum((1 - lam) * lam ** (n - 1) * over(t, n) for n in range(1, left))
        assert got == pytest.approx(mean + lam ** (left - 1) * over(t, left), abs=1e-12)


def test_a_value_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="got 1 values for 2 rewards; expected one of both for each trained token"):
        returns.gae([0.0, 1.0], [0.5], 1.0, 0.95)
    with pytest.raises(ValueError, match="got 2 values for 1 advantages"):
        returns.lambda_returns([0.0], [0.5, 1.0])
