"""`espalier grpo` and its relatives, from end to end on a tiny model: what each setting does, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from desk import Desk, Left
from espalier.checks.start import NAMES
from espalier.loop.metrics import read_lines

REWARD = "def distinct(prompt, response, **task):\n    return len(set(response)) / 10\n"


def flags(desk: Desk, name: str, *more: str, reward: str = "") -> list[str]:
    """Two steps of two prompts x four answers of at most five tokens."""
    tasks = desk.rows("tasks", [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(6)])
    (desk.folder / "reward.py").write_text(REWARD)
    rewards = reward or f"{desk.folder / 'reward.py'}:distinct"
    return [
        *("--model", desk.model, "--data", tasks, "--out", str(desk.folder / name), "--steps", "2", "--lr", "1e-2"),
        *("--cache", str(desk.folder / "cache"), "--prompts-per-step", "2", "--group-size", "4", "--max-tokens", "5"),
        *("--reward", rewards, "--reward-workers", "1", *more),
    ]


def train(desk: Desk, command: str, *more: str) -> Left:
    """A run without checks, those that the loop makes after each update aside."""
    skipped = [name for name in NAMES if name != "handover"]
    # The sampler's canary is made by its check.
    skipped.remove("sampler")
    desk.command([command, *flags(desk, "run", *more, "--skip-checks", *skipped)])
    return Left(desk.folder / "run")


RUNS: dict[str, tuple[str, ...]] = {
    "grpo": (),
    "grpo, KL in the loss": ("--beta", "0.1"),
    "grpo, KL in the reward": ("--beta", "0.1", "--kl-in", "reward"),
    "grpo, four updates": ("--rollout-epochs", "2", "--minibatches", "2"),
    "grpo, the sampler's old": ("--old", "sampler", "--rollout-epochs", "2", "--beta", "0.1"),
    "grpo, sequence form of the KL": ("--beta", "0.1", "--kl-gradient", "sequence", "--minibatches", "2"),
    "grpo, a moving reference": ("--beta", "0.1", "--sync-every", "1"),
    "grpo, entropy and top-p": ("--entropy-coef", "0.01", "--top-p", "0.9"),
    "grpo, LoRA": ("--lora-rank", "4", "--beta", "0.1"),
    "grpo, bfloat16": ("--dtype", "bfloat16", "--lr", "1e-1"),
    "grpo, generate": ("--sampler", "generate"),
    "dr-grpo": ("--beta", "0.1"),
    "rloo": ("--beta", "0.1", "--kl-in", "reward"),
    "dapo": ("--beta", "0.1"),
    "gspo": ("--rollout-epochs", "2"),
    "reinforce": ("--group-size", "1", "--beta", "0.1"),
    "reinforce, moving": ("--baseline", "moving", "--minibatches", "2"),
    "reinforce, KL in the loss": ("--beta", "0.1", "--kl-in", "loss", "--baseline", "none"),
    "reinforce-pp": ("--group-size", "1", "--beta", "0.1", "--minibatches", "2"),
    "reinforce-pp, group": ("--baseline", "group", "--beta", "0.1"),
    "raft": ("--rollout-epochs", "2"),
    "raft, a share of the batch": ("--select", "batch", "--top-share", "0.5"),
}
FEW = ("grpo, KL in the loss", "reinforce", "raft")
"""Runs of every test run; the others are slow together."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow, id=name) for name in RUNS]
)
def test_every_algorithm_trains(desk: Desk, name: str) -> None:
    command, more = name.partition(",")[0], RUNS[name]
    left = train(desk, command, *more)
    steps = [line for line in left.lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2]
    passes, cuts = ([int(more[more.index(f) + 1]) if f in more else 1] for f in ("--rollout-epochs", "--minibatches"))
    samples = list(read_lines(left.path / "samples.jsonl"))
    for line in steps:
        own = [record for record in samples if record["step"] == line["step"]]
        assert line["updates"] == passes[0] * cuts[0]
        assert line["reward"] == pytest.approx(sum(record["score"] for record in own) / len(own))
        assert line["reward_distinct"] == line["reward"]
        assert line["length"] == pytest.approx(sum(record["length"] for record in own) / len(own))
        assert all(record["score"] == len(set(record["response"])) / 10 for record in own)
        if "--beta" in more:
            assert line["kl"] >= 0
    if "--beta" in more and steps[0]["updates"] == 1:
        # The reference is the policy as it starts.
        assert steps[0]["kl"] == pytest.approx(0, abs=1e-9)
    kept = [record for record in samples if record["fate"] == "keep"]
    assert kept and all(record["advantage"] is not None for record in kept) == (command != "raft")
    if "--lora-rank" not in more:
        before = Left(desk.folder / "run").weights
        assert all(bool(torch.isfinite(x).all()) for x in before.values())


# ------------------------------------------------------------------------------------------------------------ refused

REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "one answer": ("grpo", ("--group-size", "1"), r"--group-size: got 1, but grpo compares .* expected at least 2"),
    "one answer in all": (
        "reinforce",
        ("--prompts-per-step", "1", "--group-size", "1"),
        r"--prompts-per-step: got 1 with group_size 1, but reinforce as set compares .* expected at least 2 answers",
    ),
    "one answer of a group": ("reinforce-pp", ("--baseline", "group", "--group-size", "1"), r"expected at least 2"),
    "greedy": ("grpo", ("--temperature", "0"), r"--temperature: got 0, .* expected more than 0, such as 1"),
    "a penalty": ("grpo", ("--repetition-penalty", "1.1"), r"--repetition-penalty: got 1.1, .* expected 1 in training"),
    "a table": (
        "grpo",
        ("--beta", "0.1", "--reference", "precomputed"),
        r"--reference is precomputed, but answers are drawn in every step .* set reference: memory",
    ),
    "k2 by token": ("grpo", ("--beta", "0.1", "--kl", "k2"), r"k2"),
    "rows of text": ("grpo", ("--replay", "t.jsonl"), r"replay"),
    "a reward": ("rloo", ("--reward", "gsm9k"), r"reward: got 'gsm9k', expected one of .* Did you mean gsm8k\?"),
    "a file": ("rloo", ("--reward", "nowhere.py:f"), r"reward: nowhere\.py does not exist; expected PATH"),
    "a function": (
        "rloo",
        ("--reward", "{folder}/reward.py:other"),
        r"reward\.py has no function other; it has distinct",
    ),
    "a setting": ("rloo", ("--reward-args", "lenght.target=3"), r"lenght is not among the rewards"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_from_is_refused_before_a_model_is_loaded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("espalier.assembly.session.build_run_model", never)
    command, more, message = REFUSED[name]
    more = tuple(flag.format(folder=desk.folder) for flag in more)
    desk.command([command, *flags(desk, "run", *more)], code=2)
    assert re.search(message, desk.err), desk.err


def test_tasks_that_nobody_grades_are_refused(desk: Desk) -> None:
    """Without a reward, a task must name its own."""
    argv = [flag for flag in flags(desk, "run") if flag != "--reward" and not flag.endswith(":distinct")]
    desk.command(["grpo", *argv], code=2)
    assert "tasks.jsonl:1" in desk.err and "--reward" in desk.err


def test_a_run_that_exists_is_not_begun_again(desk: Desk) -> None:
    left = train(desk, "grpo")
    before = (left.path / "samples.jsonl").read_bytes()
    desk.command(["grpo", *flags(desk, "run")], code=2)
    assert "--resume" in desk.err and (left.path / "samples.jsonl").read_bytes() == before
    journal = [json.loads(line) for line in Path(left.path / "journal.jsonl").read_text().splitlines()]
    assert len(journal) == 2 * 8
