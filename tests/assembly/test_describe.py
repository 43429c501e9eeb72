"""What a run says of its data before it starts."""

from pathlib import Path

from espalier.assembly.describe import _table
from stores import build
from task_stores import opened, questions, write


def test_the_table_of_sources_shows_tasks_as_tasks(tmp_path: Path) -> None:
    columns, rows = _table(opened(tmp_path, write(tmp_path / "t.jsonl", [*questions("a", 2), {"prompt": "b"}])).main)
    assert columns == ("source", "part", "rows", "kept", "rejected", "tasks", "with answer", "tokens", "longest")
    # <|im_start|> user \n a0 <|im_end|> \n <|im_start|> assistant \n: 3 control tokens and 18 letters; "b" one fewer.
    assert rows == [("t", "main", 3, 3, 0, 3, 2, 21 + 21 + 20, 21)]
    columns, rows = _table([build(tmp_path, ["a|b"])])
    assert columns[5:] == ("truncated", "samples", "tokens", "trained")
    assert rows == [("toy", "main", 1, 1, 0, 0, 1, 4, 2)]
