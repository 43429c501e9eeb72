"""Algorithms that reward each token: what becomes of an answer's score."""

from __future__ import annotations

from typing import Literal

from espalier.algorithms.controlled_kl import ControlledKL
from espalier.config.fields import NotNegative, section


@section
class TokenRewarded(ControlledKL):
    """The fields that `credit.actor_critic.rewards_of` reads."""

    beta: NotNegative = 0.05
    """Strength of the KL to the reference; 0 is off, and loads none."""
    kl_in: Literal["loss", "reward"] = "reward"
    """The KL is a term of the loss, or is taken from the reward (k1)."""
    kl_per: Literal["token", "answer", "mean"] = "token"
    """The KL in the reward: of each token where it is; of the whole answer, or its mean a token, from the score."""
    score_at: Literal["last", "spread"] = "last"
    """The last token earns the score, or all tokens an equal part of it."""
    score_clip: NotNegative = 5.0
    """Scores are held within plus and minus this; 0 is no limit."""
    stop_penalty: NotNegative = 0.0
    """Minus this is the score of an answer that did not stop, in place of its own; 0 is off."""
    whiten_rewards: bool = False
    """Rewards of a step have deviation 1, and keep their mean."""
