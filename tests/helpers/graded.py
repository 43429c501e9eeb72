"""Grading one response without a worker."""

from collections.abc import Mapping
from typing import Any

from espalier.rewards.reward import Answer, Known, Reward


def grade(
    reward: Reward, response: str, answer: str = "", facts: Mapping[str, Any] | None = None, **settings: Any
) -> float | str | dict[str, float] | None:
    """What `reward` gives: a score, "invalid", scores by name, or None."""
    return reward_of(reward, Known(response, None, answer=answer, facts=facts or {}, settings=settings))


def reward_of(reward: Reward, known: Known, ids: tuple[int, ...] = ()) -> float | str | dict[str, float] | None:
    """What `reward` gives to a known answer."""
    settings = {key: setting.default for key, setting in reward.settings.items()} | dict(known.settings)
    if reward.check is not None:
        reward.check(settings)
    answer = Answer(known.prompt, known.response, answer=known.answer, facts=known.facts, stop=known.stop, ids=ids)
    given = reward.grade(answer, settings)
    if isinstance(given, Mapping):
        return "invalid" if "invalid" in given else dict(given)
    return None if given is None else float(given)
