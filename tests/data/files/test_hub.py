"""Folders that the datasets library has saved."""

import json
from pathlib import Path

import pytest

from containers import examples
from espalier.errors import DataError
from espalier.types import Message


def test_dataset_folders(tmp_path: Path) -> None:
    import datasets

    rows = [{"question": f"q{i}", "answer": f"a{i}", "note": None if i else "n"} for i in range(3)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select([2])}).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, numbers in (("one", [0, 1, 2]), ("two", [0, 1, 2]), ("two#test", [2]), ("three", [0, 1, 2])):
        got = examples(tmp_path / name)
        assert [e.messages for e in got] == [(Message("user", f"q{i}"), Message("assistant", f"a{i}")) for i in numbers]
        assert [e.origin.line for e in got] == list(range(1, len(numbers) + 1))
    with pytest.raises(DataError, match="no split dev; expected one of train, test"):
        examples(f"{tmp_path}/two#dev")
    (tmp_path / "four").mkdir()
    with pytest.raises(DataError, match="four: this data set cannot be read"):
        examples(tmp_path / "four")
