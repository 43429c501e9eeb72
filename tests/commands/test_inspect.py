"""`espalier inspect` says what was read of the rows it shows, and ends as a run would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier import embedded
from espalier.commands.main import main


def inspected(
    folder: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], *flags: str
) -> tuple[int, str, str]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    code = main(["inspect", "--model", str(embedded.path()), "--template", "plain", "--data", str(path), *flags])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_columns_are_listed_and_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"problem_text": "Name a red fruit.", "final": "A cherry.", "topic": "fruit"}
    code, _, error = inspected(tmp_path, capsys, row)
    assert code == 0 or "--columns prompt=problem_text response=final" in error
    code, out, _ = inspected(tmp_path, capsys, row, "--columns", "prompt=problem_text", "answer=final")
    assert code == 0 and "A cherry." in out
    assert "rows: read as prompt, guessed from the first rows: problem_text as prompt, final as answer" in out
    assert "rows: not read: topic (1 of 1 rows" in out


def test_rows_are_shown_and_then_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "What is it?", "response": "A cat.", "images": ["a.png"]}
    code, out, error = inspected(tmp_path, capsys, row)
    assert code == 2 and "A cat." in out and "leaves out images (media, first in row 1)" in error
    code, out, _ = inspected(tmp_path, capsys, row, "--ignore-columns", "images")
    assert code == 0 and "rows: ignored: images" in out
