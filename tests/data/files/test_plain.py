"""Plain text: where files and long lines are cut."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import espalier.data.files.plain as plain
from containers import examples
from espalier.errors import DataError


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
