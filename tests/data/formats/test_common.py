"""Numbers that no float can hold are refused with their field, wherever a row may have one."""

from pathlib import Path
from typing import Any

import pytest

from espalier.data import formats
from espalier.data.read import Source, read
from espalier.errors import RowError

HUGE = "1" + "0" * 400
TURN = '{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","%s":%s}]}'


@pytest.mark.parametrize(
    ("text", "consumes", "field"),
    [
        ('{"prompt":"p","response":"a","score":%s}', "ranking", "score"),
        (TURN % ("weight", "%s"), "chat", "messages[1].weight"),
        (TURN % ("loss", "%s"), "chat", "messages[1].loss"),
        ('{"prompt":"p","answers":[{"text":"a","rank":0},{"text":"b","rank":%s}]}', "ranking", "answers[].rank[1]"),
        ('{"role":"prompter","text":"q","replies":[{"role":"assistant","text":"a","rank":%s}]}', "chat", None),
        ('{"problem":"p","steps":["a"],"labels":[%s]}', "steps", "labels[0]"),
        ('{"problem":"p","response":"a","is_correct":%s}', "steps", "is_correct"),
    ],
)
@pytest.mark.parametrize("number", [HUGE, "1e999"])
def test_a_number_too_large_is_a_row_error(
    text: str, consumes: Any, field: str | None, number: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text % number)
    found = list(read(Source(str(path), consumes=consumes)))
    # A whole number, however large, may be a rank.
    if field is None or (number == HUGE and "rank" in field):
        return
    assert len(found) == 1 and isinstance(found[0], RowError) and found[0].field == field


def test_a_row_that_is_too_long_is_a_row_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"p","response":"12345678901"}\n{"prompt":"p","response":"1"}\n{"text":"12345678901"}')
    first, second, _ = read(Source(str(path)))
    assert isinstance(first, RowError) and first.reason == "row too long" and not isinstance(second, RowError)
