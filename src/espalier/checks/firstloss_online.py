"""Advantages of tokens in a first step, by arithmetic on plain floats, of algorithms that are given token by token."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Rolled = tuple[float, Sequence[float]]
"""Of an answer: its reward, and log old - log ref of each of its tokens."""


def reinforce(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> list[list[float]]:
    """G_t less the mean of G_1 over the other answers; with baseline none G_t itself. A moving baseline is the same in
    a first step."""
    beta = algorithm.beta if algorithm.kl_in == "reward" else 0.0
    to_go = [_to_go(reward, ratios, beta) for group in groups for reward, ratios in group]
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
            center, beta = statistics.fmean(reward for reward, _ in group), 0.0
        to_go += [_to_go(reward - center, ratios, beta) for reward, ratios in group]
    tokens = [G for answer in to_go for G in answer]
    center, spread = statistics.fmean(tokens), statistics.pstdev(tokens)
    return [[(G - center) / (spread or 1.0) for G in answer] for answer in to_go]


def _to_go(reward: float, ratios: Sequence[float], beta: float) -> list[float]:
    """The reward less beta times the log-ratios from each token to the end: 1, (0.5, 0.5) and 0.1 give 0.9, 0.95."""
    return [reward - beta * sum(ratios[t:]) for t in range(len(ratios))]
