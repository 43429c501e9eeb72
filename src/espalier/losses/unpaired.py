"""Losses of single answers that are good or bad.

r is an answer's log-ratio log pi(y|x) - log ref(y|x), a sum over its tokens. Every function returns one number a
sample, [S], to be summed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from espalier.types import Term


def kto(
    ratios_S: Tensor, good_S: Tensor, kl: float, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """What an answer falls short of the largest value that it can have for a person:

        good   lambda_D (1 - sigma(beta (r - z)))          bad   lambda_U (1 - sigma(beta (z - r)))

    z = `kl` is the reference point, no function of the weights. Ethayarajh et al., arXiv:2402.01306. With
    p = sigma(beta (r - z)): d x / d r = -lambda_D beta p (1 - p) for good, +lambda_U beta p (1 - p) for bad ones.

    >>> kto(torch.zeros(2), torch.tensor([True, False]), 0.0, beta=0.1, undesirable=3.0).tolist()
    [0.5, 1.5]
    """
    lead_S = beta * (ratios_S - kl)
    return torch.where(good_S, desirable * torch.sigmoid(-lead_S), undesirable * torch.sigmoid(lead_S))


def bco(ratios_S: Tensor, good_S: Tensor, delta: float, *, beta: float) -> Tensor:
    """Cross-entropy of a classifier whose logit is the reward, less what rewards are on the average:

        good   -log sigma(beta r - delta)          bad   -log sigma(-(beta r - delta))

    `delta` is no function of the weights. Jung et al., arXiv:2404.04656. ln 2 at beta r = delta.
    d x / d r = beta (sigma(beta r - delta) - [good]).

    >>> bco(torch.zeros(2), torch.tensor([True, False]), 0.0, beta=0.1)
    tensor([0.6931, 0.6931])
    """
    lead_S = beta * ratios_S - delta
    return -logsigmoid(torch.where(good_S, lead_S, -lead_S))


def metrics(
    rewards_S: Tensor, logprobs_S: Tensor, good_S: Tensor, desirable: float = 1.0, undesirable: float = 1.0
) -> dict[str, Term]:
    """Metrics, without gradient. All are divided by the number of sequences, good and bad alike:

    good            share of good answers
    accuracy        share of answers on their side of 0
    rewards_good    sum over good ones; divided by `good` it is their mean reward
    rewards_bad     sum over bad ones; divided by 1 - `good` it is their mean reward
    logprobs_good, logprobs_bad   the same of the answers' log-probabilities, each a sum over tokens
    imbalance       (lambda_D good - lambda_U bad) / all: 0 if both sides have the same weight
    """
    rewards_S, logprobs_S, of_good_S = rewards_S.detach(), logprobs_S.detach(), good_S.to(rewards_S.dtype)
    values = {
        "good": of_good_S,
        "accuracy": ((rewards_S > 0) == good_S).to(rewards_S.dtype),
        "rewards_good": rewards_S * of_good_S,
        "rewards_bad": rewards_S * (1 - of_good_S),
        "logprobs_good": logprobs_S * of_good_S,
        "logprobs_bad": logprobs_S * (1 - of_good_S),
        "imbalance": desirable * of_good_S - undesirable * (1 - of_good_S),
    }
    return {name: Term(x_S, "sequences", coef=0.0) for name, x_S in values.items()}
