"""`espalier rollout --regrade`: another reward on stored answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from desk import Desk, saved, write
from espalier.checks.start import NAMES
from espalier.commands import main as cli

TASKS = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(3)]


def stored(folder: Path, **changes: Any) -> Path:
    """A run with two answers to each task: its number and a wrong one, each graded with 0.5."""
    folder.mkdir()
    with open(folder / "samples.jsonl", "w") as file:
        for row in range(3):
            for k, text in enumerate((f"#### {2 * row}", "#### 99")):
                line = {
                    "step": 1, "task": {"row": row, "source": "d", "line": row + 1}, "epoch": 0, "k": k,
                    "prompt": f"{row} + {row}?", "response": text, "ids": [1, 2], "score": 0.5, "parts": {"old": 0.5},
                    "invalid": "", "error": "", "fate": "keep", "stop": "stop", "length": 2, "advantage": 0.1,
                    "advantages": [0.1, 0.1], **changes,
                }  # fmt: skip
                file.write(json.dumps(line) + "\n")
    return folder


def run(tmp_path: Path, regrade: Path, *more: str) -> int:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    flags = ["--data", str(data), "--reward", "gsm8k", "--regrade", str(regrade), "--out", str(tmp_path / "out")]
    return cli.main(["rollout", *flags, *more])


def test_answers_get_the_scores_of_the_new_reward(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, stored(tmp_path / "run")) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(line["score"], line["parts"]) for line in lines[:2]] == [(1.0, {"gsm8k": 1.0}), (0.0, {"gsm8k": 0.0})]
    assert [(line["k"], line["prompt"], line["advantage"]) for line in lines[2:4]] == [
        (0, "1 + 1?", None),
        (1, "1 + 1?", None),
    ]
    assert "advantages" not in lines[0]
    figures = json.loads((tmp_path / "out" / "rollout.json").read_text())["figures"]
    assert (figures["pass"]["1"]["value"], figures["pass"]["2"]["value"]) == (0.5, 1.0)
    assert (figures["changed"], figures["compared"]) == (6, 6)
    assert "6 of 6 answers have another score" in capsys.readouterr().out


def test_answers_to_other_tasks_and_missing_runs_are_refused(tmp_path: Path, capsys: Any) -> None:
    other = stored(tmp_path / "run", task={"row": 9, "source": "elsewhere", "line": 1})
    assert run(tmp_path, other) == 2
    assert "has no task in the data" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "nowhere") == 2
    assert "expected a run's folder or its samples.jsonl" in capsys.readouterr().err
    assert run(tmp_path, other, "--out", str(other)) == 2
    assert "holds the answers that are read" in capsys.readouterr().err


def graded(folder: Path) -> list[tuple[float, float]]:
    """Of each answer, the score and what its own text deserves."""
    pairs = []
    for line in (folder / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        pairs.append((record["score"], float(str(2 * (record["task"]["line"] - 1)) in record["response"])))
    return pairs


@pytest.fixture
def desk(tmp_path: Path, capsys: Any) -> Desk:
    return Desk(tmp_path, saved(tmp_path / "model"), capsys)


def drawn(desk: Desk, command: str) -> Path:
    """Answers to tasks of columns of their own names, by a command that leaves samples.jsonl."""
    rows = [{"ask": f"{i} + {i}?", "reply": f"#### {2 * i}"} for i in range(4)]
    tasks = write(desk.folder / "d.jsonl", rows)
    more = ["--steps", "1", "--cache", str(desk.folder / "cache"), "--skip-checks", *NAMES]
    if command == "rollout":
        more = ["--cache", str(desk.folder / "cache")]
    desk.command(
        [
            *(command, "--model", desk.model, "--data", tasks, "--columns", "question=ask", "answer=reply"),
            *("--out", str(desk.folder / "run"), "--reward", "length", "--reward-args", "length.target=3"),
            *("--prompts-per-step", "4", "--group-size", "2", "--max-tokens", "4", "--reward-workers", "1", *more),
        ]
    )
    return desk.folder / "run"


@pytest.mark.parametrize("command", ["rollout", "grpo"])
def test_the_tasks_are_those_of_the_run(desk: Desk, command: str) -> None:
    run = drawn(desk, command)
    contains = ["--reward", "exact", "--reward-args", "exact.part=contains", "--reward-workers", "1"]
    desk.command(["rollout", "--regrade", str(run), "--out", str(desk.folder / "one"), *contains])
    of_run = "run.yaml" if command == "grpo" else "rollout.json"
    assert f"tasks: {desk.folder / 'd.jsonl'}, by {run / of_run}, unchanged since" in desk.out.replace("\n", "")
    pairs = graded(desk.folder / "one")
    assert len(pairs) == 8 and all(score == deserved for score, deserved in pairs)
    # What was regraded names its tasks, too.
    desk.command(["rollout", "--regrade", str(desk.folder / "one"), "--out", str(desk.folder / "two"), *contains])
    assert graded(desk.folder / "two") == pairs
    with open(desk.folder / "d.jsonl", "a") as file:
        file.write(json.dumps({"ask": "9 + 9?", "reply": "#### 18"}) + "\n")
    again = ["rollout", "--regrade", str(run), "--out", str(desk.folder / "three"), *contains]
    assert cli.main(again) == 2
    assert "d.jsonl has changed since" in desk.capsys.readouterr().err
    given = ["--data", str(desk.folder / "d.jsonl"), "--columns", "question=ask", "answer=reply"]
    desk.command([*again, *given])
    assert "d.jsonl has changed since" in desk.out.replace("\n", "") and graded(desk.folder / "three") == pairs


def test_answers_without_a_run_need_data(tmp_path: Path, capsys: Any) -> None:
    folder = stored(tmp_path / "run")
    flags = ["rollout", "--regrade", str(folder), "--out", str(tmp_path / "out"), "--reward", "gsm8k"]
    assert cli.main(flags) == 2
    assert f"data is missing: {folder} has no run.yaml and no rollout.json" in capsys.readouterr().err
    assert cli.main(["rollout", "--model", "m", "--out", str(tmp_path / "out"), "--reward", "gsm8k"]) == 2
    assert "data is missing: the tasks to answer. Give --data" in capsys.readouterr().err
