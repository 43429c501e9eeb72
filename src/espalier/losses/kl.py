"""Estimates of the divergence from the policy to a reference, and what of them a loss differentiates.

With r = ref / pi at a token that the policy drew (Schulman, http://joschu.net/blog/kl-approx.html):

    k1 = -log r                 unbiased; its gradient has mean 0
    k2 = (log r)^2 / 2          biased; its gradient is that of the divergence of this token
    k3 = r - 1 - log r          unbiased, never negative; its gradient pulls towards the reference by 1 - r
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from espalier.losses.policy import log_ratios
from espalier.types import Batch

Estimator = Literal["k1", "k2", "k3"]
Through = Literal["naive", "token", "sequence"]


def estimate(log_ref: Tensor, kind: Estimator) -> Tensor:
    """One of the three estimates from `log_ref` = log pi - log ref, in nats, of its shape.

    >>> x = torch.tensor([0.0, 0.6931472])
    >>> [estimate(x, kind).tolist()[1] for kind in ("k1", "k2", "k3")]
    [0.6931471824645996, 0.24022650718688965, 0.1931471824645996]
    """
    if kind == "k1":
        return log_ref
    if kind == "k2":
        return log_ref.square() / 2
    return (-log_ref).exp() - 1 + log_ref


def to_go(x: Tensor, batch: Batch) -> Tensor:
    """Sums from each token to the end of its sequence, [T]: y_t = sum_{s >= t} x_s.

    1, 2, 4 of one sequence and 8 of the next become 7, 6, 4 and 8.
    """
    # Sample by sample: one sum over the whole batch, less what came before, would lose digits in float32.
    sums, start = [x[:0]], 0
    for length in batch.lengths_S.tolist():
        end = start + int(length)
        sums.append(x[start:end].flip(0).cumsum(0).flip(0))
        start = end
    return torch.cat(sums)


def penalty(
    logprobs: Tensor, ref: Tensor, log_ratio: Tensor, batch: Batch, kind: Estimator, through: Through
) -> Tensor:
    """What a loss holds against a token for leaving the reference, [T], to be weighted and summed. With rho = exp(log
    pi - log old), `log_ratio` its logarithm:

        naive      x_t = k_t                                           as it stands
        token      x_t = rho_t k_t                                     k1, k3
        sequence   x_t = sg( sum_{s >= t} log pi_s - log ref_s ) rho_t

    At rho = 1, and over the policy's own draws, the gradients are those of: naive k1 nothing; naive k2 and both token
    forms the divergence of each token at its own prefix, without what the token does to later ones; naive k3
    KL(ref || pi) of each token; sequence the divergence of whole sequences (arXiv:2512.02556, section 3.1, for token
    k3). `sequence` reads no estimator.

    Log-ratios of tokens stay within +-20, as in `policy.log_ratios`. Raises ValueError for token k2: E[rho k2] is not
    the divergence.
    """
    log_ref = log_ratios(logprobs, ref, batch.weights)
    if through == "sequence":
        return to_go(log_ref.detach() * (batch.weights != 0), batch) * log_ratio.exp()
    if through == "naive":
        return estimate(log_ref, kind)
    if kind == "k2":
        raise ValueError("token k2: the mean of rho k2 is not the divergence; use k1 or k3, or naive k2")
    return log_ratio.exp() * estimate(log_ref, kind)
