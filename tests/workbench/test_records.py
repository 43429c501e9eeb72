"""Held-out groups: which of them share a prompt."""

from __future__ import annotations

from espalier.workbench import records
from held_out import group


def test_groups_of_one_prompt_are_resampled_together() -> None:
    same = [group(1, 0, pairs=((0, 1),), prompt="p"), group(1, 0, pairs=((0, 1),), prompt="p"), group(1, 0)]
    assert records.prompt_numbers(same) == [0, 0, 1]
