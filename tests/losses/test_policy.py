"""Ratios and clips, by hand."""

import math

import pytest
import torch

from batches import batch_of
from espalier.losses import policy
from espalier.losses.ops import peaks
from espalier.losses.policy import Clip
from espalier.types import Outputs


def test_log_ratios_are_held_and_counted() -> None:
    new, old = torch.tensor([-1.0, -90.0, -1.0, 1e6]), torch.tensor([-1.5, -1.0, -90.0, math.nan])
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0])
    assert policy.log_ratios(new, old, weights).tolist() == [0.5, -20, 20, 0]
    assert policy.clamped(new, old, weights).tolist() == [0, 1, 0.5, 0]


def test_beyond_the_limit_there_is_no_gradient() -> None:
    new = torch.tensor([-1.0, -90.0], requires_grad=True)
    policy.log_ratios(new, torch.tensor([-1.0, -1.0]), torch.ones(2)).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "x", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # held at 1.2
        (0.5, 2.0, -1.0, -2.0),
        (1.5, -2.0, 3.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),  # held at 0.8
        (4.0, -2.0, 6.0, 0.0),  # held at 3 by the dual clip
        (4.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_by_hand(ratio: float, advantage: float, x: float, slope: float) -> None:
    leaf = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    got = policy.clipped(leaf, torch.tensor([advantage], dtype=torch.float64), Clip(0.2, 0.2, dual=3.0))
    (gradient,) = torch.autograd.grad(got.sum(), leaf)
    assert got.item() == pytest.approx(x, abs=1e-15)
    assert gradient.item() == slope


def test_sequence_ratios_average_log_ratios_over_weights() -> None:
    batch = batch_of([2, 3], weights=torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    log_ratio = torch.tensor([0.1, 0.3, -0.2, 7.0, 0.6], dtype=torch.float64)
    assert policy.sequence_ratios(log_ratio, batch).tolist() == pytest.approx([math.exp(0.2), math.exp(0.2)])
    product = policy.sequence_ratios(log_ratio, batch, length_normalised=False)
    assert product.tolist() == pytest.approx([math.exp(0.4), math.exp(0.4)])


def test_an_answer_without_weight_has_the_ratio_one_and_no_share() -> None:
    batch = batch_of([1, 2], weights=torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))
    assert policy.sequence_ratios(torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64), batch).tolist() == [1, 1]
    assert policy.means(batch, torch.float64).tolist() == [0, 0.25, 0.75]


def test_the_token_form_has_the_value_of_the_sequence_and_the_gradient_of_the_token() -> None:
    batch = batch_of([2, 1])
    leaf = torch.tensor([0.1, 0.3, -0.5], dtype=torch.float64, requires_grad=True)
    ratio_S = policy.sequence_ratios(leaf, batch)
    x = policy.token_form(ratio_S, leaf, batch.rows)
    (gradient,) = torch.autograd.grad(x @ torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), leaf)
    assert x.tolist() == pytest.approx([math.exp(0.2), math.exp(0.2), math.exp(-0.5)])
    assert gradient.tolist() == pytest.approx([math.exp(0.2), 0, math.exp(-0.5)])


def test_metrics_by_hand() -> None:
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    batch = batch_of([4], streams={"advantages": advantages, "old_logprobs": torch.zeros(4, dtype=torch.float64)})
    logprobs = torch.tensor([0.5, -0.5, 0.5, -30.0], dtype=torch.float64)
    terms = policy.metrics(policy.to_old(Outputs(logprobs), batch).exp(), Clip(0.2, 0.2), Outputs(logprobs), batch)
    got = {name: term.x.sum().item() for name, term in terms.items()}
    ratio = 2 * math.exp(0.5) + math.exp(-0.5) + math.exp(-20)
    assert terms["ratio_max"].over == "max"
    assert peaks(terms)["ratio_max"].item() == pytest.approx(math.exp(0.5))
    del got["ratio_max"]
    assert got == pytest.approx({"ratio": ratio, "clip_low": 1, "clip_high": 1, "clamped": 1})
    assert all(term.coef == 0 for term in terms.values())


def test_without_old_log_probabilities_the_ratio_is_one_and_has_a_gradient() -> None:
    leaf = torch.tensor([-1.0, -2.0], requires_grad=True)
    ratio = policy.to_old(Outputs(leaf), batch_of([2])).exp()
    ratio.sum().backward()
    assert ratio.tolist() == [1, 1]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1, 1]
