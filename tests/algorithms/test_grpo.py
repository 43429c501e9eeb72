"""GRPO by hand: credit, value, gradient, denominators."""

import math
from typing import Any

import pytest

from batches import batch_of
from espalier.algorithms.grpo import GRPO
from espalier.outcomes import Graded, Outcome
from espalier.types import Batch, Sample
from losses_by_hand import value, wide
from samples import sample

OLD = [-1.0, -1.0, -2.0]
A = [1.0, 1.0, -2.0]
SPREAD = math.sqrt(14 / 5) + 1e-4


def rolled(*scores: float) -> list[Sample]:
    return [sample([5, 6], range(7, 8 + n), reward=score) for n, score in enumerate(scores)]


def credited(algorithm: GRPO, *groups: list[Sample]) -> list[list[float]]:
    """The advantage of each sample's last token, by group."""
    assert algorithm.credit(list(groups), {"delta": 1.0}) == {"delta": 1.0}
    for group in groups:
        for s in group:
            assert s.streams["advantages"][:2] == [0, 0]
            assert len(set(s.streams["advantages"][2:])) == 1
    return [[s.streams["advantages"][-1] for s in group] for group in groups]


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [-2 / (math.sqrt(7) + 1e-4), -1 / (math.sqrt(7) + 1e-4), 3 / (math.sqrt(7) + 1e-4)]),
        ({"scale": "none"}, [-2, -1, 3]),
        ({"scale": "batch"}, [-2 / SPREAD, -1 / SPREAD, 3 / SPREAD]),
        ({"advantage": "sign"}, [-1, -1, 1]),
        ({"advantage": "winners"}, [-1, -1, 1]),
    ],
)
def test_credit_by_hand(settings: dict[str, Any], want: list[float]) -> None:
    """Scores 1, 2, 6: mean 3, variance 14 / 2. With 3, 3, 3 the mean stays, and the variance is 14 / 5."""
    got = credited(GRPO(**settings), rolled(1.0, 2.0, 6.0), rolled(3.0, 3.0, 3.0))
    assert got[0] == pytest.approx(want, abs=1e-14)
    assert got[1] == [0, 0, 0]


def test_each_reward_has_its_own_scale() -> None:
    """A reward of thousands decides alone after the sum; normalised each, one of weight 2 decides against it."""
    group = rolled(2.0, 5000.0)
    group[0].outcome = Outcome(2.0, {"a": Graded(1.0, 2.0), "b": Graded(0.0)})
    group[1].outcome = Outcome(5000.0, {"a": Graded(0.0, 2.0), "b": Graded(5000.0)})
    half = math.sqrt(0.5)
    assert credited(GRPO(), group)[0] == pytest.approx([-half, half], abs=1e-4)
    assert credited(GRPO(reward_norm="each"), group)[0] == pytest.approx([half, -half], abs=2e-4)


def batch(weights: list[float] | None = None) -> Batch:
    streams = {"advantages": wide(A), "old_logprobs": wide(OLD)}
    return batch_of([2, 1], streams=streams, weights=None if weights is None else wide(weights))


def test_value_and_gradient_by_hand() -> None:
    """Ratios 1.1, 2 (held at 1.2) and 0.9: L = 1/2 [ -(1.1 + 1.2) / 2 + 2 * 0.9 ]."""
    logprobs = [OLD[0] + math.log(1.1), OLD[1] + math.log(2), OLD[2] + math.log(0.9)]
    loss, slope, shares = value(GRPO(), logprobs, batch())
    assert loss == pytest.approx((-1.15 + 1.8) / 2)
    assert slope == pytest.approx([-1.1 / 4, 0, 1.8 / 2])
    assert shares["clip_high"] == pytest.approx(1 / 3)
    assert shares["ratio"] == pytest.approx(4 / 3)


def test_the_first_update_is_reinforce_with_a_baseline() -> None:
    """Without old log-probabilities the ratio is 1: L = -mean A, and dL / d log pi = -A / |y| / S."""
    made = batch()
    del made.streams["old_logprobs"]
    loss, slope, _ = value(GRPO(), [-0.3, -0.4, -0.5], made)
    assert loss == pytest.approx((-1 + 2) / 2)
    assert slope == pytest.approx([-1 / 4, -1 / 4, 2 / 2])


def test_an_answer_without_weight_stays_in_the_number_of_answers() -> None:
    whole, masked = value(GRPO(), OLD, batch()), value(GRPO(), OLD, batch([1, 1, 0]))
    assert whole[0] == pytest.approx((-1 + 2) / 2)
    assert masked[0] == pytest.approx(-1 / 2)
    assert masked[1] == pytest.approx([-1 / 4, -1 / 4, 0])


def test_a_token_without_weight_leaves_the_length_of_its_answer() -> None:
    assert value(GRPO(), OLD, batch([1, 0, 1]))[1] == pytest.approx([-1 / 2, 0, 1])


@pytest.mark.parametrize("through", ["naive", "token", "sequence"])
def test_what_stands_at_masked_tokens_changes_nothing(through: str) -> None:
    """1e6 in every stream and log-probability of a token without weight."""
    algorithm = GRPO(beta=0.3, kl_gradient=through, clip_dual=3.0)  # type: ignore[arg-type]
    results = []
    for junk in (-1.0, 1e6, -1e6):
        made = batch([1, 0, 1])
        made.streams["ref_logprobs"] = wide([-1.2, junk, -1.5])
        made.streams["old_logprobs"][1] = junk
        made.streams["advantages"][1] = junk
        loss, slope, shares = value(algorithm, [-0.9, junk, -2.1], made)
        results.append((loss, slope, shares))
    assert results[0] == results[1] == results[2]
    assert results[0][1][1] == 0
