"""From the score of an answer to the rewards of its trained tokens: plain floats, one a trained token, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.credit import shaping
from espalier.types import Sample, StopReason


def actions(s: Sample) -> list[int]:
    """The places of the tokens of a sample that are actions: trained ones, but for the first of all, which nothing
    precedes."""
    return [t for t in range(1, len(s.tokens)) if s.mask[t]]


def stream(s: Sample, values: Sequence[float]) -> list[float]:
    """One number for each token of a sample: `values` at its actions, 0 elsewhere.

    >>> s = Sample(); s.append([5], trained=False); s.append([6, 7], trained=True)
    >>> stream(s, [0.5, 0.25])
    [0.0, 0.5, 0.25]
    """
    out = [0.0] * len(s)
    for t, value in zip(actions(s), values, strict=True):
        out[t] = value
    return out


def clip_score(score: float, limit: float) -> float:
    """The score within +-`limit`; 0 is no limit.

    >>> clip_score(7.0, 5.0), clip_score(-7.0, 5.0), clip_score(7.0, 0.0)
    (5.0, -5.0, 7.0)
    """
    return max(-limit, min(limit, score)) if limit else score


def with_kl(score: float, log_ratios: Sequence[float], beta: float, *, score_clip: float = 0.0) -> list[float]:
    """The KL at each token, the score at the last one; DeepSpeed-Chat, arXiv:2308.01320 (`compute_rewards`), which
    takes beta 0.1 and score_clip 5:

        r_t = -beta k1_t                                          k1_t = log old_t - log ref_t, nats
        r_T = -beta k1_T + clip(score, -score_clip, score_clip)

    Raises ValueError without a token: there is no last one.

    >>> with_kl(7.0, [0.5, -1.0], 0.5, score_clip=5.0)
    [-0.25, 5.5]
    """
    if not log_ratios:
        raise ValueError("got no trained token, expected at least one, of which the last has the score")
    rewards = [-beta * x for x in log_ratios]
    rewards[-1] += clip_score(score, score_clip)
    return rewards


def sequence_kl(score: float, log_ratios: Sequence[float], beta: float, *, average: bool = False) -> float:
    """The score less one KL for the whole answer:

        score - beta sum_t k1_t          summed: the KL-regularised objective's
        score - beta mean_t k1_t         with `average`: a nat a token costs the same at every length

    >>> sequence_kl(1.0, [0.5, -1.0, 2.0], 0.5), sequence_kl(1.0, [0.5, -1.0, 2.0], 0.5, average=True)
    (0.25, 0.75)
    """
    total = math.fsum(log_ratios)
    if average:
        total /= max(1, len(log_ratios))
    return score - beta * total


def spread_score(score: float, count: int) -> list[float]:
    """The score in equal parts over `count` tokens, so that they sum to it. Raises ValueError if count is below 1.

    >>> spread_score(1.0, 4)
    [0.25, 0.25, 0.25, 0.25]
    """
    if count < 1:
        raise ValueError(f"got {count} trained tokens, expected at least one to spread the score over")
    return [score / count] * count


def unless_stopped(score: float, stop: StopReason, penalty: float) -> float:
    """The score of an answer that ended by itself; `penalty` in its place for one that did not.

    >>> unless_stopped(2.0, "stop", -1.0), unless_stopped(2.0, "length", -1.0)
    (2.0, -1.0)
    """
    return score if stop == "stop" else penalty


def of_sample(s: Sample, score: float, beta: float = 0.0, *, spread: bool = False) -> list[float]:
    """What each trained token of a sample earns: the score at the last one, or with `spread` in equal parts at all of
    them; the scores of its steps, if its rewards give some, where they end (behind the end: at the last); less beta k1
    of each.

    Raises ValueError if beta is not 0 and `old_logprobs` or `ref_logprobs` is missing.
    """
    places = actions(s)
    if not places:
        return []
    at_once = 0.0 if spread else score
    rewards = with_kl(at_once, shaping.log_ratios(s) if beta else [0.0] * len(places), beta)
    if spread:
        rewards = [r + part for r, part in zip(rewards, spread_score(score, len(places)), strict=True)]
    steps = s.outcome.steps if s.outcome is not None else ()
    for place, value in steps:
        # Places of steps count all tokens behind the prompt; a step that ends between turns is earned by the last
        # trained token before its end.
        end = shaping.response_start(s) + place
        rewards[max(0, sum(t <= end for t in places) - 1)] += value
    return rewards
