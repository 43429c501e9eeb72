"""`espalier rollout --grade-answers`: the data's own answers, by graders in their worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.commands import main as cli


def rows(path: Path, *entries: Any) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def run(*argv: object) -> int:
    return cli.main(["rollout", "--grade-answers", *map(str, argv)])


def test_golds_are_counted_by_reward_and_the_wrong_ones_named(tmp_path: Path, capsys: Any) -> None:
    """Two answers that numeric reads, and one with two numbers, of which it cannot take one."""
    data = rows(
        tmp_path / "sums.jsonl",
        {"question": "1 + 1?", "answer": "2", "verifier": "numeric"},
        {"question": "4 * 2?", "answer": "8", "verifier": "numeric"},
        {"question": "a pair?", "answer": "3 and 4", "verifier": "numeric"},
    )
    out = tmp_path / "out"
    assert run("--data", f"{data}:task", "--reward", "repetition", "--out", out) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "numeric 2 of 3 66.67%" in printed
    assert "sums:3: numeric:" in printed and "holds 2 numbers" in printed
    assert "no answer is known to be right for them: repetition" in printed
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["task"]["line"], line["response"], line["score"]) for line in lines] == [
        (1, "The answer is 2.", 1.0),
        (2, "The answer is 8.", 1.0),
        (3, "", None),
    ]
    assert json.loads((out / "rollout.json").read_text())["figures"]["golds"] == {"numeric": {"right": 2, "tasks": 3}}


def test_golds_that_are_all_right_end_well(tmp_path: Path, capsys: Any) -> None:
    data = rows(tmp_path / "d.jsonl", {"question": "1 + 1?", "answer": "It is 2.\n#### 2"})
    assert run("--data", data, "--reward", "gsm8k", "--out", tmp_path / "out") == 0
    assert "1 of 1" in capsys.readouterr().out


def test_both_kinds_of_grading_at_once_are_refused(tmp_path: Path, capsys: Any) -> None:
    data = rows(tmp_path / "d.jsonl", {"question": "1 + 1?", "answer": "#### 2"})
    assert run("--data", data, "--regrade", "r", "--reward", "gsm8k", "--out", tmp_path / "out") == 2
    assert "grade_answers and regrade are both given" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.real_data
def test_all_answers_of_gsm8k_and_math500_are_right(shared: Path, tmp_path: Path, capsys: Any) -> None:
    for name, reward, count in (("gsm8k_train.jsonl.gz", "gsm8k", "7,473"), ("math500.json.gz", "math", "500")):
        data = shared / "data" / "verifiable" / name
        assert run("--data", data, "--reward", reward, "--out", tmp_path / reward) == 0
        assert f"{count} of {count}" in capsys.readouterr().out
