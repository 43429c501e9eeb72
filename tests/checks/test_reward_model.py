"""The check of reward models: it passes for one that is read right, and finds one that is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.assembly.model import build_model
from espalier.assembly.reward_choice import Choice
from espalier.assembly.reward_models import ANY_HEAD, Member, RewardModels
from espalier.checks import reward_model as module
from espalier.config.sections import ModelConfig
from espalier.data.render.renderer import Renderer
from espalier.engines.learner import LearnerOptions
from espalier.engines.processes import OneProcess
from espalier.engines.reward_model import RewardModel
from espalier.types import Sample
from scored import reward_model
from tiny import tiny_tokenizer


def session(folder: str, dtype: str = "float32") -> Any:
    """Two prompts with three drawn answers each, and a reward model over them."""
    device = torch.device("cpu")
    model = build_model(ModelConfig(model=folder, dtype=dtype), device, head=ANY_HEAD)
    engine = RewardModel(model.policy, LearnerOptions(budget=128, compute=model.compute), OneProcess())
    choice = Choice("rm", folder, 1.0, Path(folder), {"0": 1.0})
    scorers = RewardModels([Member(choice, model, engine, None)], Renderer(tiny_tokenizer()), 1.0)
    groups = []
    for row in range(2):
        group = []
        for k in range(3):
            s = Sample()
            s.append([3, *range(40 + row, 64 + row), 5], trained=False)
            s.append([*range(50, 54 + k + row), 4], trained=True)
            group.append(s)
        groups.append(group)
    return SimpleNamespace(
        rollouts=SimpleNamespace(scorers=scorers),
        rehearsed=groups,
        main=True,
        processes=OneProcess(),
        device=device,
        config=SimpleNamespace(model=SimpleNamespace(trust_remote_code=False)),
    )


def check(made: Any) -> Any:
    return module.check_reward_models(SimpleNamespace(session=made))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return reward_model(tmp_path_factory.mktemp("scored") / "rm", (2.5,), weight=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_a_good_model_pass(folder: str, dtype: str) -> None:
    outcome = check(session(folder, dtype))
    assert outcome.verdict == "pass", outcome
    assert outcome.value.startswith("rm: 6 answers, ") and "from transformers" in outcome.value


FAULTS: dict[str, tuple[Any, str]] = {
    "a bias that is left out": (lambda scores, groups: [(x - 2.5,) for (x,) in scores], "from transformers"),
    "siblings that are exchanged": (lambda scores, groups: scores[::-1], "between one alone and all"),
    "a score that depends on the batch": (
        lambda scores, groups: [(x + 1e-3 * len(scores),) for (x,) in scores],
        "between one alone and all",
    ),
    "not a number": (lambda scores, groups: [(float("nan"),) for _ in scores], "inf between"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(folder: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, text = FAULTS[fault]
    scores = RewardModel.scores
    monkeypatch.setattr(RewardModel, "scores", lambda self, groups: change(scores(self, groups), groups))
    outcome = check(session(folder))
    assert outcome.verdict == "fail" and text in outcome.value and "--layout padded" in outcome.way_out


def test_a_model_that_is_read_at_another_token_is_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest reads one token earlier than the class."""
    made = session(folder)
    read = RewardModels.as_read
    monkeypatch.setattr(RewardModels, "as_read", lambda self, s, unread: read(self, s, unread))
    engine = made.rollouts.scorers.members[0].engine
    say = engine.forwards.say

    def early(groups: Any, *args: Any, **more: Any) -> Any:
        for s in (s for group in groups for s in group):
            s.reads = [len(s.tokens) - 2]
        outputs = say(groups, *args, **more)
        for s in (s for group in groups for s in group):
            s.reads = [len(s.tokens) - 1]
        return outputs

    monkeypatch.setattr(engine.forwards, "say", early)
    assert check(made).verdict == "fail"


def test_no_room_for_a_second_copy_is_said(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 0.0)
    outcome = check(session(folder))
    assert outcome.verdict == "pass" and "not by transformers: a second copy needs 0.0 GiB" in outcome.value
