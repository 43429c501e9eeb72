"""Losses of single tokens."""

from __future__ import annotations

from torch import Tensor


def nll(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Weighted negative log-likelihood of every target, [T], nats: x_t = -w_t log p(y_t | y_<t).

    Summed over tokens and divided by the sum of the weights it is the cross-entropy.

    >>> import torch
    >>> nll(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5])).tolist()
    [1.0, 1.0]
    """
    return -logprobs * weights
