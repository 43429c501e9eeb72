"""From logits to tokens: what is kept of the distribution, and one token of it for each uniform number.

With e = exp(z / temperature - max) a token v is kept or not by top-k, top-p and min-p, and drawn with the probability

    p_v = e_v / sum of kept e        log p_v = (z_v / temperature - max) - log(sum of kept e)

`mass` is the kept share of the sum over all tokens, so log p_v + log mass is the log-probability under the whole
distribution. The token is the first whose cumulative sum exceeds u times the sum: first over sums of blocks of `BLOCK`
tokens, then inside one block, so that only one block of each row is summed token by token.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.engines.protocols import SamplingParams

BLOCK = 128
# Of how many of the most probable tokens the cumulative sum of top-p is taken first.
_CANDIDATES = 256


def filters(params: SamplingParams) -> bool:
    """Whether part of the distribution may be left out; greedy draws are of the whole one."""
    return params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def draw(logits_BV: Tensor, params: SamplingParams, u_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A token for each row, its log-probability (nats, of the distribution drawn from) and, if `params` filter, the
    mass of what they keep. Logits are float32 or float64 and are overwritten; u: float64 in [0, 1), None if greedy.

    Tokens that equal the last one kept by top-k or top-p are kept too. Greedy draws take the first of the most probable
    tokens, and their log-probability is that at temperature 1.
    """
    if params.temperature == 0:
        token_B = logits_BV.argmax(-1)
        return token_B, _at(logits_BV, token_B) - logits_BV.logsumexp(-1), None
    if u_B is None:
        raise ValueError("draw got no uniform numbers at a temperature above 0; expected one for each row")
    # A power of two, which a CPU computes three times as fast (docs/log.md).
    scale = math.log2(math.e) / params.temperature
    e_BV = logits_BV.sub_(logits_BV.amax(-1, keepdim=True)).mul_(scale).exp2_()
    mass_B = None
    if filters(params):
        before_B = e_BV.sum(-1, dtype=torch.float64)
        keep(e_BV, params)
        mass_B = e_BV.sum(-1, dtype=torch.float64) / before_B
    token_B, total_B = inverse_cdf(e_BV, u_B)
    # Not from the logits, which e has overwritten: the logarithm of a drawn token's e is as exact as its logit, because
    # tokens whose e underflows have probability 0.
    logprob_B = _at(e_BV, token_B).double().log() - total_B.log()
    return token_B, logprob_B.to(e_BV.dtype), mass_B


def keep(e_BV: Tensor, params: SamplingParams) -> None:
    """Set to 0 what top-k, top-p and min-p leave out, in this order; e: exp(logits - maximum), in place.

    >>> e = torch.tensor([[1.0, 0.6, 0.3, 0.1]]); keep(e, SamplingParams(temperature=1.0, top_p=0.7)); e
    tensor([[1.0000, 0.6000, 0.0000, 0.0000]])
    """
    size = e_BV.shape[1]
    least_B1 = torch.zeros_like(e_BV[:, :1])
    if 0 < params.top_k < size:
        least_B1 = e_BV.topk(params.top_k).values[:, -1:]
        e_BV.masked_fill_(e_BV < least_B1, 0.0)
    if params.top_p < 1:
        least_B1 = _least_of_share(e_BV, params.top_p)
    if params.min_p > 0:
        least_B1 = least_B1.clamp(min=params.min_p)
    e_BV.masked_fill_(e_BV < least_B1, 0.0)


def _least_of_share(e_BV: Tensor, share: float) -> Tensor:
    """The smallest e [B, 1] of the fewest tokens that hold `share` of the sum."""
    size = e_BV.shape[1]
    wanted_B1 = e_BV.sum(-1, keepdim=True, dtype=torch.float64) * share
    count = min(_CANDIDATES, size)
    while True:
        sorted_BC = e_BV.topk(count).values
        cumulative_BC = sorted_BC.cumsum(-1, dtype=torch.float64)
        if count == size or bool((cumulative_BC[:, -1:] >= wanted_B1).all()):
            break
        count = min(8 * count, size)
    # A token is needed if those before it hold less.
    needed_B = ((cumulative_BC - sorted_BC) < wanted_B1).sum(-1).clamp(min=1)
    return sorted_BC.gather(1, needed_B[:, None] - 1)


def inverse_cdf(e_BV: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first token of each row whose cumulative sum of e exceeds u times the sum, and the sum (float64).

    A token of e = 0 is never returned, whatever u rounds to.

    >>> inverse_cdf(torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([0.45], dtype=torch.float64))[0]
    tensor([1])
    """
    size = e_BV.shape[1]
    if size % BLOCK:
        e_BV = F.pad(e_BV, (0, -size % BLOCK))
    blocks_BKC = e_BV.view(len(e_BV), -1, BLOCK)
    sums_BK = blocks_BKC.sum(-1).double().cumsum_(-1)
    total_B = sums_BK[:, -1]
    target_B1 = (u_B * total_B)[:, None]
    block_B1 = _first_above(sums_BK, target_B1)
    before_B1 = torch.where(block_B1 > 0, sums_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BC = blocks_BKC.gather(1, block_B1[..., None].expand(-1, 1, BLOCK))[:, 0].double().cumsum_(-1)
    place_B1 = _first_above(inside_BC, target_B1 - before_B1)
    return (block_B1 * BLOCK + place_B1)[:, 0], total_B


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index [B, 1] of the first cumulative sum above the target, but no later than the last that grows."""
    above = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(above, last)


def _at(x_BV: Tensor, token_B: Tensor) -> Tensor:
    return x_BV.gather(1, token_B[:, None])[:, 0]


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> None:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones, in place (arXiv:1909.05858)."""
    scaled_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV.copy_(torch.where(seen_BV, scaled_BV, logits_BV))


def counter_uniform(seed: int, *counters: Any) -> Any:
    """Uniform numbers in (0, 1), a function of the integers alone: float64, of the counters' broadcast shape.

    Each integer in turn is joined to the state, which SplitMix64's finaliser then mixes (Steele et al. 2014). Multiples
    of 2^-40, offset by half of one, so that u times a sum of probabilities stays below the sum. Negative integers count
    modulo 2^64.
    """
    state = _mix(np.asarray(seed).astype(np.uint64))
    for counter in counters:
        state = _mix(state ^ np.asarray(counter).astype(np.uint64))
    return ((state >> np.uint64(24)).astype(np.float64) + 0.5) * 2.0**-40


def _mix(z: Any) -> Any:
    # Multiplication modulo 2^64 is meant to overflow.
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
