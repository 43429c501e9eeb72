"""The loss of an algorithm on a batch of numbers, and its gradient in the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from espalier.algorithms.traits import Algorithm
from espalier.losses.ops import normalise
from espalier.types import Batch, Outputs


def value(algorithm: Algorithm, logprobs: Sequence[float], made: Batch) -> tuple[float, list[float], dict[str, float]]:
    """Loss, gradient, terms; all in float64."""
    leaf = torch.tensor(list(logprobs), dtype=torch.float64, requires_grad=True)
    loss, shares = normalise(algorithm.loss(Outputs(leaf), made), made.totals)
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.item(), slope.tolist(), {name: x.item() for name, x in shares.items()}


def wide(values: Sequence[float]) -> Any:
    return torch.tensor(list(values), dtype=torch.float64)
