"""`espalier rollout --regrade`: another reward on stored answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
