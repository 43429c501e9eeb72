"""The strength of the KL from step to step: fixed, aimed at a KL, or held in a band. Plain floats."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.credit.advantages import mean

REACH = 0.2
"""How far one step's error counts in `adapted`."""
FACTOR = 1.5
"""By what `banded` multiplies or divides."""


def of_answers(log_ratios: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The KL of a rollout from log old - log ref of each answer's tokens: the mean over answers of their sums (nats an
    answer), and the mean over all tokens (nats a token).

    >>> of_answers([[0.5, 0.25], [0.0]])
    (0.375, 0.25)
    """
    return mean([sum(answer) for answer in log_ratios]), mean([x for answer in log_ratios for x in answer])


def adapted(beta: float, kl: float, target: float, answers: int, horizon: float) -> float:
    """beta after a step of `answers` answers whose mean KL is `kl` nats an answer; Ziegler et al., arXiv:1909.08593,
    section 2.2:

        beta <- beta (1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon)

    A KL of twice the target counts as 1.2 of it. With 256 answers of a horizon of 1,000:

    >>> round(adapted(0.1, 12.0, 6.0, answers=256, horizon=1000), 5), adapted(0.1, 6.0, 6.0, 256, 1000)
    (0.10512, 0.1)
    """
    error = max(-REACH, min(REACH, kl / target - 1))
    # A horizon below a fifth of the answers must not turn the sign of beta.
    return beta * max(0.0, 1 + error * answers / horizon)


def banded(beta: float, kl: float, low: float, high: float) -> float:
    """beta after a step whose KL is `kl` nats a token: 1.5 times it above `high`, divided by 1.5 below `low`.

    >>> banded(0.1, 0.06, 0.01, 0.05), banded(0.15, 0.0, 0.01, 0.05), banded(0.1, 0.02, 0.01, 0.05)
    (0.15000000000000002, 0.09999999999999999, 0.1)
    """
    if kl > high:
        return beta * FACTOR
    return beta / FACTOR if kl < low else beta


def streak(before: float, outside: bool) -> float:
    """How many steps in a row something held, this one included.

    >>> streak(3.0, True), streak(3.0, False)
    (4.0, 0.0)
    """
    return before + 1 if outside else 0.0
