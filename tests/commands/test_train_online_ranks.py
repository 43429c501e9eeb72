"""`espalier grpo` and `espalier ppo` on two processes: the numbers of one process, the answers of both ranks, and
resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from desk import saved
from espalier.loop.metrics import read_lines
from runs import content, without_time
from scored import reward_model

pytestmark = pytest.mark.slow
REWARD = """
import random

def distinct(prompt, response, **task):
    return len(set(response)) / 10

def mood(prompt, response, **task):
    return random.SystemRandom().random()
"""


def grpo(folder: Path, name: str, ranks: int, *more: str, reward: str = "distinct", command: str = "grpo") -> None:
    """Four steps of four prompts x four answers, saved every second step, by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port)),
        *("-m", "espalier", command, "--model", str(folder / "model"), "--data", str(folder / "tasks.jsonl")),
        *("--out", str(folder / name), "--cache", str(folder / "cache"), "--prompts-per-step", "4"),
        *("--group-size", "4", "--max-tokens", "6", "--steps", "4", "--save-every", "2", "--keep", "0"),
        *("--lr", "1e-2", "--beta", "0.1", "--reward", f"{folder / 'reward.py'}:{reward}", "--reward-workers", "1"),
        *("--eval-fraction", "0.2", "--eval-every", "2", "--skip-checks", "length", "stop", *more),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [without_time(line) for line in read_lines(folder / name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    saved(made / "model")
    (made / "reward.py").write_text(REWARD)
    rows = [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(15)]
    (made / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_two_processes_say_what_one_says_and_resume(folder: Path) -> None:
    for ranks in (1, 2):
        grpo(folder, f"run-{ranks}", ranks)
    one, two = (lines(folder / f"run-{ranks}", "metrics.jsonl") for ranks in (1, 2))
    assert [line.keys() for line in one] == [line.keys() for line in two]
    exact = ("step", "reward", "length", "cut", "tokens", "samples", "trained", "updates", "rows", "eval_score")
    for a, b in zip(one, two, strict=True):
        for key in [key for key in exact if key in a]:
            assert a[key] == b[key], key
        for key in [key for key in ("loss", "policy", "kl", "kl_loss", "grad_norm", "entropy") if key in a]:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), key
    answers = [lines(folder / f"run-{ranks}", "samples.jsonl") for ranks in (1, 2)]
    assert [record["ids"] for record in answers[0]] == [record["ids"] for record in answers[1]]
    # Each rank grades its half of 64 answers, and of four held-out ones after steps 2 and 4.
    journals = [folder / "run-2" / "journal.jsonl", folder / "run-2" / "journals" / "rank-00001.jsonl"]
    assert [sum(not line["held_out"] for line in read_lines(path)) for path in journals] == [32, 32]
    assert sum(line["held_out"] for path in journals for line in read_lines(path)) == 8
    before = content(folder / "run-2" / "model")
    grpo(folder, "run-2", 2, "--resume", "--resume-from", "step-000002")
    assert lines(folder / "run-2", "metrics.jsonl") == two
    assert lines(folder / "run-2", "samples.jsonl") == answers[1]
    assert content(folder / "run-2" / "model") == before


def test_both_ranks_read_random_scores_from_their_journals(folder: Path) -> None:
    """The scores of steps 3 and 4 stay what they were, although the run goes back to step 2."""
    grpo(folder, "mood", 2, reward="mood")
    before = lines(folder / "mood", "samples.jsonl")
    grpo(folder, "mood", 2, "--resume", "--resume-from", "step-000002", reward="mood")
    assert lines(folder / "mood", "samples.jsonl") == before
    assert len({record["score"] for record in before}) == 64


def test_a_reward_model_is_sharded_and_says_the_same(folder: Path) -> None:
    """All checks run, that of the reward model too; the first step's answers and scores are those of one process."""
    model = reward_model(folder / "rm", (0.25,), weight=1.0)
    for ranks in (1, 2):
        grpo(folder, f"scored-{ranks}", ranks, "--reward-model", f"{model}=0.5", "--steps", "2")
    first = [[r for r in lines(folder / f"scored-{n}", "samples.jsonl") if r["step"] == 1] for n in (1, 2)]
    assert [record["ids"] for record in first[0]] == [record["ids"] for record in first[1]]
    for one, two in zip(*first, strict=True):
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        assert one["score"] == pytest.approx(one["parts"]["distinct"] + 0.5 * one["parts"]["rm"])


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_an_actor_and_its_critic_on_two_processes(folder: Path, critic: str) -> None:
    """Numbers of both, beta and given texts are those of one process; a resumed run ends with the same bits."""
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{i} plain words " * (1 + i % 3)}) + "\n" for i in range(7)))
    flags = (
        *("--critic", critic, "--lr", "1e-3", "--minibatches", "2", "--ptx-data", str(texts), "--kl-control"),
        *("adaptive", "--kl-target", "0.05", "--kl-horizon", "100", *(("--critic-lr", "1e-3") * (critic == "policy"))),
    )
    for ranks in (1, 2):
        grpo(folder, f"{critic}-{ranks}", ranks, *flags, command="ppo")
    one, two = (lines(folder / f"{critic}-{ranks}", "metrics.jsonl") for ranks in (1, 2))
    assert [line.keys() for line in one] == [line.keys() for line in two]
    names = {"loss", "policy", "kl", "value", "ptx", "beta", "kl_answer", "value_mean", "explained_variance", "lr"}
    names |= {"grad_norm", "entropy", "approx_kl", "ratio_max"} | (
        {"grad_norm_critic"} if critic == "policy" else set()
    )
    assert names <= one[0].keys()
    for a, b in zip(one, two, strict=True):
        for key in [
            key for key in ("step", "reward", "tokens", "samples", "updates", "rows", "eval_score") if key in a
        ]:
            assert a[key] == b[key], key
        for key in names & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), key
    answers = [lines(folder / f"{critic}-{ranks}", "samples.jsonl") for ranks in (1, 2)]
    assert [record["ids"] for record in answers[0]] == [record["ids"] for record in answers[1]]
    before = content(folder / f"{critic}-2" / "model")
    grpo(folder, f"{critic}-2", 2, *flags, "--resume", "--resume-from", "step-000002", command="ppo")
    assert lines(folder / f"{critic}-2", "metrics.jsonl") == two
    assert lines(folder / f"{critic}-2", "samples.jsonl") == answers[1]
    assert content(folder / f"{critic}-2" / "model") == before
