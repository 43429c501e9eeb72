"""GSPO by hand: the ratio of whole answers, its token form, the plain product."""

import math

import pytest

from batches import batch_of
from espalier.algorithms.gspo import GSPO
from espalier.types import Batch
from losses_by_hand import value, wide

WIDER = {"clip_low": 0.2, "clip_high": 0.25}
LOGPROBS = [-0.9, -0.7, -1.5]
S = math.exp(0.2)  # of log-ratios 0.1 and 0.3


def batch(*advantages: float) -> Batch:
    return batch_of([2, 1], streams={"advantages": wide(advantages), "old_logprobs": wide([-1, -1, -1])})


def test_the_ratio_is_the_mean_of_the_log_ratios() -> None:
    """s = exp(0.2) at A = 1 with the slope s / 2 at each token; exp(-0.5) at A = -1 is held at 0.8."""
    loss, slope, shares = value(GSPO(**WIDER), LOGPROBS, batch(1, 1, -1))
    assert loss == pytest.approx((-S + 0.8) / 2)
    assert slope == pytest.approx([-S / 4, -S / 4, 0])
    assert shares["clip_low"] == pytest.approx(1 / 3)


def test_the_default_clip_is_narrow() -> None:
    loss, slope, shares = value(GSPO(), LOGPROBS, batch(1, 1, -1))
    assert loss == pytest.approx((-1.0004 + 0.9997) / 2)
    assert slope == [0, 0, 0]
    assert (shares["clip_low"], shares["clip_high"]) == pytest.approx((1 / 3, 2 / 3))


def test_the_token_form_has_the_gradient_of_the_sequence() -> None:
    sequence, token = (value(GSPO(**WIDER, token_form=form), LOGPROBS, batch(1, 1, -1)) for form in (False, True))
    assert token[0] == pytest.approx(sequence[0])
    assert token[1] == pytest.approx(sequence[1])


def test_in_the_token_form_each_token_has_its_own_advantage() -> None:
    _, slope, _ = value(GSPO(**WIDER, token_form=True), LOGPROBS, batch(2, -1, 0))
    assert slope == pytest.approx([-S * 2 / 4, S / 4, 0])
    _, slope, _ = value(GSPO(**WIDER), LOGPROBS, batch(2, -1, 0))
    assert slope == pytest.approx([-S / 8, -S / 8, 0])  # of the mean, 1/2


@pytest.mark.parametrize("token_form", [False, True])
def test_the_plain_product_has_the_sum_of_the_gradients(token_form: bool) -> None:
    wider = GSPO(clip_low=0.5, clip_high=0.6, length_normalised=False, token_form=token_form)
    _, slope, _ = value(wider, LOGPROBS, batch(1, 1, -1))
    assert slope == pytest.approx([-math.exp(0.4) / 2, -math.exp(0.4) / 2, math.exp(-0.5) / 2])


def test_masked_tokens_leave_ratio_and_length() -> None:
    made = batch(1, 1, -1)
    made.weights[1] = made.weights[2] = 0
    loss, slope, _ = value(GSPO(**WIDER), LOGPROBS, made)
    assert loss == pytest.approx(-math.exp(0.1) / 2)
    assert slope == pytest.approx([-math.exp(0.1) / 2, 0, 0])
