"""Instructions of the toy world: messages with the promised noise."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from espalier.errors import ConfigError
from espalier.toy import (
    answer_of,
    problems,
    write_instructions,
)
from espalier.toy.instructions import NOISE

STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def works_out(a: str, op: str, b: str, value: str) -> bool:
    x, y, z = int(a), int(b), int(value)
    return {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[op]


def test_instructions_are_messages_with_the_promised_noise(tmp_path: Path) -> None:
    counts = write_instructions(tmp_path / "a.jsonl", 800, seed=1, noise=0.4)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == sum(counts.values()) == 800
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert set(counts) == {"clean", *NOISE}
    assert 420 < counts["clean"] < 540 and all(45 < counts[kind] < 115 for kind in NOISE)
    seen = Counter(
        kind_of(row["messages"][1]["content"], item.solution, item.answer)
        for row, item in zip(rows, problems(800, seed=1), strict=True)
    )
    assert seen == counts
    write_instructions(tmp_path / "b.jsonl", 800, seed=1, noise=0.4)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert write_instructions(tmp_path / "c.jsonl", 50, noise=0)["clean"] == 50
    with pytest.raises(ConfigError, match=r"noise 1.5.*0 to 1"):
        write_instructions(tmp_path / "d.jsonl", 1, noise=1.5)


def kind_of(answer: str, solution: str, right: str) -> str:
    """Tells the kind of a row from its text alone, by other means than those that wrote it."""
    if answer == solution:
        return "clean"
    if answer_of(answer) is None:
        return "unmarked"
    if answer_of(answer) != right:
        assert not all(works_out(*step) for step in STEP.findall(answer))
        return "wrong"
    return "reworded" if "\n" in answer else "terse"
