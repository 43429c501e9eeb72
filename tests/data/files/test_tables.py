"""Tables: nulls and strings that are none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import examples
from espalier.errors import DataError, RowError


def test_parquet_nulls_are_absent_and_bad_strings_are_row_errors(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    messages = [{"role": "user", "content": "q", "tool_calls": None}, {"role": "assistant", "tool_calls": [call]}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "tools": None}]), tmp_path / "a.parquet")
    (chat,) = examples(tmp_path / "a.parquet")
    assert chat.messages[1].tool_calls[0]["function"]["arguments"] == {"x": 1}
    column = pa.array([b"good", b"b\xffd", b"n\0l", b"end"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "b.parquet")
    found = examples(tmp_path / "b.parquet")
    assert [x.reason if isinstance(x, RowError) else x.text for x in found] == [
        "good",
        "not UTF-8",
        "NUL character",
        "end",
    ]
    assert found[1].where == f"{tmp_path}/b.parquet:2" and found[1].got == "byte 0xff at byte 2 of the string"
    late = pa.array([0, 2**61], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["t", "u"], "when": late}), tmp_path / "d.parquet")
    found = examples(tmp_path / "d.parquet")
    assert (found[0].text, found[1].reason, found[1].got) == ("t", "unreadable value", "date value out of range")
    damaged = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(damaged[:-20])
    with pytest.raises(DataError, match="broken Parquet"):
        examples(tmp_path / "c.parquet")
