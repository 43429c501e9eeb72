"""Advantages of tokens in a first step, by arithmetic on plain floats, of algorithms that are given token by token."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Rolled(NamedTuple):
    """Of an answer that ended by itself: its reward, log old - log ref of each of its tokens, the critic's value before
    each."""

    reward: float
    ratios: Sequence[float]
    values: Sequence[float] = ()


def reinforce(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> list[list[float]]:
    """G_t less the mean of G_1 over the other answers; with baseline none G_t itself. A moving baseline is the same in
    a first step."""
    beta = algorithm.beta if algorithm.kl_in == "reward" else 0.0
    to_go = [_to_go(x.reward, x.ratios, beta) for group in groups for x in group]
    if algorithm.kl_per == "answer":
        to_go = [answer[:1] * len(answer) for answer in to_go]
    if algorithm.baseline == "none":
        return to_go
    total, others = sum(answer[0] for answer in to_go), max(1, len(to_go) - 1)
    return [[G - (total - answer[0]) / others for G in answer] for answer in to_go]


def reinforce_pp(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> list[list[float]]:
    """(G_t - mean) / std over all tokens of the step, over n. With baseline group, G_t is the reward less the mean of
    its group, and has no KL."""
    to_go = []
    for group in groups:
        center, beta = 0.0, algorithm.beta if algorithm.kl_in == "reward" else 0.0
        if algorithm.baseline == "group":
            center, beta = statistics.fmean(x.reward for x in group), 0.0
        to_go += [_to_go(x.reward - center, x.ratios, beta) for x in group]
    return _whitened(to_go)


def ppo(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns of the tokens of each answer: sum_k (gamma lam)^k d_{t + k} with d = r + gamma V' - V, and
    that plus V (or the discounted rewards to go).

    By hand, gamma 1, lam 1, beta 0: reward 1 and values 0.25, 0.5 have the advantages 0.75, 0.5 and the returns 1, 1.
    """
    answers = [answer for group in groups for answer in group]
    rewards = [_token_rewards(algorithm, answer) for answer in answers]
    if algorithm.whiten_rewards:
        every = [r for of_answer in rewards for r in of_answer]
        center, spread = statistics.fmean(every), statistics.pstdev(every)
        rewards = [[(r - center) / (spread or 1.0) + center for r in of_answer] for of_answer in rewards]
    gamma, lam = algorithm.gamma, algorithm.lam
    advantages, targets = [], []
    for r, answer in zip(rewards, answers, strict=True):
        V, count = [*answer.values, 0.0], len(r)
        d = [r[t] + gamma * V[t + 1] - V[t] for t in range(count)]
        A = [math.fsum((gamma * lam) ** k * d[t + k] for k in range(count - t)) for t in range(count)]
        if algorithm.returns == "gae":
            R = [a + v for a, v in zip(A, answer.values, strict=True)]
        else:
            R = [math.fsum(gamma**k * r[t + k] for k in range(count - t)) for t in range(count)]
        advantages.append(A)
        targets.append(R)
    return _whitened(advantages) if algorithm.whiten_advantages else advantages, targets


def _token_rewards(algorithm: Any, answer: Rolled) -> list[float]:
    """What each token of an answer earns."""
    count, score = len(answer.ratios), answer.reward
    if algorithm.score_clip:
        score = min(max(score, -algorithm.score_clip), algorithm.score_clip)
    beta = algorithm.beta if algorithm.kl_in == "reward" else 0.0
    by_token = [-beta * x if algorithm.kl_per == "token" else 0.0 for x in answer.ratios]
    if algorithm.kl_per != "token":
        score -= beta * sum(answer.ratios) / (count if algorithm.kl_per == "mean" else 1)
    if algorithm.score_at == "spread":
        return [x + score / count for x in by_token]
    return [*by_token[:-1], by_token[-1] + score]


def _whitened(answers: Sequence[Sequence[float]]) -> list[list[float]]:
    """Mean 0 and deviation 1 over the tokens of all answers, over n."""
    tokens = [x for answer in answers for x in answer]
    center, spread = statistics.fmean(tokens), statistics.pstdev(tokens)
    return [[(x - center) / (spread or 1.0) for x in answer] for answer in answers]


def _to_go(reward: float, ratios: Sequence[float], beta: float) -> list[float]:
    """The reward less beta times the log-ratios from each token to the end: 1, (0.5, 0.5) and 0.1 give 0.9, 0.95."""
    return [reward - beta * sum(ratios[t:]) for t in range(len(ratios))]
