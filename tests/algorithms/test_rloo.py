"""RLOO by hand: one ratio and one advantage an answer."""

import math

import pytest

from batches import batch_of
from espalier.algorithms.rloo import RLOO
from losses_by_hand import value, wide
from samples import sample


def test_credit_leaves_the_answer_out_of_its_baseline() -> None:
    group = [sample([5], [6], reward=score) for score in (1.0, 2.0, 6.0)]
    RLOO().credit([group], {})
    assert [s.streams["advantages"][1] for s in group] == [-3, -1.5, 4.5]


def test_the_ratio_is_that_of_the_whole_answer() -> None:
    """Log-ratios 0.1 and 0.05 at A = 2: R = exp(0.15), and both tokens have the slope -R A / 2. The other answer has
    R = 1/2 at A = -1 and is held at 0.8."""
    streams = {"advantages": wide([2, 2, -1]), "old_logprobs": wide([-1, -1, -1])}
    logprobs = [-0.9, -0.95, -1 - math.log(2)]
    loss, slope, shares = value(RLOO(), logprobs, batch_of([2, 1], streams=streams))
    ratio = math.exp(0.15)
    assert loss == pytest.approx((-2 * ratio + 0.8) / 2)
    assert slope == pytest.approx([-ratio, -ratio, 0])
    assert shares["clip_low"] == pytest.approx(1 / 3)


def test_an_answer_without_weight_adds_nothing_and_is_counted() -> None:
    batch = batch_of([2, 1], streams={"advantages": wide([2, 2, -1])}, weights=wide([1, 0, 0]))
    loss, slope, _ = value(RLOO(), [-1, -1, -1], batch)
    assert loss == pytest.approx(-2 / 2)
    assert slope == pytest.approx([-1, 0, 0])
