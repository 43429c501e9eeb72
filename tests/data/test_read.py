"""Containers and sources: what is written is what is read, in bounded memory, under the name the user gave."""

import doctest
import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import espalier.data.files.json_rows as json_rows
import espalier.data.files.plain as plain
import espalier.data.files.rows as rows
import espalier.data.read as data_read
from espalier.data import interleave
from espalier.data.files import content
from espalier.data.files.json_rows import Row
from espalier.data.files.rows import open_file
from espalier.data.read import Source, parse_source, parse_sources, read
from espalier.errors import ConfigError, DataError, RowError
from espalier.types import Chat, Completion, Message, Text

PAIR = {"prompt": "q", "answer": "a"}


def rows_of(path: Path) -> list[Any]:
    return [(r.line, r.value) if isinstance(r, Row) else r for r in open_file(path, str(path)).rows()]


def examples(path: str | Path, **options: Any) -> list[Any]:
    return list(read(replace(parse_source(str(path)), **options)))


# --------------------------------------------------------------------------------------------------------- containers

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
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


# --------------------------------------------------------------------------------------------------------- plain text


def test_text_files_are_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PIECE", 12)
    (tmp_path / "a.txt").write_bytes(b"\r\none\r\ntwo\r\n\r\nthree\r\nfour\r\n")
    got = examples(tmp_path / "a.txt")
    assert [(e.text, e.origin.line) for e in got] == [("one\ntwo", 2), ("three\nfour", 5)]
    (tmp_path / "a.txt").write_text("a\n\nbbbbbbb\nccc")  # the blank line stands in the first half
    assert [e.text for e in examples(tmp_path / "a.txt")] == ["a\n\nbbbbbbb", "ccc"]


def test_a_character_cut_by_a_read_is_placed_where_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_PART", 4)
    (tmp_path / "a.txt").write_bytes("abcé\nabc".encode() + b"\xc3xyz\n")
    text, error = examples(tmp_path / "a.txt")[::-1]
    assert (text.text, error.got, error.where[-7:]) == ("abcé\nabc", "byte 0xc3 at offset 9", "a.txt:2")


def test_long_lines_are_cut_after_sentences_then_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PIECE", 12)
    cases = {
        "It is. No way at all": ["It is. No", "way at all"],
        "One two. Three": ["One two.", "Three"],
        "一二三四五六七八。九十一二三": ["一二三四五六七八。", "九十一二三"],
        "x" * 30: ["x" * 12, "x" * 12, "x" * 6],
    }
    for line, pieces in cases.items():
        (tmp_path / "a.txt").write_text(line)
        assert [e.text for e in examples(tmp_path / "a.txt")] == pieces


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab.。 \n\té"), min_size=1, max_size=200), part=st.sampled_from([1, 5, 1 << 16]))
def test_documents_are_bounded_and_hold_all_of_the_text(tmp_path: Path, text: str, part: int) -> None:
    (tmp_path / "a.txt").write_text(text, newline="")
    before = plain.PIECE, plain._PART
    plain.PIECE, plain._PART = 16, part
    try:
        if not text.strip():
            with pytest.raises(DataError, match="empty"):
                examples(tmp_path / "a.txt")
            return
        got = examples(tmp_path / "a.txt")
        assert "".join("".join(e.text for e in got).split()) == "".join(text.split())
        assert all(0 < len(e.text) <= 16 for e in got)
        lines = text.split("\n")
        assert all(e.text.split("\n")[0].strip() in lines[e.origin.line - 1] for e in got)
    finally:
        plain.PIECE, plain._PART = before


# ------------------------------------------------------------------------------------------------------- whole files


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
    fails("e.csv", b"a,b\n", "unknown extension .csv; expected one of .json, .jsonl")
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


# ------------------------------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("module", [content, interleave, data_read], ids=lambda module: module.__name__)
def test_worked_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried >= 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a/b.jsonl", Source("a/b.jsonl", "auto", None, "b")),
        ("a/b.json.gz:alpaca", Source("a/b.json.gz", "alpaca", None, "b")),
        ("b.txt=2", Source("b.txt", "auto", 2.0, "b")),
        ("b.jsonl:prompt=1e-1", Source("b.jsonl", "prompt", 0.1, "b")),
        ("b.jsonl:auto", Source("b.jsonl", "auto", None, "b")),
        ("x=1/b.jsonl", Source("x=1/b.jsonl", "auto", None, "b")),
        ("x:y.jsonl", Source("x:y.jsonl", "auto", None, "x:y")),
        ("owner/name@main#test:text=0.5", Source("owner/name@main#test", "text", 0.5, "owner/name@main#test")),
    ],
)
def test_source_specs(spec: str, expected: Source) -> None:
    assert parse_source(spec) == expected


def test_a_path_that_exists_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:text", "b=2", "c:d=3"):
        Path(name).write_text("x")
    assert parse_source("a:text") == Source("a:text")
    assert parse_source("a:text:text=2") == Source("a:text", "text", 2.0)
    assert parse_source("b=2=0.5") == Source("b=2", "auto", 0.5)
    assert parse_source("c:d=3") == Source("c:d=3")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("a.jsonl:alpacca", "got format 'alpacca'; expected one of auto, alpaca, .* Did you mean alpaca"),
        ("a.jsonl=half", "got proportion 'half'; expected a number above 0"),
        ("a.jsonl=0", "got proportion 0; expected a finite number above 0"),
        ("a.jsonl=nan", "got proportion nan"),
        ("a.jsonl=", "got proportion ''"),
        ("", "got an empty name"),
    ],
)
def test_source_specs_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_source(spec)


def test_names_differ_and_no_path_comes_twice() -> None:
    assert [s.name for s in parse_sources(["a/x.jsonl", "b/x.jsonl", "y.txt"])] == ["a/x.jsonl", "b/x.jsonl", "y"]
    with pytest.raises(ConfigError, match=r"got a/x\.jsonl 2 times"):
        parse_sources(["a/x.jsonl", "a/x.jsonl=2"])


def test_the_format_is_the_sources_own_else_the_default(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**PAIR, "text": "t"}) + "\n")
    assert [type(e) for e in examples(path)] == [Chat]
    assert [type(e) for e in examples(path, default_format="text")] == [Text]
    assert [type(e) for e in examples(f"{path}:completion", default_format="text")] == [Completion]
    with pytest.raises(ConfigError, match="got format 'txt'"):
        read(Source(str(path), default_format="txt"))
    (tmp_path / "b.md").write_text("one")
    assert [e.text for e in examples(f"{tmp_path}/b.md:text")] == ["one"]
    (tmp_path / "c.txt").write_text("one")
    with pytest.raises(ConfigError, match="got format alpaca for a file of plain text"):
        examples(f"{tmp_path}/c.txt:alpaca")


def test_the_format_is_decided_once_by_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [{"id": 1}, {"text": "t"}, PAIR, PAIR, *[{"text": "t"}] * 30]
    path.write_text("{\n" + "\n".join(map(json.dumps, rows)))
    got = examples(path)
    assert isinstance(got[0], RowError) and got[0].reason == "broken JSON"
    assert isinstance(got[1], RowError) and got[1].where.endswith(":2")
    assert [type(e).__name__ for e in got[2:5]] == ["Text", "RowError", "RowError"]
    assert all(isinstance(e, Text) for e in got[5:]) and len(got) == 35
    path.write_text("\n".join(map(json.dumps, [{"text": "t"}, PAIR, PAIR])))
    assert [type(e).__name__ for e in examples(path)] == ["RowError", "Chat", "Chat"]


# ----------------------------------------------------------------------------------------------------------- data sets


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
