"""Files of every container: what is written is what is read, in bounded memory, or why not."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import espalier.data.files.rows as rows
from containers import PAIR, examples, texts
from espalier.data.read import Source, read
from espalier.errors import DataError

chats = st.lists(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts.map(lambda t: t + "x")), max_size=4),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=chats)
def test_chats_survive_every_container(tmp_path: Path, drawn: list[list[tuple[str, str]]]) -> None:
    rows = [{"messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", "end")]]} for turns in drawn]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode(), 1))
    expected = [tuple((m["role"], m["content"]) for m in row["messages"]) for row in rows]
    for name in ("a.parquet", "a.jsonl", "a.json.gz"):
        got = examples(tmp_path / name)
        assert [tuple((m.role, m.content) for m in chat.messages) for chat in got] == expected
        assert [chat.origin.source for chat in got] == ["a"] * len(rows)
        if name != "a.json.gz":
            assert [chat.origin.line for chat in got] == list(range(1, len(rows) + 1))


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(json.dumps(PAIR).encode()) * 1)
    (tmp_path / "b.jsonl.gz").write_text(json.dumps(PAIR))
    assert [len(examples(tmp_path / name)) for name in ("a.jsonl", "b.jsonl.gz")] == [1, 1]
    two = gzip.compress(json.dumps(PAIR).encode() + b"\n")
    (tmp_path / "c.jsonl").write_bytes(two + two)
    assert len(examples(tmp_path / "c.jsonl")) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.txt"])
def test_memory_is_bounded_by_rows_not_by_the_file(tmp_path: Path, name: str) -> None:
    row = {"text": "word " * 200}
    text = {
        "a.jsonl": (json.dumps(row) + "\n") * 8000,
        "a.json": "[" + ",".join([json.dumps(row)] * 8000) + "]",
        "a.json.gz": json.dumps([row] * 8000),
        "a.txt": "word " * 1_600_000,  # one line
    }[name]
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    tracemalloc.start()
    count = sum(1 for _ in read(Source(str(tmp_path / name))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 3900 and len(data) > 7_900_000
    assert peak < 2_500_000


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    def fails(name: str, data: bytes | None, words: str) -> None:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError) as caught:
            examples(tmp_path / name)
        assert words in str(caught.value) and str(tmp_path / name) in str(caught.value)

    (tmp_path / "train.jsonl").write_text(json.dumps(PAIR))
    fails("tain.jsonl", None, f"no such file. Did you mean {tmp_path}/train.jsonl?")
    fails("no/train.jsonl", None, f"The folder {tmp_path}/no does not exist either")
    fails("a.jsonl", b"", "the file is empty")
    fails("b.jsonl", b" \n\n", "the file is empty")
    fails("c.jsonl", gzip.compress(b""), "the file is empty")
    fails("d.json", b"[ ]", "it holds no rows")
    fails("e.xlsx", b"a,b\n", "unknown extension .xlsx; expected one of .json, .jsonl")
    fails("f", b"{}", "unknown extension (none)")
    fails("g.jsonl", b"PK\x03\x04...", "it is a zip archive")
    fails("h.parquet", b"{}", "does not start with the bytes PAR1")
    fails("i.parquet.gz", gzip.compress(b"PAR1"), "Parquet inside gzip")
    fails("j.jsonl", b"\x1f\x8b\x08\x00broken", "broken gzip")


def test_files_without_permission_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR))
    monkeypatch.setattr(rows, "open", refuse, raising=False)  # the superuser may read every file, whatever its mode
    with pytest.raises(DataError, match="no permission to read it"):
        examples(tmp_path / "a.jsonl")


def test_problems_of_the_whole_file_are_raised_before_the_first_row_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(Source(str(tmp_path / "a.jsonl")))
