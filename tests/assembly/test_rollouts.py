"""What of a run decides how much its sampler holds."""

from types import SimpleNamespace
from typing import Any

import pytest

from espalier.assembly.rollouts import most_answers


def session(*, prompts: int, ranks: int = 1, held: list[int], drawn: int = 0) -> Any:
    """16 tasks, 4 answers each."""
    return SimpleNamespace(
        config=SimpleNamespace(rollout=SimpleNamespace(prompts_per_step=prompts, group_size=4, eval_samples=drawn)),
        processes=SimpleNamespace(size=ranks),
        tasks=SimpleNamespace(prompts=lambda step: [None] * 16),
        opened=SimpleNamespace(sizes_held=held),
    )


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({"prompts": 3, "held": []}, 12),
        ({"prompts": 0, "held": []}, 64),
        ({"prompts": 3, "held": [20, 10]}, 30),
        ({"prompts": 3, "held": [20, 10], "drawn": 2}, 60),
        ({"prompts": 3, "held": [], "ranks": 2}, 8),
        ({"prompts": 1, "held": [21], "ranks": 2}, 11),
    ],
)
def test_the_most_answers_of_a_rank_are_those_of_its_largest_share(given: dict[str, Any], most: int) -> None:
    assert most_answers(session(**given)) == most
