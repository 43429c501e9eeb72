"""Losses of a critic: its values against the returns of the tokens that they stand before.

Every function gives one number a token, [T]. Tokens of weight 0 have no influence on any value or gradient, whatever
stands there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espalier.types import Batch, Outputs, Term


def squared(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of values V [T] that move from `old` no further than counts, to be summed, [T];
    arXiv:1811.02553, section 2 (as in Schulman et al.'s released PPO and TRL 0.x):

        x = 1/2 max( (V - R)^2, (V_clip - R)^2 )         V_clip = old + clamp(V - old, -clip, clip)

    clip 0 is (V - R)^2 / 2. The gradient is V - R, and 0 if V is further than `clip` from old in the direction of R:
    there V_clip has the larger error, and does not depend on V.

    >>> V, old, R = torch.tensor([1.0, 0.5, -1.0]), torch.zeros(3), torch.tensor([2.0, 0.0, 2.0])
    >>> squared(V, old, R, 0.2), squared(V, old, R, 0.0)
    (tensor([1.6200, 0.1250, 4.5000]), tensor([0.5000, 0.1250, 4.5000]))
    """
    error = (values - returns).square()
    if clip:
        near = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return error / 2


def value_terms(outputs: Outputs, batch: Batch, *, clip: float, coef: float = 1.0) -> dict[str, Term]:
    """The term `value` over the tokens of part main, and as metrics `value_clipped`, the share of tokens whose value is
    held at `clip`, and `value_error`, the mean squared error.

    Of the batch it reads the streams `values` (the critic's before the step) and `returns`. Raises ValueError without
    `outputs.values`.
    """
    if outputs.values is None:
        raise ValueError("outputs have no values; expected those of a critic")
    counts = batch.weights != 0
    # Masked in front of any arithmetic, so that what stands at such a token cannot reach a gradient.
    values, old, returns = (
        torch.where(counts, x, 0.0) for x in (outputs.values, batch.streams["values"], batch.streams["returns"])
    )
    error = (values.detach() - returns).square()
    held = (squared(values.detach(), old, returns, clip) > error / 2) if clip else torch.zeros_like(counts)
    return {
        "value": Term(squared(values, old, returns, clip) * batch.weights, "tokens", coef=coef),
        "value_clipped": Term(held * batch.weights, "tokens", coef=0.0),
        "value_error": Term(error * batch.weights, "tokens", coef=0.0),
    }
