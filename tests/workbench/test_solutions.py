"""Whole solutions: a number from their steps, and how well it tells right from wrong."""

from __future__ import annotations

import math

import pytest
import torch

from espalier.losses import steps as losses
from espalier.types import Aggregate, Sample
from espalier.workbench.solutions import aggregate, auc, from_samples
from solutions import HOW, logit


@pytest.mark.parametrize(
    ("how", "value"), [("product", math.log(0.36)), ("min", 0.5), ("last", 0.8), ("mean", 2.2 / 3)]
)
def test_aggregates_agree_with_the_loss(how: Aggregate, value: float) -> None:
    scores = [logit(p) for p in (0.9, 0.5, 0.8)]
    assert aggregate(scores, how) == pytest.approx(value)
    trained = losses.aggregate(torch.tensor(scores), torch.tensor([3]), how).item()
    assert trained == pytest.approx(math.exp(value) if how == "product" else value)


def test_auc_by_hand() -> None:
    """Right 3 and 1, wrong 2 and 1: 3 > 2, 3 > 1, 1 < 2, and 1 = 1 counts half."""
    found = auc([3, 1, 2, 1], [True, True, False, False], [0, 1, 2, 3], HOW)
    assert found["value"] == pytest.approx(2.5 / 4) and 0 <= found["low"] <= 2.5 / 4 <= found["high"] <= 1
    assert auc([1, 2], [True, True], [0, 1], HOW)["value"] is None


def test_samples_with_one_prompt_are_solutions_of_one_problem() -> None:
    def made(prompt: list[int], solution: list[int], label: float | None) -> Sample:
        sample = Sample(label=label)
        sample.append(prompt, trained=False)
        sample.append(solution, trained=True)
        sample.reads, sample.grades = [len(prompt), len(sample) - 1], [(1.0,), (math.nan,)]
        return sample

    groups = [[made([1, 2], [3, 4], 1.0)], [made([1, 2], [3, 5, 6], 0.0), made([1], [2, 3], None)]]
    found = from_samples(groups, [[(0.5,), (1.5,)], [(2.0,), (3.0,)], [(4.0,), (5.0,)]])
    assert [(s.problem, s.scores, s.solved) for s in found] == [
        ("1 2", (0.5, 1.5), True), ("1 2", (2.0, 3.0), False), ("1", (4.0, 5.0), None)
    ]  # fmt: skip
    assert found[0].labels == (1.0, None)
    groups[0][0].stop = "length"
    assert [s.whole for s in from_samples(groups, [[(0.0,)] * 2] * 3)] == [False, True, True]
