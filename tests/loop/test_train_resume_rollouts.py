"""`espalier grpo`, killed in the rollout, the grading, an update, a save, and resumed: bit for bit as never killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier.loop.metrics import read_lines
from runs import CHECKS, Ended, Place, assert_same
from scored import reward_model

pytestmark = pytest.mark.slow
REWARDS = """
import random

def distinct(prompt: str, response: str, **task) -> float:
    return len(set(response)) / 10

def mood(prompt: str, response: str, **task) -> float:
    return random.random()
"""
POINTS: dict[str, list[Any]] = {
    "the rollout of the first step": ["after", "espalier.loop.answers:_Share._grade", 3],
    "the rollout of step 4": ["after", "espalier.loop.answers:_Share._grade", 44],
    "the grading of step 4": ["before", "espalier.loop.answers:_Share._settle", 46],
    "the journal": ["after", "espalier.loop.journal:Journal.write", 14],
    "an evaluation": ["before", "espalier.loop.rollout:RolloutSource.evaluate", 2],
    "an update": ["in_step", 3, 0],
    "after an update": ["after", "espalier.engines.optimizer:Optimizer.step", 4],
    "samples of a step": ["after", "espalier.loop.metrics:MetricsFile.append", 60],
    "a save": ["before", "espalier.loop.checkpoint:_write_manifest", 2],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("rollouts"))
    (made.folder / "rewards.py").write_text(REWARDS)
    with open(made.folder / "tasks.jsonl", "w") as file:
        for i in range(11):
            file.write(json.dumps({"question": f"{i} + {i}?", "answer": f"#### {2 * i}"}) + "\n")
    yield made
    made.close()


def grpo(
    place: Place,
    run: Path,
    *more: str,
    command: str = "grpo",
    reward: str = "distinct",
    hook: list[Any] | None = None,
) -> Ended:
    flags = [
        *(command, "--model", str(place.model), "--data", str(place.folder / "tasks.jsonl"), "--out", str(run)),
        *(
            "--cache",
            str(place.folder / "cache"),
            "--reward",
            f"{place.folder / 'rewards.py'}:{reward}",
            "--lr",
            "1e-3",
        ),
        *("--prompts-per-step", "4", "--group-size", "3", "--max-tokens", "6", "--steps", "5", "--lr", "1e-3"),
        *(
            "--reward-workers",
            "1",
            "--eval-fraction",
            "0.2",
            "--eval-every",
            "2",
            "--save-every",
            "2",
            "--skip-checks",
            *CHECKS,
            *more,
        ),
    ]
    return place.command(flags, hook)


def samples(run: Path) -> list[dict[str, Any]]:
    return list(read_lines(run / "samples.jsonl"))


@pytest.fixture(scope="module")
def whole(place: Place) -> Path:
    run = place.folder / "whole"
    ended = grpo(place, run)
    assert ended.code == 0, ended
    return run


def test_a_run_leaves_its_samples_and_its_journal(whole: Path) -> None:
    records = samples(whole)
    assert len(records) == 5 * 4 * 3
    assert all(record["score"] == len(set(record["response"])) / 10 and record["length"] <= 6 for record in records)
    journal = list(read_lines(whole / "journal.jsonl"))
    assert sum(not line["held_out"] for line in journal) == 60
    # Three of eleven tasks are held out, and evaluated after steps 2, 4 and 5.
    assert sum(line["held_out"] for line in journal) == 3 * 3


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_never_killed(place: Place, whole: Path, tmp_path: Path, point: str) -> None:
    run = tmp_path / "run"
    killed = grpo(place, run, hook=POINTS[point])
    assert killed.code == -signal.SIGKILL, killed
    resumed = grpo(place, run, "--resume")
    assert resumed.code == 0, resumed
    assert_same(run, whole)
    assert samples(run) == samples(whole)


def test_a_moving_baseline_goes_on_where_it_was(place: Place, tmp_path: Path) -> None:
    """Killed in the update of step 4, resumed after step 2: the mean of scores has the same bits."""
    flags = ("--baseline", "moving", "--group-size", "1", "--beta", "0.1")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert grpo(place, whole, *flags, command="reinforce").code == 0
    killed = grpo(place, run, *flags, command="reinforce", hook=["in_step", 3, 0])
    assert killed.code == -signal.SIGKILL, killed
    resumed = grpo(place, run, *flags, "--resume", command="reinforce")
    assert resumed.code == 0, resumed
    assert_same(run, whole)
    assert samples(run) == samples(whole)
    means = [line["score_mean"] for line in read_lines(whole / "metrics.jsonl") if "score_mean" in line]
    assert len(means) == 5 and len(set(means)) == 5


CRITICS = {
    "own": ("--critic-pretrain", "1", "--critic-warmup", "1", "--critic-lr", "1e-3"),
    "shared": ("--critic", "shared"),
}


@pytest.mark.parametrize("critic", CRITICS)
def test_an_actor_and_its_critic_go_on_where_they_were(place: Place, tmp_path: Path, critic: str) -> None:
    """Killed between two updates of step 4, after one of step 5, and in the second save; beta, critic and the cursor of
    given texts have the same bits."""
    flags = (
        *("--group-size", "2", "--minibatches", "2", "--kl-control", "adaptive", "--kl-target", "0.05"),
        *("--kl-horizon", "40", "--ptx-data", str(place.text), *CRITICS[critic]),
    )
    whole = tmp_path / "whole"
    ended = grpo(place, whole, *flags, command="ppo")
    assert ended.code == 0, ended
    lines = [line for line in read_lines(whole / "metrics.jsonl") if "beta" in line]
    assert len({line["beta"] for line in lines}) > 2 and all(line["value"] > 0 for line in lines)
    assert any("ptx" in line for line in lines)
    for name, hook in {
        "update": ["in_step", 7, 0],
        "after": ["after", "espalier.engines.optimizer:Optimizer.step", 9],
        "save": ["before", "espalier.loop.checkpoint:_write_manifest", 2],
    }.items():
        run = tmp_path / name
        killed = grpo(place, run, *flags, command="ppo", hook=hook)
        assert killed.code == -signal.SIGKILL, killed
        resumed = grpo(place, run, *flags, "--resume", command="ppo")
        assert resumed.code == 0, resumed
        assert_same(run, whole)
        assert samples(run) == samples(whole)


def test_scores_at_random_are_those_of_the_journal(place: Place, tmp_path: Path) -> None:
    """Killed in the update of step 4: its scores, and those of step 3, were given before, and stay."""
    run = tmp_path / "run"
    killed = grpo(place, run, reward="mood", hook=["in_step", 3, 0])
    assert killed.code == -signal.SIGKILL, killed
    before = list(read_lines(run / "journal.jsonl"))
    resumed = grpo(place, run, "--resume", reward="mood")
    assert resumed.code == 0, resumed
    given = {(line["step"], line["row"], line["epoch"], line["k"]): line["outcome"]["score"] for line in before}
    shared = 0
    for record in samples(run):
        key = (record["step"] - 1, record["task"]["row"], record["epoch"], record["k"])
        if key in given:
            assert record["score"] == given[key]
            shared += 1
    assert shared == 4 * 12


def test_a_signal_in_a_rollout_saves_what_was_before_it(place: Place, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped = grpo(place, run, hook=["signal_at", "espalier.loop.answers:_Share._grade", 40, "SIGTERM"])
    assert stopped.code == 0, stopped
    assert len(samples(run)) == 3 * 12
    resumed = grpo(place, run, "--resume")
    assert resumed.code == 0, resumed
    assert samples(run) == samples(whole)


def test_scores_of_a_reward_model_are_computed_again_to_the_same_bits(place: Place, tmp_path: Path) -> None:
    """Killed in the scoring of step 4, and in that of the evaluation after step 4."""
    model = reward_model(tmp_path / "rm", (0.25,), weight=1.0)
    flags = ("--reward-model", f"{model}=0.5", "--group-size", "2")
    whole = tmp_path / "whole"
    assert grpo(place, whole, *flags).code == 0
    assert {name for record in samples(whole) for name in record["parts"]} == {"distinct", "rm"}
    assert len({record["parts"]["rm"] for record in samples(whole)}) > 10
    for name, call in (("draw", 5), ("evaluation", 6)):
        run = tmp_path / name
        killed = grpo(place, run, *flags, hook=["before", "espalier.assembly.reward_models:RewardModels.add", call])
        assert killed.code == -signal.SIGKILL, killed
        resumed = grpo(place, run, *flags, "--resume")
        assert resumed.code == 0, resumed
        assert_same(run, whole)
        assert samples(run) == samples(whole)
