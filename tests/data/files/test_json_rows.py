"""JSON rows: what is written is what is read, in bounded memory."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import espalier.data.files.json_rows as json_rows
from containers import texts
from espalier.data.files.json_rows import Row
from espalier.data.files.rows import open_file


def rows_of(path: Path) -> list[Any]:
    return [(r.line, r.value) if isinstance(r, Row) else r for r in open_file(path, str(path)).rows()]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


objects = st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=objects, ascii_only=st.booleans(), chunk=st.sampled_from([1, 7, 1 << 18]), crlf=st.booleans())
def test_json_containers_give_back_what_was_written(
    tmp_path: Path, rows: list[Any], ascii_only: bool, chunk: int, crlf: bool
) -> None:
    def dump(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    end = "\r\n" if crlf else "\n"
    written = {
        "a.jsonl": end.join(map(dump, rows)) + end,
        "b.json": end.join(map(dump, rows)),
        "c.json": dump(rows),
        "d.json": dump(rows, 2).replace("\n", end),
    }
    if rows[0]:  # an indented object is known by its first line, which `{}` has not got
        written["e.json"] = end.join(dump(row, 1).replace("\n", end) for row in rows)
    before = json_rows.CHUNK
    json_rows.CHUNK = chunk
    try:
        for name, text in written.items():
            (tmp_path / name).write_bytes(text.encode())
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode(), 1))
            got = rows_of(tmp_path / name)
            assert [value for _, value in got] == rows, name
            assert rows_of(tmp_path / f"{name}.gz") == got
            lines = text.encode().split(b"\n")
            for line, value in got:  # where a row is said to start, one does
                assert lines[line - 1].strip()[:1] in (b"[", b"{"), name
                if name in ("a.jsonl", "b.json"):
                    assert json.loads(lines[line - 1]) == value
    finally:
        json_rows.CHUNK = before


def test_lines_of_array_elements(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[ {"text": "a\\nb"}, {"text": "c"},\n\n  {\n"text": "d"}\n,\n{"text": "e"}]\n')
    assert [line for line, _ in rows_of(path)] == [2, 2, 4, 7]


def test_a_number_cut_by_a_read_is_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 1)
    (tmp_path / "a.json").write_text("[123456, -1.5e3, true]")
    assert rows_of(tmp_path / "a.json") == [(1, 123456), (1, -1500.0), (1, True)]
