"""Losses of tokens that the policy drew itself: ratios of new and old probabilities, and how far they may pull.

Every function gives one number a token, [T], or a sequence, [S]. `weights` [T] says how much a token counts; tokens of
weight 0 have no influence on any value or gradient, whatever stands there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.losses.ops import by_sample
from espalier.types import Batch, Outputs, Term

LIMIT = 20.0
"""Log-ratios are held within plus and minus this: exp(20) is 4.9e8. Beyond it they have no gradient."""


def log_ratios(logprobs: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """log pi - log other of every token, [T], within +-`LIMIT`; 0 for tokens of weight 0.

    >>> one = torch.ones(3)
    >>> log_ratios(torch.tensor([-1.0, -1.0, -50.0]), torch.tensor([-1.5, -1.0, -1.0]), one).tolist()
    [0.5, 0.0, -20.0]
    """
    # Masked in front of the difference, so that what stands at such a token (an overflow, nan) cannot reach a gradient.
    counts = weights != 0
    gap = torch.where(counts, logprobs, 0.0) - torch.where(counts, other, 0.0)
    return gap.clamp(-LIMIT, LIMIT)


def clamped(logprobs: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """The weight of every token whose log-ratio lies beyond `LIMIT`, else 0, [T]: summed, how many were clamped."""
    return weights * ((logprobs - other).abs() > LIMIT)


def old_of(outputs: Outputs, batch: Batch) -> Tensor:
    """The old log-probabilities, [T]: the stream, or what the policy says now, without a gradient, in a step of a
    single update."""
    return batch.streams.get("old_logprobs", outputs.logprobs.detach())


def to_old(outputs: Outputs, batch: Batch) -> Tensor:
    """log pi - log old of every token, [T], as `log_ratios`."""
    return log_ratios(outputs.logprobs, old_of(outputs, batch), batch.weights)


def sequence_ratios(log_ratio: Tensor, batch: Batch, *, length_normalised: bool = True) -> Tensor:
    """The ratio of whole sequences, [S]; 1 for one without any weight.

        s = exp( sum_t w_t l_t / sum_t w_t )         l_t = log pi - log old; GSPO, arXiv:2507.18071, eq. 5
        s = exp( sum_t w_t l_t )                     with length_normalised off: the product of the token ratios

    The sum, too, stays within +-`LIMIT`. Log-ratios 0.1 and 0.3 give exp(0.2) = 1.2214, and exp(0.4) = 1.4918.
    """
    count = len(batch.samples)
    total_S = by_sample(batch.weights * log_ratio, batch.rows, count)
    if length_normalised:
        weight_S = by_sample(batch.weights.to(log_ratio.dtype), batch.rows, count)
        total_S = total_S / weight_S.where(weight_S != 0, 1.0)
    return total_S.clamp(-LIMIT, LIMIT).exp()


def token_form(ratio_S: Tensor, log_ratio: Tensor, rows: Tensor) -> Tensor:
    """A sequence's ratio at each of its tokens, with the gradient of that token alone, [T]:

        s_t = sg(s) pi_t / sg(pi_t)                  GSPO-token, arXiv:2507.18071, eq. 14

    The value is s everywhere; d s_t / d log pi_t = s. With one advantage a sequence it has the gradient of the sequence
    ratio, if tokens are averaged as its exponent averages them; with one advantage a token it gives each its own.
    """
    return ratio_S.detach()[rows] * (log_ratio - log_ratio.detach()).exp()


@dataclass(frozen=True, slots=True)
class Clip:
    """Ratios pull no further than to 1 - low and 1 + high; `dual`, if it is above 0, bounds those of answers that are
    to become less likely."""

    low: float
    high: float
    dual: float = 0.0


def clipped(ratio: Tensor, advantages: Tensor, clip: Clip) -> Tensor:
    """Clipped policy gradient, to be summed, [T]; Schulman et al. (PPO), arXiv:1707.06347, eq. 7.

        x = -min(r A, clip(r, 1 - low, 1 + high) A)
        x = -max(min(r A, clip(r) A), dual A)        for A < 0, if `dual` is above 0 (arXiv:1912.09729, eq. 5)

    At r = 1 it is -A, and dx/dr = -A. No gradient for A > 0 above 1 + high, and for A < 0 below 1 - low; with `dual`,
    none for A < 0 above r = dual either.

    >>> r = torch.tensor([1.5, 1.5, 0.5, 0.5, 4.0])
    >>> clipped(r, torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0]), Clip(0.2, 0.2, dual=3.0))
    tensor([-1.2000,  1.5000, -0.5000,  0.8000,  3.0000])
    """
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip.low, 1 + clip.high) * advantages)
    if clip.dual:
        gain = torch.where(advantages < 0, torch.maximum(gain, clip.dual * advantages), gain)
    return -gain


def means(batch: Batch, dtype: torch.dtype) -> Tensor:
    """The share of every token in its sequence, w_t / sum_t w_t, [T]; 0 in a sequence without any weight.

    Multiplied by it and summed over sequences, a number a token becomes its mean within each sequence.
    """
    weights = batch.weights.to(dtype)
    total_S = by_sample(weights, batch.rows, len(batch.samples))
    return weights / total_S.where(total_S != 0, 1.0)[batch.rows]


def metrics(ratio: Tensor, clip: Clip, outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Metrics, without gradient; but for ratio_max divided by the weight of the tokens:

    ratio       mean of pi / old (of the sequence's ratio, in losses that have one)
    ratio_max   the largest of them, at tokens with weight
    clip_low    share of tokens held at 1 - low: A < 0 and r below it
    clip_high   share of tokens held at 1 + high: A > 0 and r above it
    clamped     share of tokens whose log-ratio lies beyond +-20
    """
    ratio, weights, advantages = ratio.detach(), batch.weights, batch.streams["advantages"]
    values = {
        "ratio": ratio * weights,
        "clip_low": weights * ((ratio < 1 - clip.low) & (advantages < 0)),
        "clip_high": weights * ((ratio > 1 + clip.high) & (advantages > 0)),
        "clamped": clamped(outputs.logprobs.detach(), old_of(outputs, batch), weights),
    }
    terms = {name: Term(x, "tokens", coef=0.0) for name, x in values.items()}
    return {**terms, "ratio_max": Term(ratio[weights != 0], "max", coef=0.0)}


def of_answers(batch: Batch) -> Batch:
    """The batch with no weight but that of answers (part main). Given texts alone have no streams: then those that a
    critic's algorithm reads are 0, so that every micro-batch has the same terms."""
    nothing = batch.weights * 0
    streams = {**dict.fromkeys(("advantages", "ref_logprobs", "values", "returns"), nothing), **batch.streams}
    return replace(batch, weights=batch.weights * batch.part("main"), streams=streams)


def terms(outputs: Outputs, batch: Batch, clip: Clip) -> dict[str, Term]:
    """The term `policy`, `clipped` over tokens, with its metrics, those of `metrics` and:

    approx_kl           mean of k3 = r - 1 - log r, r = pi / old: an estimate of KL(old || pi), nats a token
    ratio_inverse_max   the largest old / pi, at tokens with weight
    """
    log_ratio = to_old(outputs, batch)
    ratio = log_ratio.exp()
    k3 = (ratio - 1 - log_ratio).detach()
    return {
        "policy": Term(clipped(ratio, batch.streams["advantages"], clip) * batch.weights, "tokens"),
        **metrics(ratio, clip, outputs, batch),
        "approx_kl": Term(k3 * batch.weights, "tokens", coef=0.0),
        "ratio_inverse_max": Term((-log_ratio.detach()).exp()[batch.weights != 0], "max", coef=0.0),
    }
