"""Given conversations beside the answers of rejection sampling: their order, loss, journal of facts, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from desk import Desk, logprob
from espalier.assembly.runs import RUNS
from espalier.config.options import build
from espalier.engines.learner import TorchLearner
from espalier.errors import ConfigError
from espalier.loop.metrics import read_lines
from runs import without_time

ANSWERS = ["ok", "ok ok", "no", "yes", "so it is", "well", "1 2 3"]
REWARD = "def distinct(prompt, response, **task):\n    return len(set(response)) / 10\n"
SKIP = ("--skip-checks", "length", "stop")


def raft(desk: Desk, name: str, *more: str, steps: int = 2, code: int = 0) -> list[dict[str, Any]]:
    """The steps of a run that keeps one of three answers to each of two prompts."""
    tasks = desk.rows("tasks", [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(6)])
    chats = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(ANSWERS)
    ]
    reward = desk.folder / "reward.py"
    reward.write_text(REWARD)
    given = [*("--sft-data", desk.rows("chats", chats), "--group-size", "3", "--prompts-per-step", "2")]
    flags = [*("--steps", str(steps), "--max-tokens", "5", "--reward", f"{reward}:distinct", "--reward-workers", "1")]
    argv = [*("--model", desk.model, "--data", tasks, "--out", str(desk.folder / name), "--lr", "1e-2", *flags)]
    argv += [*("--cache", str(desk.folder / "cache")), *given, *SKIP, *more]
    desk.command(["raft", *argv], code=code)
    path = desk.folder / name / "metrics.jsonl"
    return [without_time(line) for line in read_lines(path)] if path.exists() else []


def test_the_loss_of_given_conversations_is_their_own_mean(desk: Desk) -> None:
    """All seven in each step: their mean over tokens is that of transformers alone; the loss is kept + 0.5 given."""
    first, second = raft(desk, "run", "--sft-per-step", "7", "--sft-coef", "0.5")
    scored = [logprob(desk.model, f"say {i}", text) for i, text in enumerate(ANSWERS)]
    expected = -sum(total for total, _ in scored) / sum(tokens for _, tokens in scored)
    assert first["nll_sft"] == pytest.approx(expected, rel=1e-5)
    for step in (first, second):
        assert step["loss"] == pytest.approx(step["nll"] + 0.5 * step["nll_sft"], rel=1e-6)
        # One of three answers is kept; conversations are no answers.
        assert step["trained"] == pytest.approx(1 / 3)
        assert step["samples"] == 2 * 3 + 7
    assert second["nll_sft"] < first["nll_sft"]
    samples = list(read_lines(desk.folder / "run" / "samples.jsonl"))
    assert len(samples) == 2 * 2 * 3
    assert "beside them 7 given conversations a step, 2.00 epochs of 7" in desk.out
    checks = json.loads((desk.folder / "run" / "preflight.json").read_text())["checks"]
    (check,) = [check for check in checks if check["name"] == "conversations"]
    assert check["value"].startswith("7 trained turns") and check["verdict"] == "pass"


def test_a_step_takes_as_many_as_it_has_prompts_and_a_resumed_run_the_same(desk: Desk) -> None:
    whole = raft(desk, "whole", steps=4)
    assert [line["samples"] for line in whole] == [2 * 3 + 2] * 4
    assert len({line["nll_sft"] for line in whole}) == 4
    raft(desk, "cut", "--save-every", "2", steps=4)
    folder = desk.folder / "cut" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    again = raft(desk, "cut", "--save-every", "2", "--resume", "--resume-from", "step-000002", steps=4)
    assert again == whole
    weights = [(desk.folder / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_what_is_given_is_pinned(desk: Desk) -> None:
    raft(desk, "run")
    ANSWERS.append("more")
    try:
        raft(desk, "run", "--resume", code=2)
    finally:
        ANSWERS.pop()
    assert "data files changed" in desk.err and "chats.jsonl" in desk.err


def test_rows_that_cannot_be_trained_are_named(desk: Desk) -> None:
    bad = desk.rows("bad", [{"messages": [{"role": "user", "content": "alone"}]}])
    raft(desk, "run", "--sft-data", bad, code=2)
    assert "bad.jsonl:1" in desk.err


BASE = {"model": "m", "data": "d", "out": "o", "reward": ("exact",)}


def test_settings_that_change_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="sft_per_step: got 3, but there is no sft_data"):
        build(RUNS["raft"], {**BASE, "sft_per_step": 3})
    with pytest.raises(ConfigError, match="sft_coef: got 0"):
        build(RUNS["raft"], {**BASE, "sft_coef": 0.0, "sft_data": "d.jsonl"})
    with pytest.raises(ConfigError, match="sft_coef is given, but there is no sft_data"):
        build(RUNS["raft"], {**BASE, "sft_coef": 0.5})
    with pytest.raises(ConfigError, match="sft_data: no such key"):
        build(RUNS["grpo"], {**BASE, "sft_data": "d.jsonl"})
    assert Path("d.jsonl").name == build(RUNS["raft"], {**BASE, "sft_data": "d.jsonl"}).conversations.sft_data[0]


def test_the_longest_conversation_must_fit_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 213 tokens beside answers of at most 5 tokens to prompts of 23."""
    backward = TorchLearner.forward_backward

    def short_of_memory(self: TorchLearner, groups: Any, *more: Any, **named: Any) -> Any:
        if any(len(s) > 200 for group in groups for s in group):
            raise torch.OutOfMemoryError("213 tokens are too many")
        return backward(self, groups, *more, **named)

    long = [{"messages": [{"role": "user", "content": "a" * 190}, {"role": "assistant", "content": "yes"}]}]
    data = desk.rows("long", long)
    raft(desk, "fits", "--sft-data", data, "--sft-per-step", "1", steps=1)
    checks = {
        check["name"]: check for check in json.loads((desk.folder / "fits" / "preflight.json").read_text())["checks"]
    }
    assert checks["fits"]["value"].startswith("84 tokens of 3 answers and 213 of a conversation; peak ")
    monkeypatch.setattr(TorchLearner, "forward_backward", short_of_memory)
    raft(desk, "short", "--sft-data", data, "--sft-per-step", "1", steps=1, code=2)
    assert "error: fits: " in desk.err and "213 tokens are too many" in desk.err and "--max-length" in desk.err


# --------------------------------------------------------------------------------------------------- texts beside PPO


def ppo(desk: Desk, name: str, *more: str) -> list[dict[str, Any]]:
    """Three steps of two minibatches, each with two answers and as many of seven texts as make a share of 0.7."""
    tasks = desk.rows("tasks", [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(6)])
    texts = desk.rows("texts", [{"text": f"{i} {text} {text}"} for i, text in enumerate(ANSWERS)])
    reward = desk.folder / "reward.py"
    reward.write_text(REWARD)
    argv = [
        *("ppo", "--model", desk.model, "--data", tasks, "--out", str(desk.folder / name), "--lr", "1e-2"),
        *("--cache", str(desk.folder / "cache"), "--prompts-per-step", "4", "--minibatches", "2", "--steps", "3"),
        *("--max-tokens", "5", "--reward", f"{reward}:distinct", "--reward-workers", "1"),
        *("--ptx-data", texts, "--ptx-share", "0.7", "--ptx-coef", "2", "--save-every", "1", *SKIP, *more),
    ]
    desk.command(argv, code=0)
    return [without_time(line) for line in read_lines(desk.folder / name / "metrics.jsonl")]


@pytest.mark.parametrize("critic", [(), ("--critic", "shared"), ("--old", "sampler")])
def test_given_texts_stand_beside_the_answers_of_every_step(desk: Desk, critic: tuple[str, ...]) -> None:
    """More of them are taken than there are steps, and than there are texts; a run that goes on takes the next ones."""
    lines = ppo(desk, "run", *critic)
    assert len(lines) == 3
    for line in lines:
        # A shared critic's loss counts 0.1 of itself.
        value = 0.1 * line["value"] if "shared" in critic else 0.0
        assert line["loss"] == pytest.approx(line["policy"] + 2 * line["ptx"] + value, rel=1e-5, abs=1e-5)
        assert line["trained"] == 1
        assert line["samples"] >= 4 + 2
    assert sum(line["samples"] - 4 for line in lines) > 7
    assert "beside them given texts, 70 % of the trained tokens of a step, from 7 groups" in desk.out
    again = ppo(desk, "run", *critic, "--resume", "--resume-from", "step-000002")
    assert again == lines
