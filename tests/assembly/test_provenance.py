"""The README of an export says what it was trained by: the command, its rewards with weights and gates, its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desk import Desk, saved
from espalier import __version__
from espalier.assembly.provenance import note_training
from espalier.checks.start import NAMES
from espalier.models.readme import edited

REWARD = "def distinct(prompt, response, **task):\n    return len(set(response)) / 10\n"
TASKS = [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(6)]
CHATS = [{"prompt": f"{i}?", "response": f"{i}!"} for i in range(5)]


@pytest.fixture
def desk(tmp_path: Path, capsys: Any) -> Iterator[Desk]:
    yield Desk(tmp_path, saved(tmp_path / "model"), capsys)


def training(desk: Desk, command: str, *flags: str) -> str:
    """The section of the README about the training, which the export knows as its own."""
    run = desk.folder / "run"
    common = ["--model", desk.model, "--out", str(run), "--cache", str(desk.folder / "cache"), "--skip-checks", *NAMES]
    desk.command([command, *common, *flags])
    text = (run / "model" / "README.md").read_text()
    assert str(desk.folder) not in text and edited(run / "model") is None
    before, heading, section = text.partition("## Training\n\n")
    assert heading and "## Stop" in before
    return section


def test_rollouts_name_rewards_weights_gates_and_data(desk: Desk) -> None:
    (desk.folder / "mine.py").write_text(REWARD)
    tasks, chats = desk.rows("tasks", TASKS), desk.rows("chats", CHATS)
    rewards = ["code_block", f"{desk.folder / 'mine.py'}:distinct=0.5", "length", "--gate", "code_block"]
    drawn = ["--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "3", "--reward-workers", "1"]
    held = desk.rows("held", TASKS[:2])
    section = training(
        desk, "raft", "--data", tasks, "--sft-data", chats, "--eval-data", held, "--steps", "2", *drawn,
        "--reward", *rewards, "--reward-args", "length.target=3", "length.margin=9",
    )  # fmt: skip
    digest = hashlib.sha256(REWARD.encode()).hexdigest()[:16]
    assert section == (
        f"Trained by `espalier raft` (Espalier {__version__}) in a run of 2 steps.\n\n"
        "Rewards of its own answers, summed by weight:\n\n"
        "- `code_block`, weight 1; a gate: without full marks there, those below count 0\n"
        f"- `distinct`, weight 0.5; the function `distinct` of `mine.py` (sha256 {digest})\n"
        "- `length`, weight 1; target 3; margin 9.0\n\n"
        "Data:\n\n"
        "- `tasks.jsonl`: 6 tasks\n"
        "- `chats.jsonl`: 5 conversations beside the answers\n"
        "- held out: 2 of `held.jsonl`\n"
    )


def test_conversations_name_their_data_and_what_is_held_out(desk: Desk) -> None:
    chats, text = desk.rows("chats", CHATS), desk.rows("text", [{"text": "abc"}])
    section = training(
        desk, "sft", "--data", chats, "--replay", text, "--replay-fraction", "0.2", "--eval-fraction", "0.4",
        "--steps", "1",
    )  # fmt: skip
    head, _, data = section.partition("Data:\n\n")
    assert head.startswith("Trained by `espalier sft` ") and "Rewards" not in head
    assert data == (
        "- `chats.jsonl`: 4 conversations\n- `text.jsonl`: 1 texts, replayed\n- held out: 1 of the same files\n"
    )


def test_a_users_readme_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine\nalone\n")
    note_training(tmp_path, "Trained.")
    assert (tmp_path / "README.md").read_text() == "mine\nalone\n"
