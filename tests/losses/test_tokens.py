"""Losses of tokens: a number by hand."""

import torch

from espalier.losses.tokens import nll


def test_nll_is_minus_weight_times_logprob() -> None:
    assert nll(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5])).tolist() == [1.0, 1.0]
