"""The text of the toy world: documents of four kinds, without a test problem."""

import json
import re
from pathlib import Path

from arithmetic import STEP
from espalier.toy import (
    document,
    split_of,
    write_instructions,
    write_text,
)


def test_neither_text_nor_instructions_hold_a_test_problem(tmp_path: Path) -> None:
    write_text(tmp_path / "world.txt", 3000, seed=0)
    seen = 0
    for text in (tmp_path / "world.txt").read_text().removesuffix("\n").split("\n\n"):
        steps = [f"{a}{op}{b}={v}" for a, op, b, v in STEP.findall(text)]
        keys = [";".join(steps)] if text.startswith("Problem:") else steps
        assert all(split_of(key) == "train" for key in keys)
        seen += len(keys)
    assert seen > 3000
    write_instructions(tmp_path / "chat.jsonl", 1000, seed=0, noise=0)
    for line in (tmp_path / "chat.jsonl").read_text().splitlines():
        steps = STEP.findall(json.loads(line)["messages"][1]["content"])
        assert split_of(";".join(f"{a}{op}{b}={v}" for a, op, b, v in steps)) == "train"


def test_text_has_documents_of_four_kinds_and_no_chat_form(tmp_path: Path) -> None:
    write_text(tmp_path / "world.txt", 500, seed=3)
    text = (tmp_path / "world.txt").read_text()
    documents = text.removesuffix("\n").split("\n\n")
    assert documents == [document(f"3/{i}") for i in range(500)]
    told = sum("Solution:\n" in d for d in documents)
    sums = sum(all(STEP.fullmatch(line) for line in d.splitlines()) for d in documents)
    sheets = sum("Solution:" not in d and d.endswith("?") for d in documents)
    assert 290 < told < 370 and 40 < sums < 90 and 50 < sheets < 100 and told + sums + sheets < 490
    assert not re.search(r"user|assistant|<\|", text, re.IGNORECASE)
