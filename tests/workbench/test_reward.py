"""Every figure of the reward model's workbench against a number worked out by hand, then what must not change it."""

from __future__ import annotations

import pytest

from espalier.workbench import reward
from held_out import HOW, group


def test_accuracy_counts_equal_scores_half_and_knows_sources_and_k() -> None:
    found = reward.judge(
        [
            group(3, 2, 1, pairs=((0, 1), (0, 2), (1, 2)), source="a"),
            group(1, 2, pairs=((0, 1),), source="b"),
            group(1, 1, pairs=((0, 1),), source="b"),
        ],
        HOW,
    )["accuracy"]
    assert found["all"]["value"] == 3.5 / 5 and found["all"]["n"] == 5 and found["all"]["prompts"] == 3
    assert found["macro"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["source"]["a"]["value"] == 1.0 and found["source"]["b"]["value"] == 0.25
    assert found["k"]["3"]["value"] == 1.0 and found["k"]["2"]["value"] == 0.25
