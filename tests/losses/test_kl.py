"""Estimates of the KL and what of them is differentiated."""

import math

import pytest
import torch
from torch import Tensor

from batches import batch_of
from espalier.losses import kl

LOG2 = math.log(2)
PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_estimates_at_a_policy_twice_as_sure() -> None:
    """r = ref / pi = 1/2: k1 = ln 2, k2 = ln^2 2 / 2, k3 = 1/2 - 1 + ln 2."""
    x = torch.tensor([LOG2], dtype=torch.float64)
    got = [kl.estimate(x, kind).item() for kind in ("k1", "k2", "k3")]
    assert got == pytest.approx([LOG2, LOG2**2 / 2, LOG2 - 0.5], abs=1e-15)


def gradient(kind: kl.Estimator, through: kl.Through) -> Tensor:
    """The exact gradient of the expected penalty in three logits, over one token drawn from PI."""
    logits = PI.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    batch = batch_of([1, 1, 1])
    x = kl.penalty(logprobs, REF.log(), logprobs - logprobs.detach(), batch, kind, through)
    (slope,) = torch.autograd.grad((PI * x).sum(), logits)
    return slope


def of(divergence: Tensor, logits: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(divergence, logits)
    return slope


@pytest.mark.parametrize(
    ("kind", "through"), [("k2", "naive"), ("k1", "token"), ("k3", "token"), ("k3", "sequence"), ("k1", "sequence")]
)
def test_these_have_the_gradient_of_the_divergence(kind: kl.Estimator, through: kl.Through) -> None:
    logits = PI.log().requires_grad_()
    logp = logits.log_softmax(0)
    want = of((logp.exp() * (logp - REF.log())).sum(), logits)
    assert torch.allclose(gradient(kind, through), want, atol=1e-15)


def test_naive_k1_has_no_gradient_and_naive_k3_that_of_the_other_divergence() -> None:
    assert gradient("k1", "naive").abs().max() < 1e-15
    logits = PI.log().requires_grad_()
    forward = (REF * (REF.log() - logits.log_softmax(0))).sum()
    assert torch.allclose(gradient("k3", "naive"), of(forward, logits), atol=1e-15)


def test_the_sequence_form_sums_to_the_end_of_each_answer() -> None:
    batch = batch_of([3, 1])
    x = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert kl.to_go(x, batch).tolist() == [7, 6, 4, 8]
    ratio = torch.tensor([0.0, LOG2, 0.0, LOG2])
    got = kl.penalty(x, torch.zeros(4), ratio, batch, "k3", "sequence")
    assert got.tolist() == pytest.approx([7, 12, 4, 16])
    batch.weights[1] = 0
    assert kl.penalty(x, torch.zeros(4), torch.zeros(4), batch, "k3", "sequence").tolist() == [5, 4, 4, 8]


def test_k2_with_the_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="naive k2"):
        kl.penalty(torch.zeros(1), torch.zeros(1), torch.zeros(1), batch_of([1]), "k2", "token")


def test_far_references_stay_finite() -> None:
    logprobs = torch.tensor([-1.0, -90.0], requires_grad=True)
    x = kl.penalty(logprobs, torch.tensor([-200.0, -1.0]), torch.zeros(2), batch_of([2]), "k3", "naive")
    assert x.tolist() == pytest.approx([19.0, math.exp(20) - 21], rel=1e-6)
    x.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, 0]
