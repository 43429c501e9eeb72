"""A frozen reward model over whole groups: every sample's score is its own, and the calibrated one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.engines.learner import LearnerOptions
from espalier.engines.processes import OneProcess
from espalier.engines.reward_model import RewardModel
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Sample
from reward_models import groups
from tiny import tiny_model


def model(dimensions: int = 2) -> Any:
    made = tiny_model("llama")
    heads.attach(made, dimensions, seed=1)
    heads.set_calibration(made, heads.Calibration((0.5, -1.0)[:dimensions], (1.0, 2.0)[:dimensions]))
    return made


def by_hand(s: Sample) -> Tensor:
    """The head on the backbone's own hidden state after the read, calibrated."""
    made = model()
    with torch.no_grad():
        hidden = made.model(torch.tensor([s.tokens[: s.reads[0] + 1]])).last_hidden_state[0, -1]
        raw = hidden @ made.score.weight.T
    return raw * torch.tensor([1.0, 2.0]) + torch.tensor([0.5, -1.0])


def bare() -> list[list[Sample]]:
    return [[replace(s, mask=[False] * len(s), weights=[0.0] * len(s)) for s in group] for group in groups()]


@pytest.mark.parametrize("budget", [16, 1024])
def test_scores_are_calibrated_and_in_order_however_groups_are_cut(budget: int) -> None:
    asked = [*bare(), [], *bare()]
    engine = RewardModel(Policy(model(), "forest", says="reads"), LearnerOptions(budget=budget), OneProcess())
    scores = engine.scores(asked)
    expected = [by_hand(s) for group in asked for s in group]
    assert torch.allclose(torch.tensor(scores), torch.stack(expected), atol=1e-5)
    assert engine.scores(asked) == scores and engine.rows == 128
    assert not any(parameter.requires_grad for parameter in engine.forwards.policy.parameters())


def test_nothing_asked_is_nothing_scored() -> None:
    engine = RewardModel(Policy(model(), "forest", says="reads"), LearnerOptions(), OneProcess())
    assert engine.scores([]) == engine.scores([[], []]) == []
