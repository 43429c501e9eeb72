"""What others must know of an algorithm that learns from the policy's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIVEN = "sft"
"""The part of given conversations that are trained beside the answers."""
PTX = "ptx"
"""The part of given conversations and texts that every minibatch has beside its answers."""


@dataclass(frozen=True, slots=True)
class Online:
    """How rollouts become updates.

    epochs, minibatches: passes over what a step draws, and updates in each; a step makes epochs x minibatches updates.
    siblings: the loss needs all samples of a group in one minibatch.
    least_group: the fewest graded answers to a prompt that it can learn from.
    least_step: the fewest answers of a step that it can learn from.
    entropy: the loss reads `Outputs.entropy`.
    old: whose log-probabilities are the stream `old_logprobs`, if `Traits.needs` names it: the learner's before the
        step's first update, or the sampler's.
    always: a term other than the policy's has a gradient (KL in the loss, entropy bonus), so no group is silent.
    refills: a dropped group is replaced by another prompt's.
    bootstraps: it needs the critic's value behind answers that the length limit ended, as the stream `bootstrap`.
    shows: names of the moving numbers that `credit` returns which belong into metrics.jsonl.
    """

    epochs: int = 1
    minibatches: int = 1
    siblings: bool = False
    least_group: int = 1
    least_step: int = 1
    entropy: bool = False
    old: Literal["learner", "sampler"] = "learner"
    always: bool = False
    refills: bool = False
    bootstraps: bool = False
    shows: tuple[str, ...] = ()
