"""What the first loss of a run must be, by arithmetic on plain floats.

Written from the papers, and without a line of `losses/` or `algorithms/`: it recognises an algorithm by the name of its
class and reads its hyper-parameters, so that the two can disagree. This file knows the algorithms by name;
`firstloss_pairs`, `firstloss_answers`, `firstloss_scores` and `firstloss_online` have their formulas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.checks.firstloss_answers import bco, kto, steps
from espalier.checks.firstloss_online import Rolled, ppo, reinforce, reinforce_pp
from espalier.checks.firstloss_pairs import cpo, dpo, orpo, simpo
from espalier.checks.firstloss_scores import reward
from espalier.checks.plainmath import AnswerFacts, Expected, Facts, Order, PairFacts, ReadFacts

__all__ = [
    "AnswerFacts",
    "Expected",
    "Facts",
    "PairFacts",
    "Rolled",
    "expected_advantages",
    "expected_first_gradient",
    "expected_first_loss",
    "expected_returns",
    "expected_scores",
    "expected_terms",
    "varied",
]


def expected_first_loss(
    algorithm: Any,
    pairs: Sequence[tuple[Any, ...]] = (),
    *,
    groups: Sequence[int] | None = None,
    orders: Sequence[Order] | None = None,
    chosen: Sequence[tuple[float, float]] | None = None,
    reads: Sequence[ReadFacts] = (),
    parts: Mapping[str, tuple[float, float]] | None = None,
    moving: float = 0.0,
) -> float | None:
    """The loss of one step over `pairs`, each (logp_w, logp_l, ref_w, ref_l, len_w, len_l) and more: see `PairFacts`.

    groups: the group of every pair, if groups have equal weight (`Reward`); None is one pair a group.
    orders: (strength, label) of every answer of every group, for plackett_luce; None makes an order of each pair.
    chosen: (log-probability, tokens) of the answers that a likelihood term is about; None takes every pair's w.
    reads: what a scalar head says and should say, for grades and steps.
    parts: (weighted nll, weights) of each part, for `SFT`.
    moving: KTO's reference point and BCO's delta, 0 before the first step.

    For KTO and BCO the w are good answers and the l bad ones; a side of length 0 is left out.

    None for an algorithm that has no entry here. Raises ValueError without anything to learn from.

    By hand: one pair (-4, -6, -5, -5, 2, 3). DPO, beta 0.1: margin 0.1 * (1 + 1) = 0.2, loss ln(1 + e^-0.2) = 0.5981.
    SimPO, beta 2, gamma 1: 2 * (-2 + 2) - 1 = -1, loss ln(1 + e) = 1.3133. ORPO, odds_coef 0.1: both means -2, so 0.1
    ln 2 + 4 / 2 = 2.0693. CPO, beta 0.1: ln(1 + e^-0.2) + 2 = 2.5981.
    """
    facts = Facts([PairFacts(*p) for p in pairs], groups, orders, chosen, list(reads), dict(parts or {}), moving)
    terms = expected_terms(algorithm, facts)
    return None if terms is None else sum(term.value * term.coef for term in terms.values())


def expected_terms(algorithm: Any, facts: Facts) -> dict[str, Expected] | None:
    """The terms of `expected_first_loss` by the names under which a run reports them."""
    if not (facts.pairs or facts.reads or facts.parts):
        raise ValueError("got no pairs, reads or parts, expected some")
    match type(algorithm).__name__:
        case "SFT":
            return _sft(algorithm, facts)
        case "DPO":
            return dpo(algorithm, facts)
        case "SimPO":
            return simpo(algorithm, facts)
        case "CPO":
            return cpo(algorithm, facts)
        case "ORPO":
            return orpo(algorithm, facts)
        case "KTO":
            return kto(algorithm, facts)
        case "BCO":
            return bco(algorithm, facts)
        case "Reward":
            return reward(algorithm, facts)
        case "PRM":
            return steps(algorithm, facts)
    return None


def _sft(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """sum w nll / sum w of every part, replay with its coefficient."""
    terms = {}
    for part, (cost, weight) in facts.parts.items():
        name = "nll" if part == "main" else f"nll_{part}"
        value = cost / weight if weight else 0.0
        terms[name] = Expected(value, algorithm.replay_coef if part == "replay" else 1.0)
    return terms


def varied(algorithm: Any) -> Any:
    """The algorithm with weights of its two sides that differ, if it has such weights: at equal ones, an exchange of
    the sides would change nothing."""
    match type(algorithm).__name__:
        case "KTO":
            return dataclasses.replace(algorithm, desirable_weight=2.5, undesirable_weight=0.75)
        case "PRM":
            return dataclasses.replace(algorithm, bad_weight=2.5)
    return algorithm


def expected_first_gradient(algorithm: Any, answers: Sequence[AnswerFacts], longest: int) -> list[float] | None:
    """The derivative of the first policy loss of a step in the log-probability of each token, one number an answer,
    where old and new policy are the same. With the advantage A of an answer of |y| tokens, one of S:

        GRPO, GSPO   -A / (|y| S)          DrGRPO   -A / (longest S)
        RLOO         -A / S                DAPO, Reinforce, ReinforcePP, PPO   -A / tokens of all answers
        RAFT         -1 / tokens of all answers that are kept, 0 for others

    GSPO with the product of ratios is as RLOO. None for an algorithm that has no entry here.
    """
    count, tokens = len(answers), sum(answer.tokens for answer in answers)
    kept = sum(answer.tokens for answer in answers if answer.kept)
    match type(algorithm).__name__:
        case "RAFT":
            return [-1 / kept if answer.kept else 0.0 for answer in answers]
        case "DAPO" | "Reinforce" | "ReinforcePP" | "PPO":
            return [-answer.advantage / tokens for answer in answers]
        case "DrGRPO":
            return [-answer.advantage / (longest * count) for answer in answers]
        case "GSPO" if not algorithm.length_normalised:
            return [-answer.advantage / count for answer in answers]
        case "GRPO" | "GSPO":
            return [-answer.advantage / (answer.tokens * count) for answer in answers]
        case "RLOO":
            return [-answer.advantage / count for answer in answers]
    return None


def expected_scores(algorithm: Any, rewards: Sequence[float], ratio: float) -> list[float] | None:
    """The scores that advantages are computed from if the KL is in the reward: r - beta (log old - log ref), of answers
    of which the policy says `ratio` nats more than the reference. None if it is not."""
    if not getattr(algorithm, "beta", 0.0) or algorithm.kl_in != "reward":
        return None
    if type(algorithm).__name__ == "ReinforcePP" and algorithm.baseline == "group":
        return None
    return [reward - algorithm.beta * ratio for reward in rewards]


def expected_advantages(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> list[list[float]] | None:
    """The advantages of the tokens of each answer of a run's first step, for algorithms that are given token by token;
    None for others.

    By hand: rewards 1 and 0, log-ratios (0.5, 0.5) and (1), beta 0.1. G is 0.9, 0.95 and -0.1; Reinforce has 0.9 + 0.1,
    0.95 + 0.1 and -0.1 - 0.9.
    """
    match type(algorithm).__name__:
        case "Reinforce":
            return reinforce(algorithm, groups)
        case "ReinforcePP":
            return reinforce_pp(algorithm, groups)
        case "PPO":
            return ppo(algorithm, groups)[0]
    return None


def expected_returns(algorithm: Any, groups: Sequence[Sequence[Rolled]]) -> list[list[float]] | None:
    """What a critic learns of the tokens of each answer of a first step; None of algorithms without one."""
    return ppo(algorithm, groups)[1] if type(algorithm).__name__ == "PPO" else None
