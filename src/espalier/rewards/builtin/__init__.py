"""The rewards that come with the library, by name. (Rewards that run code a model has written are not among them.)"""

from __future__ import annotations

from espalier.rewards.builtin import equal, numeric, shape
from espalier.rewards.reward import Reward

REWARDS: tuple[Reward, ...] = (
    equal.EXACT,
    numeric.NUMERIC,
    numeric.GSM8K,
    shape.LENGTH,
    shape.TAGS,
    shape.CODE_BLOCK,
)
BUILTIN: dict[str, Reward] = {reward.name: reward for reward in REWARDS}
