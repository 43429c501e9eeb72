"""DAPO by hand: shaping, masking, token sums."""

import math

import pytest

from batches import batch_of
from espalier.algorithms.dapo import DAPO
from losses_by_hand import value, wide
from samples import sample


def test_answers_near_the_limit_lose_score_before_the_baseline() -> None:
    """Limit 10, the last 4: answers of 6, 8, 10 tokens score 1, 1 - 0.5, 0 - 1; mean 1/6, std by hand."""
    group = [sample([5], range(10, 10 + n), reward=r) for n, r in ((6, 1.0), (8, 1.0), (10, 0.0))]
    group[2].stop = "length"
    state = {"max_tokens": 10.0}
    assert DAPO(overlong_share=0.4).credit([group], state) == state
    shaped = [1.0, 0.5, -1.0]
    mean = sum(shaped) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in shaped) / 2) + 1e-4
    assert [s.streams["advantages"][1] for s in group] == pytest.approx([(x - mean) / spread for x in shaped])
    assert [sum(s.weights) for s in group] == [6, 8, 0]  # the cut answer counts in the mean and in nothing else


def test_shaping_and_masking_can_be_off() -> None:
    group = [sample([5], range(10, 20), reward=1.0, stop="length"), sample([5], [6], reward=0.0)]
    DAPO(overlong_share=0.0, mask_cut=False).credit([group], {})
    half = math.sqrt(0.5) / (1 + 1e-4 / math.sqrt(0.5))
    assert [s.streams["advantages"][1] for s in group] == pytest.approx([half, -half])
    assert sum(group[0].weights) == 10


def test_every_token_weighs_the_same_and_ratios_may_rise_to_1_28() -> None:
    """Ratios 1.25, 1.5 and 1 at A = 1, 1, -2 over three tokens."""
    streams = {"advantages": wide([1, 1, -2]), "old_logprobs": wide([-1, -1, -1])}
    logprobs = [-1 + math.log(1.25), -1 + math.log(1.5), -1]
    loss, slope, _ = value(DAPO(), logprobs, batch_of([2, 1], streams=streams))
    assert loss == pytest.approx((-1.25 - 1.28 + 2) / 3)
    assert slope == pytest.approx([-1.25 / 3, 0, 2 / 3])


def test_masked_tokens_leave_the_number_of_tokens() -> None:
    batch = batch_of([2, 1], streams={"advantages": wide([1, 1, -2])}, weights=wide([1, 1, 0]))
    loss, slope, _ = value(DAPO(), [-1, -1, -1], batch)
    assert loss == pytest.approx(-1)
    assert slope == pytest.approx([-1 / 2, -1 / 2, 0])
