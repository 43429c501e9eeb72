"""Commands that answer tasks with a reward model that `espalier reward` trained: grades, files, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from desk import Desk, Left
from espalier.checks.start import NAMES
from espalier.loop.metrics import read_lines
from scored import reward_model
from tiny import tiny_tokenizer

TASKS = [{"prompt": f"say {i}"} for i in range(6)]
SKIPPED = tuple(name for name in NAMES if name not in ("reward_model", "empty_answers", "golds", "known_answers"))
RULE = "def distinct(prompt, response, **task):\n    return len(set(response)) / 10\n"


def flags(desk: Desk, name: str, *more: str, rows: Any = TASKS) -> list[str]:
    return [
        *("--model", desk.model, "--data", desk.rows("tasks", rows), "--out", str(desk.folder / name)),
        *("--cache", str(desk.folder / "cache"), "--prompts-per-step", "2", "--group-size", "4"),
        *("--max-tokens", "5", *more),
    ]


def grpo(desk: Desk, *more: str, code: int = 0, rows: Any = TASKS) -> Left:
    argv = flags(desk, "run", "--steps", "2", "--lr", "1e-2", "--skip-checks", *SKIPPED, rows=rows)
    desk.command(["grpo", *argv, *more], code=code)
    return Left(desk.folder / "run")


def samples(left: Left) -> list[dict[str, Any]]:
    return list(read_lines(left.path / "samples.jsonl"))


def test_a_trained_reward_model_grades_bare_prompts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: `espalier reward`, then `espalier grpo` on its run without any rule, and no worker."""
    desk.run("reward", "--steps", "2", name="helpful")

    def never(*args: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("espalier.rewards.pool.Pool.start", never)
    left = grpo(desk, "--reward-model", str(desk.folder / "helpful"), "--eval-fraction", "0.34", "--eval-every", "1")
    assert "graded by helpful: 6 tasks" in desk.out and "reward model helpful: " in desk.out
    assert "bytes a weight: policy 16.0, reward model 4.0" in desk.out and ", reward model 0.00, " in desk.out
    for line in (line for line in left.lines if "reward" in line):
        own = [record for record in samples(left) if record["step"] == line["step"]]
        assert line["reward_helpful"] == line["reward"] == pytest.approx(sum(r["score"] for r in own) / len(own))
        assert line["reward_cut"] == sum(record["stop"] == "length" for record in own)
        assert line["seconds_reward_model"] > 0
    assert len({record["score"] for record in samples(left)}) > 4
    assert all(record["parts"] == {"helpful": record["score"]} for record in samples(left))
    assert {"eval_score", "eval_reward_helpful"} <= {key for line in left.lines for key in line}
    assert left.checks["reward_model"]["verdict"] == "pass"
    assert {left.checks[name]["verdict"] for name in ("known_answers", "golds", "empty_answers")} == {"skipped"}
    readme = " ".join((left.path / "model" / "README.md").read_text().split())
    assert "- `helpful`, weight 1; a reward model" in readme
    pinned = json.loads((left.path / "manifest.json").read_text())["pinned"]["reward models"]
    assert pinned["helpful weight"] == 1.0 and re.fullmatch("[0-9a-f]{16}", pinned["helpful: model/model.safetensors"])


def test_rules_and_models_are_added_and_a_gate_stands_before_them(desk: Desk) -> None:
    (desk.folder / "rules.py").write_text(RULE)
    flat = reward_model(desk.folder / "flat")
    two = reward_model(desk.folder / "two", (1.0, -2.0), names=("kind", "brief"))
    left = grpo(
        *(desk, "--reward", "tags", f"{desk.folder / 'rules.py'}:distinct=2", "--reward-workers", "1"),
        *("--reward-model", f"{flat}=3", two, "--reward-dimensions", "brief=0.5"),
    )
    for record in samples(left):
        parts = record["parts"]
        assert parts["distinct"] == len(set(record["response"])) / 10 and parts["tags"] == 0
        own = {name: x for name, x in parts.items() if name not in ("distinct", "tags")}
        assert own == pytest.approx({"flat": 0.7, "two": -1.0, "two.kind": 1.0, "two.brief": -2.0})
        assert record["score"] == pytest.approx(2 * parts["distinct"] + 3 * 0.7 - 1)
    shown = [line for line in left.lines if "reward_two.brief" in line]
    assert len(shown) == 2 and shown[0]["reward_flat"] == pytest.approx(0.7)
    gated = grpo(desk, "--reward", "tags", "--gate", "tags", "--reward-model", flat, "--overwrite")
    assert all(record["score"] == 0 and record["parts"]["flat"] == pytest.approx(0.7) for record in samples(gated))


def test_a_resumed_run_has_the_same_reward_model(desk: Desk) -> None:
    path = Path(reward_model(desk.folder / "rm", weight=1.0))
    grpo(desk, "--reward-model", str(path))
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    grpo(desk, "--reward-model", str(path), "--resume", code=2)
    assert "reward models changed: rm: rm/model.safetensors" in desk.err
    (path / "model.safetensors").write_bytes(data)
    grpo(desk, "--reward-model", f"{path}=2", "--resume", code=2)
    assert "reward_model" in desk.err


REFUSED: dict[str, tuple[str, str]] = {
    "a language model": ("{model}", "without a scalar head; expected a reward model"),
    "a process reward model": ("{folder}/steps", "is a process reward model"),
    "dimensions without weights": ("{folder}/two", r"dimensions a, b, .*--reward-dimensions"),
    "nothing": ("{folder}/nowhere", "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_scores_nothing_is_refused_before_a_model_is_loaded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    reward_model(desk.folder / "steps", kind="steps")
    reward_model(desk.folder / "two", (0.0, 1.0), names=("a", "b"))
    monkeypatch.setattr("espalier.assembly.session.build_run_model", never)
    path, message = REFUSED[name]
    grpo(desk, "--reward-model", path.format(folder=desk.folder, model=desk.model), code=2)
    assert re.search(rf"reward_model: .*{message}", desk.err), desk.err


def test_another_vocabulary_is_refused_before_data_is_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("data was read")

    other = tiny_tokenizer()
    other.add_tokens(["<extra>"])
    path = reward_model(desk.folder / "other", tokenizer=other)
    monkeypatch.setattr("espalier.assembly.session.build_data", never)
    grpo(desk, "--reward-model", path, code=2)
    assert "has 1 tokens that the policy does not have, such as '<extra>'" in desk.err
    assert "--reward PATH.py:FUNCTION" in desk.err


def test_a_survey_shows_mean_scores_and_pass_at_k_from_a_threshold(desk: Desk) -> None:
    path = reward_model(desk.folder / "rm", (0.25,), weight=1.0)
    out = desk.folder / "out"
    desk.command(["rollout", *flags(desk, "out", "--reward-model", path)])
    assert "reward model rm: " in desk.out and "the rewards declare no best score; give --right" in desk.out
    lines = list(read_lines(out / "samples.jsonl"))
    figures = json.loads((out / "rollout.json").read_text())["figures"]
    mean = sum(line["score"] for line in lines) / len(lines)
    assert len(lines) == 24 and len({line["score"] for line in lines}) > 10
    assert figures["reward"]["value"] == figures["rewards"]["rm"]["value"] == pytest.approx(mean)
    desk.command(["rollout", *flags(desk, "right", "--reward-model", path, "--right", "0.25")])
    again = json.loads((desk.folder / "right" / "rollout.json").read_text())["figures"]
    assert again["pass"]["1"]["value"] == pytest.approx(sum(line["score"] >= 0.25 for line in lines) / len(lines))
    for more in (("--regrade", str(out)), ("--grade-answers",)):
        desk.command(["rollout", *flags(desk, "anew", "--reward-model", path, *more)], code=2)
        assert "--reward-model: regrade and grade_answers grade text without a model" in desk.err


def test_inspect_says_who_grades(desk: Desk) -> None:
    argv = ["--model", desk.model, "--data", desk.rows("tasks", TASKS), "--reward-model", "runs/helpful"]
    argv += ["--max-tokens", "5"]
    desk.command(["inspect", "grpo", *argv])
    assert "0 with an answer; graded by helpful (" in desk.out


@pytest.mark.parametrize("command", ["ppo", "dapo", "raft"])
def test_other_commands_take_one_too(desk: Desk, command: str) -> None:
    path = reward_model(desk.folder / "rm", (0.25,), weight=1.0)
    more = ("--critic", path) if command == "ppo" else ()
    argv = flags(desk, "run", "--steps", "2", "--lr", "1e-3", "--reward-model", path, "--skip-checks", *SKIPPED)
    desk.command([command, *argv, *more])
    left = Left(desk.folder / "run")
    assert [line["reward"] == line["reward_rm"] for line in left.lines if "reward" in line] == [True, True]
    assert left.checks["reward_model"]["verdict"] == "pass"
