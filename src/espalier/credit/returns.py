"""Returns and advantages of one answer's tokens: plain floats, one a trained token, in order.

Tokens that are not trained (what a tool returned between two turns) belong to the state and are no actions: they stand
in none of these lists, and carry no discount step. V is 0 behind the last trained token, whatever ended the answer,
unless a value is given for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from espalier.credit.advantages import equal, mean


def to_go(rewards: Sequence[float], gamma: float = 1.0) -> list[float]:
    """Rewards to go, which are the Monte-Carlo returns:

        G_t = sum_{k >= t} gamma^(k - t) r_k

    >>> to_go([1.0, 2.0, 4.0]), to_go([1.0, 2.0, 4.0], gamma=0.5)
    ([7.0, 6.0, 4.0], [3.0, 4.0, 4.0])
    """
    sums, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
        sums.append(total)
    return sums[::-1]


def shifted(returns: Sequence[float], first: float) -> list[float]:
    """Returns less the baseline that makes the first one `first`: A_t = first + G_t - G_1. Returns that are equal give
    `first` itself, without rounding.

    >>> shifted([7.0, 6.0, 4.0], 2.0)
    [2.0, 1.0, -1.0]
    """
    return [first + (G - returns[0]) for G in returns]


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float, *, after: float = 0.0
) -> list[float]:
    """Generalised advantage estimation, arXiv:1506.02438, eq. 16, with V = `after` behind the last token:

        A_t = sum_{k >= t} (gamma lam)^(k - t) d_k          d_k = r_k + gamma V_{k + 1} - V_k

    lam = 1 is G_t - V_t, lam = 0 is d_t. Raises ValueError if there is not one value for each reward.

    Rewards 0, 1 and values 0.5, 0.25: d is 0 + 0.25 - 0.5 and 1 - 0.25.

    >>> gae([0.0, 1.0], [0.5, 0.25], gamma=1.0, lam=0.5)
    [0.125, 0.75]
    """
    _same_length(rewards, "rewards", values)
    following = [*values[1:], after]
    differences = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=False)]
    return to_go(differences, gamma * lam)


def lambda_returns(advantages: Sequence[float], values: Sequence[float]) -> list[float]:
    """A_t + V_t with the A of `gae`: what a critic learns; at lam = 1 the Monte-Carlo return, at lam = 0 the
    bootstrapped r_t + gamma V_{t + 1}. Raises ValueError if there is not one value for each advantage.

    >>> lambda_returns([0.125, 0.75], [0.5, 0.25])
    [0.625, 1.0]
    """
    _same_length(advantages, "advantages", values)
    return [A + v for A, v in zip(advantages, values, strict=True)]


def explained_variance(returns: Sequence[float], values: Sequence[float]) -> float | None:
    """How much of the returns R the values V explain: 1 - Var(R - V) / Var(R), with population variances. 1 is all of
    it, 0 what their mean would, below 0 less than that; None if all returns are equal.

    Returns 0, 2 and values 0, 1: Var(R - V) is 1/4, Var(R) 1.

    >>> explained_variance([0.0, 2.0], [0.0, 1.0]), explained_variance([1.0, 1.0], [0.0, 5.0])
    (0.75, None)
    """
    _same_length(returns, "returns", values)
    spread = _variance(returns)
    if not spread:
        return None
    return 1 - _variance([R - V for R, V in zip(returns, values, strict=True)]) / spread


def _variance(numbers: Sequence[float]) -> float:
    if equal(numbers):
        return 0.0
    center = mean(numbers)
    return mean([(x - center) ** 2 for x in numbers])


def _same_length(numbers: Sequence[float], name: str, values: Sequence[float]) -> None:
    if len(numbers) != len(values):
        raise ValueError(
            f"got {len(values)} values for {len(numbers)} {name}; expected one of both for each trained token"
        )
